"""Closed expressions over a call's arguments: launch grids, dispatch conditions, parameters.

They travel in the manifest as JSON nodes and are never text to evaluate. Authors write them with
Python operators: ``cdiv(size("out", 1) - value("offset"), 8)``. All values are integers; a
condition is 0 or 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, Union

import msgspec

Function = Literal[
    "add", "sub", "mul", "floordiv", "cdiv", "mod", "min", "max",
    "lt", "le", "eq", "ne", "and", "or",
]  # fmt: skip


class _Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", gc=False):
    """Operators shared by all nodes. ``==`` stays structural; write ``a.eq(b)`` for a condition."""

    def __add__(self, other: Operand) -> Apply:
        return _apply("add", self, other)

    def __radd__(self, other: Operand) -> Apply:
        return _apply("add", other, self)

    def __sub__(self, other: Operand) -> Apply:
        return _apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Apply:
        return _apply("sub", other, self)

    def __mul__(self, other: Operand) -> Apply:
        return _apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Apply:
        return _apply("mul", other, self)

    def __floordiv__(self, other: Operand) -> Apply:
        return _apply("floordiv", self, other)

    def __rfloordiv__(self, other: Operand) -> Apply:
        return _apply("floordiv", other, self)

    def __mod__(self, other: Operand) -> Apply:
        return _apply("mod", self, other)

    def __lt__(self, other: Operand) -> Apply:
        return _apply("lt", self, other)

    def __le__(self, other: Operand) -> Apply:
        return _apply("le", self, other)

    def __gt__(self, other: Operand) -> Apply:
        return _apply("lt", other, self)

    def __ge__(self, other: Operand) -> Apply:
        return _apply("le", other, self)

    def __and__(self, other: Operand) -> Apply:
        return _apply("and", self, other)

    def __or__(self, other: Operand) -> Apply:
        return _apply("or", self, other)

    def eq(self, other: Operand) -> Apply:
        return _apply("eq", self, other)

    def ne(self, other: Operand) -> Apply:
        return _apply("ne", self, other)

    def __bool__(self) -> bool:
        raise TypeError("an expression has no truth value at build time: combine with & and |")


class Const(_Node, frozen=True, tag="const"):
    value: int


class Size(_Node, frozen=True, tag="size"):
    """``arg.shape[dim]``; a negative dim counts from the end; 0 when the tensor is absent."""

    arg: str
    dim: int


class Stride(_Node, frozen=True, tag="stride"):
    """``arg.stride(dim)`` in elements; 0 when the tensor is absent."""

    arg: str
    dim: int


class Numel(_Node, frozen=True, tag="numel"):
    """Number of elements of a tensor; 0 when it is absent."""

    arg: str


class Value(_Node, frozen=True, tag="value"):
    """A scalar argument."""

    arg: str


class Present(_Node, frozen=True, tag="present"):
    """1 when an optional tensor was given, else 0."""

    arg: str


class Multiprocessors(_Node, frozen=True, tag="multiprocessors"):
    """Number of multiprocessors of the device that launches."""


class Apply(_Node, frozen=True, tag="apply"):
    """``cdiv`` rounds up; a divisor is a positive constant or ``max(x, positive constant)``."""

    fn: Function
    left: Node
    right: Node


Node = Union[Const, Size, Stride, Numel, Value, Present, Multiprocessors, Apply]
Operand = Union[Node, _Node, int]


def _apply(fn: Function, left: Operand, right: Operand) -> Apply:
    return Apply(fn, lift(left), lift(right))


def lift(operand: Operand) -> Node:
    """An integer becomes a constant; a node stays itself."""
    if isinstance(operand, _Node):
        return operand  # type: ignore[return-value]  # Node lists every subclass of _Node
    return Const(int(operand))


# The author's vocabulary ----------------------------------------------------------------------


def size(arg: str, dim: int) -> Size:
    return Size(arg, dim)


def stride(arg: str, dim: int) -> Stride:
    return Stride(arg, dim)


def numel(arg: str) -> Numel:
    return Numel(arg)


def value(arg: str) -> Value:
    return Value(arg)


def present(arg: str) -> Present:
    return Present(arg)


def multiprocessors() -> Multiprocessors:
    return Multiprocessors()


def cdiv(left: Operand, right: Operand) -> Apply:
    return _apply("cdiv", left, right)


def minimum(left: Operand, right: Operand) -> Apply:
    return _apply("min", left, right)


def maximum(left: Operand, right: Operand) -> Apply:
    return _apply("max", left, right)


# Reading expressions --------------------------------------------------------------------------


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it, parents first."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, Apply):
            stack += (node.right, node.left)


class Environment(Protocol):
    """What a node's leaves are looked up in."""

    def size(self, arg: str, dim: int) -> int: ...
    def stride(self, arg: str, dim: int) -> int: ...
    def numel(self, arg: str) -> int: ...
    def value(self, arg: str) -> int: ...
    def present(self, arg: str) -> int: ...
    def multiprocessors(self) -> int: ...


_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "cdiv": lambda a, b: -(-a // b),
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "eq": lambda a, b: int(a == b),
    "ne": lambda a, b: int(a != b),
    "and": lambda a, b: int(bool(a) and bool(b)),
    "or": lambda a, b: int(bool(a) or bool(b)),
}

MAX_DEPTH = 40
MAX_TERMS = 2000
"""Limits of one expression, so that no manifest makes a reader run out of stack or memory."""

_PYTHON: dict[str, str] = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "floordiv": "({} // {})",
    "cdiv": "(-(-{} // {}))",
    "mod": "({} % {})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "and": "({} and {})",
    "or": "({} or {})",
    "min": "({0} if {0} < {1} else {1})",
    "max": "({0} if {0} > {1} else {1})",
}


def evaluate(node: Node, env: Environment) -> int:
    """The node's value by walking it: the meaning that ``to_python`` must reproduce."""
    if isinstance(node, Apply):
        return _FUNCTIONS[node.fn](evaluate(node.left, env), evaluate(node.right, env))
    if isinstance(node, Const):
        return node.value
    if isinstance(node, Size):
        return env.size(node.arg, node.dim)
    if isinstance(node, Stride):
        return env.stride(node.arg, node.dim)
    if isinstance(node, Numel):
        return env.numel(node.arg)
    if isinstance(node, Value):
        return env.value(node.arg)
    if isinstance(node, Present):
        return env.present(node.arg)
    return env.multiprocessors()


def to_python(
    node: Node, leaf: Callable[[Node], str], known: Mapping[Node, str] | None = None
) -> str:
    """Python source of the node. ``leaf`` names every node that is neither Const nor Apply.

    ``known`` has names for parts that were computed before. Conditions come out as Python
    booleans, which count as 0 and 1.
    """
    if known and node in known:
        return known[node]
    if isinstance(node, Const):
        return repr(node.value) if node.value >= 0 else f"({node.value})"
    if isinstance(node, Apply):
        left, right = to_python(node.left, leaf, known), to_python(node.right, leaf, known)
        text = _PYTHON[node.fn].format(left, right)
        if node.fn in {"and", "or"} and not (
            _is_condition(node.left) and _is_condition(node.right)
        ):
            return f"(not not {text})"  # Python's operators give one of their operands
        return text
    return leaf(node)


def to_statements(
    nodes: Sequence[Node], leaf: Callable[[Node], str]
) -> tuple[list[str], list[str]]:
    """Assignments of what the nodes use more than once, and then the source of each node."""
    uses: Counter[Node] = Counter(nodes)
    order: dict[Node, None] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if isinstance(node, Apply) and node not in order:
            order[node] = None
            times = 2 if node.fn in {"min", "max"} else 1  # which write their operands twice
            for part in (node.left, node.right):
                uses[part] += times
                pending.append(part)
    known: dict[Node, str] = {}
    lines = []
    for node in sorted(order, key=_depth):
        if uses[node] > 1:
            name = f"_x{len(known)}"
            lines.append(f"{name} = {to_python(node, leaf, known)}")
            known[node] = name
    return lines, [to_python(node, leaf, known) for node in nodes]


def _depth(node: Node) -> int:
    """Parts are less deep than what they are part of."""
    return 1 + max(_depth(node.left), _depth(node.right)) if isinstance(node, Apply) else 0


def _is_condition(node: Node) -> bool:
    return isinstance(node, Apply) and node.fn in {"lt", "le", "eq", "ne", "and", "or"}


def to_text(node: Node) -> str:
    """The node as a person would write it, for error messages and tables."""
    if isinstance(node, Const):
        return str(node.value)
    if isinstance(node, Size):
        return f"{node.arg}.shape[{node.dim}]"
    if isinstance(node, Stride):
        return f"{node.arg}.stride({node.dim})"
    if isinstance(node, Numel):
        return f"{node.arg}.numel()"
    if isinstance(node, Value):
        return node.arg
    if isinstance(node, Present):
        return f"({node.arg} is given)"
    if isinstance(node, Multiprocessors):
        return "multiprocessors"
    left, right = to_text(node.left), to_text(node.right)
    infix = {
        "add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "lt": "<", "le": "<=",
        "eq": "==", "ne": "!=", "and": "and", "or": "or",
    }.get(node.fn)  # fmt: skip
    return f"{node.fn}({left}, {right})" if infix is None else f"({left} {infix} {right})"


class Rank(NamedTuple):
    """``least`` dims, or more of them in front where ``leading``."""

    least: int
    leading: bool


def problems(node: Node, tensors: Mapping[str, Rank], scalars: set[str]) -> Iterator[str]:
    """What makes a node unusable: unknown arguments, dims out of range, possible zero divisors."""
    if _is_too_large(node):
        yield f"an expression is nested over {MAX_DEPTH} deep, or writes over {MAX_TERMS} terms"
        return
    for part in walk(node):
        if isinstance(part, (Size, Stride)):
            if part.arg not in tensors:
                yield f"{to_text(part)}: there is no tensor argument {part.arg!r}"
            else:
                rank, leading = tensors[part.arg]
                if not -rank <= part.dim < rank:
                    more = " or more, counted from either end" if leading else ""
                    yield f"{to_text(part)}: {part.arg} has rank {rank}{more}"
        elif isinstance(part, (Numel, Present)) and part.arg not in tensors:
            yield f"{to_text(part)}: there is no tensor argument {part.arg!r}"
        elif isinstance(part, Value) and part.arg not in scalars:
            yield f"{to_text(part)}: there is no scalar argument {part.arg!r}"
        elif (
            isinstance(part, Apply)
            and part.fn in {"floordiv", "cdiv", "mod"}
            and not _surely_positive(part.right)
        ):
            yield f"{to_text(part)}: the divisor may be zero, write max(divisor, 1)"


def _is_too_large(node: Node) -> bool:
    """Whether its source would be: min and max write their operands twice."""
    terms, stack = 0, [(node, 1, 1)]
    while stack:
        part, depth, copies = stack.pop()
        terms += copies
        if depth > MAX_DEPTH or terms > MAX_TERMS:
            return True
        if isinstance(part, Apply):
            below = copies * 2 if part.fn in {"min", "max"} else copies
            stack += ((part.left, depth + 1, below), (part.right, depth + 1, below))
    return False


def _surely_positive(node: Node) -> bool:
    if isinstance(node, Const):
        return node.value > 0
    if isinstance(node, Apply) and node.fn == "max":
        return _surely_positive(node.left) or _surely_positive(node.right)
    return False
