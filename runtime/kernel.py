"""A kernel as it is called: the fast function, what happens when it refuses, and bound kernels."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from dsv4_aot.runtime import stream as streams
from dsv4_aot.runtime import tensor, wording
from dsv4_aot.runtime.bind import Binding, bind
from dsv4_aot.runtime.driver import Device
from dsv4_aot.runtime.errors import ArgumentError
from dsv4_aot.runtime.geometry import Launcher, link
from dsv4_aot.runtime.load import Loader
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import (
    Choice,
    Entry,
    KernelRecord,
    ScalarArg,
    TensorArg,
    choice_text,
    choices_text,
)
from dsv4_aot.runtime.scope import MISSING

Call = Callable[..., None]


class Home(Protocol):
    """What a kernel asks of the library it came from."""

    @property
    def loader(self) -> Loader: ...

    def function(self, name: str, device: int, choices: Mapping[str, Choice]) -> Function:
        """The function that serves a device, perhaps from another artifact."""
        ...


class Decision(msgspec.Struct, frozen=True):
    """What a call comes to, without launching it: its entry, and what would be passed."""

    entry: Entry
    key: tuple[Any, ...]
    device: Device
    values: Mapping[str, Any]


class Function:
    """One kernel of one artifact, with some tuned axes perhaps forced.

    call: the generated function, ``call(*arguments, stream=None)``; launches and returns None.
    """

    def __init__(
        self, home: Home, place: Installed, record: KernelRecord, forced: Mapping[str, Choice]
    ) -> None:
        _refuse_choices(record, forced)
        self.home = home
        self.place = place
        self.record = record
        self.forced = dict(forced)
        self.binding: Binding = bind(record, forced)
        self._table: dict[tuple[Any, ...], Call] = {}
        self._launchers: dict[tuple[Any, ...], Launcher] = {}
        self._multiprocessors: dict[int, int] = {}
        self._entries = {choices_text(entry.choices): entry for entry in record.entries}
        driver = home.loader.driver
        self.call, self._trace = self.binding.link(
            _table=self._table,
            _refuse=self._refuse,
            _current=self._current,
            _handle=lambda stream, device: streams.handle_on(driver, stream, device),
            _current_device=driver.current_device,
            _multiprocessors=self._multiprocessors,
        )

    def _current(self, device: int) -> int:
        """The current stream; from the moment torch is there, by torch's own accessor."""
        accessor = tensor.stream_accessor()
        if accessor is not None:
            self.call.__globals__["_current"] = accessor
        return tensor.current_stream(device)

    # The slow path --------------------------------------------------------------------------------

    def _refuse(self, arguments: Sequence[Any], stream: Any) -> None:
        """Goes on where ``call`` does not: a first call, a foreign tensor, a wrong argument.

        Adapts, diagnoses, loads, and launches if nothing is wrong.
        """
        given = None if stream is None else streams.handle(stream)
        adapted = self.adapt(arguments, given)
        function = self.home.function(self.record.name, self.device_of(adapted), self.forced)
        if function is not self:
            return function.call(*adapted, stream=stream)
        decision = self.decide(adapted)
        index = decision.device.index
        if stream is None:
            handle = tensor.current_stream(index)
        else:
            handle = streams.handle_on(self.home.loader.driver, stream, index)
        self.launcher(decision, handle).launch(handle, *self.passed(decision))
        return None

    def adapt(self, arguments: Sequence[Any], stream: int | None = None) -> tuple[Any, ...]:
        """The arguments as the generated code reads them. Raises ArgumentError."""
        return tuple(
            self._tensor(arg, value, stream)
            if isinstance(arg, TensorArg)
            else self._scalar(arg, value)
            for arg, value in zip(self.record.arguments, arguments, strict=True)
        )

    def _tensor(self, arg: TensorArg, value: Any, stream: int | None) -> Any:
        if value is None and arg.optional:
            return None
        if value is MISSING:
            raise self._missing(arg.name, " or ".join(arg.dtypes))
        tensor.meet_torch()
        name = f"{self.record.name}: {arg.name}"
        return tensor.adapt(value, name, self.home.loader.driver, stream)

    def _scalar(self, arg: ScalarArg, value: Any) -> Any:
        """Exact Python numbers; numpy's count as what they are, booleans never as integers."""
        if value is MISSING:
            raise self._missing(arg.name, arg.type)
        kind = type(value)
        if kind in _EXACT[arg.type]:
            return float(value) if arg.type == "float" else value
        foreign = kind is not bool and not hasattr(value, "data_ptr")
        boolean = kind.__name__ in ("bool", "bool_")
        if arg.type == "int" and foreign and not boolean and hasattr(value, "__index__"):
            return operator.index(value)
        if arg.type == "float" and foreign and not boolean and hasattr(value, "__float__"):
            return float(value)
        if arg.type == "bool" and kind.__name__ == "bool_":
            return bool(value)
        raise ArgumentError(
            f"{self.record.name}: {arg.name} is {_short(value)}, allowed: {_ALLOWED[arg.type]}"
        )

    def _missing(self, name: str, wanted: str) -> ArgumentError:
        names = ", ".join(arg.name for arg in self.record.arguments)
        return ArgumentError(
            f"{self.record.name}: the argument {name} is missing ({wanted})",
            tip=f"the arguments are {names}",
        )

    def device_of(self, adapted: Sequence[Any]) -> int:
        """Device of the first required tensor, else of the first that is given."""
        pairs = zip(self.record.arguments, adapted, strict=True)
        given = [
            (arg.optional, value)
            for arg, value in pairs
            if isinstance(arg, TensorArg) and value is not None
        ]
        if not given:
            return self.home.loader.driver.current_device()
        return int(min(given, key=lambda pair: pair[0])[1].get_device())

    def decide(self, adapted: Sequence[Any]) -> Decision:
        """The entry that a call would launch. Raises ArgumentError."""
        device = self.home.loader.driver.device(self.device_of(adapted))
        self._multiprocessors[device.index] = device.multiprocessors
        failed, values = self._trace(*adapted)
        if failed is not None:
            raise wording.error(self.record.name, self.binding.words[failed], values)
        key = values["_key"]
        return Decision(self._entry(key), key, device, values)

    def _entry(self, key: Sequence[Any]) -> Entry:
        """The entry of a table key: the device, the bound values, the number of the rule."""
        _, *values, rule = key
        tuned = self.record.rules[rule].choose if self.record.rules else {}
        choices = {**tuned, **self.forced}
        for axis, value in zip(self.binding.bound, values, strict=True):
            choices[axis.name] = next(v.choice for v in axis.values if v.when == value)
        entry = self._entries.get(choices_text(choices))
        if entry is None:
            near = difflib.get_close_matches(choices_text(choices), self._entries, n=3, cutoff=0)
            raise ArgumentError(
                f"{self.record.name}: {choices_text(choices)} was not built for "
                f"{self.place.target}; nearest built: {'; '.join(near) or 'none'}",
                tip="dsv4-aot list shows every built variant",
            )
        return entry

    def launcher(self, decision: Decision, stream: int | None) -> Launcher:
        """Loads the entry if need be, and lets the fast function find it."""
        launcher = self._launchers.get(decision.key)
        if launcher is None:
            function = self.home.loader.function(
                self.place, self.record.name, decision.entry, decision.device, stream
            )
            launcher = link(
                self.record, decision.entry, self.binding.passes, self.home.loader.driver,
                decision.device, function,
            )  # fmt: skip
            self._launchers[decision.key] = launcher
            self._table[decision.key] = launcher.launch
        return launcher

    def passed(self, decision: Decision) -> tuple[int, ...]:
        return tuple(decision.values[name] for name in self.binding.passes)

    def candidates(self, decision: Decision) -> tuple[Entry, ...]:
        """Every entry with the decision's bound choices."""
        chosen = decision.entry.choices
        names = [axis.name for axis in self.binding.bound]
        return tuple(
            entry
            for entry in self.record.entries
            if all(entry.choices[name] == chosen[name] for name in names)
        )

    def order(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """Arguments in the kernel's order, defaults filled in. Raises ArgumentError."""
        problem = misfit(self.record, len(arguments), named)
        if problem is not None:
            raise problem
        ordered = list(arguments)
        for arg in self.record.arguments[len(arguments) :]:
            if isinstance(arg, TensorArg):
                default: Any = None if arg.optional else MISSING
            else:
                default = MISSING if arg.default is None else arg.default
            ordered.append(named.get(arg.name, default))
        return ordered


def _refuse_choices(record: KernelRecord, forced: Mapping[str, Choice]) -> None:
    """Only tuned axes can be forced, and only to what was built."""
    tuned = [axis.name for axis in record.axes if axis.bind is None]
    for name, choice in forced.items():
        if name not in tuned:
            raise ArgumentError(
                f"{record.name}: choices names {name!r}, allowed: "
                f"{', '.join(tuned) or 'nothing, there is no tuned axis'}"
            )
        built = {entry.choices[name]: None for entry in record.entries}
        if choice not in built:
            raise ArgumentError(
                f"{record.name}: {name}={choice_text(choice)} was not built; "
                f"built: {', '.join(choice_text(each) for each in built)}"
            )


def misfit(record: KernelRecord, count: int, named: Mapping[str, Any]) -> ArgumentError | None:
    """Why ``count`` positional and these named arguments cannot be assigned, if they cannot."""
    names = [arg.name for arg in record.arguments]
    tip = f"the arguments are {', '.join(names)}"
    if count > len(names):
        message = f"{record.name} takes {len(names)} arguments, {count} came by position"
        return ArgumentError(message, tip=tip)
    for name in named:
        if name not in names and name != "stream":
            near = difflib.get_close_matches(name, names, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            return ArgumentError(f"{record.name} has no argument {name!r}{hint}", tip=tip)
        if name in names[:count]:
            return ArgumentError(
                f"{record.name}: {name} came twice, by position and by name", tip=tip
            )
    return None


_EXACT: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,)}
_ALLOWED = {"int": "an integer", "float": "a number", "bool": "True or False"}


def _short(value: object) -> str:
    text = (
        repr(value) if isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


class Kernel:
    """A kernel with some arguments bound; made by :meth:`Library.op`.

    Calling it launches with the rest. With everything bound, a call only looks up the stream and
    launches: shapes, strides and addresses are those of when it was bound, and the bound tensors
    are kept alive.
    """

    def __init__(
        self,
        name: str,
        call: Callable[..., None],
        resolve: Callable[[Sequence[Any], Mapping[str, Any]], tuple[Function, tuple[Any, ...]]],
        record: KernelRecord,
        bound: Mapping[str, Any],
    ) -> None:
        problem = misfit(record, 0, bound)
        if problem is not None:
            raise problem
        self.name = name
        self.bound = dict(bound)
        self._free = [arg.name for arg in record.arguments if arg.name not in bound]
        self._function = call
        self._resolve = resolve
        self._record = record
        if not self.bound:
            self._call = call
        elif any(arg.name not in bound for arg in record.arguments if _required(arg)):
            self._call = self._partial
        else:
            self._call = self._fixed()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Launches. Raises what :meth:`Library.launch` raises."""
        self._call(*args, **kwargs)

    def __repr__(self) -> str:
        return (
            f"<kernel {self.name}({', '.join(self._free)}), bound: {', '.join(self.bound) or '-'}>"
        )

    def select(self, *args: Any, **kwargs: Any) -> Entry:
        """The entry that a call would launch. Nothing is loaded or launched."""
        function, adapted = self._resolve(*self._merge(args, kwargs))
        return function.decide(adapted).entry

    def candidates(self, *args: Any, **kwargs: Any) -> tuple[Entry, ...]:
        """Every built entry with the call's bound choices, whatever its tuned ones."""
        function, adapted = self._resolve(*self._merge(args, kwargs))
        return function.candidates(function.decide(adapted))

    def _merge(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional arguments fill what is not bound, in the kernel's order."""
        if not self.bound:
            return tuple(args), dict(kwargs)
        twice = [name for name in kwargs if name in self.bound and name != "stream"]
        if twice:
            raise ArgumentError(f"{self.name}: {twice[0]} is bound already", tip="make another op")
        if len(args) > len(self._free):
            raise ArgumentError(
                f"{self.name}: {len(args)} arguments came by position, "
                f"{len(self._free)} are not bound: {', '.join(self._free) or 'none'}"
            )
        named = dict(zip(self._free, args, strict=False))
        again = [name for name in kwargs if name in named]
        if again:
            raise ArgumentError(f"{self.name}: {again[0]} came twice, by position and by name")
        return (), {**self.bound, **named, **kwargs}

    def _partial(self, *args: Any, **kwargs: Any) -> None:
        _, named = self._merge(args, kwargs)
        self._function(**named)

    def _fixed(self) -> Callable[..., None]:
        """Checks, chooses, loads and packs once."""
        function, adapted = self._resolve((), self.bound)
        self._kept = adapted
        decision = function.decide(adapted)
        index, driver = decision.device.index, function.home.loader.driver
        current = tensor.stream_accessor() or tensor.current_stream
        given = self.bound.get("stream")
        given = None if given is None else streams.handle_on(driver, given, index)
        launcher = function.launcher(decision, current(index) if given is None else given)
        launch = launcher.fixed(launcher.pack(*function.passed(decision)))

        def call(*args: Any, **kwargs: Any) -> None:
            if args or kwargs:
                stream = kwargs.get("stream")
                if args or len(kwargs) > 1 or stream is None:
                    return self._partial(*args, **kwargs)
                return launch(streams.handle_on(driver, stream, index))
            return launch(current(index) if given is None else given)

        return call


def _required(arg: TensorArg | ScalarArg) -> bool:
    return not arg.optional if isinstance(arg, TensorArg) else arg.default is None
