"""Launches every entry on its small cases: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python tests/device/sanitize.py [--kernel NAME] [--body NAME]

Prints how many launches there were and how many results are wrong; exits 1 when any is, whatever
the tool says.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.generator.spec import Case
from dsv4_aot.generator.validate import Tried, try_case
from dsv4_aot.runtime import Library
from dsv4_aot.runtime.resolve import FOLDERS_VARIABLE, find

BUILD = Path(__file__).parents[2] / "artifacts" / "build"
SMALL_BYTES = 4 << 20
"""Of a case's traffic and memory: an instrumented launch takes a hundred times its time."""


def main() -> int:
    parser = argparse.ArgumentParser(description="launch every entry on small cases")
    parser.add_argument("--kernel", action="append", help="this kernel alone; may be repeated")
    parser.add_argument("--body", help="only calls that this body of a kernel serves")
    parser.add_argument(
        "--bytes", type=int, default=SMALL_BYTES, help="largest case to run unasked"
    )
    options = parser.parse_args()
    named = os.environ.get(FOLDERS_VARIABLE)
    library = Library(find([] if named else [BUILD], entry_points=False))
    built = {entry.kernel for entry in library.catalog()}
    device = torch.device("cuda", torch.cuda.current_device())
    events: list[Tried] = []
    for name, folder in discover().items():
        if name not in built or name not in (options.kernel or built):
            continue
        for case in folder.cases():
            small = max(case.memory, case.read + case.write) <= options.bytes
            if (small or case.instrumented) and (
                not options.body or options.body in bodies(library, folder, case, device)
            ):
                tried = try_case(library, folder, case, device)
                events.extend(event for event in tried if isinstance(event, Tried))
    failures = [event for event in events if not event.outcome.passed]
    for event in failures:
        sys.stdout.write(f"{event.key}, {event.outcome.case}: {event.outcome.message}\n")
    entries = {event.key for event in events}
    sys.stdout.write(f"{len(events)} launches of {len(entries)} entries, {len(failures)} wrong\n")
    return int(bool(failures) or not events)


def bodies(library: Library, folder: KernelFolder, case: Case, device: torch.device) -> set[str]:
    """Those of the entries that a case runs."""
    entries = library.op(folder.name).candidates(**case.make(device, 0))
    return {str(entry.choices.get("body", "")) for entry in entries}


if __name__ == "__main__":
    sys.exit(main())
