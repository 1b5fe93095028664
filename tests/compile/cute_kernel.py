"""A CuTe DSL kernel with parameters of mixed sizes, for test_inspect.

A file of its own, because the DSL reads annotations as objects and source from files.
"""

import cutlass
from cutlass import Float32, Int32, Int64, cute
from cutlass.cute.runtime import make_ptr


@cute.kernel
def body(p: cute.Pointer, n: Int32, s: Int64, f: Float32, q: cute.Pointer):
    thread, _, _ = cute.arch.thread_idx()
    shared = cutlass.memory.SmemAllocator().allocate_tensor(Float32, cute.make_layout(512), 16)
    source = cute.make_tensor(p, cute.make_layout(1 << 30))
    result = cute.make_tensor(q, cute.make_layout(1 << 30))
    shared[thread] = source[thread * s]
    cute.arch.sync_threads()
    if thread < n:
        result[thread] = shared[127 - thread] + f


body.set_name_prefix("sample", remove_cutlass_symbol=True, keep_mangled_name=False)


@cute.jit
def host(p: cute.Pointer, n: Int32, s: Int64, f: Float32, q: cute.Pointer):
    body(p, n, s, f, q).launch(grid=[1, 1, 1], block=[128, 1, 1])


def compile_for(target: str, scratch: str) -> bytes:
    pointer = make_ptr(Float32, 0, cute.AddressSpace.gmem, assumed_align=16)
    options = f"--gpu-arch {target} --keep-cubin --dump-dir {scratch}"
    compiled = cute.compile(host, pointer, Int32(1), Int64(1), Float32(1), pointer, options=options)
    return bytes(compiled.__cubin__)
