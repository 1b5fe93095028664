"""CUDA C++ becomes a cubin that knows nothing of the machine it was made on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.compile import Compiled, compile_source
from dsv4_aot.generator.inspect import inspect_cubin
from dsv4_aot.generator.render import render
from dsv4_aot.runtime.errors import CompileError
from dsv4_aot.runtime.target import Target

if TYPE_CHECKING:
    from conftest import Tiny

KEY = "tiny_cuda/{}/shifted=true,threads=64"


def compiled(tiny: Tiny, target: str = "sm_90a") -> Compiled:
    return tiny.compiled(KEY.format(target))


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a", "sm_100f", "sm_103a", "sm_120a"])
def test_compiles_for_every_target(tiny: Tiny, target: str) -> None:
    made = compiled(tiny, target)
    facts = inspect_cubin(made.cubin, "tiny_cuda")
    assert facts.sm == Target.parse(target).sm
    assert [(slot.offset, slot.size) for slot in facts.slots] == [(0, 8), (8, 8), (16, 4)]
    assert made.ptx is not None
    assert f".target {target}" in made.ptx
    assert made.shared is None


def test_file_names_in_the_cubin_are_relative(tiny: Tiny, tmp_path: Path) -> None:
    """The kernel stores ``__FILE__``."""
    cubin = compiled(tiny).cubin
    assert b"tiny_cuda.cu\0" in cubin
    assert str(tmp_path).encode() not in cubin
    assert b"/tmp" not in cubin


def test_compiler_log_is_kept(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.edit("tiny_cuda/kernel.cu.j2", "int i =", "int unused; int i =")
    assert 'variable "unused" was declared but never referenced' in compiled(tiny).log
    assert capfd.readouterr() == ("", "")


def test_error_carries_the_log_without_places(tiny: Tiny, tmp_path: Path) -> None:
    tiny.edit("_shared/tiny.cuh", "value + 1.0f;", "value + nothing;")
    with pytest.raises(CompileError, match='identifier "nothing" is undefined') as caught:
        compiled(tiny)
    assert "_shared/tiny.cuh(3): error" in caught.value.log
    assert str(tmp_path) not in caught.value.log
    assert "/tmp" not in caught.value.log


def test_headers_beside_the_toolkit_are_out_of_reach(tiny: Tiny) -> None:
    """nvrtc.h lies in the same folder, but in a package that says nothing of headers."""
    tiny.edit("tiny_cuda/kernel.cu.j2", '#include "tiny.cuh"', "#include <nvrtc.h>")
    with pytest.raises(CompileError, match="cannot open source file"):
        compiled(tiny)


def test_toolkit_and_cccl_headers_are_there(tiny: Tiny) -> None:
    tiny.edit(
        "tiny_cuda/kernel.cu.j2",
        '#include "tiny.cuh"',
        '#include <cuda_fp16.h>\n#include <cuda/std/cstdint>\n#include "tiny.cuh"',
    )
    assert compiled(tiny).cubin


def test_unknown_target_is_refused(tiny: Tiny) -> None:
    variant = tiny.variants("sm_90a")[KEY.format("sm_90a")]
    with pytest.raises(CompileError, match="the target sm_99a"):
        compile_source(render(variant), Target.parse("sm_99a"))


def test_environment_does_not_reach_the_compiler(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = compiled(tiny).cubin
    for name in ("NVCC_APPEND_FLAGS", "NVRTC_APPEND_FLAGS", "CUDA_HOME"):
        monkeypatch.setenv(name, "-lineinfo")
    assert compiled(tiny).cubin == plain


def test_no_gpu_driver_or_toolkit_is_touched(tiny: Tiny) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from conftest import Tiny\n"
        "Tiny(Path(sys.argv[2])).compiled(sys.argv[3])\n"
        "maps = Path('/proc/self/maps').read_text()\n"
        "assert 'libnvrtc' in maps and 'libcuda.so' not in maps and 'libcudart' not in maps\n"
        "assert not {'torch', 'cutlass'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parent, tiny.root, KEY.format("sm_90a")],
        check=True,
        env={"CUDA_VISIBLE_DEVICES": "0"},
    )
