"""Bandwidth of every timed case beside its streaming limit, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]

if TYPE_CHECKING:
    from record import Record


def draw(records: Sequence[Record], path: Path) -> None:
    """One panel a kernel, one pair of bars a case. The file's ending chooses the format."""
    kernels = sorted({record.kernel for record in records})
    heights = [sum(record.kernel == kernel for record in records) for kernel in kernels]
    figure = Figure(figsize=(9, 1 + 0.32 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(kernels), squeeze=False, height_ratios=heights)
    for panel, kernel in zip(panels[:, 0], kernels, strict=True):
        rows = [record for record in records if record.kernel == kernel and record.dispatched]
        places = range(len(rows))
        panel.barh(places, [r.bytes / r.stream_us / 1e3 for r in rows], color="0.85", label="limit")
        panel.barh(places, [r.gbps for r in rows], height=0.45, label=kernel)
        panel.set_yticks(places, [r.case for r in rows])
        panel.invert_yaxis()
        panel.set_xlabel("GB/s")
        panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
