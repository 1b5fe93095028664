"""Sources hold everything a compiler will read, and nothing of where it lay."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dsv4_aot.generator.discover import KernelFolder
from dsv4_aot.generator.expand import Variant
from dsv4_aot.generator.render import Source, render
from dsv4_aot.generator.spec import CudaSource, CuteSource, KernelSpec, SourceSpec, launch
from dsv4_aot.runtime.errors import SpecError
from dsv4_aot.runtime.target import Target

CUDA = """\
#include <cuda_fp16.h>
#include "own.cuh"
{% if wide %}
#include "ring.cuh"
{% endif %}
constexpr bool wide = {{ wide }};
constexpr int threads = {{ threads }}, unroll = {{ unroll }};
"""
CUTE = """\
import math
from cutlass import cute
from . import layout
from .._shared.ring import Ring

def build(choices):
    from .late import Late
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "_shared/ring.cuh": '#pragma once\n#include "detail/slot.cuh"\n',
        "_shared/detail/slot.cuh": '#include "word.cuh"\n',
        "_shared/detail/word.cuh": "// word\n",
        "_shared/unused.cuh": "// unused\n",
        "_shared/ring.py": "from . import slot\n",
        "_shared/slot.py": "from math import ceil\n",
        "_shared/unused.py": "",
        "copy/kernel.cu.j2": CUDA,
        "copy/own.cuh": "// own\n",
        "copy/device.py": CUTE,
        "copy/layout.py": "SIZE = 4\n",
        "copy/late.py": "class Late: ...\n",
    }
    for name, text in files.items():
        path = tmp_path / "templates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "templates"


def variant(root: Path, source: SourceSpec, **choices: bool | int | str) -> Variant:
    spec = KernelSpec(
        name="copy",
        summary="copies",
        arguments=[],
        axes=[],
        params=[],
        launch=lambda _: launch([1], 32),
        source=source,
    )
    return Variant(KernelFolder("copy", root / "copy", spec), Target.parse("sm_90a"), choices)


def cuda(root: Path, **changes: object) -> Source:
    choices = {"wide": True, "threads": 64}
    spec = replace(CudaSource(entry="copy", variables={"unroll": 2}), **changes)  # type: ignore[arg-type]
    return render(variant(root, spec, **choices))


def cute(root: Path) -> Source:
    return render(variant(root, CuteSource(entry="copy_0"), threads=64))


def names(source: Source) -> list[str]:
    return [name for name, _ in source.files]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_choices_and_variables_are_filled_in(root: Path) -> None:
    source = cuda(root, options=("--use_fast_math",))
    assert "wide = true;" in source.text
    assert "threads = 64, unroll = 2;" in source.text
    assert source.options == ("--std=c++17", "--use_fast_math")


def test_included_headers_are_hashed(root: Path) -> None:
    source = cuda(root)
    assert names(source) == [
        "_shared/detail/slot.cuh",
        "_shared/detail/word.cuh",
        "_shared/ring.cuh",
        "copy/own.cuh",
    ]
    for (_, digest), body in zip(source.files, source.bodies, strict=True):
        assert hashlib.sha256(body).hexdigest() == digest


def test_headers_that_this_variant_does_not_include_are_not_hashed(root: Path) -> None:
    narrow = render(
        variant(root, CudaSource("copy", variables={"unroll": 1}), wide=False, threads=1)
    )
    assert names(narrow) == ["copy/own.cuh"]
    assert "wide = false;" in narrow.text


def test_imported_modules_are_hashed_the_main_one_first(root: Path) -> None:
    source = cute(root)
    assert names(source) == [
        "copy/device.py",
        "_shared/ring.py",
        "_shared/slot.py",
        "copy/late.py",
        "copy/layout.py",
    ]
    assert source.text == CUTE


def test_packages_on_the_way_are_hashed(root: Path) -> None:
    (root / "_shared" / "__init__.py").write_text("FLAG = 1\n")
    assert "_shared/__init__.py" in names(cute(root))


def test_sources_know_no_place(root: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere" / "templates"))
    for make in (cuda, cute):
        assert make(moved) == make(root)
        assert str(tmp_path) not in repr(make(root))


def test_edits_show(root: Path) -> None:
    before, before_cute = cuda(root), cute(root)
    edit(root / "_shared/detail/word.cuh", "word", "sword")
    edit(root / "_shared/slot.py", "ceil", "floor")
    assert cuda(root).text == before.text
    assert cuda(root).files != before.files
    assert cute(root).files != before_cute.files
    edit(root / "copy/kernel.cu.j2", "constexpr int", "static constexpr int")
    assert cuda(root).text != before.text


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{{ threads }}", "{{ warps }}", "'warps' is undefined"),
        ("{% endif %}", "", r"kernel\.cu\.j2:\d+: Unexpected end of template"),
        ("own.cuh", "none.cuh", r'#include "none\.cuh" is none of'),
        ("own.cuh", "../copy/own.cuh", "name a file in the kernel's folder"),
        ("own.cuh", "/etc/hosts", "name a file in the kernel's folder"),
        ('"own.cuh"', "OWN", "#include OWN: write the file's name out"),
        ("{% if wide %}", "{% include 'none.j2' %}{% if wide %}", "there is no template none.j2"),
    ],
)
def test_faulty_templates_are_refused(root: Path, old: str, new: str, problem: str) -> None:
    edit(root / "copy/kernel.cu.j2", old, new)
    with pytest.raises(SpecError, match=f"^copy: .*{problem}"):
        cuda(root)


def test_one_name_for_two_headers_is_refused(root: Path) -> None:
    (root / "copy" / "ring.cuh").touch()
    with pytest.raises(SpecError, match=r"could be any of \['copy/ring.cuh', '_shared/ring.cuh'\]"):
        cuda(root)


def test_variables_may_not_hide_axes(root: Path) -> None:
    with pytest.raises(SpecError, match=r"variables \['wide'\] have the names of axes"):
        cuda(root, variables={"wide": 1})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("import torch", r"copy/layout\.py:1: device code may not import torch"),
        ("import os.path", "may not import os.path"),
        ("from dsv4_aot.templates._shared import ring", r"may not import dsv4_aot\.templates"),
        ("from .none import x", r"no module copy\.none"),
        ("from ... import x", "import names from _shared or this folder"),
        ("from .late import *", "import names from _shared or this folder"),
        ("def f(:", r"copy/layout\.py:1: "),
    ],
)
def test_imports_that_no_key_would_see_are_refused(root: Path, line: str, problem: str) -> None:
    (root / "copy/layout.py").write_text(line)
    with pytest.raises(SpecError, match=f"^copy: .*{problem}"):
        cute(root)
