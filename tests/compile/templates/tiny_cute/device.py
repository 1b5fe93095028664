import cutlass
import cutlass.memory
from cutlass import Float32, Int32, cute
from cutlass.cute.runtime import make_ptr

from .._shared.tiny import BUMP  # noqa: TID252 - the key sees relative imports alone


def build(choices):
    threads, staged = choices["threads"], choices["staged"]

    @cute.kernel
    def kernel(out: cute.Pointer, n: Int32):
        thread, _, _ = cute.arch.thread_idx()
        block, _, _ = cute.arch.block_idx()
        i = block * threads + thread
        values = cute.make_tensor(out, cute.make_layout(1 << 20))
        if cutlass.const_expr(staged):
            stage = cutlass.memory.SmemAllocator().allocate_tensor(
                Float32, cute.make_layout(threads), 16
            )
            stage[thread] = values[i]
            cute.arch.barrier()
            if i < n:
                values[i] = stage[(thread + 1) % threads] + BUMP
        elif i < n:
            values[i] = values[i] + BUMP

    kernel.set_name_prefix("tiny_cute", remove_cutlass_symbol=True, keep_mangled_name=False)

    @cute.jit
    def host(out: cute.Pointer, n: Int32):
        kernel(out, n).launch(grid=[1, 1, 1], block=[threads, 1, 1])

    out = make_ptr(Float32, 0, cute.AddressSpace.gmem, assumed_align=16)
    return host, (out, Int32(1))
