"""``inspect``: everything that is known of one variant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from dsv4_aot.generator.cli.catalog import validated_on
from dsv4_aot.generator.cli.console import Sheet, json_option, plain, say, show_json
from dsv4_aot.generator.cli.occupancy import Occupancy, occupancy
from dsv4_aot.generator.cli.options import cache_option, find_artifacts, nearest
from dsv4_aot.generator.inspect import sass
from dsv4_aot.generator.store import Store
from dsv4_aot.runtime.errors import BuildError, ConflictError
from dsv4_aot.runtime.expr import to_text
from dsv4_aot.runtime.manifest import read_cubin
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import (
    Argument,
    Entry,
    KernelRecord,
    Pointer,
    ScalarArg,
    TensorArg,
    entry_key,
)
from dsv4_aot.runtime.target import Target

Found = tuple[Installed, KernelRecord, Entry]


@click.command()
@click.argument("key")
@click.option(
    "--path", "paths", multiple=True, type=click.Path(exists=True, path_type=Path),
    help="Look in this folder of artifacts alone; may be repeated.",
)  # fmt: skip
@click.option("--sass", "show_sass", is_flag=True, help="Print the cubin's machine code.")
@click.option("--ptx", "show_ptx", is_flag=True, help="Print the PTX it was assembled from.")
@cache_option
@json_option
def inspect(
    key: str,
    paths: tuple[Path, ...],
    show_sass: bool,
    show_ptx: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Show everything about one variant.

    Arguments, parameter layout, registers, spills, shared memory, occupancy, machine code. KEY
    reads dequant_gather/sm_90a/block_size=64,...; `dsv4-aot list --variants` has them all.
    """
    if show_sass + show_ptx + as_json > 1:
        raise click.UsageError("choose one of --sass, --ptx and --json")
    place, kernel, entry = _find(key, find_artifacts(paths))
    if show_sass:
        say(sass(read_cubin(place.folder, entry)))
    elif show_ptx:
        say(_ptx(Store(cache), key, entry))
    elif as_json:
        show_json(_facts(place, kernel, entry))
    else:
        _describe(place, kernel, entry)


def _find(key: str, installed: Iterable[Installed]) -> Found:
    found: dict[str, list[Found]] = {}
    for place in installed:
        for kernel in place.manifest.kernels:
            for entry in kernel.entries:
                name = entry_key(kernel.name, place.manifest.target, entry.choices)
                found.setdefault(name, []).append((place, kernel, entry))
    if key not in found:
        raise click.BadParameter(
            f"there is no variant {key!r}; {nearest(key, sorted(found))}", param_hint="'KEY'"
        )
    if len({entry.sha256 for _, _, entry in found[key]}) > 1:
        places = ", ".join(place.origin for place, _, _ in found[key])
        raise ConflictError(f"{key} has different bytes in {places}", tip="name one with --path")
    return found[key][0]


def _facts(place: Installed, kernel: KernelRecord, entry: Entry) -> dict[str, Any]:
    fits = _occupancy(place, entry)
    return {
        "key": entry_key(kernel.name, place.manifest.target, entry.choices),
        "origin": place.origin,
        "arguments": msgspec.to_builtins(kernel.arguments),
        **msgspec.to_builtins(entry),
        "occupancy": None if fits is None else asdict(fits),
        "validated": validated_on(place.manifest).get(entry.sha256, []),
    }


def _ptx(store: Store, key: str, entry: Entry) -> str:
    ptx = store.ptx(entry.build_key)
    if ptx is None:
        raise BuildError(
            f"the PTX of {key} is not here: artifacts carry machine code alone",
            tip="dsv4-aot build with the same sources keeps it in the cache",
        )
    return ptx


def _occupancy(place: Installed, entry: Entry) -> Occupancy | None:
    return occupancy(entry, Target.parse(place.manifest.target).capability)


# For people -------------------------------------------------------------------------------------


def _describe(place: Installed, kernel: KernelRecord, entry: Entry) -> None:
    say(entry_key(kernel.name, place.manifest.target, entry.choices))
    say(kernel.summary)
    say()
    _argument_sheet(kernel.arguments).show(as_json=False)
    _parameter_sheet(entry).show(as_json=False)
    gpus = validated_on(place.manifest).get(entry.sha256, [])
    fits = _occupancy(place, entry)
    launch, resources = entry.launch, entry.resources
    for name, value in {
        "grid": " x ".join(to_text(node) for node in launch.grid),
        "block": " x ".join(map(str, launch.block)),
        "cluster": " x ".join(map(str, launch.cluster)),
        "programmatic launch": plain(launch.programmatic),
        "registers a thread": plain(resources.registers),
        "spills": f"{resources.spills} local loads and stores",
        "stack, local": f"{resources.stack}, {resources.local} bytes",
        "shared memory": f"{resources.shared:,} static + {launch.shared:,} dynamic bytes",
        "occupancy": "no limits known for this target" if fits is None else str(fits),
        "code": f"{resources.code:,} bytes",
        "cubin": f"{entry.file}, {entry.bytes:,} bytes",
        "SHA-256": entry.sha256,
        "build key": entry.build_key,
        "validated on": plain(gpus),
        "from": place.origin,
    }.items():
        say(f"{name:<20} {value}")


def _argument_sheet(arguments: Iterable[Argument]) -> Sheet:
    columns = ("name", "type", "shape", "strides", "align", "use", "about")
    return Sheet(
        title="arguments",
        columns={name: name for name in columns},
        rows=[_argument_row(argument) for argument in arguments],
        empty="no arguments",
    )


def _argument_row(argument: Argument) -> dict[str, Any]:
    if isinstance(argument, ScalarArg):
        low, high = plain(argument.minimum), plain(argument.maximum)
        use = "required" if argument.default is None else f"default {plain(argument.default)}"
        return {
            "name": argument.name,
            "type": argument.type,
            "shape": f"{low} to {high}" if (low, high) != ("-", "-") else "-",
            "strides": "-",
            "align": "-",
            "use": use,
            "about": argument.doc,
        }
    return {
        "name": argument.name,
        "type": ", ".join(argument.dtypes),
        "shape": _dims(argument, argument.shape),
        "strides": "contiguous" if argument.contiguous else _dims(argument, argument.strides),
        "align": argument.align,
        "use": argument.access + (", optional" if argument.optional else ""),
        "about": argument.doc,
    }


def _dims(argument: TensorArg, nodes: Iterable[Any]) -> str:
    dims = ["..."] if argument.leading else []
    dims += ["*" if node is None else to_text(node) for node in nodes]
    return f"({', '.join(dims)})"


def _parameter_sheet(entry: Entry) -> Sheet:
    return Sheet(
        title=f"parameters of {entry.symbol}",
        columns={name: name for name in ("offset", "size", "type", "name", "value")},
        rows=[
            {
                "offset": param.offset,
                "size": param.size,
                "type": param.type,
                "name": param.name,
                "value": (
                    f"address of {param.source.arg}"
                    if isinstance(param.source, Pointer)
                    else to_text(param.source.node)
                ),
            }
            for param in entry.params
        ],
        empty="no parameters",
    )
