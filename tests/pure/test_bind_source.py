"""The generated function for kernels of other shapes, and what never gets into its source."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dsv4_aot.generator import spec
from dsv4_aot.runtime import ArgumentError, Library
from dsv4_aot.runtime.bind import bind
from dsv4_aot.runtime.errors import ManifestError
from dsv4_aot.runtime.expr import cdiv, multiprocessors, numel, present, size, stride, value
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import KernelRecord
from dsv4_aot.runtime.target import Target
from dsv4_aot.runtime.tensor import View
from tests.artifact import (
    GATHER,
    GATHER_CHOICES,
    Tensor,
    entry_of,
    gather_call,
    manifest_of,
    record_of,
    write_artifact,
)
from tests.recording import RecordingDriver, open_recorded


def plain(name: str = "plain", **changes: Any) -> spec.KernelSpec:
    """A kernel of one entry."""
    fields: dict[str, Any] = {
        "name": name, "summary": "", "axes": (), "arguments": (spec.tensor("x", "int8", (None,)),),
        "params": (spec.pointer("x"),), "launch": lambda _: spec.launch((numel("x"),), 32),
        "source": spec.CudaSource(entry=name),
    }  # fmt: skip
    return spec.KernelSpec(**(fields | changes))


def library_of(kernel: spec.KernelSpec, tmp_path: Path) -> tuple[Library, RecordingDriver]:
    """A library of one entry, for specs that need no choices."""
    return open_recorded(write_artifact(tmp_path / "sm_90a", [(kernel, {}, b"cubin")]))


# Other shapes of kernels --------------------------------------------------------------------------


def test_numbers_of_every_type_are_packed(tmp_path: Path) -> None:
    kernel = plain(
        arguments=(
            spec.scalar("a", "float"), spec.scalar("b", "bool", default=False),
            spec.scalar("c", "int", default=7), spec.scalar("d", "float", maximum=2.0, default=0.5),
        ),
        params=(
            spec.number("a", "f32", value("a")), spec.number("b", "u32", value("b")),
            spec.number("c", "u64", value("c")), spec.number("d", "f64", value("d")),
        ),
        launch=lambda _: spec.launch((1,), 32),
    )  # fmt: skip
    library, driver = library_of(kernel, tmp_path)
    library.launch("plain", 1.5)
    library.launch("plain", 1, b=True, c=2**64 - 1, d=2)
    assert [launch.params for launch in driver.launches] == [
        (1.5, 0, 7, 0.5), (1.0, 1, 2**64 - 1, 2.0)
    ]  # fmt: skip
    library.launch("plain", float("inf"))
    for wrong, words in [
        ({"a": 1e39}, "a is 1e\\+39, allowed: .* which f32 holds"),
        ({"a": "1"}, "a is '1', allowed: a number"),
        ({"a": True}, "a is True, allowed: a number"),
        ({"a": 1.0, "b": 1}, "b is 1, allowed: True or False"),
        ({"a": 1.0, "c": -1}, "c is -1, allowed: 0 to 18446744073709551615"),
        ({"a": 1.0, "d": 2.5}, r"d is 2.5, allowed: any to 2\.0"),
        ({"a": 1.0, "d": float("nan")}, r"d is nan, allowed: any to 2\.0"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            library.launch("plain", **wrong)
    assert len(driver.launches) == 3


def test_tensors_of_any_rank(tmp_path: Path) -> None:
    kernel = plain(
        arguments=(
            spec.tensor("x", ("int8", "uint8"), (None, 4), strides=(None, 1), leading=True),
            spec.tensor("y", "int8", (size("x", -2),), optional=True),
        ),
        params=(
            spec.pointer("x"), spec.pointer("y"), spec.number("n", "i64", numel("x")),
            spec.number("s", "i64", stride("x", -2)), spec.number("y_n", "i64", size("y", 0)),
            spec.number("has_y", "i32", present("y")),
            spec.number("sms", "i32", multiprocessors() * 2),
        ),
        launch=lambda _: spec.launch((cdiv(numel("x"), 8), 1, 2), 32),
    )  # fmt: skip
    library, driver = library_of(kernel, tmp_path)
    library.launch("plain", Tensor("uint8", (5, 6, 3, 4), pointer=1))
    library.launch("plain", Tensor("int8", (3, 4), (9, 1), pointer=1), Tensor("int8", (3,)))
    assert driver.launches[0].params == (1, 0, 360, 4, 0, 0, 264)
    assert driver.launches[1].params == (1, 0x7F00_0000_0000, 12, 9, 3, 1, 264)
    assert driver.launches[0].grid == (45, 1, 2)
    with pytest.raises(ArgumentError, match="x has 1 dims, allowed: at least 2"):
        library.launch("plain", Tensor("int8", (4,)))
    with pytest.raises(ArgumentError, match=r"x\.shape\[-1\] is 5, allowed: 4"):
        library.launch("plain", Tensor("int8", (2, 3, 5)))


def test_leading_dims_are_counted_from_either_end(tmp_path: Path) -> None:
    """Rows with or without dims of one between them and their elements."""
    rows = size("x", 0)
    kernel = plain(
        arguments=(
            spec.tensor("x", "int8", (None, 4), strides=(None, 1), leading=True),
            spec.tensor("ids", "int32", (rows,)),
        ),
        checks=(spec.check(numel("x").eq(rows * 4), "x is [rows, 4] or [rows, 1, 4]"),),
        params=(spec.pointer("x"), spec.number("pitch", "i64", stride("x", 0))),
        launch=lambda _: spec.launch((rows,), 32),
    )
    library, driver = library_of(kernel, tmp_path)
    for shape, strides in [((3, 4), (9, 1)), ((3, 1, 4), (9, 2, 1)), ((3, 1, 1, 4), (9, 9, 9, 1))]:
        for _ in range(2):
            library.launch("plain", Tensor("int8", shape, strides), Tensor("int32", (3,)))
    assert {(each.params[1], each.grid[0]) for each in driver.launches} == {(9, 3)}
    assert len(driver.launches) == 6
    with pytest.raises(ArgumentError, match=r"required: x is \[rows, 4\] or \[rows, 1, 4\]"):
        library.launch("plain", Tensor("int8", (3, 2, 4)), Tensor("int32", (3,)))
    with pytest.raises(ArgumentError, match=r"ids.shape\[0\] is 3, allowed: 1 \(= x.shape\[0\]\)"):
        library.launch("plain", Tensor("int8", (1, 3, 4)), Tensor("int32", (3,)))


def test_an_element_is_aligned_to_its_own_size(tmp_path: Path) -> None:
    """Also in a manifest that asks for nothing; what another dtype needs is not asked."""
    kernel = plain(arguments=(spec.tensor("x", ("int8", "int16", "int64"), (None,)),))
    assert kernel.arguments[0].align == 1
    library, driver = library_of(kernel, tmp_path)
    for _ in range(2):  # the first call, and a later one
        for dtype, size_of, right, wrong in [
            ("int8", 1, 0x1001, None), ("int16", 2, 0x1002, 0x1001), ("int64", 8, 0x1008, 0x1004),
        ]:  # fmt: skip
            library.launch("plain", View(dtype, (2,), (1,), right, 0, None))
            assert driver.launches[-1].params == (right,)
            if wrong is None:
                continue
            words = f"past a multiple of {size_of}, allowed: .* {size_of} .its dtype is {dtype}"
            with pytest.raises(ArgumentError, match=words):
                library.launch("plain", View(dtype, (2,), (1,), wrong, 0, None))
    assert len(driver.launches) == 6


def test_clusters_ask_for_whole_grids(tmp_path: Path) -> None:
    kernel = plain(launch=lambda _: spec.launch((numel("x"),), 32, cluster=(4, 1, 1)))
    library, driver = library_of(kernel, tmp_path)
    library.launch("plain", Tensor("int8", (8,)))
    assert driver.launches[0].attributes[4][:12] == b"\4\0\0\0\1\0\0\0\1\0\0\0"
    with pytest.raises(ArgumentError, match=r"grid x = x\.numel\(\) is 6, allowed: multiples"):
        library.launch("plain", Tensor("int8", (6,)))


def test_an_axis_bound_to_a_dtype(tmp_path: Path) -> None:
    kernel = plain(
        arguments=(spec.tensor("x", ("int8", "uint8", "int16"), (None,)),),
        axes=(spec.bound("signed", {"yes": "int8", "no": "uint8"}, spec.dtype_of("x")),),
    )
    cubins = [(kernel, {"signed": choice}, choice.encode()) for choice in ("yes", "no")]
    library, _ = open_recorded(write_artifact(tmp_path / "sm_90a", cubins))
    select = library.op("plain").select
    assert select(Tensor("int8", (3,))).choices == {"signed": "yes"}
    assert select(Tensor("uint8", (3,))).choices == {"signed": "no"}
    with pytest.raises(ArgumentError, match=r"the dtype of x is int16.*int8 \(yes\), uint8 \(no\)"):
        select(Tensor("int16", (3,)))


def test_an_axis_bound_to_the_dtype_of_what_may_be_absent(tmp_path: Path) -> None:
    kernel = plain(
        arguments=(
            spec.tensor("x", "int8", (None,)),
            spec.tensor("ids", ("int32", "int64"), (None,), optional=True),
        ),
        axes=(
            spec.bound("ids", {"i32": "int32", "i64": "int64", "no": "absent"},
                       spec.dtype_of("ids")),
        ),
    )  # fmt: skip
    cubins = [(kernel, {"ids": choice}, choice.encode()) for choice in ("i32", "no")]
    library, driver = open_recorded(write_artifact(tmp_path / "sm_90a", cubins))
    x = Tensor("int8", (3,))
    for _ in range(2):
        library.launch("plain", x)
        library.launch("plain", x, Tensor("int32", (3,)))
    assert [each.sha256 for each in driver.launches] == driver.loads * 2
    with pytest.raises(ArgumentError, match=r"the dtype of ids is int64.* int32 .* absent \(no\)"):
        library.launch("plain", x, Tensor("int64", (3,)))


def test_without_a_value_for_it_an_absent_tensor_is_refused(tmp_path: Path) -> None:
    kernel = plain(
        arguments=(
            spec.tensor("x", "int8", (None,)),
            spec.tensor("ids", "int32", (None,), optional=True),
        ),
        axes=(spec.bound("ids", ("int32",), spec.dtype_of("ids")),),
    )
    library, driver = open_recorded(
        write_artifact(tmp_path / "sm_90a", [(kernel, {"ids": "int32"}, b"cubin")])
    )
    with pytest.raises(ArgumentError, match="the dtype of ids is absent, which was not built"):
        library.launch("plain", Tensor("int8", (3,)))
    assert driver.launches == []


def test_a_call_without_a_rule_or_an_entry_is_refused(tmp_path: Path) -> None:
    kernel = dataclasses.replace(
        GATHER, rules=(spec.rule(where={"block_size": (64,)}, when=value("offset") < 5, rows=4),)
    )
    cubins = [(kernel, choices, b"x") for choices in GATHER_CHOICES if choices["lens"] or
              choices["record"] == "v4"]  # fmt: skip
    library, _ = open_recorded(write_artifact(tmp_path / "sm_90a", cubins))
    with pytest.raises(ArgumentError, match=r"no dispatch rule serves this call: block_size = 64"):
        library.launch("gather", **gather_call(offset=6))
    with pytest.raises(ArgumentError, match=r"record=v41,rows=4 was not built for sm_90a; nearest"):
        library.launch("gather", **gather_call(k_cache=Tensor("uint8", (9, 64, 528))))


# Safety of the source -----------------------------------------------------------------------------


def gather_record(**changes: Any) -> KernelRecord:
    choices = GATHER_CHOICES[0]
    kernel = dataclasses.replace(GATHER, **changes)
    return record_of(kernel, [entry_of(kernel, choices, b"x")])


@pytest.mark.parametrize("name", ["stream", "choices", "self", "lambda", "import", "if"])
def test_reserved_words_name_no_argument(name: str) -> None:
    with pytest.raises(ManifestError, match=f"an argument may not be named '{name}'"):
        bind(gather_record(arguments=(*GATHER.arguments, spec.scalar(name, "int", default=0))), {})


def test_arguments_named_like_builtins_shadow_nothing(tmp_path: Path) -> None:
    kernel = plain(
        arguments=tuple(
            spec.scalar(name, "int", default=1) for name in ("type", "int", "len", "locals")
        ),
        params=tuple(
            spec.number(name, "i32", value(name)) for name in ("type", "int", "len", "locals")
        ),
        launch=lambda _: spec.launch((1,), 32),
    )
    library, driver = library_of(kernel, tmp_path)
    library.launch("plain", len=5)
    assert driver.launches[-1].params == (1, 1, 5, 1)


def test_text_of_the_manifest_never_stands_in_the_source() -> None:
    poison = "__import__('os').abort()"
    axes = (spec.bound("record", {poison: 584}, size("k_cache", 2)), spec.tuned("rows", (poison,)))
    kernel = dataclasses.replace(
        GATHER,
        summary=poison,
        axes=axes,
        rules=(spec.rule(where={"record": (poison,)}, rows=poison),),
        checks=(spec.check(value("offset") <= 1, poison),),
        launch=lambda _: spec.launch((1,), 32),
    )
    record = record_of(kernel, [entry_of(kernel, {"record": poison, "rows": poison}, b"x")])
    assert poison not in bind(record, {}).source
    place = Installed(Path("/"), manifest_of("sm_90a", [record]), Target.parse("sm_90a"), "here")
    assert Library([place], RecordingDriver([place])).op("gather").select(**gather_call())
