"""Names in generated code: what an argument, a size or a constant is called in the source.

Into the source go indexed names of our own (``_n0_2``: tensor 0, size of dim 2), integers, and
argument names, which the schema holds to ``[a-z][a-z0-9_]*``; so nothing of ours, which starts
with ``_``, can be shadowed. All other values are constants of the function's namespace.
"""

from __future__ import annotations

import itertools
import keyword
from collections.abc import Iterable, Iterator
from typing import Any

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.errors import ManifestError
from dsv4_aot.runtime.expr import Node
from dsv4_aot.runtime.schema import (
    Argument,
    Choice,
    Expression,
    KernelRecord,
    Number,
    Pointer,
    TensorArg,
)
from dsv4_aot.runtime.tensor import NAMES

RESERVED = frozenset({"stream", "choices", "self"})
"""Names that the call itself uses, so no argument may have them."""


class Missing:
    """Stands for a required argument that was not given."""

    def __repr__(self) -> str:
        return "<required>"


MISSING = Missing()


def index_of(arguments: Iterable[Argument], name: str) -> int:
    return next(index for index, arg in enumerate(arguments) if arg.name == name)


def local(arguments: tuple[Argument, ...], node: Node) -> str:
    """The local name of a leaf. Dims are counted from the start where the rank is fixed."""
    if isinstance(node, expr.Value):
        return node.arg
    if isinstance(node, expr.Multiprocessors):
        return "_sms"
    assert isinstance(node, (expr.Size, expr.Stride, expr.Numel, expr.Present))
    index = index_of(arguments, node.arg)
    if isinstance(node, expr.Numel):
        return f"_e{index}"
    if isinstance(node, expr.Present):
        return f"_h{index}"
    arg = arguments[index]
    assert isinstance(arg, TensorArg)
    letter = "n" if isinstance(node, expr.Size) else "t"
    # m1: the last dim of a tensor of any rank
    dim = f"m{-node.dim}" if arg.leading and node.dim < 0 else str(node.dim % len(arg.shape))
    return f"_{letter}{index}_{dim}"


def refuse_names(record: KernelRecord) -> None:
    """Raises ManifestError for a name that no function or argument can have."""
    for arg in record.arguments:
        if keyword.iskeyword(arg.name) or arg.name in RESERVED:
            raise ManifestError(f"{record.name}: an argument may not be named {arg.name!r}")
    if keyword.iskeyword(record.name):
        raise ManifestError(f"a kernel may not be named {record.name!r}")


class Scope:
    """The names of one kernel's functions.

    lists, grids: the entries' parameters and grids, each once: entries share most of theirs.
    constants: the namespace that the source is run in.
    leaves: every local name that an expression of the record needs.
    passes: the locals that the entries' launch functions take.
    anchor: the tensor whose device is the call's, None where every tensor is optional.
    """

    def __init__(self, record: KernelRecord) -> None:
        self.record = record
        self.arguments = record.arguments
        refuse_names(record)
        self.lists = tuple(dict.fromkeys(entry.params for entry in record.entries))
        self.grids = tuple(dict.fromkeys(entry.launch.grid for entry in record.entries))
        self.constants: dict[str, Any] = {
            "_MISSING": MISSING, "_type": type, "_int": int, "_float": float, "_bool": bool,
            "_len": len, "_locals": locals, "_names": NAMES, "_Exception": Exception,
            "_KeyError": KeyError,
        }  # fmt: skip
        self.leaves = {self.leaf(node) for node in _leaves((*_nodes(record), *self._entry_nodes()))}
        self.passes = self._passes()
        required = (a.name for a in self.arguments if isinstance(a, TensorArg) and not a.optional)
        self.anchor = next(required, None)

    def leaf(self, node: Node) -> str:
        return local(self.arguments, node)

    def python(self, node: Node) -> str:
        return expr.to_python(node, self.leaf)

    def constant(self, value: Choice | float) -> str:
        """Source of a value. Integers are written out, all else is named."""
        return repr(value) if isinstance(value, (bool, int)) else self.name("_K", value)

    def name(self, prefix: str, value: object) -> str:
        """A constant of the namespace, under a new name."""
        name = f"{prefix}{len(self.constants)}"
        self.constants[name] = value
        return name

    def is_optional(self, index: int) -> bool:
        arg = self.arguments[index]
        return isinstance(arg, TensorArg) and arg.optional

    def _passes(self) -> tuple[str, ...]:
        sources = [param.source for params in self.lists for param in params]
        pointers = dict.fromkeys(each.arg for each in sources if isinstance(each, Pointer))
        names = [f"_p{index_of(self.arguments, arg)}" for arg in pointers]
        names += dict.fromkeys(self.leaf(node) for node in _leaves(self._entry_nodes()))
        return tuple(name for name in names if name != "_sms")  # a constant of the device

    def _entry_nodes(self) -> Iterator[Node]:
        yield from itertools.chain(*self.grids)
        for params in self.lists:
            yield from (p.source.node for p in params if isinstance(p.source, Number))


def _nodes(record: KernelRecord) -> Iterator[Node]:
    """Every expression of a record but its entries', and the sizes and strides that its tensors
    ask about.
    """
    for arg in record.arguments:
        if not isinstance(arg, TensorArg):
            continue
        for position, (extent, step) in enumerate(zip(arg.shape, arg.strides, strict=True)):
            dim = position - len(arg.shape) if arg.leading else position
            yield from (node for node in (extent, step) if node is not None)
            yield expr.Size(arg.name, dim)
            if step is not None:
                yield expr.Stride(arg.name, dim)
    yield from (check.require for check in record.checks)
    yield from (axis.bind.node for axis in record.axes if isinstance(axis.bind, Expression))
    yield from (rule.when for rule in record.rules if rule.when is not None)


def _leaves(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in dict.fromkeys(nodes):
        for part in expr.walk(node):
            if not isinstance(part, (expr.Const, expr.Apply)):
                yield part
