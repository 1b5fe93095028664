"""Code generation, second half: an entry's grid and parameters, packed and launched.

The function of one entry on one device takes the stream and the values that the kernel's
function has read (:attr:`Binding.passes`). It knows the entry's constants and nothing of tensors.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import msgspec

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.abi import PARAM_RANGE
from dsv4_aot.runtime.driver import WRONG_CONTEXT, Device, Driver
from dsv4_aot.runtime.errors import ArgumentError, DriverError
from dsv4_aot.runtime.expr import Node
from dsv4_aot.runtime.packet import Layout, Packet
from dsv4_aot.runtime.schema import Entry, KernelRecord, Number, Pointer
from dsv4_aot.runtime.scope import index_of, local

GRID_LIMITS = (2**31 - 1, 65535, 65535)


class Launcher(msgspec.Struct, frozen=True):
    """One entry on one device, ready to launch.

    launch: ``launch(stream, *passed)`` checks the grid, packs and launches; a grid with a zero in
        it launches nothing.
    pack: ``pack(*passed)`` gives what goes into a packet, or None for an empty launch.
    fixed: ``fixed(packed)`` gives ``launch(stream)`` for values that never change.
    """

    entry: Entry
    device: Device
    launch: Callable[..., None]
    pack: Callable[..., tuple[Any, ...] | None]
    fixed: Callable[[tuple[Any, ...] | None], Callable[[int], None]]


@functools.cache
def _compiled(source: str) -> CodeType:
    """Entries that differ in constants of the namespace alone share their code."""
    return compile(source, "<entry>", "exec")


def link(
    record: KernelRecord, entry: Entry, passes: Sequence[str], driver: Driver, device: Device,
    function: Any,
) -> Launcher:  # fmt: skip
    """Generates the launch function of an entry on a device where its kernel is loaded."""
    layout = Layout(entry.launch, entry.params)
    pool: list[Packet] = []
    explain = _Explanation(record, entry, device, passes)

    def failed(status: int, packet: Packet) -> None:
        """A launch that the driver refused: in the wrong context it gets a second try."""
        if status in WRONG_CONTEXT:
            status = driver.launch_on(device.index, packet[1], function, packet[2])
            if status == 0:
                return
        raise DriverError(
            f"launching {record.name} on {device} failed: {driver.explain(status)}",
            tip="the cause may be earlier work on this device" if status >= 700 else None,
        )

    namespace: dict[str, Any] = {
        "_pop": pool.pop, "_push": pool.append, "_packet": functools.partial(layout.packet, driver),
        "_pack_into": layout.pack_into, "_pack": layout.pack,
        "_write_stream": layout.write_stream, "_STREAM": layout.stream_offset,
        "_enqueue": driver.launch, "_FUNCTION": function, "_failed": failed,
        "_outside": explain.outside, "_unfit": explain.unfit, "_IndexError": IndexError,
        "_unpackable": (struct.error, OverflowError), "_sms": device.multiprocessors,
        "_layout": layout,  # which owns the attributes
    }  # fmt: skip
    exec(_compiled(_source(record, entry, passes)), namespace)  # noqa: S102

    def fixed(packed: tuple[Any, ...] | None) -> Callable[[int], None]:
        """Every packet is filled once; a call writes nothing but another stream."""
        return _fixed(packed, layout, driver, function, failed)

    return Launcher(entry, device, namespace["_launch"], namespace["_pack_values"], fixed)


def _nothing(stream: int) -> None:
    """An empty launch."""


def _fixed(
    packed: tuple[Any, ...] | None, layout: Layout, driver: Driver, function: Any,
    failed: Callable[[int, Packet], None],
) -> Callable[[int], None]:  # fmt: skip
    if packed is None:
        return _nothing
    pool: list[Packet] = []
    pop, push, enqueue = pool.pop, pool.append, driver.launch
    write_stream, offset = layout.write_stream, layout.stream_offset

    def launch(stream: int) -> None:
        try:
            packet = pop()
        except IndexError:
            packet = layout.packet(driver)
            layout.pack_into(packet[0], 0, *packed)
        if packet[3] != stream:
            write_stream(packet[0], offset, stream)
            packet[3] = stream
        status = enqueue(packet[1], function, packet[2], 0)[0]
        if status:
            failed(status, packet)
        push(packet)

    return launch


def _source(record: KernelRecord, entry: Entry, passes: Sequence[str]) -> str:
    def leaf(node: Node) -> str:
        return local(record.arguments, node)

    numbers = [p.source.node for p in entry.params if isinstance(p.source, Number)]
    lines, texts = expr.to_statements([*entry.launch.grid, *numbers], leaf)
    grid, number = texts[:3], iter(texts[3:])
    tests = []
    for axis, (node, limit) in enumerate(zip(entry.launch.grid, GRID_LIMITS, strict=True)):
        cluster = entry.launch.cluster[axis]
        if isinstance(node, expr.Const) and 0 < node.value <= limit and not node.value % cluster:
            continue
        if not grid[axis].isidentifier():
            lines.append(f"_g{axis} = {grid[axis]}")
            grid[axis] = f"_g{axis}"
        tests.append(f"0 < {grid[axis]} <= {limit}")
        if cluster != 1:
            tests.append(f"not {grid[axis]} % {cluster}")
    if tests:
        lines += [
            f"if not ({' and '.join(tests)}):",
            f"    return _outside(({', '.join(grid)}))",
        ]
    params = [
        f"_p{index_of(record.arguments, param.source.arg)}"
        if isinstance(param.source, Pointer)
        else next(number)
        for param in entry.params
    ]
    values = ", ".join([*params, *grid[: Layout(entry.launch, entry.params).variable]])
    took = ", ".join(passes)
    refuse = f"return _unfit(({took}{',' if took else ''}))"
    return "\n".join([
        f"def _launch(stream, {took}):" if took else "def _launch(stream):",
        *(f"    {line}" for line in lines),
        "    try:",
        "        _packet_ = _pop()",
        "    except _IndexError:",
        "        _packet_ = _packet()",
        "    _block, _config, _params, _last, _ = _packet_",
        "    try:",
        f"        _pack_into(_block, 0, {values})",
        "    except _unpackable:",
        f"        {refuse}",
        "    if _last != stream:",
        "        _write_stream(_block, _STREAM, stream)",
        "        _packet_[3] = stream",
        "    _status = _enqueue(_config, _FUNCTION, _params, 0)[0]",
        "    if _status:",
        "        _failed(_status, _packet_)",
        "    _push(_packet_)",
        "",
        "",
        f"def _pack_values({took}):",
        *(f"    {line}" for line in lines),
        f"    _values = ({values}{',' if values else ''})",
        "    try:",
        "        _pack(*_values)",
        "    except _unpackable:",
        f"        {refuse}",
        "    return _values",
        "",
    ])  # fmt: skip


class _Explanation:
    """Says why an entry could not be launched with what was passed."""

    def __init__(
        self, record: KernelRecord, entry: Entry, device: Device, passes: Sequence[str]
    ) -> None:
        self.record = record
        self.entry = entry
        self.device = device
        self.passes = passes

    def outside(self, grid: tuple[int, int, int]) -> None:
        """Returns for an empty grid, raises ArgumentError for an impossible one."""
        if min(grid) >= 0 and 0 in grid:
            return
        cluster = self.entry.launch.cluster
        for axis, (extent, limit) in enumerate(zip(grid, GRID_LIMITS, strict=True)):
            where = f"{self.record.name}: grid {'xyz'[axis]} = {self._text(axis)} is {extent}"
            if not 0 < extent <= limit:
                raise ArgumentError(f"{where}, allowed: 0 to {limit}")
            if extent % cluster[axis]:
                raise ArgumentError(f"{where}, allowed: multiples of the cluster's {cluster[axis]}")

    def _text(self, axis: int) -> str:
        return expr.to_text(self.entry.launch.grid[axis])

    def unfit(self, passed: tuple[int, ...]) -> None:
        """Raises ArgumentError for the parameter that its type does not hold."""
        values = dict(zip(self.passes, passed, strict=True), _sms=self.device.multiprocessors)

        def leaf(node: Node) -> str:
            return local(self.record.arguments, node)

        for param in self.entry.params:
            if isinstance(param.source, Pointer):
                continue
            code = _compiled(f"_value = {expr.to_python(param.source.node, leaf)}")
            exec(code, values)  # noqa: S102
            value = values["_value"]
            low, high = PARAM_RANGE.get(param.type, (-3.4028235e38, 3.4028235e38))
            if not low <= value <= high:
                raise ArgumentError(
                    f"{self.record.name}: {expr.to_text(param.source.node)} is {value}, "
                    f"allowed: {low} to {high}, which {param.type} holds"
                )
        raise ArgumentError(f"{self.record.name}: a parameter does not fit its type")
