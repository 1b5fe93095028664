"""``doctor``: what this machine would launch, and why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dsv4_aot.generator.cli.console import Sheet, json_option, say, show_json
from dsv4_aot.generator.cli.options import find_artifacts
from dsv4_aot.runtime.driver import CudaDriver
from dsv4_aot.runtime.errors import Dsv4AotError
from dsv4_aot.runtime.resolve import Installed, select
from dsv4_aot.runtime.target import Accepted, Capability

_AUDIT = """
import sys
from dsv4_aot import runtime
load, *folders = sys.argv[1:]
library = runtime.Library.open(*folders)
library.catalog()
if load == "load":
    library.preload()
runtime.strict()
"""
"""In a process of its own: the command line itself loads templates and tables."""


@dataclass(frozen=True)
class _Place:
    """Where a launch is looked at: a device that is here, or a capability that was asked for."""

    name: str
    capability: Capability


class _CapabilityType(click.ParamType[Capability]):
    name = "capability"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Capability:
        if isinstance(value, Capability):
            return value
        try:
            return Capability.parse(str(value))
        except Dsv4AotError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--capability", type=_CapabilityType(),
    help="Answer for a device of this compute capability, such as 9.0, instead of those here.",
)  # fmt: skip
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, paths: tuple[Path, ...], capability: Capability | None, as_json: bool
) -> None:
    """Show what this machine would launch, and why.

    Devices, driver, installed targets with the reason for each refusal, the target that each
    kernel would be launched from, and an audit that nothing of a compiler is loaded. PATHS are
    folders of artifacts; without any, the installed wheels, $DSV4_AOT_ARTIFACTS and the
    checkout's own builds are looked at. Works without a GPU, too.
    """
    driver, places, trouble = _devices()
    if capability is not None:
        places = [_Place("a device", capability)]
    installed, broken = _installed(paths)
    verdicts = list(_verdicts(installed, places))
    selections = list(_selections(installed, places))
    unserved = any(row["selected"] is None for row in selections)
    loadable = bool(selections) and capability is None and not unserved
    audit = _audit([place.folder for place in installed], load=loadable)
    if as_json:
        show_json(
            {
                "driver": driver,
                "driver_problem": trouble,
                "devices": [{"name": p.name, "capability": str(p.capability)} for p in places],
                "artifacts_problem": broken,
                "targets": verdicts,
                "selections": selections,
                "zero_jit": audit is None,
                "zero_jit_loaded": loadable,
                "zero_jit_problem": audit,
            }
        )
    else:
        _say_devices(driver, places, trouble)
        _say_artifacts(installed, broken, verdicts, selections, bool(places))
        work = "loading every kernel" if loadable else "importing and resolving"
        say(f"zero JIT: {f'no compiler after {work}' if audit is None else audit}")
    if broken is not None or audit is not None or unserved:
        ctx.exit(1)


# Finding out ------------------------------------------------------------------------------------


def _devices() -> tuple[str | None, list[_Place], str | None]:
    """The CUDA version that the driver serves, the devices, and what stands in the way."""
    try:
        driver = CudaDriver()
        version = driver.version()
        devices = [driver.device(index) for index in range(driver.device_count())]
    except Dsv4AotError as error:
        return None, [], str(error)
    places = [_Place(str(device), device.capability) for device in devices]
    return f"{version // 1000}.{version % 1000 // 10}", places, None


def _installed(paths: Sequence[Path]) -> tuple[list[Installed], str | None]:
    try:
        return find_artifacts(paths), None
    except Dsv4AotError as error:
        return [], str(error)


def _verdicts(installed: Sequence[Installed], places: Sequence[_Place]) -> Iterator[dict[str, Any]]:
    for artifact in installed:
        row = {
            "target": str(artifact.target),
            "version": artifact.manifest.version,
            "kernels": len(artifact.manifest.kernels),
            "origin": artifact.origin,
        }
        if not places:
            yield {**row, "device": None, "accepted": None, "reason": None}
        for place in places:
            verdict = artifact.target.judge(place.capability)
            accepted = isinstance(verdict, Accepted)
            reason = None if isinstance(verdict, Accepted) else verdict.reason
            yield {**row, "device": place.name, "accepted": accepted, "reason": reason}


def _selections(
    installed: Sequence[Installed], places: Sequence[_Place]
) -> Iterator[dict[str, Any]]:
    names = sorted({kernel.name for a in installed for kernel in a.manifest.kernels})
    for place in places:
        for name in names:
            row: dict[str, Any] = {"kernel": name, "device": place.name}
            try:
                chosen, record = select(installed, name, place.capability, place.name)
            except Dsv4AotError as error:
                yield {**row, "selected": None, "variants": 0, "origin": None, "why": str(error)}
            else:
                yield {
                    **row,
                    "selected": str(chosen.target),
                    "variants": len(record.entries),
                    "origin": chosen.origin,
                    "why": "the most specific target that the device accepts",
                }


def _audit(folders: Sequence[Path], *, load: bool) -> str | None:
    """What a fresh process has of a compiler after it used these artifacts, None for nothing.

    load: whether to load every cubin too, which takes a GPU that runs them.
    """
    command = [sys.executable, "-c", _AUDIT, "load" if load else "look", *map(str, folders)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return None
    return (answer.stderr.strip().splitlines() or ["the audit ended without a word"])[-1]


# Saying it --------------------------------------------------------------------------------------


def _say_devices(driver: str | None, places: Sequence[_Place], trouble: str | None) -> None:
    if driver is None:
        say(f"driver: none. {trouble}")
    else:
        say(f"driver: serves CUDA {driver}")
    for place in places:
        say(f"{place.name}, compute capability {place.capability}")
    if not places:
        say("no GPU here: nothing can be launched (--capability 9.0 answers for one elsewhere)")
    say()


def _say_artifacts(
    installed: Sequence[Installed],
    broken: str | None,
    verdicts: Sequence[dict[str, Any]],
    selections: Sequence[dict[str, Any]],
    any_place: bool,
) -> None:
    if broken is not None:
        say(f"artifacts: {broken}")
        return
    if not installed:
        say("no artifacts are installed or built")
        say("TIP: install the wheel of your GPU, such as dsv4-aot-sm90a, or run dsv4-aot build")
        return
    columns = {"target": "target", "version": "version", "kernels": "kernels", "origin": "from"}
    if any_place:
        columns |= {"device": "device", "accepted": "accepted", "reason": "reason"}
    Sheet(columns=columns, rows=verdicts, title="installed targets").show(as_json=False)
    if any_place:
        columns = {
            "kernel": "kernel", "device": "device", "selected": "selected",
            "variants": "variants", "origin": "from",
        }  # fmt: skip
        title = "selected, the most specific target that each device accepts"
        Sheet(columns=columns, rows=selections, title=title).show(as_json=False)
        for row in selections:
            if row["selected"] is None:
                say(row["why"])
