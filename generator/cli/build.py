"""``build``: compiles kernels, packs targets, compares them with their locks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dsv4_aot.generator.build import BuildResult, Event
from dsv4_aot.generator.build import build as compile_all
from dsv4_aot.generator.cli.console import (
    Progress,
    Sheet,
    complain,
    json_option,
    note,
    say,
    show_json,
)
from dsv4_aot.generator.cli.options import (
    DEFAULT_TARGETS,
    TargetList,
    artifacts_folder,
    build_folder,
    cache_option,
    choosing,
    shown,
    templates_option,
)
from dsv4_aot.generator.cli.plan import Plan, make_plans
from dsv4_aot.generator.discover import discover
from dsv4_aot.generator.lock import check, lock_of, lock_path, write_lock
from dsv4_aot.generator.pack import pack
from dsv4_aot.generator.store import Artifact, Store
from dsv4_aot.runtime.errors import CompileError, Dsv4AotError, LockError
from dsv4_aot.runtime.target import Target


@click.command()
@click.option(
    "--arch", "targets", type=TargetList(), default=DEFAULT_TARGETS, show_default=True,
    help="Targets to build for, separated by commas.",
)  # fmt: skip
@click.option("--kernel", "names", multiple=True, help="Only this kernel; may be repeated.")
@click.option(
    "--choose", "chosen", multiple=True, metavar="AXIS=CHOICE",
    help="Only by rules that choose this on a tuned axis: what other targets are built from.",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at once.  [default: all CPUs]")
@click.option("--locked", is_flag=True, help="Fail when a byte differs from the lock files.")
@click.option("--update-lock", is_flag=True, help="Write the lock files from this build.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder of built targets.  [default: artifacts/build]",
)  # fmt: skip
@templates_option
@cache_option
@json_option
@click.pass_context
def build(
    ctx: click.Context,
    targets: tuple[Target, ...],
    names: tuple[str, ...],
    chosen: tuple[str, ...],
    jobs: int | None,
    locked: bool,
    update_lock: bool,
    out: Path | None,
    templates: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Compile kernels and write one manifest a target.

    Needs no GPU and no CUDA toolkit. With --kernel, other kernels that the output folder holds
    are kept as they are.
    """
    if locked and update_lock:
        raise click.UsageError("--locked compares with the lock files, --update-lock writes them")
    if names and (locked or update_lock):
        raise click.UsageError("lock files cover whole targets: leave out --kernel")
    if chosen and (not names or out is None):
        raise click.UsageError("--choose needs --kernel, and --out, so that nothing is replaced")
    artifacts = artifacts_folder(templates)
    out = build_folder(templates) if out is None else out
    if locked:
        _require_locks(targets, artifacts)
    store = Store(cache)
    started = time.monotonic()
    folders = discover(templates)
    for name in names if chosen else ():
        if name in folders:
            folders[name] = choosing(folders[name], chosen)
    plans = make_plans(targets, names, folders, out, store)
    result = _compile(plans, store, jobs)
    whole = [plan for plan in plans if result.failures.keys().isdisjoint(plan.keys)]
    published, errors = _pack(whole, result, out, artifacts, locked=locked, update_lock=update_lock)
    rows = [row for plan in plans for row in _rows(plan, result.artifacts)]
    facts = {
        "out": str(out),
        "compiled": result.compiled,
        "reused": result.reused,
        "failed": len(result.failures),
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        problems = [*result.failures.values(), *errors]
        show_json({**facts, "kernels": rows, "errors": [_error_row(error) for error in problems]})
    else:
        _describe(rows, facts)
        for plan in published:
            kept = f", {', '.join(plan.kept)} kept as before" if plan.kept else ""
            say(f"{shown(out / str(plan.target))}: manifest and cubins{kept}")
        _complain_of([*_distinct(result.failures), *errors])
    for plan in plans:
        if plan not in published:
            note(f"{shown(out / str(plan.target))} is as it was")
    if result.failures or errors:
        ctx.exit(1)


# Working ----------------------------------------------------------------------------------------


def _compile(plans: Sequence[Plan], store: Store, jobs: int | None) -> BuildResult:
    variants = [variant for plan in plans for variant in plan.variants]
    with Progress("building", len(variants)) as progress:

        def advance(event: Event) -> None:
            progress.advance(event.key)

        return compile_all(variants, store, jobs=jobs, on_event=advance)


def _pack(
    plans: Sequence[Plan],
    result: BuildResult,
    out: Path,
    artifacts: Path,
    *,
    locked: bool,
    update_lock: bool,
) -> tuple[list[Plan], list[Dsv4AotError]]:
    """Packs every target, also when one fails: those that were packed, and what failed.

    The lock is compared afterwards, so that ``diff`` can show what differs.
    """
    published: list[Plan] = []
    errors: list[Dsv4AotError] = []
    for plan in plans:
        lock = lock_path(artifacts, str(plan.target))
        try:
            packed = pack(
                plan.target, plan.folders, result.artifacts, out, artifacts / "validation"
            )
            published.append(plan)
            if locked:
                check(lock, packed)
            if update_lock:
                write_lock(lock, lock_of(packed))
        except Dsv4AotError as error:
            errors.append(error)
    return published, errors


def _distinct(failures: Mapping[str, Dsv4AotError]) -> list[Dsv4AotError]:
    """Variants that share one source fail with one error: it is said once."""
    return list({id(error): error for error in failures.values()}.values())


def _require_locks(targets: Sequence[Target], artifacts: Path) -> None:
    """Before anything is compiled. Raises LockError."""
    for target in targets:
        path = lock_path(artifacts, str(target))
        if not path.exists():
            raise LockError(
                f"there is no lock file {shown(path)} to compare with",
                tip=f"dsv4-aot build --arch {target} --update-lock writes it",
            )


# Telling ----------------------------------------------------------------------------------------


def _rows(plan: Plan, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    rows = []
    for name in plan.folders:
        keys = [variant.key for variant in plan.variants if variant.folder.name == name]
        built = [artifacts[key] for key in keys if key in artifacts]
        rows.append(
            {
                "target": str(plan.target),
                "kernel": name,
                "variants": len(keys),
                "built": len(built),
                "bytes": sum({a.sha256: len(a.cubin) for a in built}.values()),
                "registers": max((a.facts.resources.registers for a in built), default=0),
                "spills": sum(a.facts.resources.spills for a in built),
                "compile_seconds": round(sum({a.build_key: a.seconds for a in built}.values()), 2),
                "kept": name in plan.kept,
            }
        )
    return rows


def _describe(rows: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    columns = {
        "target": "target",
        "kernel": "kernel",
        "variants": "variants",
        **({"built": "built"} if facts["failed"] else {}),
        "bytes": "bytes",
        "registers": "most registers",
        "spills": "spills",
        "compile_seconds": "compile s",
    }
    Sheet(columns=columns, rows=rows, empty="there are no kernels").show(as_json=False)
    say(f"{facts['compiled']} compiled, {facts['reused']} taken over, {facts['seconds']:.1f} s")


def _complain_of(errors: Sequence[Dsv4AotError]) -> None:
    """One block an error; a compiler's log that stood above already is not repeated."""
    logs: set[str] = set()
    for error in errors:
        log = error.log if isinstance(error, CompileError) else ""
        complain(error, log=log not in logs)
        logs.add(log)


def _error_row(error: Dsv4AotError) -> dict[str, Any]:
    log = error.log if isinstance(error, CompileError) else None
    return {"message": error.message, "tip": error.tip, "log": log}
