"""The installed kernels and their launches: what users of the runtime hold."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from dsv4_aot.runtime import resolve
from dsv4_aot.runtime.driver import CudaDriver, Driver
from dsv4_aot.runtime.kernel import Call, Function, Kernel, misfit
from dsv4_aot.runtime.load import Loader
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import Choice, KernelRecord
from dsv4_aot.runtime.target import Capability, rank_targets


class Preloaded(msgspec.Struct, frozen=True):
    """What a preload did. Cubins and bytes count those that were not loaded before."""

    kernels: int
    cubins: int
    bytes: int
    milliseconds: float


class Listed(msgspec.Struct, frozen=True):
    """One installed cubin. ``validated`` names the GPUs on which its cases agreed."""

    kernel: str
    target: str
    choices: Mapping[str, Choice]
    sha256: str
    bytes: int
    validated: tuple[str, ...]
    origin: str


class _Calls(dict[str, Call]):
    """Kernel name -> its function. A name that is not there yet asks the library."""

    def __init__(self, library: Callable[[], Library]) -> None:
        super().__init__()
        self._library = library

    def __missing__(self, name: str) -> Call:
        return self._library().first_call(name, self)


class Library:
    """A set of installed artifacts, ready to launch from. Any thread may use it."""

    _default: ClassVar[Library | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, installed: Sequence[Installed], driver: Driver | None = None) -> None:
        self.installed = tuple(installed)
        self._lock = threading.RLock()
        self._loader: Loader | None = None if driver is None else Loader(driver)
        self._functions: dict[tuple[str, int, frozenset[tuple[str, Choice]]], Function] = {}
        self._calls = _Calls(lambda: self)

    @classmethod
    def open(
        cls, *paths: str | Path, driver: Driver | None = None, entry_points: bool = False
    ) -> Library:
        """The artifacts of these folders, or of ``$DSV4_AOT_ARTIFACTS`` where none is named.

        ``entry_points`` adds those of the installed wheels. Raises ManifestError.
        """
        folders = [Path(path) for path in paths]
        environ = {} if folders else os.environ
        return cls(resolve.find(folders, environ, entry_points), driver)

    @classmethod
    def default(cls) -> Library:
        """The artifacts of the installed wheels and of ``$DSV4_AOT_ARTIFACTS``, read once."""
        with cls._default_lock:
            if cls._default is None:
                cls._default = cls(resolve.find())
            return cls._default

    @property
    def loader(self) -> Loader:
        """Created with the driver, on first need. Raises DriverError."""
        if self._loader is None:
            with self._lock:
                if self._loader is None:
                    self._loader = Loader(CudaDriver())
        return self._loader

    # Launching ------------------------------------------------------------------------------------

    def launch(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Launches a kernel with its arguments, and ``stream=`` (default: the current one).

        The stream may be a handle, a torch stream or anything with ``__cuda_stream__``; the
        current one is torch's on the tensors' device, or the null stream without torch.
        Raises UnknownKernelError, NoArtifactError or ConflictError (nothing to launch),
        ArgumentError (nothing was launched), CorruptArtifactError, CaptureError (not loaded yet),
        DriverError.
        """
        try:
            if kwargs:
                self._calls[name](*args, **kwargs)
            else:  # spares the copy of an empty dict
                self._calls[name](*args)
        except TypeError as error:
            raise self.reworded(name, args, kwargs, error) from None

    def op(
        self, name: str, /, *, choices: Mapping[str, Choice] | None = None, **bound: Any
    ) -> Kernel:
        """The kernel with these arguments bound. ``choices`` overrides tuned axes."""
        record = self._record(name)
        forced = dict(choices or {})

        def call(*args: Any, **kwargs: Any) -> None:
            try:
                self.function(name, self._device_of(args, kwargs), forced).call(*args, **kwargs)
            except TypeError as error:
                raise self.reworded(name, args, kwargs, error) from None

        def find(
            args: Sequence[Any], kwargs: Mapping[str, Any]
        ) -> tuple[Function, tuple[Any, ...]]:
            function = self.function(name, self._device_of(args, kwargs), forced)
            adapted = function.adapt(function.order(args, kwargs))
            # Tensors that cannot say their device without the driver are asked only now.
            return self.function(name, function.device_of(adapted), forced), adapted

        return Kernel(name, call, find, record, bound)

    def function(self, name: str, device: int, choices: Mapping[str, Choice]) -> Function:
        """The generated function that serves a device. One artifact has one, for all devices."""
        key = (name, device, frozenset(choices.items()))
        function = self._functions.get(key)
        if function is None:
            with self._lock:
                found = self.loader.driver.device(device)
                place, record = resolve.select(self.installed, name, found.capability, str(found))
                function = next(
                    (
                        other
                        for (kernel, _, forced), other in self._functions.items()
                        if kernel == name and forced == key[2] and other.record is record
                    ),
                    None,
                ) or Function(self, place, record, choices)
                self._functions[key] = function
        return function

    def first_call(self, name: str, calls: dict[str, Call]) -> Call:
        """What a name stands for until its kernel is called, whose function then replaces it."""

        def first(*args: Any, **kwargs: Any) -> None:
            function = self.function(name, self._device_of(args, kwargs), {})
            calls[name] = function.call
            function.call(*args, **kwargs)

        return first

    def _record(self, name: str) -> KernelRecord:
        """Any artifact's record of a kernel: its arguments are the same for every target."""
        for place in self.installed:
            record = place.kernel(name)
            if record is not None:
                return record
        driver = self.loader.driver
        device = driver.device(driver.current_device())
        return resolve.select(self.installed, name, device.capability, str(device))[1]

    def _device_of(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> int:
        """A good guess: the function itself goes by its first tensor, and redirects."""
        for value in (*args, *kwargs.values()):
            index = value.get_device() if hasattr(value, "get_device") else None
            if type(index) is int and index >= 0:
                return index
        return self.loader.driver.current_device()

    def reworded(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], error: TypeError
    ) -> Exception:
        """Python's complaint about a signature in our words; other TypeErrors as they are."""
        return misfit(self._record(name), len(args), kwargs) or error

    # Loading and listing --------------------------------------------------------------------------

    def preload(
        self, names: Iterable[str] | None = None, devices: Iterable[int] | None = None
    ) -> Preloaded:
        """Loads every entry of these kernels on these devices, so that no later call loads.

        Left out, names are all kernels that the device runs, and devices is the current one
        alone: preloading creates a context on each. Raises what a launch raises.
        """
        start = time.perf_counter()
        loader = self.loader
        before = loader.usage
        kernels = set()
        for index in [loader.driver.current_device()] if devices is None else devices:
            device = loader.driver.device(index)
            for name in self._names(device.capability) if names is None else names:
                function = self.function(name, index, {})
                kernels.add(name)
                for entry in function.record.entries:
                    loader.function(function.place, name, entry, device, None)
        after = loader.usage
        return Preloaded(
            len(kernels),
            after.cubins - before.cubins,
            after.bytes - before.bytes,
            (time.perf_counter() - start) * 1e3,
        )

    def _names(self, capability: Capability) -> list[str]:
        accepted, _ = rank_targets({p.target for p in self.installed}, capability)
        return sorted(
            {name for p in self.installed if p.target in accepted for name in p.manifest.names}
        )

    def catalog(self) -> list[Listed]:
        """Every installed cubin, in the order of the artifacts. Needs no driver."""
        listed = []
        for place in self.installed:
            gpus: dict[str, list[str]] = {}
            for validation in place.manifest.validation:
                gpus.setdefault(validation.sha256, []).append(validation.gpu)
            listed += [
                Listed(
                    record.name, str(place.target), entry.choices, entry.sha256, entry.bytes,
                    tuple(gpus.get(entry.sha256, ())), place.origin,
                )
                for record in place.manifest.kernels
                for entry in record.entries
            ]  # fmt: skip
        return listed


_calls = _Calls(Library.default)


def launch(name: str, /, *args: Any, **kwargs: Any) -> None:
    """:meth:`Library.launch` of the default library."""
    try:
        if kwargs:
            _calls[name](*args, **kwargs)
        else:
            _calls[name](*args)
    except TypeError as error:
        raise Library.default().reworded(name, args, kwargs, error) from None


def op(name: str, /, *, choices: Mapping[str, Choice] | None = None, **bound: Any) -> Kernel:
    """:meth:`Library.op` of the default library."""
    return Library.default().op(name, choices=choices, **bound)


def preload(names: Iterable[str] | None = None, devices: Iterable[int] | None = None) -> Preloaded:
    """:meth:`Library.preload` of the default library."""
    return Library.default().preload(names, devices)


def catalog() -> list[Listed]:
    """:meth:`Library.catalog` of the default library."""
    return Library.default().catalog()
