"""``wheel``: packs built targets for shipping."""

from __future__ import annotations

from pathlib import Path

import click

from dsv4_aot.generator.cli.console import Sheet, json_option
from dsv4_aot.generator.cli.options import DEFAULT_TARGETS, TargetList, build_folder, shown
from dsv4_aot.generator.wheel import write_wheel
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.manifest import FILE_NAME
from dsv4_aot.runtime.target import Target


@click.command()
@click.option(
    "--arch", "targets", type=TargetList(), default=DEFAULT_TARGETS, show_default=True,
    help="Targets to pack, one wheel each.",
)  # fmt: skip
@click.option(
    "--from", "built", type=click.Path(file_okay=False, path_type=Path),
    help="Folder of built targets.  [default: artifacts/build]",
)  # fmt: skip
@click.option(
    "--out", "dist", type=click.Path(file_okay=False, path_type=Path), default=Path("dist"),
    show_default=True, help="Folder for the wheels.",
)  # fmt: skip
@json_option
def wheel(targets: tuple[Target, ...], built: Path | None, dist: Path, as_json: bool) -> None:
    """Pack reproducible artifact wheels.

    One a target, of data alone: the same build gives the same bytes.
    """
    root = build_folder() if built is None else built
    for target in targets:
        if not (root / str(target) / FILE_NAME).is_file():
            raise BuildError(
                f"{target} is not built in {shown(root)}", tip=f"dsv4-aot build --arch {target}"
            )
    rows = []
    for target in targets:
        path = write_wheel(root / str(target), dist)
        rows.append({"target": str(target), "wheel": str(path), "bytes": path.stat().st_size})
    Sheet(columns={"target": "target", "bytes": "bytes", "wheel": "wheel"}, rows=rows).show(
        as_json=as_json
    )
