"""Many threads on many streams, launching all kernels at once: every result is exact."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dsv4_aot.generator.trial import Trial
    from dsv4_aot.runtime import Library
    from tests.device.conftest import KernelCase

THREADS = 8
STREAMS = 4
SECONDS = 10.0
LAUNCHES = 20  # between two comparisons
CASES_A_KERNEL = 6


def test_a_storm_of_launches_gives_exact_results(
    all_small_cases: list[KernelCase], library: Library, device: torch.device
) -> None:
    names = sorted({each.name for each in all_small_cases})
    lists = [
        [each for each in all_small_cases if each.name == name][:CASES_A_KERNEL] for name in names
    ]
    mixed = [each for group in itertools.zip_longest(*lists) for each in group if each is not None]
    workers = [Worker(index, mixed, library, device) for index in range(THREADS)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    problems = [problem for worker in workers for problem in worker.problems]
    assert problems == []
    for name in names:
        counts = [worker.launches[name] for worker in workers]
        assert min(counts) > 0, f"{name} was launched {counts} times by the threads"


class Worker:
    """One thread: on each of its streams its own arguments for one case of every kernel."""

    def __init__(
        self, index: int, cases: list[KernelCase], library: Library, device: torch.device
    ) -> None:
        import torch

        self.library = library
        self.device = device
        self.problems: list[str] = []
        self.launches = dict.fromkeys((each.name for each in cases), 0)
        names = sorted(self.launches)
        self.work: list[tuple[torch.cuda.Stream, list[tuple[str, Trial]]]] = []
        for number in range(STREAMS):
            seed = index * STREAMS + number
            trials = []
            for name in names:
                of_kernel = [each for each in cases if each.name == name]
                trials.append((name, _trial(of_kernel[seed % len(of_kernel)], device, seed)))
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.work.append((stream, trials))
        torch.cuda.synchronize(device)

    def run(self) -> None:
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not self.problems:
                self._round()
        except Exception as error:  # noqa: BLE001  # reported by the test, in its own thread
            self.problems.append(repr(error))

    def _round(self) -> None:
        import torch

        for stream, trials in self.work:
            with torch.cuda.stream(stream):
                for _, trial in trials:
                    trial.restore()
        for _ in range(LAUNCHES):
            for stream, trials in self.work:
                with torch.cuda.stream(stream):
                    for name, trial in trials:
                        self.library.launch(name, **trial.arguments)
                        self.launches[name] += 1
        for stream, trials in self.work:
            with torch.cuda.stream(stream):
                for name, trial in trials:
                    outcome = trial.compare()
                    if not outcome.passed:
                        self.problems.append(f"{name} {outcome.case}: {outcome.message}")


def _trial(each: KernelCase, device: torch.device, seed: int) -> Trial:
    from dsv4_aot.generator.trial import Trial

    return Trial(each.folder.spec.arguments, each.case, each.folder.reference(), device, seed)
