"""Two small kernels, one for each compiler, in a folder of their own that a test may edit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsv4_aot.generator.compile import Compiled, compile_source
from dsv4_aot.generator.discover import discover
from dsv4_aot.generator.expand import Variant, expand
from dsv4_aot.generator.render import render
from dsv4_aot.runtime.target import Target


@dataclass
class Tiny:
    """The templates of ``tiny_cuda`` and ``tiny_cute`` under ``root``."""

    root: Path

    def variants(self, *targets: str) -> dict[str, Variant]:
        """By key, as the templates are now."""
        return {
            variant.key: variant
            for folder in discover(self.root).values()
            for target in targets
            for variant in expand(folder, Target.parse(target))
        }

    def compiled(self, key: str) -> Compiled:
        variant = self.variants(key.split("/")[1])[key]
        return compile_source(render(variant), variant.target)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    ignored = shutil.ignore_patterns("__pycache__")
    source = Path(__file__).parent / "templates"
    return Tiny(Path(shutil.copytree(source, tmp_path / "templates", ignore=ignored)))
