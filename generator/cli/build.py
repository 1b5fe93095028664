"""``build``: compiles kernels, packs targets, compares them with their locks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    pick,
    shown,
    templates_option,
)
from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.generator.expand import Variant, expand
from dsv4_aot.generator.key import build_key
from dsv4_aot.generator.lock import check, lock_of, lock_path, write_lock
from dsv4_aot.generator.pack import pack
from dsv4_aot.generator.render import render
from dsv4_aot.generator.store import Artifact, Store
from dsv4_aot.generator.toolchain import probe
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import BuildError, Dsv4AotError
from dsv4_aot.runtime.target import Target


@dataclass(frozen=True)
class _Plan:
    """What one target is packed from: the kernels named, and those its folder keeps."""

    target: Target
    folders: Mapping[str, KernelFolder]
    kept: Sequence[str]
    variants: Sequence[Variant]

    @property
    def keys(self) -> list[str]:
        return [variant.key for variant in self.variants]


@click.command()
@click.option(
    "--arch", "targets", type=TargetList(), default=DEFAULT_TARGETS, show_default=True,
    help="Targets to build for, separated by commas.",
)  # fmt: skip
@click.option("--kernel", "names", multiple=True, help="Only this kernel; may be repeated.")
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
    jobs: int | None,
    locked: bool,
    update_lock: bool,
    out: Path | None,
    templates: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Compile kernels and write one manifest a target. Needs no GPU and no CUDA toolkit.

    With --kernel, other kernels that the output folder holds are kept as they are.
    """
    if locked and update_lock:
        raise click.UsageError("--locked compares with the lock files, --update-lock writes them")
    if names and (locked or update_lock):
        raise click.UsageError("lock files cover whole targets: leave out --kernel")
    artifacts = artifacts_folder(templates)
    out = build_folder(templates) if out is None else out
    store = Store(cache)
    started = time.monotonic()
    plans = _plan(targets, names, discover(templates), out, store)
    result = _compile(plans, store, jobs)
    whole = [plan for plan in plans if result.failures.keys().isdisjoint(plan.keys)]
    errors = _pack(whole, result, out, artifacts, locked=locked, update_lock=update_lock)
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
        show_json({**facts, "kernels": rows, "errors": [str(error) for error in problems]})
    else:
        _describe(rows, plans, facts)
        for error in (*_distinct(result.failures), *errors):
            complain(error)
    for plan in plans:
        if plan not in whole:
            failed = len(result.failures.keys() & set(plan.keys))
            note(f"{plan.target} is as it was: {failed} of {len(plan.variants)} variants failed")
    if result.failures or errors:
        ctx.exit(1)


# Planning ---------------------------------------------------------------------------------------


def _plan(
    targets: Sequence[Target],
    names: Sequence[str],
    everything: Mapping[str, KernelFolder],
    out: Path,
    store: Store,
) -> list[_Plan]:
    named = pick(everything, names)
    plans = []
    for target in targets:
        kept = _kept(target, named, everything, out / str(target), store) if names else ()
        folders = {n: f for n, f in everything.items() if n in named or n in kept}
        variants = [variant for folder in folders.values() for variant in expand(folder, target)]
        plans.append(_Plan(target, folders, kept, variants))
    return plans


def _kept(
    target: Target,
    named: Mapping[str, KernelFolder],
    everything: Mapping[str, KernelFolder],
    folder: Path,
    store: Store,
) -> tuple[str, ...]:
    """Other kernels in the output folder. Raises BuildError when one would have to be compiled.

    Kernels whose templates are gone are dropped.
    """
    if not (folder / manifests.FILE_NAME).exists():
        return ()
    standing = manifests.read(folder).kernels
    kept = [k.name for k in standing if k.name in everything and k.name not in named]
    for name in kept:
        for variant in expand(everything[name], target):
            source = render(variant)
            if store.get(build_key(source, probe(source.kind), target)) is None:
                raise BuildError(
                    f"{shown(folder)} also holds {name}, which has changed since it was built",
                    tip="build without --kernel, or give another folder with --out",
                )
    return tuple(kept)


# Working ----------------------------------------------------------------------------------------


def _compile(plans: Sequence[_Plan], store: Store, jobs: int | None) -> BuildResult:
    variants = [variant for plan in plans for variant in plan.variants]
    with Progress("building", len(variants)) as progress:

        def advance(event: Event) -> None:
            progress.advance(event.key)

        return compile_all(variants, store, jobs=jobs, on_event=advance)


def _pack(
    plans: Sequence[_Plan],
    result: BuildResult,
    out: Path,
    artifacts: Path,
    *,
    locked: bool,
    update_lock: bool,
) -> list[Dsv4AotError]:
    """Packs every target, also when one fails; gives what failed.

    The lock is compared afterwards, so that ``diff`` can show what differs.
    """
    errors: list[Dsv4AotError] = []
    for plan in plans:
        lock = lock_path(artifacts, str(plan.target))
        try:
            packed = pack(
                plan.target, plan.folders, result.artifacts, out, artifacts / "validation"
            )
            if locked:
                check(lock, packed)
            if update_lock:
                write_lock(lock, lock_of(packed))
        except Dsv4AotError as error:
            errors.append(error)
    return errors


def _distinct(failures: Mapping[str, Dsv4AotError]) -> list[Dsv4AotError]:
    """Variants that share one source fail with one error: it is said once."""
    return list({id(error): error for error in failures.values()}.values())


# Telling ----------------------------------------------------------------------------------------


def _rows(plan: _Plan, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
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
                "compile_seconds": round(sum({a.build_key: a.seconds for a in built}.values()), 3),
                "kept": name in plan.kept,
            }
        )
    return rows


def _describe(
    rows: Sequence[dict[str, Any]], plans: Sequence[_Plan], facts: Mapping[str, Any]
) -> None:
    columns = {
        "target": "target",
        "kernel": "kernel",
        "variants": "variants",
        "bytes": "bytes",
        "registers": "most registers",
        "spills": "spills",
        "compile_seconds": "compile s",
    }
    Sheet(columns=columns, rows=rows, empty="there are no kernels").show(as_json=False)
    say(
        f"{facts['compiled']} compiled, {facts['reused']} taken over, {facts['seconds']:.1f} s; "
        f"manifests and cubins: {shown(Path(facts['out']))}"
    )
    for plan in plans:
        if plan.kept:
            say(f"{plan.target}: kept as they are: {', '.join(plan.kept)}")
