"""The manifest reader refuses everything that the schema or good sense does not allow."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import CorruptArtifactError, ManifestError
from dsv4_aot.runtime.schema import Manifest
from tests.artifact import (
    GATHER,
    GATHER_CHOICES,
    cubin_of,
    entry_of,
    gather_cubins,
    manifest_of,
    record_of,
    write_artifact,
)


def small() -> Manifest:
    choices = GATHER_CHOICES[0]
    return manifest_of(
        "sm_90a", [record_of(GATHER, [entry_of(GATHER, choices, cubin_of("gather", choices))])]
    )


GOOD = manifests.encode(small())


def changed(path: str, value: Any) -> bytes:
    """The good manifest with one field replaced; ``path`` reads ``kernels.0.entries.0.file``."""
    document = json.loads(GOOD)
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = document
    for part in parents:
        place = place[part]
    place[last] = value
    return json.dumps(document).encode()


def test_written_and_read_back(tmp_path: Path) -> None:
    assert manifests.decode(GOOD) == small()
    assert manifests.encode(manifests.decode(GOOD)) == GOOD
    folder = write_artifact(tmp_path / "sm_90a", list(gather_cubins()))
    content = manifests.read(folder)
    assert len(content.kernels[0].entries) == len(GATHER_CHOICES)
    for entry in content.kernels[0].entries:
        assert manifests.read_cubin(folder, entry) == cubin_of("gather", entry.choices)


ENTRY = "kernels.0.entries.0"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("unknown", 1, "unknown field"),
        (f"{ENTRY}.launch.extra", 1, "unknown field"),
        ("schema", 2, "does not fit schema 1"),
        ("target", "sm_90x", "is not a target"),
        (f"{ENTRY}.file", "/etc/passwd", "does not fit schema"),
        (f"{ENTRY}.file", "../x.cubin", "does not fit schema"),
        (f"{ENTRY}.file", "a/b.cubin", "does not fit schema"),
        (f"{ENTRY}.file", "x.cubin\n", "does not fit schema"),
        (f"{ENTRY}.file", "..", "does not fit schema"),
        (f"{ENTRY}.sha256", "0" * 63, "does not fit schema"),
        (f"{ENTRY}.bytes", -1, "out of range"),
        (f"{ENTRY}.launch.block", [1024, 2, 1], "2048 threads a block"),
        (f"{ENTRY}.launch.grid.0", {"op": "import", "arg": "os"}, "does not fit schema"),
        (f"{ENTRY}.launch.grid.0", {"op": "size", "arg": "nobody", "dim": 0}, "no tensor argument"),
        (f"{ENTRY}.params.1.offset", 12, "not those of the C layout"),
        (f"{ENTRY}.params.0.source", {"kind": "pointer", "arg": "offset"}, "manifest"),
        (f"{ENTRY}.choices", {"rows": 4}, "does not choose on every axis"),
        (f"{ENTRY}.choices.rows", 16, "outside its axis"),
        ("kernels.0.name", "x; import os", "does not fit schema"),
        ("kernels.0.arguments.0.name", "out)", "does not fit schema"),
        ("kernels.0.arguments.1.name", "out", "two arguments have one name"),
        ("kernels.0.arguments.0.align", 24, "no power of two"),
        ("kernels.0.rules.0.choose", {}, "a rule chooses"),
        ("kernels.0.domain.0", {}, "a domain product names"),
    ],
)
def test_what_does_not_fit_is_refused(path: str, value: Any, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        manifests.decode(changed(path, value))


def test_a_missing_field_is_refused() -> None:
    document = json.loads(GOOD)
    del document["kernels"][0]["entries"][0]["resources"]["spills"]
    with pytest.raises(ManifestError, match="missing required field `spills`"):
        manifests.decode(json.dumps(document).encode())


def test_a_key_that_stands_twice_is_refused() -> None:
    data = GOOD.replace(b'"target"', b'"target": "sm_100a", "target"', 1)
    with pytest.raises(ManifestError, match="'target' stands twice"):
        manifests.decode(data)


def test_huge_and_deep_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManifestError, match="does not fit schema"):
        manifests.decode(b"[" * 100_000)
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", len(GOOD) - 1)
    with pytest.raises(ManifestError, match=f"at most {len(GOOD) - 1} are allowed"):
        manifests.decode(GOOD)


def test_a_huge_file_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / manifests.FILE_NAME).open("wb") as file:
        file.truncate(manifests.MAX_MANIFEST_BYTES + 1)  # sparse
    with pytest.raises(ManifestError, match="bytes, at most"):
        manifests.read(tmp_path)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=8), st.integers(0, 8))
@example(0, b"", 1)
@example(len(GOOD) - 2, b"\xff\xfe", 0)
def test_a_damaged_manifest_is_refused_or_read(place: int, data: bytes, removed: int) -> None:
    """Whatever the damage: its own error, or a manifest. Never anything else."""
    damaged = GOOD[:place] + data + GOOD[place + removed :]
    try:
        content = manifests.decode(damaged)
    except ManifestError:
        return
    assert manifests.decode(manifests.encode(content)) == content


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
paths = st.sampled_from(
    ["kernels", "kernels.0.arguments", "kernels.0.axes.0", "kernels.0.rules.0.when", ENTRY,
     f"{ENTRY}.params.0", f"{ENTRY}.launch", f"{ENTRY}.launch.grid.1", f"{ENTRY}.symbol",
     "kernels.0.domain", "kernels.0.checks.0.require", "validation", "toolchain"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(paths, json_values)
def test_any_value_in_any_place_is_refused_or_read(path: str, value: Any) -> None:
    with contextlib.suppress(ManifestError):
        manifests.decode(changed(path, value))


def named(name: str) -> bytes:
    """A second kernel's record, as a manifest holds it."""
    (kernel,) = small().kernels
    return msgspec.json.encode(msgspec.structs.replace(kernel, name=name), order="deterministic")


def with_kernels(*kernels: bytes) -> bytes:
    """A canonical manifest, but for what is in these records."""
    head = msgspec.json.encode(msgspec.structs.replace(small(), kernels=()), order="deterministic")
    return head.replace(b'"kernels":[]', b'"kernels":[' + b",".join(kernels) + b"]") + b"\n"


def test_a_reader_checks_a_kernel_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    problems = manifests.kernel_problems
    monkeypatch.setattr(
        manifests, "kernel_problems", lambda record: checked.append(record.name) or problems(record)
    )
    reader = manifests.Reader(with_kernels(named("one"), named("two")))
    assert reader.names == ("one", "two")
    assert reader.target == "sm_90a"
    assert reader.kernel("three") is None
    assert checked == []
    two = reader.kernel("two")
    assert two is reader.kernel("two") is reader.kernels[1]
    assert checked == ["two", "one"]
    assert reader.whole() == manifests.decode(with_kernels(named("one"), named("two")))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"align":32', b'"align":24', "two: out has alignment 24"),
        (b'"align":32', b'"align":"x"', r"does not fit schema 1: two: .*arguments\[0\].align"),
        (b'"align":32', b'"align":32,"more":1', "unknown field"),
        (b'"align":32', b'"align":1,"align":32', "'align' stands twice"),
        (b'"align":32,', b"", "missing required field `align`"),
        (b'"summary":"the', b'"summary":"\xff', "does not fit schema 1: two"),
    ],
)
def test_a_damaged_kernel_is_never_given(old: bytes, new: bytes, words: str) -> None:
    data = with_kernels(named("one"), named("two").replace(old, new, 1))
    reader = manifests.Reader(data, Path("here"))
    assert reader.kernel("one") == msgspec.structs.replace(small().kernels[0], name="one")
    for ask in (lambda: reader.kernel("two"), lambda: reader.kernels, reader.whole):
        with pytest.raises(ManifestError, match=f"here: the manifest .*{words}"):
            ask()
    with pytest.raises(ManifestError, match=words):
        manifests.decode(data)


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ([named("one"), named("one")], "two kernels have one name"),
        ([b"{}"], "missing required field `name`"),
        ([b"7"], "does not fit schema"),
        ([b'{"name":"one"'], "does not fit schema"),
    ],
)
def test_a_reader_knows_its_kernels_by_name(kernels: list[bytes], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        _ = manifests.Reader(with_kernels(*kernels)).names


def test_a_deep_kernel_is_refused() -> None:
    with pytest.raises(ManifestError):
        _ = manifests.Reader(with_kernels(b'{"name":' + b"[" * 100_000)).names
    with pytest.raises(ManifestError):
        manifests.Reader(with_kernels(b"[" * 100_000 + b"]" * 100_000).replace(b",", b", ")).whole()


def test_a_cover_holds_every_field_of_a_manifest() -> None:
    assert manifests._Cover.__struct_fields__ == Manifest.__struct_fields__


def test_a_cubin_must_be_the_bytes_of_the_manifest(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "sm_90a", list(gather_cubins()))
    entry = manifests.read(folder).kernels[0].entries[0]
    file = folder / entry.file
    good = file.read_bytes()
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CorruptArtifactError, match="the manifest says"):
        manifests.read_cubin(folder, entry)
    file.write_bytes(good[:-1])
    with pytest.raises(CorruptArtifactError, match=rf"has {len(good) - 1} bytes"):
        manifests.read_cubin(folder, entry)
    file.unlink()
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        manifests.read_cubin(folder, entry)
    (tmp_path / "elsewhere").write_bytes(good)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptArtifactError, match="links are refused"):
        manifests.read_cubin(folder, entry)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CorruptArtifactError, match="not a regular file"):
        manifests.read_cubin(folder, entry)


def test_a_linked_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_bytes(GOOD)
    (tmp_path / manifests.FILE_NAME).symlink_to(tmp_path / "real.json")
    with pytest.raises(ManifestError, match="links are refused"):
        manifests.read(tmp_path)


def test_the_published_schema_names_every_record() -> None:
    names = msgspec.json.schema(Manifest)["$defs"]
    assert {"Manifest", "KernelRecord", "Entry", "Param", "Launch", "Resources"} <= set(names)
