"""``list``: what is built or installed; ``schema``: the manifest's JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from dsv4_aot.generator.cli.console import Sheet, json_option, show_json
from dsv4_aot.generator.cli.options import find_artifacts
from dsv4_aot.runtime.manifest import Reader
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import Entry, KernelRecord, Manifest, entry_key


@click.command("list")
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--variants", is_flag=True, help="One row a variant instead of one a kernel.")
@json_option
def list_(paths: tuple[Path, ...], variants: bool, as_json: bool) -> None:
    """List what is built or installed.

    Kernels, variants, targets, sizes, and the GPUs that validated them. PATHS are folders of
    artifacts; without any, the installed wheels, $DSV4_AOT_ARTIFACTS and the checkout's own
    builds are listed.
    """
    installed = find_artifacts(paths)
    rows = list(_variant_rows(installed) if variants else _kernel_rows(installed))
    columns = (
        {"key": "variant", "bytes": "bytes", "registers": "registers", "spills": "spills"}
        if variants
        else {
            "kernel": "kernel",
            "target": "target",
            "bodies": "bodies",
            "variants": "variants",
            "bytes": "bytes",
        }
    )
    Sheet(
        columns={**columns, "validated": "validated", "origin": "from"},
        rows=rows,
        empty="nothing is built or installed (TIP: dsv4-aot build, or install an artifact wheel)",
    ).show(as_json=as_json)


@click.command()
def schema() -> None:
    """Print the JSON Schema of the manifest."""
    show_json(msgspec.json.schema(Manifest))


def validated_on(manifest: Manifest | Reader) -> dict[str, list[str]]:
    """GPUs that agreed with the reference, by cubin hash."""
    gpus: dict[str, list[str]] = {}
    for record in manifest.validation:
        gpus.setdefault(record.sha256, []).append(record.gpu)
    return {sha256: sorted(set(names)) for sha256, names in gpus.items()}


def _kernel_rows(installed: Iterable[Installed]) -> Iterable[dict[str, Any]]:
    for place in installed:
        gpus = validated_on(place.manifest)
        for kernel in place.manifest.kernels:
            yield {
                "kernel": kernel.name,
                "target": place.manifest.target,
                "bodies": _bodies(kernel),
                "variants": len(kernel.entries),
                "bytes": sum({e.sha256: e.bytes for e in kernel.entries}.values()),
                "validated": _validated(kernel, gpus),
                "version": place.manifest.version,
                "origin": place.origin,
            }


def _bodies(kernel: KernelRecord) -> list[str] | None:
    """What its entries are built from, where a kernel has more than one body."""
    return sorted({str(e.choices["body"]) for e in kernel.entries if "body" in e.choices}) or None


def _validated(kernel: KernelRecord, gpus: dict[str, list[str]]) -> dict[str, int]:
    """How many of the kernel's variants each GPU validated."""
    counts: dict[str, int] = {}
    for entry in kernel.entries:
        for gpu in gpus.get(entry.sha256, ()):
            counts[gpu] = counts.get(gpu, 0) + 1
    return dict(sorted(counts.items()))


def _variant_rows(installed: Iterable[Installed]) -> Iterable[dict[str, Any]]:
    for place in installed:
        gpus = validated_on(place.manifest)
        for kernel in place.manifest.kernels:
            for entry in kernel.entries:
                yield _variant_row(place, kernel.name, entry, gpus.get(entry.sha256, []))


def _variant_row(place: Installed, kernel: str, entry: Entry, gpus: list[str]) -> dict[str, Any]:
    return {
        "key": entry_key(kernel, place.manifest.target, entry.choices),
        "file": entry.file,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "registers": entry.resources.registers,
        "spills": entry.resources.spills,
        "validated": gpus,
        "origin": place.origin,
    }
