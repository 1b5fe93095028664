"""Code generation: a kernel's argument table becomes one straight-line Python function.

Two functions come from one list of conditions. ``call`` asks them all at once and launches;
``trace`` asks one at a time and says which one failed. Both are compiled from the manifest's
typed nodes; :mod:`dsv4_aot.runtime.scope` says what may stand in their source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.conditions import (
    Condition,
    axis_binding,
    scalar_conditions,
    tensor_conditions,
)
from dsv4_aot.runtime.schema import Axis, Check, Choice, KernelRecord, TensorArg
from dsv4_aot.runtime.scope import Scope
from dsv4_aot.runtime.wording import Wording, Words


class Binding(msgspec.Struct):
    """The generated functions of one kernel record, before they are given a place to launch.

    passes: local names that the launch function of an entry takes after the stream.
    bound: the axes whose values stand in the table's key, between the device and the rule.
    """

    record: KernelRecord
    source: str
    passes: tuple[str, ...]
    bound: tuple[Axis, ...]
    words: tuple[Wording, ...]
    constants: dict[str, Any]

    def link(self, **services: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
        """``(call, trace)``, given what the source names: ``_table``, ``_refuse`` and others."""
        namespace: dict[str, Any] = {**self.constants, **services}
        exec(compile(self.source, f"<{self.record.name}>", "exec"), namespace)  # noqa: S102
        call, trace = namespace[self.record.name], namespace["_trace"]
        call.__source__ = self.source
        return call, trace


def bind(record: KernelRecord, forced: Mapping[str, Choice]) -> Binding:
    """Generates a record's functions. ``forced`` overrides what the rules choose on tuned axes."""
    return _Writer(record, forced).write()


class _Writer:
    def __init__(self, record: KernelRecord, forced: Mapping[str, Choice]) -> None:
        self.record = record
        self.arguments = record.arguments
        self.scope = Scope(record)
        self.bound = tuple(axis for axis in record.axes if axis.bind is not None)
        # Where no axis is left to choose, no rule is asked.
        self.ruled = any(axis.bind is None and axis.name not in forced for axis in record.axes)
        self.words = words = Words(record)
        # Numbers come first, so that no condition of a tensor computes with what is none.
        order = sorted(enumerate(self.arguments), key=lambda pair: isinstance(pair[1], TensorArg))
        self.conditions: dict[int, list[Condition]] = {
            index: list(
                tensor_conditions(self.scope, words, index, arg)
                if isinstance(arg, TensorArg)
                else scalar_conditions(self.scope, words, arg)
            )
            for index, arg in order
        }
        # A value that is more than a name is computed once.
        self.values: list[str] = []
        self.binds: list[str] = []
        self.built: list[Condition] = []
        for index, axis in enumerate(self.bound):
            value, condition = axis_binding(self.scope, words, axis)
            self.built.append(condition)
            if not value.isidentifier():
                self.binds.append(f"_b{index} = {value}")
                value = f"_b{index}"
            self.values.append(value)
        self.checks = [Condition(self._check(check), words.check(check)) for check in record.checks]
        self.unserved = words.unserved(self.bound)

    # Reading --------------------------------------------------------------------------------------

    def reads(self, index: int, arg: TensorArg) -> list[str]:
        """Statements that read a tensor into locals; each fails where the rank is wrong."""
        name, lines = arg.name, []
        for letter, read in (("n", "shape"), ("t", "stride()")):
            used = sorted(x for x in self.scope.leaves if x.startswith(f"_{letter}{index}_"))
            if arg.leading:
                if letter == "n" or used:
                    lines.append(f"_{letter}{index} = {name}.{read}")
                dims = {x: x.rpartition("_")[2].replace("m", "-") for x in used}
                lines += [f"{x} = _{letter}{index}[{dim}]" for x, dim in dims.items()]
            elif letter == "n" or used:
                targets = "".join(f"_{letter}{index}_{d}, " for d in range(len(arg.shape)))
                lines.append(f"{targets.rstrip() or '()'} = {name}.{read}")
        lines.append(f"_p{index} = {name}.data_ptr()")
        if f"_e{index}" in self.scope.leaves:
            sizes = [f"_n{index}_{d}" for d in range(len(arg.shape))]
            count = f"{name}.numel()" if arg.leading else " * ".join(sizes) or "1"
            lines.append(f"_e{index} = {count}")
        return lines

    def reading(self, *, ask: bool) -> Iterator[str]:
        """Reads every tensor; ``ask`` puts its early conditions before."""
        yield f"_dev = {self._device()}"
        if "_sms" in self.scope.leaves:
            yield "_sms = _multiprocessors[_dev]"
        for index, arg in enumerate(self.arguments):
            if not isinstance(arg, TensorArg):
                continue
            early = [c for c in self.conditions[index] if c.early and ask]
            lines = [*self.asking(early)]
            lines += self.reads(index, arg)
            if arg.optional:
                names = [f"_p{index}", *sorted(x for x in self.scope.leaves if _belongs(x, index))]
                yield f"if {arg.name} is None:"
                yield f"    {' = '.join(names)} = 0"
                yield "else:"
                yield from (f"    {line}" for line in lines)
            else:
                yield from lines
            if f"_h{index}" in self.scope.leaves:
                yield f"_h{index} = {arg.name} is not None"

    def _device(self) -> str:
        if self.scope.anchor is not None:
            return f"{self.scope.anchor}.get_device()"
        optional = [arg.name for arg in self.arguments if isinstance(arg, TensorArg)]
        text = "_current_device()"
        for name in reversed(optional):
            text = f"{name}.get_device() if {name} is not None else {text}"
        return text

    @staticmethod
    def asking(conditions: Iterable[Condition]) -> Iterator[str]:
        for condition in conditions:
            yield f"if not ({condition.test}):"
            yield f"    return {condition.words.number}, _locals()"

    # Dispatch -------------------------------------------------------------------------------------

    def dispatch(self, otherwise: str) -> Iterator[str]:
        """Finds the first rule that fits, by its number; it chooses the tuned axes."""
        if not self.ruled:
            return
        whens = [rule.when for rule in self.record.rules if rule.when is not None]
        lines, texts = expr.to_statements(whens, self.scope.leaf)
        yield from lines
        when = dict(zip(whens, texts, strict=True))
        branch = "if"
        for number, rule in enumerate(self.record.rules):
            tests = self._where(rule.where)
            if rule.when is not None:
                tests.append(when[rule.when])
            if not tests:
                yield f"_rule = {number}" if branch == "if" else "else:"
                if branch == "elif":
                    yield f"    _rule = {number}"
                return
            yield f"{branch} {' and '.join(tests)}:"
            yield f"    _rule = {number}"
            branch = "elif"
        yield "else:" if branch == "elif" else "if True:"
        yield f"    {otherwise}"

    def _check(self, check: Check) -> str:
        required = self.scope.python(check.require)
        tests = self._where(check.where)
        return f"(not ({' and '.join(tests)}) or {required})" if tests else required

    def _where(self, where: Mapping[str, tuple[Choice, ...]]) -> list[str]:
        """Source of what a rule or a check asks of the bound axes."""
        tests = []
        for index, axis in enumerate(self.bound):
            if axis.name in where:
                allowed = where[axis.name]
                values = [self.scope.constant(v.when) for v in axis.values if v.choice in allowed]
                only = f"== {values[0]}" if len(values) == 1 else f"in ({', '.join(values)})"
                tests.append(f"{self.values[index]} {only}")
        return tests

    # Writing --------------------------------------------------------------------------------------

    def write(self) -> Binding:
        source = "\n".join([*self.call(), "", "", *self.trace(), ""])
        return Binding(
            self.record, source, self.scope.passes, self.bound, tuple(self.words.all),
            self.scope.constants,
        )  # fmt: skip

    def call(self) -> Iterator[str]:
        signature = ", ".join([*self._parameters(), "*", "stream=None"])
        given = "".join(f"{arg.name}, " for arg in self.arguments)
        refuse = f"return _refuse(({given}), stream)"
        yield f"def {self.record.name}({signature}):"
        yield "    try:"
        yield from (f"        {line}" for line in self.reading(ask=False))
        yield from (f"        {line}" for line in self.binds)
        yield "    except _Exception:"
        yield f"        {refuse}"
        yield "    if not ("
        yield f"        {self._all()}"
        yield "    ):"
        yield f"        {refuse}"
        yield from (f"    {line}" for line in self.dispatch(refuse))
        yield "    try:"
        yield f"        _launch = _table[{self._key()}]"
        yield "    except _KeyError:"
        yield f"        {refuse}"
        yield "    stream = _current(_dev) if stream is None else _handle(stream, _dev)"
        yield f"    _launch({', '.join(('stream', *self.scope.passes))})"

    def trace(self) -> Iterator[str]:
        yield f"def _trace({', '.join(arg.name for arg in self.arguments)}):"
        yield from (f"    {line}" for line in self.reading(ask=True))
        late = [
            Condition(f"{self._unless(index)}{condition.test}", condition.words)
            for index, group in self.conditions.items()
            for condition in group
            if not condition.early
        ]
        yield from (f"    {line}" for line in self.asking(late))
        yield from (f"    {line}" for line in self.binds)
        yield from (f"    {line}" for line in self.asking(self.built))
        yield from (f"    {line}" for line in self.asking(self.checks))
        unserved = f"return {self.unserved.number}, _locals()"
        yield from (f"    {line}" for line in self.dispatch(unserved))
        yield f"    _key = ({self._key()})"
        yield "    return None, _locals()"

    def _key(self) -> str:
        """What an entry is found by: the device, the bound values, and the rule that fits."""
        return ", ".join(["_dev", *self.values, "_rule" if self.ruled else "0", ""]).rstrip()

    def _unless(self, index: int) -> str:
        optional = self.scope.is_optional(index)
        return f"{self.arguments[index].name} is None or " if optional else ""

    def _parameters(self) -> Iterator[str]:
        """The signature. Once a default was given, Python wants one for everything after it."""
        for arg in self.arguments:
            if isinstance(arg, TensorArg):
                yield f"{arg.name}=None" if arg.optional else f"{arg.name}=_MISSING"
            elif arg.default is None:
                yield f"{arg.name}=_MISSING"
            else:
                yield f"{arg.name}={self.scope.constant(arg.default)}"

    def _all(self) -> str:
        """Every condition in one expression, which ends at the first that fails."""
        lines, chain = [], ["_dev"]
        for index, group in self.conditions.items():
            unless = self._unless(index)
            asked = [c for c in group if not c.implied and (unless or c.chained is None)]
            if not unless:
                chain += (c.chained for c in group if c.chained is not None)
            if asked:
                text = " and ".join(condition.test for condition in asked)
                lines.append(f"({unless}({text}))" if unless else text)
        if len(chain) > 1:
            lines.insert(0, " == ".join(chain))
        lines += [check.test for check in self.checks]
        return "\n        and ".join(lines) or "True"


def _belongs(name: str, index: int) -> bool:
    """Whether a local was read from the tensor of this index."""
    return name.startswith((f"_n{index}_", f"_t{index}_")) or name == f"_e{index}"
