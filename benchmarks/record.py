"""One timed case, how it is printed, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv4_aot.generator.publish import write_file
from dsv4_aot.runtime.schema import Choice, choices_text


@dataclasses.dataclass(frozen=True)
class Record:
    """One timed case. us: a launch. bytes, flops: the least it needs. efficiency: of the stream.

    plain_us: the same cubin launched without programmatic serialization, as stream and peers are.
    dispatched: whether a plain call runs this entry. peer_us: other implementations, same inputs.
    tflops, matmul_tflops: of kernels that compute, and of a matrix product in the same run; records
        from before there were such kernels lack both.
    """

    kernel: str
    case: str
    choices: Mapping[str, Choice]
    dispatched: bool
    us: float
    plain_us: float
    bytes: int
    flops: int
    gbps: float
    stream_us: float
    efficiency: float
    peer_us: Mapping[str, float]
    cubin_sha256: str
    device: str
    driver: str
    commit: str
    tflops: float | None = None
    matmul_tflops: float | None = None


_COLUMNS = f"{'us':>9} {'plain us':>9} {'GB/s':>7} {'stream us':>9} {'of it':>6}"
HEADER = f"{'kernel':16} {'case':30} {_COLUMNS} {'TFLOPS':>6} {'of mm':>6}  choices, peers"


def line(record: Record) -> str:
    peers = "".join(f"; {name} {us:.2f} us" for name, us in record.peer_us.items())
    return (
        f"{record.kernel:16} {record.case:30} {record.us:9.2f} "
        f"{record.plain_us:9.2f} {record.gbps:7.0f} "
        f"{record.stream_us:9.2f} {record.efficiency:6.1%} {_computing(record)} "
        f"{'*' if record.dispatched else ' '}{choices_text(dict(record.choices))}{peers}"
    )


def _computing(record: Record) -> str:
    """TFLOPS, and their share of the matrix product's, where the case has FLOPs."""
    if record.tflops is None or record.matmul_tflops is None:
        return f"{'':6} {'':6}"
    return f"{record.tflops:6.0f} {record.tflops / record.matmul_tflops:6.1%}"


def write_results(path: Path, records: Sequence[Record]) -> None:
    """Replaces the timed cases and keeps the others."""
    timed = {(record.kernel, record.case) for record in records}
    kept = [
        record
        for record in (json.loads(path.read_text()) if path.exists() else [])
        if (record["kernel"], record["case"]) not in timed
    ]
    write_file(path, to_json(kept, records))


def to_json(kept: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> bytes:
    rows = [*kept, *map(dataclasses.asdict, records)]
    rows.sort(key=lambda row: row["kernel"])
    return (json.dumps(rows, indent=1) + "\n").encode()
