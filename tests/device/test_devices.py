"""Several GPUs in one process: one library serves them all, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dsv4_aot.runtime import Library
    from tests.device.conftest import KernelCase


def test_every_device_gets_its_own_results(
    all_small_cases: list[KernelCase], library: Library
) -> None:
    """Launched by turns, whatever device is torch's current one."""
    import torch

    from dsv4_aot.generator.trial import Trial

    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip(f"two GPUs are needed, {count} is here")
    for each in all_small_cases:
        table, reference = each.folder.spec.arguments, each.folder.reference()
        trials = [
            Trial(table, each.case, reference, torch.device("cuda", index)) for index in range(2)
        ]
        for current in (0, 1):
            with torch.cuda.device(current):
                for trial in [*trials, *reversed(trials)]:
                    outcome = trial.run(library.op(each.name))
                    assert outcome.passed, f"{each}: {outcome.message}"
