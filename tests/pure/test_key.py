"""The build key changes with every input of a compile, and with nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Literal

import pytest

from dsv4_aot.generator import key as keys
from dsv4_aot.generator import toolchain
from dsv4_aot.generator.key import build_key
from dsv4_aot.generator.render import Source
from dsv4_aot.generator.toolchain import Toolchain, probe, tool_path
from dsv4_aot.runtime.errors import BuildError, ToolchainError
from dsv4_aot.runtime.target import Target

TARGET = Target.parse("sm_90a")
TOOLS = {
    "cuda": Toolchain("cuda", (("nvidia-cuda-nvrtc", "13.5.37"),)),
    "cute": Toolchain("cute", (("nvidia-cutlass-dsl", "4.8.1"), ("python", "3.11"))),
}


def with_files(source: Source, **bodies: bytes) -> Source:
    files = tuple(
        (name.replace("__", "/") + suffix, hashlib.sha256(body).hexdigest())
        for name, body in bodies.items()
        for suffix in (".py" if source.kind == "cute" else ".cuh",)
    )
    return replace(source, files=files, bodies=tuple(bodies.values()))


CUDA = with_files(
    Source("cuda", "copy", '#include "own.cuh"\n', ("--std=c++17",), (), {"threads": 64}),
    copy__own=b"// own\n",
)
CUTE = with_files(
    Source("cute", "copy_0", "import cutlass\n", (), (), {"threads": 64}, "build"),
    copy__device=b"import cutlass\n",
)


def key(source: Source) -> str:
    return build_key(source, TOOLS[source.kind], TARGET)


CHANGES: list[tuple[Source, Callable[[Source], Source]]] = [
    (CUDA, lambda s: replace(s, entry="paste")),
    (CUDA, lambda s: replace(s, text=s.text + "\n")),
    (CUDA, lambda s: replace(s, options=("--std=c++20",))),
    (CUDA, lambda s: replace(s, options=(*s.options, "--use_fast_math"))),
    (CUDA, lambda s: with_files(s, copy__own=b"// other\n")),
    (CUDA, lambda s: with_files(s, _shared__own=b"// own\n")),
    (CUDA, lambda s: with_files(s, copy__own=b"// own\n", copy__more=b"")),
    (CUTE, lambda s: replace(s, entry="paste_0")),
    (CUTE, lambda s: replace(s, text=s.text + "\n")),
    (CUTE, lambda s: replace(s, function="build_other")),
    (CUTE, lambda s: replace(s, choices={"threads": 128})),
    (CUTE, lambda s: replace(s, choices={"threads": True})),
    (CUTE, lambda s: replace(s, choices={"threads": "64"})),
    (CUTE, lambda s: replace(s, choices={"threads": 64, "wide": False})),
    (CUTE, lambda s: with_files(s, copy__device=b"import cutlass\n\n")),
]


def test_every_input_counts() -> None:
    found = {key(CUDA), key(CUTE)}
    for source, change in CHANGES:
        found.add(key(change(source)))
    assert len(found) == 2 + len(CHANGES)


def test_every_field_of_a_source_is_thought_of() -> None:
    """A new field must be added to the key and to CHANGES, or be shown to be covered."""
    assert {field.name for field in fields(Source)} == {
        "kind", "entry", "text", "options", "files", "choices", "function", "bodies",
    }  # fmt: skip


@pytest.mark.parametrize("source", [CUDA, CUTE], ids=["cuda", "cute"])
def test_toolchain_target_and_schema_count(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = TOOLS[source.kind]
    found = {key(source)}
    for name, version in tools.packages:
        rest = dict(tools.packages)
        found.add(build_key(source, replace(tools, packages=((name, version + ".1"),)), TARGET))
        rest[name + "-extra"] = rest.pop(name)
        found.add(build_key(source, replace(tools, packages=tuple(rest.items())), TARGET))
    for target in ("sm_90", "sm_100a", "sm_100f", "sm_100"):
        found.add(build_key(source, tools, Target.parse(target)))
    monkeypatch.setattr(keys, "KEY_SCHEMA", keys.KEY_SCHEMA + 1)
    found.add(key(source))
    assert len(found) == 1 + 2 * len(tools.packages) + 4 + 1


def test_choices_count_by_the_text_they_make() -> None:
    """Two variants that render to one text are one compile."""
    assert key(replace(CUDA, choices={"threads": 128})) == key(CUDA)


def test_order_of_choices_does_not_count() -> None:
    forwards = replace(CUTE, choices={"a": 1, "b": 2})
    assert key(forwards) == key(replace(CUTE, choices={"b": 2, "a": 1}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"options": ("--pre-include=x.h",)}, "the option '--pre-include=x.h' is not among"),
        ({"options": ("-I/usr/include",)}, "the option '-I/usr/include' is not among"),
        ({"options": ("--use_pch",)}, "is not among"),
        ({"options": ("--device-debug",)}, "is not among"),
        ({"options": ("--generate-line-info",)}, "is not among"),
        ({"text": '#include "none.cuh"\n'}, '#include "none.cuh" is not among the files'),
        ({"text": "#include OWN\n"}, "#include OWN"),
        ({"text": '#embed "x.bin"\n'}, "#embed reads a file"),
        ({"text": " \t#\tembed <x.bin>\n"}, "#embed reads a file"),
        ({"text": 'int x;\n  # include "none.cuh"\n'}, "is not among the files"),
        ({"text": "const char* t = __TIME__;"}, "__TIME__ makes every build different"),
        ({"text": "__DATE__"}, "__DATE__ makes every build different"),
        ({"text": "f(__global__, __TIMESTAMP__)"}, "__TIMESTAMP__ makes every build different"),
        ({"bodies": (b"// other\n",)}, "not those that it lists"),
        ({"bodies": ()}, "not those that it lists"),
    ],
)
def test_inputs_that_the_key_cannot_see_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(BuildError, match=problem):
        key(replace(CUDA, **change))


@pytest.mark.parametrize(
    "text",
    ['// #include "none.cuh"\n', 'x #embed "y"\n', "#embedded\n", "my__DATE__ ___TIME__ __TIME__s"],
)
def test_what_only_looks_like_an_input_is_none(text: str) -> None:
    assert len(key(replace(CUDA, text=text))) == 64


def test_headers_are_searched_too() -> None:
    with pytest.raises(BuildError, match="__DATE__"):
        key(with_files(CUDA, copy__own=b"auto date = __DATE__;\n"))


def test_toolchain_of_the_other_kind_is_refused() -> None:
    with pytest.raises(BuildError, match="a cuda source is not built by the cute toolchain"):
        build_key(CUDA, TOOLS["cute"], TARGET)


def test_key_is_the_same_in_any_process() -> None:
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('t', {__file__!r})\n"
        "t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)\n"
        "print(t.key(t.CUDA), t.key(t.CUTE))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "USER": user, "HOME": folder},
        ).stdout
        for seed, user, folder in (("0", "ann", "/"), ("1", "bob", "/tmp"))
    }
    assert printed == {f"{key(CUDA)} {key(CUTE)}\n"}


def test_key_stands_still() -> None:
    """Known values: change them only together with KEY_SCHEMA, or every cache is lost."""
    assert key(CUDA)[:16] == "3b64a43655f69497"
    assert key(CUTE)[:16] == "7b4b9d44c577fbed"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"cuda": ("nvidia-cuda-nvrtc", "no-such-compiler")}
    monkeypatch.setattr(toolchain, "_PACKAGES", packages)
    with pytest.raises(ToolchainError, match="no-such-compiler is not installed") as caught:
        probe("cuda")
    assert caught.value.tip == "pip install 'dsv4-aot[build]', or no-such-compiler alone"


@pytest.mark.parametrize("name", ["cuobjdump", "nvdisasm"])
def test_tools_lie_in_their_packages(name: Literal["cuobjdump", "nvdisasm"]) -> None:
    assert os.access(tool_path(name), os.X_OK)


def test_probe_reads_versions_without_the_compilers() -> None:
    program = (
        "import sys\n"
        "from dsv4_aot.generator.toolchain import probe\n"
        "print(probe('cuda'), probe('cute'))\n"
        "assert not {'cutlass', 'cuda', 'torch', 'jinja2'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"{probe('cuda')} {probe('cute')}"
