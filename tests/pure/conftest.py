"""What the tests of the library share: an artifact of one kernel, written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.artifact import gather_cubins, write_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "build" / "sm_90a", list(gather_cubins()))
