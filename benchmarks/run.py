"""Times every kernel's benchmark cases beside the streaming limit and beside its peers.

    python benchmarks/run.py [--kernel NAME] [--case TEXT] [--all-choices] [--json] [--plot FILE]

Writes ``benchmarks/results/<gpu>.json``, and with ``--all-choices``, which times every built
entry instead of the dispatched one alone, ``artifacts/tuning/<gpu>/<kernel>.json``.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matmul
import msgspec
import stream
import timing
import torch
from record import HEADER, Record, line, to_json, write_results

from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.generator.gpu import Gpu, current_gpu
from dsv4_aot.generator.publish import write_file
from dsv4_aot.generator.spec import Case
from dsv4_aot.generator.trial import compare_view, share_beyond
from dsv4_aot.generator.validate import tuned_choices
from dsv4_aot.runtime import Library
from dsv4_aot.runtime.errors import Dsv4AotError
from dsv4_aot.runtime.resolve import FOLDERS_VARIABLE, Installed, find

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"


class Bench:
    """Times cases on one GPU. The streaming limit of each pair of byte counts is found once, and so
    is what a matrix product reaches, if a case computes.
    """

    def __init__(self, library: Library, gpu: Gpu, commit: str) -> None:
        self.library = library
        self.serialized = Library([_serialized(place) for place in library.installed])
        self.gpu = gpu
        self.commit = commit
        self.limit = functools.cache(stream.limit)
        self.matmul_tflops = functools.cache(matmul.tflops)

    def case(self, folder: KernelFolder, case: Case, *, every: bool) -> Iterator[Record]:
        """The dispatched entry's record with its peers, and if asked for every other entry's."""
        arguments = case.make(self.gpu.device, 0)
        sets = timing.input_sets(arguments, case.read + case.write)
        least = timing.least_time(case.read + case.write)
        plain = self.library.op(folder.name)
        dispatched = plain.select(**arguments)
        others = [e for e in plain.candidates(**arguments) if e.choices != dispatched.choices]
        stream_us, _ = self.limit(case.read, case.write)
        for entry in [dispatched, *(others if every else ())]:
            first = entry is dispatched
            choices = tuned_choices(folder, entry)
            peers = self._peers(folder, case, plain, sets) if first else {}
            candidates = {
                "": plain if first else self.library.op(folder.name, choices=choices),
                "plain": self.serialized.op(folder.name, choices=choices),
                **peers,
            }
            times = timing.graph_times(
                {
                    name: [functools.partial(call, **each) for each in sets]
                    for name, call in candidates.items()
                },
                least,
            )
            us = times[""]
            yield Record(
                kernel=folder.name,
                case=case.name,
                choices=entry.choices,
                dispatched=first,
                us=round(us, 3),
                plain_us=round(times["plain"], 3),
                bytes=case.read + case.write,
                flops=case.flops,
                gbps=round((case.read + case.write) / us / 1e3, 1),
                stream_us=round(stream_us, 3),
                efficiency=round(stream_us / us, 4),
                peer_us={name: round(times[name], 3) for name in peers},
                cubin_sha256=entry.sha256,
                device=self.gpu.name,
                driver=self.gpu.driver,
                commit=self.commit,
                tflops=round(case.flops / us / 1e6, 1) if case.flops else None,
                matmul_tflops=round(self.matmul_tflops(), 1) if case.flops else None,
            )

    def _peers(
        self,
        folder: KernelFolder,
        case: Case,
        kernel: Callable[..., object],
        sets: Sequence[Mapping[str, Any]],
    ) -> dict[str, Callable[..., object]]:
        """Those peers that serve the case and give the same values, but for their rounding."""
        serving: dict[str, Callable[..., object]] = {}
        written = [arg.name for arg in folder.spec.arguments if getattr(arg, "result", False)]
        for name, peer in folder.peers().items():
            kernel(**sets[0])
            try:
                made = peer(**sets[1])
            except NotImplementedError:
                continue
            results = {**sets[1], **made} if isinstance(made, Mapping) else sets[1]
            problems = [
                compare_view(each, results[each], sets[0][each], case.tolerance_of(each))[1]
                for each in written
                if sets[0].get(each) is not None
                and share_beyond(results[each], sets[0][each], case.tolerance_of(each))
                > case.peer_share
            ]
            if any(problems):
                note = f"{folder.name} {case.name}: {name} is not timed: {''.join(problems)}"
                print(note, file=sys.stderr)
                continue
            serving[name] = peer
        return serving


def _serialized(place: Installed) -> Installed:
    """The same cubins, every launch waiting for the one before it."""
    replace = msgspec.structs.replace
    kernels = tuple(
        replace(
            record,
            entries=tuple(
                replace(entry, launch=replace(entry.launch, programmatic=False))
                for entry in record.entries
            ),
        )
        for record in place.manifest.kernels
    )
    return replace(place, manifest=replace(place.manifest.whole(), kernels=kernels))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a case could not be timed."""
    options = _parse(argv)
    if PEERS.is_dir():
        sys.path.append(str(PEERS))
    gpu = current_gpu()
    library = Library(find(options.artifacts, entry_points=False))
    bench = Bench(library, gpu, options.commit or commit())
    folders = discover()
    records: list[Record] = []
    failed = False
    say = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    say(f"{gpu.name}, driver {gpu.driver}\n{HEADER}")
    for name in options.kernel or folders:
        for case in folders[name].cases():
            if not case.bench or not any(text in case.name for text in options.case or [""]):
                continue
            try:
                for record in bench.case(folders[name], case, every=options.all_choices):
                    records.append(record)
                    say(line(record))
            except (Dsv4AotError, torch.OutOfMemoryError) as error:
                say(f"{name} {case.name}: not timed: {error}")
                failed = True
            torch.cuda.empty_cache()
    write_results(options.results / f"{gpu.slug}.json", [r for r in records if r.dispatched])
    if options.all_choices:
        for name in {record.kernel for record in records}:
            of_kernel = [record for record in records if record.kernel == name]
            write_file(options.tuning / gpu.slug / f"{name}.json", to_json([], of_kernel))
    if options.plot:
        import plot

        plot.draw(records, options.plot)
    if options.json:
        sys.stdout.write(to_json([], records).decode())
    return int(failed)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kernel", action="append", help="this kernel alone; may be repeated")
    parser.add_argument("--case", action="append", help="cases whose name has this in it")
    parser.add_argument("--all-choices", action="store_true", help="time every built entry")
    parser.add_argument("--artifacts", action="append", type=Path, help="folder of built targets")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--tuning", type=Path, default=ROOT / "artifacts" / "tuning")
    parser.add_argument("--commit", help="what to record where the checkout has no git history")
    parser.add_argument("--json", action="store_true", help="print the records, not a table")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file")
    options = parser.parse_args(argv)
    if not options.artifacts:
        named = os.environ.get(FOLDERS_VARIABLE)
        options.artifacts = [] if named else [ROOT / "artifacts" / "build"]
    return options


def commit() -> str:
    """The checkout's commit, marked when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
