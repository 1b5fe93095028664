"""A small CUDA C++ kernel for the tests of the build."""

from dsv4_aot.generator.spec import (
    CudaSource,
    KernelSpec,
    bound,
    launch,
    number,
    pointer,
    rule,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import cdiv, numel, present, size

KERNEL = KernelSpec(
    name="tiny_cuda",
    summary="adds one, or doubles",
    arguments=[
        tensor("out", "float32", [None], access="write"),
        tensor("where", "int64", [1], optional=True, access="write"),
    ],
    axes=[bound("shifted", [False, True], present("where")), tuned("threads", [64, 128])],
    rules=[
        rule(where={"shifted": [True]}, when=numel("out") < 64, threads=64),
        rule(threads=128),
    ],
    params=[pointer("out"), pointer("where"), number("n", "i32", numel("out"))],
    launch=lambda choices: launch([cdiv(size("out", 0), choices["threads"])], choices["threads"]),
    source=CudaSource(entry="tiny_cuda"),
)
