"""A small CuTe DSL kernel for the tests of the build."""

from dsv4_aot.generator.spec import (
    CuteSource,
    KernelSpec,
    bound,
    launch,
    number,
    pointer,
    rule,
    scalar,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import cdiv, numel, size, value

THREADS = 128

KERNEL = KernelSpec(
    name="tiny_cute",
    summary="adds one, through shared memory or not",
    arguments=[
        tensor("out", "float32", [None], access="readwrite"),
        scalar("staged", "bool", default=False),
    ],
    axes=[bound("staged", [False, True], value("staged")), tuned("threads", [THREADS])],
    rules=[rule(threads=THREADS)],
    params=[pointer("out"), number("n", "i32", numel("out"))],
    launch=lambda choices: launch(
        [cdiv(size("out", 0), THREADS)], THREADS, shared=4 * THREADS if choices["staged"] else 0
    ),
    source=CuteSource(entry="tiny_cute_0"),
)
