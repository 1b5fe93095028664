"""What makes a kernel's record contradict itself, beyond what its schema can say."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.abi import lay_out
from dsv4_aot.runtime.expr import Node
from dsv4_aot.runtime.schema import (
    Argument,
    Choice,
    DtypeOf,
    Entry,
    Expression,
    KernelRecord,
    Number,
    Param,
    Pointer,
    ScalarArg,
    TensorArg,
    choices_text,
)


def kernel_problems(kernel: KernelRecord) -> Iterator[str]:
    """What makes a kernel record unusable. The build asks the same question of a spec."""
    tensors = {
        arg.name: expr.Rank(len(arg.shape), arg.leading)
        for arg in kernel.arguments
        if isinstance(arg, TensorArg)
    }
    scalars = {arg.name for arg in kernel.arguments if isinstance(arg, ScalarArg)}
    if len(tensors) + len(scalars) != len(kernel.arguments):
        yield "two arguments have one name"
    for arg in kernel.arguments:
        yield from _argument_problems(arg)
    # Entries share most of their parameters and grids, which are looked at once.
    lists = {entry.params: entry.choices for entry in kernel.entries}
    grids = dict.fromkeys(entry.launch.grid for entry in kernel.entries)
    for node in dict.fromkeys((*_nodes(kernel), *_entry_nodes(grids, lists))):
        yield from expr.problems(node, tensors, scalars)
    yield from _axis_problems(kernel, tensors)
    yield from _dispatch_problems(kernel)
    axes = _axis_choices(kernel)
    floats = {a.name for a in kernel.arguments if isinstance(a, ScalarArg) and a.type == "float"}
    for params, choices in lists.items():
        yield from _param_problems(choices_text(choices), params, tensors, floats)
    seen: set[str] = set()
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


def _entry_nodes(
    grids: Iterable[tuple[Node, ...]], lists: Iterable[tuple[Param, ...]]
) -> Iterator[Node]:
    yield from itertools.chain(*grids)
    for params in lists:
        yield from (param.source.node for param in params if isinstance(param.source, Number))


def _entry_problems(key: str, entry: Entry) -> Iterator[str]:
    launch = entry.launch
    if min(*launch.block, *launch.cluster) < 1 or launch.shared < 0 or entry.bytes < 0:
        yield f"entry {key}: block, cluster or sizes are out of range"
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    if threads > 1024:
        yield f"entry {key}: {threads} threads a block, at most 1024 are allowed"


def _param_problems(
    key: str, params: tuple[Param, ...], tensors: Collection[str], floats: set[str]
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
