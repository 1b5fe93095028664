"""``diff``: what changed between two builds; ``verify``: whether a build is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dsv4_aot.generator.cli.console import Sheet, json_option, say, show_json
from dsv4_aot.generator.cli.options import build_folder, shown
from dsv4_aot.generator.coverage import closed
from dsv4_aot.generator.diff import Diff, load
from dsv4_aot.generator.diff import diff as compare
from dsv4_aot.generator.lock import Change
from dsv4_aot.generator.verify import verify as problems_in
from dsv4_aot.runtime import manifest
from dsv4_aot.runtime.errors import BuildError

_SHA256_LENGTH = 64


@click.command()
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Show what changed between two builds.

    Added and removed variants, changed bytes, registers, spills and code size. BEFORE and AFTER are
    each a target folder, a manifest.json or a lock file.
    """
    result = compare(load(before), load(after))
    rows = [_change_row(change) for change in result.changes]
    packages = [
        {"package": p.package, "before": p.before, "after": p.after} for p in result.packages
    ]
    if as_json:
        show_json(
            {
                "before": result.before,
                "after": result.after,
                "same": result.same,
                "packages": packages,
                "changes": rows,
            }
        )
        return
    if packages:
        Sheet(columns={k: k for k in packages[0]}, rows=packages, title="toolchain").show(
            as_json=False
        )
    if rows:
        shown_rows = [{**row, "details": _details(row["details"])} for row in rows]
        columns = {"key": "variant", "change": "change", "details": "details"}
        Sheet(columns=columns, rows=shown_rows, title="variants").show(as_json=False)
    say(_summary(result))


def _change_row(change: Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "change": change.kind,
        "details": [
            {"field": name, "before": old, "after": new} for name, old, new in change.details()
        ],
    }


def _details(details: list[dict[str, Any]]) -> str:
    """``registers 40 -> 48, code 3,072 -> 2,944``; hashes are too long to be read."""
    return ", ".join(
        f"{item['field']} differs"
        if len(str(item["before"])) == _SHA256_LENGTH
        else f"{item['field']} {item['before']} -> {item['after']}"
        for item in details
    )


def _summary(result: Diff) -> str:
    counts = dict.fromkeys(("added", "removed", "changed"), 0)
    for change in result.changes:
        counts[change.kind] += 1
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{result.before} -> {result.after}: {result.same} the same" + (said and f", {said}")


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--closed", "coverage", is_flag=True,
    help="Also prove that every call in each kernel's domain resolves to one entry.",
)  # fmt: skip
@json_option
@click.pass_context
def verify(ctx: click.Context, path: Path | None, coverage: bool, as_json: bool) -> None:
    """Check artifacts against their manifests.

    Schema, hashes, parameter tables and resources, against the cubins themselves. PATH is a
    target folder or a folder of them; without it, the checkout's own builds.
    """
    rows: list[dict[str, Any]] = []
    for folder in _target_folders(build_folder() if path is None else path):
        problems = problems_in(folder)
        if coverage and not problems:
            problems = closed(manifest.read(folder))
        rows.append({"target": folder.name, "folder": str(folder), "problems": problems})
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            _report(row["folder"], row["problems"], coverage)
    if any(row["problems"] for row in rows):
        ctx.exit(1)


def _report(folder: str, problems: list[str], coverage: bool) -> None:
    if not problems:
        say(f"{folder}: " + ("intact and closed" if coverage else "intact"))
        return
    say(f"{folder}: {len(problems)} problems")
    for problem in problems:
        say(f"  {problem}")


def _target_folders(path: Path) -> list[Path]:
    """Folders with a manifest: ``path`` itself, or those in it."""
    if (path / manifest.FILE_NAME).exists():
        return [path]
    folders = (
        sorted(p.parent for p in path.glob(f"*/{manifest.FILE_NAME}")) if path.is_dir() else []
    )
    if not folders:
        raise BuildError(
            f"{shown(path)} has no {manifest.FILE_NAME} and no folder that has one",
            tip="dsv4-aot build, or name a folder of artifacts",
        )
    return folders
