"""Captured launches: a replay sees what its inputs hold then, lengths included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from dsv4_aot.runtime import Library
    from tests.device.conftest import KernelCase


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # so is an empty call's
def test_a_replay_reads_the_inputs_of_its_time(
    small_case: KernelCase, library: Library, device: torch.device
) -> None:
    """Captured with one seed's arguments, replayed on another's, copied into the same memory."""
    import torch

    from dsv4_aot.generator.trial import Trial, storage_bytes, tensors_of

    folder, case = small_case.folder, small_case.case
    captured = case.make(device, 1)
    trial = Trial(folder.spec.arguments, case, folder.reference(), device, seed=2)
    if form(captured) != form(trial.arguments):
        pytest.skip("the two seeds make calls of different shapes or scalars")
    kernel = library.op(folder.name)
    if kernel.select(**captured) != kernel.select(**trial.arguments):
        pytest.skip("the two seeds choose different entries")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(**captured)

    def replay(**arguments: Any) -> None:
        memory = tensors_of(captured)
        for name, tensor in tensors_of(arguments).items():
            storage_bytes(memory[name]).copy_(storage_bytes(tensor))
        graph.replay()
        for name in trial.written:
            storage_bytes(arguments[name]).copy_(storage_bytes(memory[name]))

    for _ in range(2):
        outcome = trial.run(replay)
        assert outcome.passed, outcome.message


def test_every_kernel_has_a_case_that_is_replayed(
    all_small_cases: list[KernelCase], device: torch.device
) -> None:
    """So that the test above cannot skip a whole kernel."""
    replayed = {
        each.name
        for each in all_small_cases
        if form(each.case.make(device, 1)) == form(each.case.make(device, 2))
    }
    assert replayed == {each.name for each in all_small_cases}


def form(arguments: dict[str, Any]) -> dict[str, object]:
    """What a captured launch has fixed: everything but the contents of memory."""
    from dsv4_aot.generator.trial import storage_bytes, tensors_of

    tensors = tensors_of(arguments)
    fixed: dict[str, object] = {k: v for k, v in arguments.items() if k not in tensors}
    for name, x in tensors.items():
        place = (x.storage_offset(), storage_bytes(x).numel())
        fixed[name] = (x.dtype, tuple(x.shape), x.stride(), place)
    return fixed
