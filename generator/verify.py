"""Whether an artifact folder is whole, and its manifest true of its cubins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dsv4_aot.generator.inspect import inspect_cubin
from dsv4_aot.generator.policy import contradictions
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.errors import BuildError, CorruptArtifactError, ManifestError
from dsv4_aot.runtime.schema import Entry, Manifest, entry_key
from dsv4_aot.runtime.target import Target


def verify(folder: Path) -> list[str]:
    """What is wrong with the folder; empty when it is good.

    Hashes first: bytes that are not those of the manifest are not looked into. Raises
    ToolchainError when a kernel uses its stack and nvdisasm is not installed.
    """
    try:
        manifest = manifests.read(folder)
    except ManifestError as error:
        return [error.message]
    return [*_file_problems(folder, manifest), *_entry_problems(folder, manifest)]


def _file_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    if folder.resolve().name != manifest.target:
        yield f"{folder} holds {manifest.target}, and its name says otherwise"
    named = {entry.file for kernel in manifest.kernels for entry in kernel.entries}
    for path in sorted(folder.iterdir()):
        if path.name not in named | {manifests.FILE_NAME}:
            yield f"{path} is not in the manifest"


def _entry_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    target = Target.parse(manifest.target)
    for kernel in manifest.kernels:
        for entry in kernel.entries:
            for problem in _cubin_problems(folder, target, entry):
                yield f"{entry_key(kernel.name, manifest.target, entry.choices)}: {problem}"


def _cubin_problems(folder: Path, target: Target, entry: Entry) -> Iterator[str]:
    try:
        facts = inspect_cubin(manifests.read_cubin(folder, entry), entry.symbol)
    except (CorruptArtifactError, BuildError) as error:
        yield error.message
        return
    yield from contradictions(target, entry.params, entry.launch, facts)
    if entry.resources != facts.resources:
        yield f"the manifest says {entry.resources}, the cubin {facts.resources}"
