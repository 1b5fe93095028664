"""Every case of every entry that this GPU can run, against the reference, recorded by cubin hash.

One file per GPU model: ``artifacts/validation/<gpu>.json``. A later run replaces the records of
the cubins it ran, keeps those of other cubins that are still installed, and drops the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from dsv4_aot.generator.discover import KernelFolder
from dsv4_aot.generator.gpu import Gpu, current_gpu
from dsv4_aot.generator.records import (
    ValidationFile,
    ValidationRecord,
    read_validation,
    write_validation,
)
from dsv4_aot.generator.spec import Case
from dsv4_aot.generator.trial import Outcome, Trial
from dsv4_aot.runtime import Library
from dsv4_aot.runtime.errors import Dsv4AotError
from dsv4_aot.runtime.schema import Choice, Entry, choices_text, entry_key
from dsv4_aot.runtime.target import Capability, Target, rank_targets

COPIES = 3
"""A written tensor is held three times: the kernel's, the poisoned original, the expectation."""


@dataclass(frozen=True)
class Tried:
    """One entry on one case. key: kernel and choices; sha256: "" where none was found."""

    kernel: str
    key: str
    sha256: str
    outcome: Outcome


@dataclass(frozen=True)
class Skipped:
    """A case that this GPU cannot run, and why."""

    kernel: str
    case: str
    reason: str


Event = Tried | Skipped


@dataclass(frozen=True)
class Report:
    """What a validation did. ``untested``: keys of entries that no case reached."""

    gpu: Gpu
    path: Path
    tried: tuple[Tried, ...]
    skipped: tuple[Skipped, ...]
    untested: tuple[str, ...]
    records: tuple[ValidationRecord, ...]

    @property
    def failures(self) -> tuple[Tried, ...]:
        return tuple(tried for tried in self.tried if not tried.outcome.passed)


def validate(
    library: Library,
    folders: Mapping[str, KernelFolder],
    out: Path,
    *,
    kernels: Collection[str] = (),
    seed: int = 0,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Report:
    """Runs the cases of all kernels, or of those named, and writes ``out/<gpu>.json``.

    An entry that failed any case is not recorded; what an earlier run recorded of it is dropped.
    Raises DriverError without a GPU, BuildError when the file cannot be read or written.
    """
    gpu = current_gpu()
    names = {entry.kernel for entry in library.catalog()} & set(kernels or folders)
    installed = {
        entry.sha256: entry_key(entry.kernel, entry.target, dict(entry.choices))
        for entry in library.catalog()
    }
    here = entries_of(library, gpu.capability, names)
    tried: list[Tried] = []
    skipped: list[Skipped] = []
    for name in sorted(names):
        for case in folders[name].cases():
            for event in try_case(library, folders[name], case, gpu.device, seed=seed):
                if isinstance(event, Tried):
                    tried.append(event)
                else:
                    skipped.append(event)
                on_event(event)
    path = out / f"{gpu.slug}.json"
    earlier = read_validation(path).records if path.exists() else ()
    today = datetime.now(UTC).date().isoformat()
    records = merge(earlier, tried, installed, date=today, driver=gpu.driver)
    write_validation(path, ValidationFile(gpu=gpu.name, driver=gpu.driver, records=records))
    reached = {event.sha256 for event in tried}
    untested = sorted(key for key, sha256 in here.items() if sha256 not in reached)
    return Report(gpu, path, tuple(tried), tuple(skipped), tuple(untested), records)


def try_case(
    library: Library, folder: KernelFolder, case: Case, device: torch.device, *, seed: int = 0
) -> Iterator[Event]:
    """The entry that the call dispatches to, then every other with the call's bound choices."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if COPIES * case.memory > free + torch.cuda.memory_reserved(device):
            torch.cuda.empty_cache()
            yield Skipped(folder.name, case.name, _too_little_memory(case, free))
            return
    trial = Trial(folder.spec.arguments, case, folder.reference(), device, seed)
    kernel = library.op(folder.name)
    try:
        dispatched = kernel.select(**trial.arguments)
        candidates = kernel.candidates(**trial.arguments)
    except Dsv4AotError as error:
        yield Tried(folder.name, folder.name, "", _refused(case, {}, error))
        return
    others = [entry for entry in candidates if entry.choices != dispatched.choices]
    for entry in [dispatched, *others]:
        choices = None if entry is dispatched else tuned_choices(folder, entry)
        try:
            outcome = trial.run(library.op(folder.name, choices=choices), entry.choices)
        except Dsv4AotError as error:
            outcome = _refused(case, entry.choices, error)
        key = f"{folder.name}/{choices_text(entry.choices)}"
        yield Tried(folder.name, key, entry.sha256, outcome)


def tuned_choices(folder: KernelFolder, entry: Entry) -> dict[str, Choice]:
    """What makes a call use this entry instead of the one that the rules choose."""
    return {axis.name: entry.choices[axis.name] for axis in folder.spec.axes if axis.bind is None}


def entries_of(library: Library, capability: Capability, names: Collection[str]) -> dict[str, str]:
    """Key to hash of the entries that a launch here can choose."""
    catalog = [entry for entry in library.catalog() if entry.kernel in names]
    found: dict[str, str] = {}
    for name in names:
        of_kernel = [entry for entry in catalog if entry.kernel == name]
        targets = {Target.parse(entry.target) for entry in of_kernel}
        accepted, _ = rank_targets(targets, capability)
        found |= {
            entry_key(name, entry.target, dict(entry.choices)): entry.sha256
            for entry in of_kernel
            if accepted and entry.target == str(accepted[0])
        }
    return found


def merge(
    earlier: Sequence[ValidationRecord],
    tried: Iterable[Tried],
    installed: Mapping[str, str],
    *,
    date: str,
    driver: str,
) -> tuple[ValidationRecord, ...]:
    """The new records. ``installed`` gives the key of each cubin hash that may stay on record."""
    by_hash: dict[str, list[Outcome]] = {}
    for event in tried:
        by_hash.setdefault(event.sha256, []).append(event.outcome)
    records = {r.sha256: r for r in earlier if r.sha256 in installed and r.sha256 not in by_hash}
    for sha256, outcomes in by_hash.items():
        if sha256 in installed and all(outcome.passed for outcome in outcomes):
            records[sha256] = ValidationRecord(
                sha256=sha256,
                key=installed[sha256],
                cases=len({outcome.case for outcome in outcomes}),
                worst=max(outcome.worst for outcome in outcomes),
                date=date,
                driver=driver,
            )
    return tuple(records.values())


def _refused(case: Case, choices: Mapping[str, Choice], error: Dsv4AotError) -> Outcome:
    return Outcome(case.name, dict(choices), float("inf"), passed=False, message=str(error))


def _too_little_memory(case: Case, free: int) -> str:
    need, have = COPIES * case.memory / 2**30, free / 2**30
    return f"it needs {need:.1f} GiB of device memory, {have:.1f} GiB are free"
