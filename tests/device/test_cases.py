"""Every case of every kernel: the dispatched entry and all others give what the reference gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from dsv4_aot.runtime import Library
    from tests.device.conftest import KernelCase


def test_all_entries_agree_with_the_reference(
    kernel_case: KernelCase, library: Library, device: torch.device
) -> None:
    from dsv4_aot.generator.validate import Skipped, try_case

    failures = []
    for event in try_case(library, kernel_case.folder, kernel_case.case, device):
        if isinstance(event, Skipped):
            pytest.skip(event.reason)
        if not event.outcome.passed:
            failures.append(f"{event.key}: {event.outcome.message}")
    assert not failures, "\n".join(failures)


def test_every_entry_of_this_gpu_has_a_case(
    all_cases: tuple[KernelCase, ...], library: Library, device: torch.device
) -> None:
    """Otherwise a validation would leave it unvalidated."""
    from dsv4_aot.generator.gpu import current_gpu
    from dsv4_aot.generator.validate import entries_of

    names = {each.name for each in all_cases}
    reached = {
        entry.sha256
        for each in all_cases
        for entry in library.op(each.name).candidates(**each.case.make(device, 0))
    }
    entries = entries_of(library, current_gpu().capability, names)
    assert [key for key, sha256 in entries.items() if sha256 not in reached] == []
