"""A kernel of the tests' own, compiled by NVRTC for the device at hand: no build is needed."""

from __future__ import annotations

from typing import Any

from dsv4_aot.generator import spec
from dsv4_aot.runtime.expr import cdiv, numel, value

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"shared": 200 << 10},
    "cluster": {"cluster": 2},
    "wide_cluster": {"cluster": 16},
    "programmatic": {"programmatic": True},
}
"""Launch geometry of each choice: what has to be opted in, or stands in an attribute."""


def blocks(kind: str) -> Any:
    cluster = KINDS[kind].get("cluster", 1)
    return cdiv(numel("out"), 128 * cluster) * cluster


PROBE = spec.KernelSpec(
    name="probe",
    summary="out[i] = value + i + cluster size, by way of shared memory where there is any",
    arguments=(
        spec.tensor("out", "int32", (None,), contiguous=True, access="write"),
        spec.scalar("value", "int", default=5),
    ),
    axes=(spec.tuned("kind", tuple(KINDS)),),
    rules=(spec.rule(kind="plain"),),
    params=(
        spec.pointer("out"),
        spec.number("value", "i32", value("value")),
        spec.number("count", "i64", numel("out")),
        spec.number("shared", "i32", 0),
    ),
    launch=lambda choices: spec.launch((blocks(choices["kind"]),), 128, **KINDS[choices["kind"]]),
    source=spec.CudaSource(entry="probe"),
)
SOURCE = """
extern "C" __global__ void probe(int* out, int value, long long count, int) {
  extern __shared__ int scratch[];
  unsigned cluster, bytes;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(cluster));
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  if (bytes) {
    volatile int* last = scratch + bytes / 4 - 128;
    last[threadIdx.x] = value;
    value = last[threadIdx.x];
  }
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < count) out[i] = value + (int)i + cluster;
}
"""


def nvrtc_cubin(target: str) -> bytes:
    from cuda.bindings import nvrtc

    def call(name: str, *args: Any) -> Any:
        status, *results = getattr(nvrtc, name)(*args)
        assert int(status) == 0, f"{name}: {status}"
        return results[0] if results else None

    program = call("nvrtcCreateProgram", SOURCE.encode(), b"probe.cu", 0, None, None)
    call("nvrtcCompileProgram", program, 1, [f"--gpu-architecture={target}".encode()])
    cubin = bytearray(call("nvrtcGetCUBINSize", program))
    call("nvrtcGetCUBIN", program, cubin)
    return bytes(cubin)
