"""What a validation runs, and what it puts on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.generator.records import ValidationRecord
from dsv4_aot.generator.spec import Case
from dsv4_aot.generator.trial import Outcome
from dsv4_aot.generator.validate import Tried, merge, try_case
from dsv4_aot.runtime.errors import ArgumentError

A, B, C, OLD = (letter * 64 for letter in "abcd")
CPU = torch.device("cpu")


def tried(sha256: str, case: str, *, passed: bool = True, worst: float = 0.0) -> Tried:
    return Tried("copy", "copy/n=1", sha256, Outcome(case, {}, worst, passed, ""))


def on_record(sha256: str) -> ValidationRecord:
    return ValidationRecord(
        sha256=sha256, key="copy/sm_90a/n=1", cases=1, worst=0.0, date="2026-01-01", driver="1.0"
    )


def merged(earlier: list[ValidationRecord], *events: Tried) -> dict[str, ValidationRecord]:
    installed = {A: "copy/sm_90a/n=1", B: "copy/sm_90a/n=2", C: "copy/sm_90a/n=3"}
    records = merge(earlier, events, installed, date="2026-11-20", driver="2.0")
    return {record.sha256: record for record in records}


def test_a_cubin_is_recorded_when_all_its_cases_passed() -> None:
    records = merged([], tried(A, "one", worst=0.1), tried(A, "two", worst=0.3), tried(A, "two"))
    assert records == {
        A: ValidationRecord(
            sha256=A, key="copy/sm_90a/n=1", cases=2, worst=0.3, date="2026-11-20", driver="2.0"
        )
    }


def test_one_failed_case_takes_the_record_away() -> None:
    assert merged([on_record(A)], tried(A, "one"), tried(A, "two", passed=False)) == {}


def test_other_cubins_stay_on_record_while_they_are_installed() -> None:
    records = merged([on_record(B), on_record(OLD)], tried(A, "one"))
    assert set(records) == {A, B}
    assert records[B].date == "2026-01-01"


def test_a_cubin_that_is_not_installed_is_not_recorded() -> None:
    assert merged([], tried(OLD, "one"), tried("", "two", passed=False)) == {}


# Which entries a case runs ------------------------------------------------------------------------


class Built(NamedTuple):
    choices: dict[str, Any]
    sha256: str


ENTRIES = (
    Built({"dtype": "f32", "stages": 2}, A),
    Built({"dtype": "f32", "stages": 4}, B),
    Built({"dtype": "f32", "stages": 8}, C),
)


class CpuKernel:
    """A kernel on the CPU that chooses between three entries; stages 8 computes nonsense."""

    def __init__(self, choices: dict[str, Any] | None) -> None:
        self.stages = 4 if choices is None else choices["stages"]

    def candidates(self, **_: Any) -> tuple[Built, ...]:
        return ENTRIES

    def select(self, **_: Any) -> Built:
        return ENTRIES[1]

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        if self.stages == 2:
            raise ArgumentError("x is too small for two stages")
        out.copy_(x if self.stages == 4 else x + 1)


class CpuLibrary:
    def op(self, name: str, *, choices: dict[str, Any] | None = None) -> CpuKernel:
        assert name == "copy"
        return CpuKernel(choices)


KERNEL = """
from dsv4_aot.generator.spec import *

KERNEL = KernelSpec(
    name="copy",
    summary="out = x",
    arguments=(tensor("x", "float32", (None,)), tensor("out", "float32", (None,), access="write")),
    axes=(bound("dtype", {"f32": "float32"}, by=dtype_of("x")), tuned("stages", (2, 4, 8))),
    params=(),
    launch=lambda choices: launch((1,), 32),
    source=CudaSource("copy"),
    rules=(rule(stages=4),),
)
"""


@pytest.fixture
def folder(tmp_path: Path) -> KernelFolder:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "kernel.py").write_text(KERNEL)
    (tmp_path / "copy" / "reference.py").write_text("def reference(x, out):\n    out.copy_(x)\n")
    return discover(tmp_path)["copy"]


def make(device: torch.device, seed: int) -> dict[str, Any]:
    x = torch.arange(8.0, device=device) + seed
    return {"x": x, "out": torch.full_like(x, -777.0)}


def test_a_case_runs_the_dispatched_entry_and_every_other(folder: KernelFolder) -> None:
    library: Any = CpuLibrary()
    events = [e for e in try_case(library, folder, Case("ramp", make), CPU) if isinstance(e, Tried)]
    assert [(e.sha256, e.key, e.outcome.passed) for e in events] == [
        (B, "copy/dtype=f32,stages=4", True),
        (A, "copy/dtype=f32,stages=2", False),
        (C, "copy/dtype=f32,stages=8", False),
    ]
    assert events[1].outcome.message == "x is too small for two stages"
    assert events[2].outcome.message.startswith("out[0] is 1.0 (0x3f800000), expected 0.0")


def test_a_call_that_no_entry_serves_is_a_failure(folder: KernelFolder) -> None:
    class Refusing(CpuKernel):
        def select(self, **_: Any) -> Built:
            raise ArgumentError("x is bfloat16, float32 is built")

    library: Any = CpuLibrary()
    library.op = lambda name, choices=None: Refusing(choices)
    (event,) = try_case(library, folder, Case("ramp", make), CPU)
    assert isinstance(event, Tried)
    assert not event.outcome.passed
    assert event.outcome.message == "x is bfloat16, float32 is built"
