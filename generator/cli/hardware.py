"""``validate`` and ``bench``: what needs a GPU and PyTorch."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv4_aot.generator.cli.console import Progress, Sheet, json_option, say, show_json
from dsv4_aot.generator.cli.options import (
    artifacts_folder,
    build_folder,
    checkout,
    pick,
    shown,
    templates_option,
)
from dsv4_aot.generator.discover import discover
from dsv4_aot.runtime import Library
from dsv4_aot.runtime.errors import Dsv4AotError, ToolchainError

if TYPE_CHECKING:
    from dsv4_aot.generator.validate import Event, Report


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--kernel", "names", multiple=True, help="Only this kernel; may be repeated.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the records.  [default: artifacts/validation]",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the cases' random input.")
@templates_option
@json_option
@click.pass_context
def validate(
    ctx: click.Context,
    paths: tuple[Path, ...],
    names: tuple[str, ...],
    out: Path | None,
    seed: int,
    templates: Path | None,
    as_json: bool,
) -> None:
    """Run the cases on this GPU and record the result.

    Every case of every variant that runs here is compared with the kernel's reference. PATHS are
    folders of artifacts; without any, the checkout's own builds. The records go by the hash of
    the cubin, so a cubin that changes is no longer validated.
    """
    _require_torch()
    from dsv4_aot.generator.validate import validate as run

    folders = pick(discover(templates), names)
    library = Library.open(*(paths or (build_folder(templates),)))
    with Progress("validating", None) as progress:

        def advance(event: Event) -> None:
            progress.advance(_name(event))

        report = run(
            library,
            folders,
            artifacts_folder(templates) / "validation" if out is None else out,
            kernels=names,
            seed=seed,
            on_event=advance,
        )
    if as_json:
        show_json(_facts(report))
    else:
        _describe(report)
    if report.failures or not report.tried:
        ctx.exit(1)


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise ToolchainError(
            f"cases are made of PyTorch tensors, and {sys.executable} has no torch",
            tip="install a CUDA build of PyTorch, or run this with a Python that has one",
        )


def _name(event: Event) -> str:
    case = event.case if hasattr(event, "case") else event.outcome.case
    return f"{event.kernel} {case}"


def _facts(report: Report) -> dict[str, Any]:
    return {
        "gpu": report.gpu.name,
        "driver": report.gpu.driver,
        "path": str(report.path),
        "validated": [record.key for record in report.records],
        "tried": len(report.tried),
        "failures": [
            {"key": t.key, "case": t.outcome.case, "message": t.outcome.message}
            for t in report.failures
        ],
        "skipped": [
            {"kernel": s.kernel, "case": s.case, "reason": s.reason} for s in report.skipped
        ],
        "untested": list(report.untested),
    }


def _describe(report: Report) -> None:
    for tried in report.failures:
        say(f"FAILED {tried.key} on case {tried.outcome.case}: {tried.outcome.message}")
    for skipped in report.skipped:
        say(f"skipped {skipped.kernel} {skipped.case}: {skipped.reason}")
    for key in report.untested:
        say(f"no case reaches {key}")
    kernels = sorted({tried.kernel for tried in report.tried})
    rows = []
    for kernel in kernels:
        runs = [run for run in report.tried if run.kernel == kernel]
        rows.append(
            {
                "kernel": kernel,
                "variants": len({run.key for run in runs}),
                "cases": len({run.outcome.case for run in runs}),
                "runs": len(runs),
                "failed": sum(not run.outcome.passed for run in runs),
            }
        )
    columns = {name: name for name in ("kernel", "variants", "cases", "runs", "failed")}
    Sheet(columns=columns, rows=rows, empty="no case was run").show(as_json=False)
    say(f"{report.gpu.name}, driver {report.gpu.driver}: {len(report.records)} cubins on record")
    say(f"written: {shown(report.path)}")


# Benchmarks -------------------------------------------------------------------------------------


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the benchmarks on this GPU.

    ARGUMENTS go to the checkout's runner, benchmarks/run.py; `dsv4-aot bench --help` lists what
    it takes.
    """
    root = checkout()
    runner = None if root is None else root / "benchmarks" / "run.py"
    if root is None or runner is None or not runner.is_file():
        raise Dsv4AotError(
            "benchmarks are run from a checkout, and this dsv4-aot is an installed package",
            tip="clone the repository and run `make bench` there",
        )
    _require_torch()
    code = subprocess.run([sys.executable, str(runner), *arguments], check=False)
    ctx.exit(code.returncode if code.returncode in (0, 1, 2) else 1)
