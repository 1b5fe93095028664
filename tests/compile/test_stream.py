"""The streaming kernel that benchmarks compare with: it moves every byte, sixteen at a time."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_aot.generator.toolchain import tool_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def stream() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("stream")


@given(config=st.integers(0, 11), read=st.integers(0, 1 << 40), write=st.integers(1, 1 << 40))
def test_the_tiles_cover_both_sides(stream: Any, config: int, read: int, write: int) -> None:
    plan = stream.Plan.of(stream.CONFIGS[config], read, write)
    reads, writes = plan.tile
    loads, stores = plan.unrolled
    assert 16 * reads * plan.tiles >= read
    assert 16 * writes * plan.tiles >= write
    assert loads * plan.config.threads >= reads
    assert stores * plan.config.threads >= writes
    assert max(loads, stores) <= plan.config.vectors + 1


@pytest.mark.parametrize(("reads", "writes"), [(3, 4), (4, 3), (1, 0)])
def test_all_accesses_are_sixteen_bytes(
    stream: Any, reads: int, writes: int, tmp_path: Path
) -> None:
    program = stream.compiled("90a", stream.CONFIGS[7], reads, writes)
    (tmp_path / "stream.cubin").write_bytes(program.code)
    command = [tool_path("nvdisasm"), "-c", tmp_path / "stream.cubin"]
    sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loads = re.findall(r"\bLDG\.(\S+)", sass)
    stores = re.findall(r"\bSTG\.(\S+)", sass)
    assert len(loads) == reads
    assert len(stores) == writes + 1  # one that keeps the loads of a case without writes alive
    assert all(".128" in access for access in loads + stores)
