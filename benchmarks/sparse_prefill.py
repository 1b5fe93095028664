"""What a sparse-prefill plan costs the host, on top of its launches.

    python benchmarks/sparse_prefill.py [--device cpu] [--out FILE]

A chunk of 64 requests is planned, and steps of its layers are made, with a launch that does
nothing: what is left is the plan's own work, its allocations and its copies to the GPU. Needs
neither kernels nor, with ``--device cpu``, a GPU. Writes
``benchmarks/results/sparse_prefill.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dsv4_aot.integrations.sparse_prefill import (
    KCache,
    SparsePrefillPlan,
    SparsePrefillWorkspace,
    TokenWindows,
)

ROOT = Path(__file__).resolve().parent.parent
REQUESTS, NEW_TOKENS, LONGEST = 64, 256, 8192
PAGE = 256
"""Tokens of a logical page."""
BATCH, ROUNDS = 20, 40


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    report = {
        "us": measure(Chunk(device), torch.cuda.synchronize if gpu else lambda: None),
        "requests": REQUESTS,
        "new_tokens": NEW_TOKENS,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    out = ROOT / "benchmarks" / "results" / "sparse_prefill.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args(argv)


class Chunk:
    """Requests of mixed lengths, with what a server would have at hand for them."""

    def __init__(self, device: torch.device) -> None:
        self.seq_lens = [NEW_TOKENS + r * (LONGEST - NEW_TOKENS) // 63 for r in range(REQUESTS)]
        self.extend_lens = [NEW_TOKENS] * REQUESTS
        rows, entries = REQUESTS * NEW_TOKENS, LONGEST // PAGE

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        pool, full_to_swa = (zeros(count, dtype=torch.int64) for count in (REQUESTS, 1))
        self.windows = TokenWindows(pool, zeros(REQUESTS, LONGEST), full_to_swa)
        self.query_pos, self.page_table = zeros(rows), zeros(rows, entries)
        self.page_indices, self.topk_indices = zeros(rows, 2 * entries), zeros(rows, 512)
        self.caches = {
            page: KCache(zeros(2, page * 584, dtype=torch.uint8), page) for page in (2, 64, PAGE)
        }
        self.workspace = SparsePrefillWorkspace(device)
        self.steps = self.plan(self.query_pos)

    def plan(self, query_pos: torch.Tensor | None) -> SparsePrefillPlan:
        """For layers of the ratios 0, 4 and 128."""
        plan = SparsePrefillPlan(
            self.workspace, self.seq_lens, self.extend_lens, self.windows, query_pos=query_pos,
            compress_ratios=(4, 128), launch=nothing,
        )  # fmt: skip
        plan.ensure_compressed(4, self.page_table, 64)
        plan.ensure_c128(self.page_indices)
        return plan

    def step(self, ratio: int) -> object:
        window, caches = self.caches[PAGE], self.caches
        if ratio == 0:
            return self.steps.step(window)
        if ratio == 4:
            return self.steps.step(window, 4, caches[64], self.topk_indices)
        return self.steps.step(window, 128, caches[2])


def nothing(name: str, *args: Any, **kwargs: Any) -> None:
    """A launch that costs next to nothing."""


def measure(chunk: Chunk, wait: Callable[[], None]) -> dict[str, float]:
    """Microseconds: the median of rounds in which every piece of work has its turn."""
    work: dict[str, Callable[[], object]] = {
        "plan": lambda: chunk.plan(None),
        "plan_given_positions": lambda: chunk.plan(chunk.query_pos),
        **{f"step_{ratio}": lambda ratio=ratio: chunk.step(ratio) for ratio in (0, 4, 128)},
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, call in work.items():
            start = time.perf_counter_ns()
            for _ in range(BATCH):
                call()
            times[name].append((time.perf_counter_ns() - start) / BATCH / 1e3)
            wait()
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


if __name__ == "__main__":
    raise SystemExit(main())
