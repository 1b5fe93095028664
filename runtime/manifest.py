"""Reading and writing manifests, strictly.

One ``manifest.json`` per target lies beside its cubins. :mod:`dsv4_aot.runtime.schema` says what
it holds; what a schema cannot say is checked here, before anything in it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.abi import lay_out
from dsv4_aot.runtime.errors import CorruptArtifactError, Dsv4AotError, ManifestError
from dsv4_aot.runtime.expr import Node
from dsv4_aot.runtime.schema import (
    SCHEMA,
    Argument,
    Choice,
    DtypeOf,
    Entry,
    Expression,
    KernelRecord,
    Manifest,
    Number,
    Param,
    Pointer,
    ScalarArg,
    TensorArg,
    choices_text,
)
from dsv4_aot.runtime.target import Target

FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
MAX_CUBIN_BYTES = 64 << 20


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON, one byte string per manifest; on one line, since every start reads it."""
    return msgspec.json.encode(manifest, order="deterministic") + b"\n"


def decode(data: bytes) -> Manifest:
    """Raises ManifestError unless ``data`` is a valid manifest."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"the manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"the manifest does not fit schema {SCHEMA}: {error}",
            tip="rebuild it, or install the runtime of the same release",
        ) from error
    if encode(manifest) != data:
        _refuse_duplicate_keys(data)
    for problem in _problems(manifest):
        raise ManifestError(f"the manifest contradicts itself: {problem}")
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest of an artifact folder. Raises ManifestError."""
    path = folder / FILE_NAME
    try:
        return decode(_read_plain_file(path, MAX_MANIFEST_BYTES))
    except CorruptArtifactError as error:
        raise ManifestError(error.message, tip=error.tip) from error
    except ManifestError as error:
        raise ManifestError(f"{path}: {error.message}", tip=error.tip) from error


def read_cubin(folder: Path, entry: Entry) -> bytes:
    """The bytes of an entry's cubin, hashed. Raises CorruptArtifactError unless they are those."""
    path = folder / entry.file
    data = _read_plain_file(path, MAX_CUBIN_BYTES)
    tip = "reinstall the artifact wheel, or rebuild"
    if len(data) != entry.bytes:
        raise CorruptArtifactError(
            f"{path} has {len(data)} bytes, the manifest says {entry.bytes}", tip=tip
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise CorruptArtifactError(
            f"{path} has SHA-256 {digest}, the manifest says {entry.sha256}", tip=tip
        )
    return data


def _read_plain_file(path: Path, limit: int) -> bytes:
    """Reads a regular file that is no link and not over the limit."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise CorruptArtifactError(f"{path} is a link, and links are refused") from error
        raise CorruptArtifactError(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CorruptArtifactError(f"{path} is not a regular file")
        if status.st_size > limit:
            raise CorruptArtifactError(
                f"{path} has {status.st_size} bytes, at most {limit} are allowed"
            )
        return file.read(limit + 1)


def _refuse_duplicate_keys(data: bytes) -> None:
    """JSON decoders keep the last of two equal keys; here that is an error."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        for key in keys:
            if keys.count(key) > 1:
                raise ManifestError(f"the key {key!r} stands twice in one object")
        return dict(items)

    json.loads(data, object_pairs_hook=pairs)


# What the schema cannot say -----------------------------------------------------------------------


def _problems(manifest: Manifest) -> Iterator[str]:
    try:
        Target.parse(manifest.target)
    except Dsv4AotError as error:
        yield error.message
    names = [kernel.name for kernel in manifest.kernels]
    if len(set(names)) != len(names):
        yield "two kernels have one name"
    for kernel in manifest.kernels:
        for problem in kernel_problems(kernel):
            yield f"{kernel.name}: {problem}"


def kernel_problems(kernel: KernelRecord) -> Iterator[str]:
    """What makes a kernel record unusable. The build asks the same question of a spec."""
    tensors = {arg.name: arg.rank for arg in kernel.arguments if isinstance(arg, TensorArg)}
    scalars = {arg.name for arg in kernel.arguments if isinstance(arg, ScalarArg)}
    if len(tensors) + len(scalars) != len(kernel.arguments):
        yield "two arguments have one name"
    for arg in kernel.arguments:
        yield from _argument_problems(arg)
    for node in dict.fromkeys(_nodes(kernel)):  # entries share most of theirs
        yield from expr.problems(node, tensors, scalars)
    yield from _axis_problems(kernel, tensors)
    yield from _dispatch_problems(kernel)
    axes = _axis_choices(kernel)
    floats = {a.name for a in kernel.arguments if isinstance(a, ScalarArg) and a.type == "float"}
    seen: set[str] = set()
    checked: set[tuple[Param, ...]] = set()
    for entry in kernel.entries:
        key = choices_text(entry.choices)
        if key in seen:
            yield f"two entries are {key}"
        seen.add(key)
        if entry.choices.keys() != axes.keys():
            yield f"entry {key} does not choose on every axis"
        elif any(_typed(choice) not in axes[name] for name, choice in entry.choices.items()):
            yield f"entry {key} has a choice outside its axis"
        yield from _entry_problems(key, entry)
        if entry.params not in checked:  # entries share most of theirs
            checked.add(entry.params)
            yield from _param_problems(key, entry.params, tensors, floats)


def _axis_choices(kernel: KernelRecord) -> dict[str, set[tuple[str, Choice]]]:
    return {axis.name: {_typed(value.choice) for value in axis.values} for axis in kernel.axes}


def _axis_problems(kernel: KernelRecord, tensors: Collection[str]) -> Iterator[str]:
    for axis in kernel.axes:
        if isinstance(axis.bind, DtypeOf) and axis.bind.arg not in tensors:
            yield f"axis {axis.name} is bound to {axis.bind.arg!r}, which is no tensor argument"
        bound_values = {_typed(value.when) for value in axis.values}
        if not axis.values or len(bound_values) != len(axis.values):
            yield f"axis {axis.name} has no values, or two for one bound value"


def _dispatch_problems(kernel: KernelRecord) -> Iterator[str]:
    """The domain and the rules, against the axes."""
    axes = _axis_choices(kernel)
    bound = {axis.name for axis in kernel.axes if axis.bind is not None}
    tuned = axes.keys() - bound
    for product in kernel.domain:
        if set(product) != bound:
            yield f"a domain product names {sorted(product)}, the bound axes are {sorted(bound)}"
    for rule in kernel.rules:
        if not set(rule.where) <= bound:
            yield f"a rule's where names {sorted(rule.where)}, the bound axes are {sorted(bound)}"
        if set(rule.choose) != tuned:
            yield f"a rule chooses {sorted(rule.choose)}, the tuned axes are {sorted(tuned)}"
    for check in kernel.checks:
        if not set(check.where) <= bound:
            yield f"a check's where names {sorted(check.where)}, the bound axes are {sorted(bound)}"
    limits = [*kernel.domain, *(check.where for check in kernel.checks)]
    for rule in kernel.rules:
        limits += [rule.where, {name: (choice,) for name, choice in rule.choose.items()}]
    for choices in limits:
        for name, allowed in choices.items():
            if not {_typed(choice) for choice in allowed} <= axes.get(name, set()):
                yield f"{name}={list(allowed)} is not among the values of its axis"


def _typed(choice: Choice) -> tuple[str, Choice]:
    """Tells True from 1, which Python's equality does not."""
    return type(choice).__name__, choice


def _argument_problems(arg: Argument) -> Iterator[str]:
    if isinstance(arg, ScalarArg):
        return
    if len(arg.strides) != len(arg.shape):
        yield f"{arg.name} has {len(arg.shape)} dims and {len(arg.strides)} strides"
    if arg.align <= 0 or arg.align & (arg.align - 1):
        yield f"{arg.name} has alignment {arg.align}, which is no power of two"
    if not arg.dtypes:
        yield f"{arg.name} allows no dtype"


def _nodes(kernel: KernelRecord) -> Iterator[Node]:
    for arg in kernel.arguments:
        if isinstance(arg, TensorArg):
            yield from (node for node in (*arg.shape, *arg.strides) if node is not None)
    yield from (check.require for check in kernel.checks)
    yield from (axis.bind.node for axis in kernel.axes if isinstance(axis.bind, Expression))
    yield from (rule.when for rule in kernel.rules if rule.when is not None)
    for entry in kernel.entries:
        yield from entry.launch.grid
        yield from (p.source.node for p in entry.params if isinstance(p.source, Number))


def _entry_problems(key: str, entry: Entry) -> Iterator[str]:
    launch = entry.launch
    if min(*launch.block, *launch.cluster) < 1 or launch.shared < 0 or entry.bytes < 0:
        yield f"entry {key}: block, cluster or sizes are out of range"
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    if threads > 1024:
        yield f"entry {key}: {threads} threads a block, at most 1024 are allowed"


def _param_problems(
    key: str, params: tuple[Param, ...], tensors: dict[str, int | None], floats: set[str]
) -> Iterator[str]:
    slots = lay_out(param.type for param in params)
    if any((p.offset, p.size) != (s.offset, s.size) for p, s in zip(params, slots, strict=True)):
        yield f"entry {key}: the parameter offsets are not those of the C layout"
    for param in params:
        if isinstance(param.source, Pointer):
            if param.source.arg not in tensors or param.type != "pointer":
                yield f"entry {key}: parameter {param.name} is no pointer to a tensor argument"
            continue
        passes_float = isinstance(param.source.node, expr.Value) and param.source.node.arg in floats
        if passes_float != (param.type in {"f32", "f64"}):
            yield f"entry {key}: parameter {param.name} mixes integers and floats"
        if param.type == "pointer":
            yield f"entry {key}: parameter {param.name} is a pointer without a tensor"
