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
    """Microseconds a launch, median of several replays of one graph; as ``graph_times``."""
    return graph_times({"": launches}, least_us)[""]


def graph_times(candidates: Mapping[str, Sequence[Launch]], least_us: float) -> dict[str, float]:
    """Microseconds a launch of each candidate, medians of several replays of a graph of each.

    Candidates take turns: what comes first on a GPU that has rested finds a higher clock.

    candidates: launches, one for each input set; they are repeated in order to fill a graph.
    least_us: a lower bound of one launch's time, from which a graph's length follows.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    wanted = min(MAX_LAUNCHES, round(GRAPH_MICROSECONDS / max(least_us, 0.5)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.cuda.stream(stream):
        counts = {name: max(len(launches), wanted) for name, launches in candidates.items()}
        graphs = {
            name: _captured(launches, counts[name], stream) for name, launches in candidates.items()
        }
        for turn in range(-WARM_REPLAYS, REPLAYS):
            for name, graph in list(graphs.items())[:: 1 if turn % 2 else -1]:
                start, end = _event(), _event()
                start.record(stream)
                graph.replay()
                end.record(stream)
                end.synchronize()
                if turn >= 0:
                    times[name].append(start.elapsed_time(end) * 1e3 / counts[name])
    for graph in graphs.values():
        graph.reset()
    return {name: statistics.median(each) for name, each in times.items()}


def _captured(
    launches: Sequence[Launch], count: int, stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    for launch in launches:  # whatever is loaded or compiled on first use is not captured
        launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for launch in itertools.islice(itertools.cycle(launches), count):
            launch()
    return graph


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
