"""What a build takes in: which kernels each target is packed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv4_aot.generator.cli.options import pick, shown
from dsv4_aot.generator.discover import KernelFolder
from dsv4_aot.generator.expand import Variant, expand
from dsv4_aot.generator.key import build_key
from dsv4_aot.generator.render import render
from dsv4_aot.generator.store import Store
from dsv4_aot.generator.toolchain import probe
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.target import Target


@dataclass(frozen=True)
class Plan:
    """What one target is packed from: the kernels named, and those its folder keeps."""

    target: Target
    folders: Mapping[str, KernelFolder]
    kept: Sequence[str]
    variants: Sequence[Variant]

    @property
    def keys(self) -> list[str]:
        return [variant.key for variant in self.variants]


def make_plans(
    targets: Sequence[Target],
    names: Sequence[str],
    everything: Mapping[str, KernelFolder],
    out: Path,
    store: Store,
) -> list[Plan]:
    """One plan a target. With ``names``, the output folder's other kernels are kept.

    Raises BuildError when one of those would have to be compiled.
    """
    named = pick(everything, names)
    plans = []
    for target in targets:
        kept = _kept(target, named, everything, out / str(target), store) if names else ()
        folders = {n: f for n, f in everything.items() if n in named or n in kept}
        variants = [variant for folder in folders.values() for variant in expand(folder, target)]
        plans.append(Plan(target, folders, kept, variants))
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
                    f"{shown(folder)} also holds {name}, which would have to be compiled again",
                    tip="build without --kernel, or give another folder with --out",
                )
    return tuple(kept)
