"""The limit of a memory-bound kernel: a kernel that only reads and writes as many bytes.

It is compiled when the benchmark runs and tuned for every case: of a dozen configurations the
fastest counts, all of them timed in the same run and in the same way as the kernels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import timing
import torch
from cuda.core import (
    Device,
    Kernel,
    LaunchConfig,
    ObjectCode,
    Program,
    ProgramOptions,
    Stream,
    launch,
)

SOURCE = Path(__file__).with_name("stream.cu")
VECTOR = 16  # bytes of one access
_LINE = 8  # vectors
_ALIGN = 512  # of every slice, in bytes


@dataclass(frozen=True)
class Config:
    """One way to stream.

    vectors: what a thread moves of the larger side in one tile. waves: blocks for each SM, which
    then take tile after tile; None for one block a tile. streaming: hints that nothing is reused.
    """

    threads: int
    vectors: int
    waves: int | None
    streaming: bool


CONFIGS = (
    Config(128, 1, None, streaming=False),
    Config(256, 1, None, streaming=False),
    Config(256, 1, None, streaming=True),
    Config(256, 2, None, streaming=False),
    Config(256, 2, None, streaming=True),
    Config(128, 4, None, streaming=False),
    Config(256, 4, None, streaming=False),
    Config(256, 4, None, streaming=True),
    Config(256, 8, None, streaming=True),
    Config(256, 4, 4, streaming=True),
    Config(256, 4, 8, streaming=True),
    Config(512, 4, 4, streaming=False),
)


@dataclass(frozen=True)
class Plan:
    """The work of one configuration, in vectors.

    A tile has an even share of reads and of writes, in whole cache lines.
    """

    config: Config
    reads: int
    writes: int
    tiles: int

    @classmethod
    def of(cls, config: Config, read: int, write: int) -> Plan:
        """For ``read`` and ``write`` bytes, rounded up to whole vectors."""
        reads, writes = -(-read // VECTOR), -(-write // VECTOR)
        return cls(
            config, reads, writes, -(-max(reads, writes) // (config.threads * config.vectors))
        )

    @property
    def tile(self) -> tuple[int, int]:
        reads, writes = (-(-side // self.tiles) for side in (self.reads, self.writes))
        return -(-reads // _LINE) * _LINE, -(-writes // _LINE) * _LINE

    @property
    def unrolled(self) -> tuple[int, int]:
        """Loads and stores in a thread's straight line; a load at least, since stores need one."""
        reads, writes = self.tile
        return max(1, -(-reads // self.config.threads)), -(-writes // self.config.threads)


def limit(read: int, write: int) -> tuple[float, Config]:
    """Microseconds of the fastest configuration that moves so many bytes, and which it is."""
    if read + write == 0:
        raise ValueError("a case without bytes has no streaming limit")
    sets = max(2, min(timing.MAX_SETS, -(-timing.ROTATED_BYTES // (read + write))))
    source, target = _slices(read, sets), _slices(write, sets)
    least = timing.least_time(read + write)
    times = {}
    for config in CONFIGS:
        run = _launcher(Plan.of(config, read, write))
        launches = [functools.partial(run, *pair) for pair in zip(source, target, strict=True)]
        times[config] = timing.graph_time(launches, least)
    best = min(times, key=lambda config: times[config])
    return times[best], best


def _launcher(plan: Plan) -> functools.partial[None]:
    device = Device(torch.cuda.current_device())
    device.set_current()
    kernel = _kernel(device.arch, plan.config, *plan.unrolled)
    grid = plan.tiles
    if plan.config.waves is not None:
        grid = min(grid, plan.config.waves * device.properties.multiprocessor_count)
    geometry = LaunchConfig(grid=grid, block=plan.config.threads)
    return functools.partial(_launch, kernel, geometry, plan)


def _launch(
    kernel: Kernel, geometry: LaunchConfig, plan: Plan, source: torch.Tensor, target: torch.Tensor
) -> None:
    stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
    counts = (plan.reads, plan.writes, *plan.tile, plan.tiles)
    launch(stream, geometry, kernel, source.data_ptr(), target.data_ptr(), *counts)


@functools.cache
def _kernel(arch: str, config: Config, reads: int, writes: int) -> Kernel:
    return compiled(arch, config, reads, writes).get_kernel("stream")


def compiled(arch: str, config: Config, reads: int, writes: int) -> ObjectCode:
    """The cubin for ``sm_<arch>`` with so many unrolled loads and stores."""
    defines = {
        "THREADS": config.threads,
        "READS": reads,
        "WRITES": writes,
        "STREAMING": int(config.streaming),
    }
    options = ProgramOptions(
        arch=f"sm_{arch}", define_macro=[f"{name}={value}" for name, value in defines.items()]
    )
    return Program(SOURCE.read_text(), "c++", options).compile("cubin")


def _slices(size: int, sets: int) -> list[torch.Tensor]:
    """Random memory for so many sets; they wrap around where the rotation is long enough."""
    step = -(-max(size, VECTOR) // _ALIGN) * _ALIGN
    distinct = max(2, min(sets, -(-timing.ROTATED_BYTES // step)))
    memory = torch.empty(distinct * step, dtype=torch.uint8, device="cuda").random_(0, 256)
    return [memory[index % distinct * step :][:step] for index in range(sets)]
