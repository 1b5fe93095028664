"""Kernel time: a CUDA graph of many launches over rotated inputs that exceed the L2 cache."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dsv4_aot.generator.trial import clone, storage_bytes, tensors_of

Launch = Callable[[], object]

ROTATED_BYTES = 256 << 20
"""Least bytes that one rotation touches: four times the largest L2 there is."""
MAX_SETS = 512
MEMORY_SHARE = 0.4  # of the free device memory, for all sets of one case
REPLAYS = 7
WARM_REPLAYS = 3
GRAPH_MICROSECONDS = 1500.0
"""Least time of one replay, beside which the launch of the graph itself does not count."""
MAX_LAUNCHES = 2000


def graph_time(launches: Sequence[Launch], least_us: float) -> float:
    """Microseconds a launch, median of several replays of one graph.

    launches: one for each input set; they are repeated in order to fill the graph.
    least_us: a lower bound of one launch's time, from which the graph's length follows.
    """
    wanted = min(MAX_LAUNCHES, round(GRAPH_MICROSECONDS / max(least_us, 0.5)))
    count = max(len(launches), wanted)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for launch in launches:  # whatever is loaded or compiled on first use is not captured
            launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for launch in itertools.islice(itertools.cycle(launches), count):
                launch()
        for _ in range(WARM_REPLAYS):
            graph.replay()
        times: list[float] = []
        for _ in range(REPLAYS):
            start, end = _event(), _event()
            start.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / count)
    graph.reset()
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def least_time(touched: int) -> float:
    """Microseconds under which no H200-class memory moves ``touched`` bytes; at least 1."""
    return max(1.0, touched / 5e6)


def input_sets(arguments: Mapping[str, Any], touched: int) -> list[dict[str, Any]]:
    """Copies of one call's arguments on enough memory that a rotation exceeds the L2 cache.

    touched: bytes that one call reads and writes, of which its tensors may hold more.
    """
    storages = {t.untyped_storage().data_ptr(): t for t in tensors_of(arguments).values()}
    held = sum(storage_bytes(tensor).numel() for tensor in storages.values())
    free, _ = torch.cuda.mem_get_info()
    fit = int(MEMORY_SHARE * free) // max(held, 1)
    wanted = max(2, -(-ROTATED_BYTES // max(touched, 1)))
    return [dict(arguments)] + [clone(arguments) for _ in range(min(wanted, fit, MAX_SETS) - 1)]
