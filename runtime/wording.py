"""How a call that was refused is explained: what came, what is allowed, and by which rule.

Allowed values are read from the manifest when the error is worded, so they cannot go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.errors import ArgumentError
from dsv4_aot.runtime.expr import Node
from dsv4_aot.runtime.schema import (
    ABSENT,
    Axis,
    Check,
    Choice,
    DtypeOf,
    KernelRecord,
    ScalarArg,
    TensorArg,
    choice_text,
)
from dsv4_aot.runtime.tensor import NAMES

Values = Mapping[str, Any]
"""The local names of a traced call: its arguments, and what was read from them."""


class Wording(msgspec.Struct, frozen=True):
    """Explains one condition. ``number`` is how the generated code refers to it."""

    number: int
    tell: Callable[[Values], str]
    tip: str | None = None


class CallEnvironment:
    """Looks the leaves of an expression up in a call's arguments."""

    def __init__(self, values: Values) -> None:
        self.values = values

    def size(self, arg: str, dim: int) -> int:
        tensor = self.values[arg]
        return 0 if tensor is None else int(tensor.shape[dim])

    def stride(self, arg: str, dim: int) -> int:
        tensor = self.values[arg]
        return 0 if tensor is None else int(tensor.stride()[dim])

    def numel(self, arg: str) -> int:
        tensor = self.values[arg]
        return 0 if tensor is None else int(tensor.numel())

    def value(self, arg: str) -> int:
        return self.values[arg]  # type: ignore[no-any-return]  # a float where it is passed through

    def present(self, arg: str) -> int:
        return int(self.values[arg] is not None)

    def multiprocessors(self) -> int:
        return int(self.values["_sms"])


def bound_value(axis: Axis, values: Values) -> Choice:
    """What a call binds an axis to."""
    assert axis.bind is not None
    if isinstance(axis.bind, DtypeOf):
        tensor = values[axis.bind.arg]
        return ABSENT if tensor is None else dtype_name(tensor.dtype)
    return expr.evaluate(axis.bind.node, CallEnvironment(values))


def amount(node: Node, values: Values) -> str:
    """``8``, or ``8 (= seq_lens.shape[0])`` for what is no constant."""
    number = expr.evaluate(node, CallEnvironment(values))
    return str(number) if isinstance(node, expr.Const) else f"{number} (= {expr.to_text(node)})"


def describe(tensor: Any) -> str:
    """``bfloat16 [8, 100, 512]``"""
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


def dtype_name(dtype: Any) -> str:
    return NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def listing(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


class Words:
    """Collects the wordings of one kernel, numbered in the order they are made."""

    def __init__(self, record: KernelRecord) -> None:
        self.kernel = record.name
        self.all: list[Wording] = []

    def _add(self, tell: Callable[[Values], str], tip: str | None = None) -> Wording:
        wording = Wording(len(self.all), tell, tip)
        self.all.append(wording)
        return wording

    def dtype(self, arg: TensorArg) -> Wording:
        allowed = " or ".join(arg.dtypes)
        return self._add(
            lambda v: f"{arg.name} has dtype {dtype_name(v[arg.name].dtype)}, allowed: {allowed}"
        )

    def device(self, arg: TensorArg) -> Wording:
        return self._add(
            lambda v: (
                f"{arg.name} is on device {v[arg.name].get_device()}, "
                f"allowed: device {v['_dev']}, where the first tensor is"
            )
        )

    def rank(self, arg: TensorArg) -> Wording:
        least = "at least " if arg.leading else ""
        return self._add(
            lambda v: (
                f"{arg.name} has {len(v[arg.name].shape)} dims, "
                f"allowed: {least}{len(arg.shape)} ({describe(v[arg.name])})"
            )
        )

    def size(self, arg: TensorArg, dim: int, extent: Node) -> Wording:
        return self._add(
            lambda v: (
                f"{arg.name}.shape[{dim}] is {v[arg.name].shape[dim]}, "
                f"allowed: {amount(extent, v)} ({arg.name} is {describe(v[arg.name])})"
            )
        )

    def stride(self, arg: TensorArg, dim: int, step: Node) -> Wording:
        return self._add(
            lambda v: (
                f"{arg.name}.stride({dim}) is {v[arg.name].stride()[dim]}, "
                f"allowed: {amount(step, v)} ({arg.name} is {describe(v[arg.name])})"
            )
        )

    def contiguous(self, arg: TensorArg) -> Wording:
        return self._add(
            lambda v: (
                f"{arg.name} has strides {list(v[arg.name].stride())}, "
                f"allowed: row-major without gaps ({arg.name} is {describe(v[arg.name])})"
            ),
            f"pass {arg.name}.contiguous()" if arg.access == "read" else None,
        )

    def aligned(self, arg: TensorArg, index: int) -> Wording:
        def tell(values: Values) -> str:
            address, dtype = values[f"_p{index}"], dtype_name(values[arg.name].dtype)
            need = arg.alignment(dtype)
            return (
                f"{arg.name} starts at address {address:#x}, {address % need} bytes past a "
                f"multiple of {need}, allowed: multiples of {need}"
                + (f" (its dtype is {dtype})" if len(arg.dtypes) > 1 else "")
            )

        return self._add(tell)

    def type(self, arg: ScalarArg) -> Wording:
        return self._add(lambda v: f"{arg.name} is {v[arg.name]!r}, allowed: {_article(arg.type)}")

    def range(self, arg: ScalarArg, low: float | None, high: float | None) -> Wording:
        allowed = f"{'any' if low is None else low} to {'any' if high is None else high}"
        return self._add(lambda v: f"{arg.name} is {v[arg.name]}, allowed: {allowed}")

    def check(self, check: Check) -> Wording:
        leaves = {
            expr.to_text(part): part
            for part in expr.walk(check.require)
            if not isinstance(part, (expr.Const, expr.Apply))
        }

        def tell(values: Values) -> str:
            environment = CallEnvironment(values)
            came = [f"{text} = {expr.evaluate(leaf, environment)}" for text, leaf in leaves.items()]
            return f"required: {check.message}; came: {listing(came)}"

        return self._add(tell)

    def axis(self, axis: Axis, built: Sequence[Choice]) -> Wording:
        """A bound value that no cubin was built for."""
        if isinstance(axis.bind, DtypeOf):
            what = f"the dtype of {axis.bind.arg}"
        else:
            assert axis.bind is not None
            what = expr.to_text(axis.bind.node)
        meaning = {value.when: value.choice for value in axis.values}
        names = listing(
            choice_text(when)
            if when == meaning[when]
            else f"{choice_text(when)} ({choice_text(meaning[when])})"
            for when in built
        )
        return self._add(
            lambda v: f"{what} is {bound_value(axis, v)}, which was not built; built: {names}",
            "dsv4-aot list shows every built variant",
        )

    def unserved(self, bound: Sequence[Axis]) -> Wording:
        """A call for which no dispatch rule chooses the tuned axes."""

        def tell(values: Values) -> str:
            came = [f"{axis.name} = {bound_value(axis, values)}" for axis in bound]
            return f"no dispatch rule serves this call: {listing(came) or 'no bound axes'}"

        return self._add(tell)


def error(kernel: str, wording: Wording, values: Values) -> ArgumentError:
    """The error of a failed condition."""
    return ArgumentError(f"{kernel}: {wording.tell(values)}", tip=wording.tip)


def _article(kind: str) -> str:
    return {"int": "an integer", "float": "a number", "bool": "True or False"}[kind]
