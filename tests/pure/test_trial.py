"""Comparing a kernel with its reference: what must be seen, and where it must be said to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv4_aot.generator.spec import Case, Tolerance, scalar, tensor
from dsv4_aot.generator.trial import Trial, clone, compare_view, run_case, storage_bytes
from dsv4_aot.runtime.errors import SpecError

CPU = torch.device("cpu")
TABLE = (
    tensor("out", "float32", (None, None), access="write"),
    tensor("x", "float32", (None,)),
    scalar("add", "float"),
)


def make(device: torch.device, seed: int) -> dict[str, Any]:
    """``out`` is the left half of wider, poisoned storage; the right half is nobody's."""
    generator = torch.Generator(device).manual_seed(seed)
    wide = torch.full((3, 8), -777.0, device=device)
    x = torch.rand(4, generator=generator, device=device)
    return {"out": wide[:, :4], "x": x, "add": 1.0}


def reference(out: torch.Tensor, x: torch.Tensor, add: float) -> None:
    out[:] = x + add


def trial(tolerance: Tolerance | None = None) -> Trial:
    return Trial(TABLE, Case("small", make, tolerance=tolerance), reference, CPU)


def spoil(change: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """The reference's own answer, and then one change."""

    def kernel(**arguments: Any) -> None:
        reference(**arguments)
        change(arguments)

    return kernel


def test_the_same_answer_passes_and_is_repeatable() -> None:
    it = trial()
    for choice in (1, 2):
        outcome = it.run(reference, {"stages": choice})
        assert (outcome.passed, outcome.worst, outcome.message) == (True, 0.0, "")
        assert outcome.choices == {"stages": choice}


def test_nothing_written_fails() -> None:
    outcome = run_case(TABLE, Case("small", make), reference, lambda **_: None, CPU)
    assert not outcome.passed
    assert outcome.message.startswith("out[0, 0] is -777.0 (0xc4424000), expected 1.")
    assert outcome.message.endswith("(allowed: equal bytes); 12 of 12 elements differ")


def test_a_failed_run_does_not_help_the_next() -> None:
    it = trial()
    assert it.run(reference).passed
    assert not it.run(lambda **_: None).passed


def test_the_first_wrong_element_is_named() -> None:
    def change(arguments: dict[str, Any]) -> None:
        arguments["out"][1, 2] += 0.5
        arguments["out"][2, 3] += 0.5

    outcome = trial().run(spoil(change))
    assert outcome.message.startswith("out[1, 2] is ")
    assert outcome.message.endswith("2 of 12 elements differ")


@pytest.mark.parametrize("tolerance", [None, Tolerance(1.0, 0.0)])
def test_bytes_outside_the_view_must_stay(tolerance: Tolerance | None) -> None:
    def change(arguments: dict[str, Any]) -> None:
        arguments["out"].as_strided((24,), (1,))[12] = 0.1

    outcome = trial(tolerance).run(spoil(change))
    assert not outcome.passed
    assert "out: byte 48 of its storage was changed outside its view" in outcome.message


def test_a_read_only_tensor_must_stay() -> None:
    def change(arguments: dict[str, Any]) -> None:
        arguments["x"][2] = -1.0

    outcome = trial().run(spoil(change))
    assert "x: byte " in outcome.message
    assert "although it is read only" in outcome.message


def test_tolerance_holds_for_values_alone() -> None:
    it = trial(Tolerance(absolute=0.01, relative=0.0))
    near = it.run(spoil(lambda a: a["out"][0, 1].add_(0.005)))
    assert near.passed
    assert near.worst == pytest.approx(0.5, abs=1e-4)
    assert not it.run(spoil(lambda a: a["out"][0, 1].add_(0.02))).passed
    assert not it.run(spoil(lambda a: a["out"][0, 1].fill_(float("nan")))).passed


def test_equal_bytes_tell_zeros_and_nans_apart() -> None:
    zero, nan = torch.zeros(2), torch.full((2,), float("nan"))
    assert compare_view("out", zero, -zero, None)[1]
    assert not compare_view("out", zero, -zero, Tolerance(0.0, 0.0))[1]
    assert not compare_view("out", nan, nan.clone(), None)[1]
    assert not compare_view("out", nan, -nan, Tolerance(0.0, 0.0))[1]


def test_infinities_must_coincide_under_any_tolerance() -> None:
    infinite, large = torch.tensor([float("inf")]), torch.tensor([3e38])
    assert compare_view("out", large, infinite, Tolerance(float("inf"), float("inf")))[1]
    assert not compare_view("out", infinite, infinite, Tolerance(0.0, 0.0))[1]


def test_either_bound_alone_decides() -> None:
    expected = torch.tensor([0.0, 100.0])
    both = Tolerance(absolute=0.5, relative=0.01)
    either = replace(both, either=True)
    for off, passes_both, passes_either in (
        ([0.4, 0.9], True, True),
        ([0.6, 0.0], False, False),
        ([0.0, 1.2], True, False),  # under the sum, over the greater
        ([0.0, 1.6], False, False),
    ):
        got = expected + torch.tensor(off)
        assert (not compare_view("out", got, expected, both)[1]) is passes_both
        assert (not compare_view("out", got, expected, either)[1]) is passes_either
    worst, _ = compare_view("out", expected + torch.tensor([0.25, 0.0]), expected, either)
    assert worst == pytest.approx(0.5)
    assert " or " in compare_view("out", expected + 9, expected, either)[1]


def test_errors_that_all_go_one_way_show_in_the_cosine() -> None:
    expected = torch.cat((torch.linspace(-1, 1, 1000), torch.tensor([float("inf"), 0.0])))
    loose = Tolerance(0.1, 0.0)
    strict = replace(loose, cosine=1e-4)
    scattered, shifted = expected.clone(), expected + 0.05
    scattered[3] += 0.09
    assert not compare_view("out", scattered, expected, strict)[1]
    assert not compare_view("out", shifted, expected, loose)[1]
    worst, message = compare_view("out", shifted, expected, strict)
    a, b = (values[values.isfinite()].double() for values in (shifted, expected))
    difference = 1 - 2 * float(a @ b) / float(a @ a + b @ b)
    assert worst == pytest.approx(difference / 1e-4)
    assert "out as a whole: its cosine difference is" in message
    nothing = torch.zeros(4)
    assert compare_view("out", nothing, nothing.clone(), strict) == (0.0, "")


def test_tensors_have_tolerances_of_their_own() -> None:
    table = (*TABLE, tensor("sums", "float32", (None,), access="write"))

    def two(device: torch.device, seed: int) -> dict[str, Any]:
        return make(device, seed) | {"sums": torch.full((4,), -1.0)}

    def both(out: torch.Tensor, x: torch.Tensor, add: float, sums: torch.Tensor) -> None:
        reference(out, x, add)
        sums[:] = x

    def off(name: str) -> Callable[..., None]:
        def kernel(**arguments: Any) -> None:
            both(**arguments)
            arguments[name][..., 1].add_(0.05)

        return kernel

    for tolerances, passes in (
        ({"out": Tolerance(0.1, 0), "sums": Tolerance(0.01, 0)}, {"out": True, "sums": False}),
        ({"out": Tolerance(0.01, 0), "sums": Tolerance(0.1, 0)}, {"out": False, "sums": True}),
        ({"sums": Tolerance(0.1, 0)}, {"out": False, "sums": True}),
    ):
        case = Case("two", two, tolerance=tolerances)
        for name, passed in passes.items():
            assert run_case(table, case, both, off(name), CPU).passed is passed


def test_tensors_that_share_a_storage_share_its_copy() -> None:
    pool = torch.arange(16, dtype=torch.uint8)
    arguments = {"a": pool[4:8], "b": pool.view(torch.int32)[1:3], "none": None, "n": 3}
    copied = clone(arguments)
    copied["a"][0] = 200
    assert int(copied["b"][0]) & 0xFF == 200
    assert pool[4] == 4
    assert (copied["none"], copied["n"]) == (None, 3)


@given(
    st.sampled_from([torch.float8_e4m3fn, torch.bfloat16, torch.int64, torch.bool]),
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.integers(0, 5),
)
def test_a_clone_has_the_same_form_and_bytes(
    dtype: torch.dtype, shape: list[int], offset: int
) -> None:
    data = torch.arange(1024, dtype=torch.int32).to(torch.uint8).view(dtype)
    strides = [2 * step + 1 for step in range(len(shape))]
    view = data.as_strided(shape, strides, offset)
    copy = clone({"x": view})["x"]
    assert (copy.dtype, copy.shape, copy.stride()) == (view.dtype, view.shape, view.stride())
    assert copy.storage_offset() == offset
    assert torch.equal(storage_bytes(copy), storage_bytes(view))
    assert copy.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()


def test_an_empty_call_is_a_case_too() -> None:
    def empty(device: torch.device, seed: int) -> dict[str, Any]:
        return {"out": torch.empty(0, 4), "x": torch.rand(4), "add": 1.0}

    assert run_case(TABLE, Case("empty", empty), reference, reference, CPU).passed


def test_a_case_that_writes_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="'small' passes no tensor that the kernel writes"):
        Trial(TABLE[1:], Case("small", make), reference, CPU)
