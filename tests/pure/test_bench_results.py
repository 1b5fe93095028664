"""The results file: timed cases replace their records, the others stay."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("record")


def record(module: Any, kernel: str, case: str, us: float, **more: Any) -> Any:
    return module.Record(
        kernel=kernel, case=case, choices={"n": 1, "wide": True}, dispatched=True, us=us,
        plain_us=us + 1, bytes=1000, flops=0, gbps=round(1 / us, 1), stream_us=us / 2,
        efficiency=0.5, peer_us={"other": 9.0}, cubin_sha256="a" * 64, device="NVIDIA H200",
        driver="1.0", commit="unknown", **more,
    )  # fmt: skip


def test_a_run_of_some_cases_keeps_the_others(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.json"
    module.write_results(path, [record(module, "b", "one", 1.0), record(module, "a", "two", 2.0)])
    module.write_results(path, [record(module, "b", "one", 4.0), record(module, "b", "three", 3.0)])
    rows = json.loads(path.read_text())
    assert [(row["kernel"], row["case"], row["us"]) for row in rows] == [
        ("a", "two", 2.0),
        ("b", "one", 4.0),
        ("b", "three", 3.0),
    ]


def test_a_line_says_what_ran_and_how_far_from_the_limit(module: Any) -> None:
    text = module.line(record(module, "copy", "small", 2.0))
    assert " 2.00      3.00 " in text
    assert " 50.0%               *n=1,wide=true; other 9.00 us" in text
    assert len(text.split("*")[0]) == len(module.HEADER.split("choices")[0]) - 1


def test_a_line_of_a_kernel_that_computes_has_the_matrix_product(module: Any) -> None:
    text = module.line(record(module, "a", "b", 2.0, tflops=600.0, matmul_tflops=800.0))
    assert "    600  75.0% *n=1" in text


def test_records_from_before_kernels_computed_are_kept(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    module.write_results(path, [record(module, "a", "old", 1.0)])
    rows = json.loads(path.read_text())
    for row in rows:
        del row["tflops"], row["matmul_tflops"]
    path.write_text(json.dumps(rows))
    new = record(module, "a", "new", 2.0, tflops=600.0, matmul_tflops=800.0)
    module.write_results(path, [new])
    old, computed = json.loads(path.read_text())
    assert old == rows[0] and "tflops" not in old
    assert (computed["tflops"], computed["matmul_tflops"]) == (600.0, 800.0)
