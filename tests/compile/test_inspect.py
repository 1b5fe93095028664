"""What the ELF reader says of real cubins of both compilers, against NVIDIA's own tools."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest
from cuda.core import Program, ProgramOptions

from dsv4_aot.generator.cuda_elf import read_elf
from dsv4_aot.generator.inspect import inspect_cubin, sass
from dsv4_aot.generator.toolchain import tool_path
from dsv4_aot.runtime.abi import Slot, lay_out
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.target import Target

TARGETS = ("sm_90a", "sm_100a", "sm_100f", "sm_103a", "sm_120a")
CUDA = r"""
extern "C" __global__ void __launch_bounds__(256)
mixed(const float* x, int n, long long s, float* y, unsigned m, double d, float f) {
  __shared__ float shared[256];
  extern __shared__ float dynamic[];
  int i = blockIdx.x * 256 + threadIdx.x;
  shared[threadIdx.x] = x[i * s];
  __syncthreads();
  dynamic[threadIdx.x] = shared[255 - threadIdx.x];
  __syncthreads();
  if (i < n) y[i] = dynamic[(threadIdx.x * m) & 255] * f + (float)d;
}
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(const float* x, float* y, int n) {
  float r[96];
  #pragma unroll
  for (int k = 0; k < 96; k++) r[k] = x[threadIdx.x + k * 1024];
  for (int j = 0; j < n; j++) {
    #pragma unroll
    for (int k = 0; k < 96; k++) r[k] = r[k] * r[(k + 7) % 96] + 1.f;
  }
  #pragma unroll
  for (int k = 0; k < 96; k++) y[threadIdx.x + k * 1024] = r[k];
}
extern "C" __global__ void indexed(const float* x, float* y, int n) {
  float r[64];
  for (int k = 0; k < 64; k++) r[k] = x[threadIdx.x + k];
  for (int j = 0; j < n; j++) r[(j * 7) % 64] += r[(j * n) % 64];
  y[threadIdx.x] = r[n & 63];
}
extern "C" __global__ void nothing() {}
struct Small { int a; short b; char c; };
extern "C" __global__ void packed(Small s, float* p, char c, short h) { p[0] = s.a + s.b + c + h; }
struct Huge { char c[20000]; };
extern "C" __global__ void huge(const __grid_constant__ Huge s, float* p, int n) { p[n] = s.c[n]; }
extern "C" __global__ void __cluster_dims__(2, 1, 1) clustered(float* p) { p[0] = 1; }
extern "C" __global__ void __launch_bounds__(1024) wide(float* p) { p[threadIdx.x] = 1; }
"""


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return Target.parse(request.param)


@pytest.fixture(scope="module")
def cuda(target: Target) -> bytes:
    return bytes(Program(CUDA, "c++", ProgramOptions(arch=str(target))).compile("cubin").code)


@pytest.fixture(scope="module")
def cute(target: Target, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    module = runpy.run_path(str(Path(__file__).with_name("cute_kernel.py")))
    return bytes(module["compile_for"](str(target), str(tmp_path_factory.mktemp("cute"))))


def resource_usage(cubin: bytes, folder: Path) -> dict[str, dict[str, int]]:
    """NVIDIA's own reading: registers, stack, static shared with the reserved KiB, local."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    run = subprocess.run(
        [tool_path("cuobjdump"), "-res-usage", path], capture_output=True, text=True, check=True
    )
    found = re.findall(r"Function (\w+):\s+(.*)", run.stdout)
    return {
        name: {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
        for name, line in found
    }


def test_resources_are_those_that_cuobjdump_reads(cuda: bytes, tmp_path: Path) -> None:
    usage = resource_usage(cuda, tmp_path)
    assert len(usage) == 8
    for entry, used in usage.items():
        resources = inspect_cubin(cuda, entry).resources
        assert resources.registers == used["REG"]
        assert resources.stack == used["STACK"]
        assert resources.local == used["LOCAL"]
        assert resources.shared == used["SHARED"] - 1024
        assert resources.code > 0


def test_target(cuda: bytes, cute: bytes, target: Target) -> None:
    for cubin, entry in ((cuda, "mixed"), (cute, "sample_0")):
        facts = inspect_cubin(cubin, entry)
        assert (facts.sm, facts.tool_arch) == (target.sm, str(target))


def test_parameters_of_nvrtc(cuda: bytes) -> None:
    mixed = inspect_cubin(cuda, "mixed").slots
    assert mixed == lay_out(("pointer", "i32", "i64", "pointer", "u32", "f64", "f32"))
    assert inspect_cubin(cuda, "nothing").slots == ()
    assert inspect_cubin(cuda, "packed").slots == (Slot(0, 8), Slot(8, 8), Slot(16, 1), Slot(18, 2))
    assert inspect_cubin(cuda, "huge").slots == (Slot(0, 20000), Slot(20000, 8), Slot(20008, 4))


def test_parameters_of_the_cute_dsl(cute: bytes) -> None:
    facts = inspect_cubin(cute, "sample_0")
    assert facts.slots == lay_out(("pointer", "i32", "i64", "f32", "pointer"))
    assert facts.block == (128, 1, 1)
    assert facts.resources.shared == 0  # the DSL's shared memory is dynamic


def test_launch_bounds(cuda: bytes) -> None:
    assert inspect_cubin(cuda, "mixed").max_threads == 256
    assert inspect_cubin(cuda, "mixed").resources.shared == 1024
    assert inspect_cubin(cuda, "clustered").cluster == (2, 1, 1)
    assert inspect_cubin(cuda, "nothing").cluster is None


def test_spills_are_the_local_accesses_of_the_disassembly(cuda: bytes) -> None:
    """Also that a kernel without a stack has none, for which nothing is disassembled."""
    counted: dict[str, int] = {}
    section = ""
    for line in sass(cuda).splitlines():
        header = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        section = header[1] if header else section
        counted[section] = counted.get(section, 0) + bool(re.search(r"\s(LDL|STL)[. ]", line))
    for entry in read_elf(cuda).kernels:
        resources = inspect_cubin(cuda, entry).resources
        assert resources.spills == counted[entry], entry
        assert bool(resources.spills) == bool(resources.stack)
    assert counted["spilling"] > 100
    assert counted["indexed"] > 10


@pytest.mark.parametrize("end", [0, 63, 64, 1000, -1])
def test_truncated(cute: bytes, end: int) -> None:
    with pytest.raises(BuildError):
        inspect_cubin(cute[:end], "sample_0")
