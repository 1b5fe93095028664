"""What a right call of a kernel satisfies, as source to ask it and words to explain it.

``call`` and ``trace`` are both written from these conditions, so what is checked and what is
said about it cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.abi import PARAM_RANGE
from dsv4_aot.runtime.schema import ABSENT, Axis, DtypeOf, Number, ScalarArg, TensorArg
from dsv4_aot.runtime.scope import Scope, index_of
from dsv4_aot.runtime.tensor import spellings
from dsv4_aot.runtime.wording import Wording, Words


class Condition(msgspec.Struct, frozen=True):
    """Python source over the local names, true when the call is right.

    early: asked before the sizes of the tensor are read.
    implied: what ``call`` does anyway would fail, so it does not ask.
    chained: the test reads ``<chained> == _dev``, and ``call`` may ask several in one comparison.
    """

    test: str
    words: Wording
    early: bool = False
    implied: bool = False
    chained: str | None = None


def tensor_conditions(
    scope: Scope, words: Words, index: int, arg: TensorArg
) -> Iterator[Condition]:
    name, rank = arg.name, len(arg.shape)
    scope.constants[f"_D{index}"] = spellings(arg.dtypes)
    yield Condition(f"{name}.dtype in _D{index}", words.dtype(arg), early=True)
    if name != scope.anchor:
        device = f"{name}.get_device()"
        yield Condition(f"{device} == _dev", words.device(arg), early=True, chained=device)
    if arg.leading:
        yield Condition(f"_len({name}.shape) >= {rank}", words.rank(arg), early=True)
    else:
        yield Condition(f"_len({name}.shape) == {rank}", words.rank(arg), early=True, implied=True)
    for position, (extent, step) in enumerate(zip(arg.shape, arg.strides, strict=True)):
        dim = position - rank if arg.leading else position
        size = scope.leaf(expr.Size(name, dim))
        if extent is not None and extent != expr.Size(name, dim):
            yield Condition(f"{size} == {scope.python(extent)}", words.size(arg, dim, extent))
        if step is not None:
            stride = scope.leaf(expr.Stride(name, dim))
            test = f"{stride} == {scope.python(step)}"
            if not (isinstance(extent, expr.Const) and extent.value > 1):
                test = f"({test} or {size} < 2)"
            yield Condition(test, words.stride(arg, dim, step))
    if arg.contiguous:
        yield Condition(f"{name}.is_contiguous()", words.contiguous(arg))
    aligned = _alignment(scope, index, arg)
    if aligned:
        yield Condition(aligned, words.aligned(arg, index))


def _alignment(scope: Scope, index: int, arg: TensorArg) -> str:
    """Source of the condition on the address; empty where any will do.

    What suits every dtype is asked first, so that only an address that does not costs a look at
    the tensor's own: a misaligned access would be the end of the context.
    """
    tests = []
    for need in sorted({arg.alignment(dtype) for dtype in arg.dtypes}, reverse=True):
        suited = [dtype for dtype in arg.dtypes if arg.alignment(dtype) <= need]
        asked = [] if need == 1 else [f"not _p{index} & {need - 1}"]
        if len(suited) < len(arg.dtypes):
            asked.append(f"{arg.name}.dtype in {scope.name('_S', spellings(suited))}")
        if asked:
            tests.append(" and ".join(asked))
    text = " or ".join(tests)
    return f"({text})" if len(tests) > 1 else text


def scalar_conditions(scope: Scope, words: Words, arg: ScalarArg) -> Iterator[Condition]:
    name, low, high = arg.name, arg.minimum, arg.maximum
    yield Condition(f"_type({name}) is _{arg.type}", words.type(arg))
    if arg.type == "int":
        for limit in _passed_as(scope, name):
            low = limit[0] if low is None else max(low, limit[0])
            high = limit[1] if high is None else min(high, limit[1])
    if low is None and high is None:
        return
    bounds = (
        None if low is None else scope.constant(low),
        name,
        None if high is None else scope.constant(high),
    )
    test = " <= ".join(text for text in bounds if text is not None)
    yield Condition(test, words.range(arg, low, high))


def _passed_as(scope: Scope, name: str) -> set[tuple[int, int]]:
    """Ranges of the integer parameters that take the argument as it is."""
    return {
        PARAM_RANGE[param.type]
        for params in scope.lists
        for param in params
        if isinstance(param.source, Number) and param.source.node == expr.Value(name)
        if param.type in PARAM_RANGE
    }


def axis_binding(scope: Scope, words: Words, axis: Axis) -> tuple[str, Condition]:
    """Source of an axis' bound value, and what that value must be.

    The lookup of a call's entry implies the condition; it is asked to explain a miss.
    """
    assert axis.bind is not None
    if isinstance(axis.bind, DtypeOf):
        tensor = axis.bind.arg
        value = f"_names[{tensor}.dtype]"
        if scope.is_optional(index_of(scope.arguments, tensor)):
            value = f"({value} if {tensor} is not None else {scope.constant(ABSENT)})"
    else:
        value = scope.python(axis.bind.node)
    built = {entry.choices[axis.name] for entry in scope.record.entries}
    allowed = [each.when for each in axis.values if each.choice in built]
    name = scope.name("_A", frozenset(allowed))
    return value, Condition(f"{value} in {name}", words.axis(axis, allowed), implied=True)
