"""The references are held against values worked out by hand, on the CPU."""

from __future__ import annotations

import pytest
import torch

from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.generator.spec import Case

FOLDERS = discover()
BY_HAND = [
    pytest.param(folder, case, id=f"{name}: {case.name}")
    for name, folder in FOLDERS.items()
    for case in folder.cases()
    if case.expected is not None
]


def storage(tensor: torch.Tensor) -> bytes:
    """Everything behind a view, so that what must stay untouched counts too."""
    return bytes(tensor.untyped_storage().tolist())


@pytest.mark.parametrize(("folder", "case"), BY_HAND)
def test_the_reference_agrees_with_a_hand(folder: KernelFolder, case: Case) -> None:
    assert case.expected is not None
    arguments, expected = case.make("cpu", 0), case.expected()
    folder.reference()(**arguments)
    written = {a.name for a in folder.spec.arguments if _written(a)}
    assert set(expected) == {name for name in written if arguments.get(name) is not None}
    for name, right in expected.items():
        assert storage(arguments[name]) == storage(right), name


@pytest.mark.parametrize("name", FOLDERS)
def test_every_kernel_has_a_case_by_hand(name: str) -> None:
    assert any(case.expected is not None for case in FOLDERS[name].cases())


def _written(argument: object) -> bool:
    return getattr(argument, "result", False)
