"""One case of a kernel against its reference, byte for byte.

A trial makes the case's arguments once and runs the reference once, on a clone; then any number
of implementations can be tried on the same arguments and compared with the same expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsv4_aot.generator.spec import Case, Tolerance
from dsv4_aot.runtime.errors import SpecError
from dsv4_aot.runtime.schema import Argument, Choice, TensorArg

Arguments = Mapping[str, Any]
Call = Callable[..., object]

CLONED_INPUT_BYTES = 1 << 30
"""A read-only storage over this size is shared with the reference and not compared afterwards."""
_BYTES_AS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 26  # elements compared at once, so that big results need no big temporaries


@dataclass(frozen=True)
class Outcome:
    """What one implementation made of one case.

    choices: of the entry that ran. worst: greatest error as a share of what the tolerance allows,
    0.0 where bytes are equal. message: what differed first, empty when the case passed.
    """

    case: str
    choices: Mapping[str, Choice]
    worst: float
    passed: bool
    message: str


# Storages -----------------------------------------------------------------------------------------


def tensors_of(arguments: Arguments) -> dict[str, torch.Tensor]:
    return {name: a for name, a in arguments.items() if isinstance(a, torch.Tensor)}


def storage_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage behind a tensor, as uint8 ``[nbytes]`` that shares its memory."""
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.set_(tensor.untyped_storage())


def view_like(tensor: torch.Tensor, storage: torch.Tensor) -> torch.Tensor:
    """The view that ``tensor`` is of its own storage, on the bytes of another."""
    typed = torch.empty(0, dtype=tensor.dtype, device=storage.device)
    place = (tensor.storage_offset(), tensor.shape, tensor.stride())
    return typed.set_(storage.untyped_storage(), *place)


def clone(arguments: Arguments, keep: Callable[[int], bool] = lambda _: False) -> dict[str, Any]:
    """The same call on other memory: whole storages are copied and every view is rebuilt.

    Arguments that share a storage share its copy. ``keep(address)`` names storages not to copy.
    """
    copies: dict[int, torch.Tensor] = {}
    result = dict(arguments)
    for name, tensor in tensors_of(arguments).items():
        key = tensor.untyped_storage().data_ptr()
        if key == 0 or keep(key):
            continue
        if key not in copies:
            copies[key] = storage_bytes(tensor).clone()
        result[name] = view_like(tensor, copies[key])
    return result


# Trials -------------------------------------------------------------------------------------------


class Trial:
    """A case's arguments, and what the reference makes of them.

    ``arguments`` are the kernel's, of which ``table`` says which are written. Raises SpecError
    when the case does not write to any tensor of the table.
    """

    def __init__(
        self,
        table: Sequence[Argument],
        case: Case,
        reference: Call,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.case = case
        self.arguments = case.make(device, seed)
        tensors = tensors_of(self.arguments)
        args = {arg.name: arg for arg in table if isinstance(arg, TensorArg)}
        self.written = [name for name in tensors if name in args and args[name].result]
        if not self.written:
            raise SpecError(
                f"case {case.name!r} passes no tensor that the kernel writes",
                tip="declare the result with access='write' or 'readwrite'",
            )
        self._storages = {_key(tensor): storage_bytes(tensor) for tensor in tensors.values()}
        self._storages.pop(0, None)  # empty tensors have no memory
        scratch = {
            _key(tensors[arg.name])
            for arg in args.values()
            if arg.access == "scratch" and arg.name in tensors
        }
        outputs = {_key(tensors[name]) for name in self.written}
        self._before = {key: self._storages[key].clone() for key in outputs if key}
        self._shared = {
            key
            for key, data in self._storages.items()
            if key not in outputs and (key in scratch or data.numel() > CLONED_INPUT_BYTES)
        }
        self.expected = clone(self.arguments, keep=self._shared.__contains__)
        reference(**self.expected)

    def restore(self) -> None:
        """Puts the written tensors back as the case made them, poison included."""
        for key, data in self._before.items():
            self._storages[key].copy_(data)

    def run(self, call: Call, choices: Mapping[str, Choice] | None = None) -> Outcome:
        """Calls an implementation with the arguments and compares what it left behind."""
        self.restore()
        call(**self.arguments)
        return self.compare(choices)

    def compare(self, choices: Mapping[str, Choice] | None = None) -> Outcome:
        """Compares the arguments as they are now with what the reference made of them."""
        worst, message = 0.0, ""
        for name in self.written:
            got, expected = self.arguments[name], self.expected[name]
            error, difference = compare_view(name, got, expected, self.case.tolerance_of(name))
            worst = max(worst, error)
            message = message or difference
        message = message or self._outside()
        return Outcome(self.case.name, dict(choices or {}), worst, not message, message)

    def _outside(self) -> str:
        """The first byte that differs outside the written views."""
        for name in self.written:  # the views themselves have been judged: make them agree
            _raw(self.arguments[name]).copy_(_raw(self.expected[name]))
        for name, tensor in tensors_of(self.expected).items():
            key = _key(self.arguments[name])
            if key == 0 or key in self._shared:
                continue
            found = _first_difference(self._storages[key], storage_bytes(tensor))
            if found is not None:
                offset, got, expected, count = found
                where = "outside its view" if name in self.written else "although it is read only"
                return (
                    f"{name}: byte {offset} of its storage was changed {where}: "
                    f"got {int(got):#04x}, expected {int(expected):#04x}; {count} such bytes"
                )
        return ""


def run_case(
    table: Sequence[Argument],
    case: Case,
    reference: Call,
    kernel: Call,
    device: torch.device,
    seed: int = 0,
    choices: Mapping[str, Choice] | None = None,
) -> Outcome:
    """One implementation on one case; use a :class:`Trial` to try several on the same one."""
    return Trial(table, case, reference, device, seed).run(kernel, choices)


# Comparing ----------------------------------------------------------------------------------------


def compare_view(
    name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance | None
) -> tuple[float, str]:
    """Greatest error as a share of the allowed, and the first bad element in words, or ``""``."""
    if got.numel() == 0:
        return 0.0, ""
    if tolerance is None:
        found = _first_difference(_raw(got), _raw(expected))
        worst = 0.0 if found is None else float("inf")
        allowed = "equal bytes"
    else:
        worst, found = _first_beyond(got, expected, tolerance)
        joined = "or" if tolerance.either else "+"
        allowed = f"{tolerance.absolute:g} {joined} {tolerance.relative:g} * |expected|"
        if found is None and tolerance.cosine is not None:
            angle = _cosine_difference(got, expected)
            worst = max(worst, angle / tolerance.cosine)
            if angle > tolerance.cosine:
                return worst, (
                    f"{name} as a whole: its cosine difference is {angle:.3g} "
                    f"(allowed: {tolerance.cosine:g})"
                )
    if found is None:
        return worst, ""
    flat, _, _, count = found
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), got.shape))
    return worst, (
        f"{name}{list(index)} is {_show(got[index])}, expected {_show(expected[index])} "
        f"(allowed: {allowed}); {count} of {got.numel()} elements differ"
    )


def share_beyond(got: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance | None) -> float:
    """Of all elements, those that ``compare_view`` would not let pass."""
    if tolerance is None:
        found = _first_difference(_raw(got), _raw(expected))
    else:
        _, found = _first_beyond(got, expected, tolerance)
    return 0.0 if found is None else found[3] / got.numel()


_Difference = tuple[int, Any, Any, int]
"""Flat index of the first difference, the two values there, and the number of differences."""


def _first_difference(got: torch.Tensor, expected: torch.Tensor) -> _Difference | None:
    if torch.equal(got, expected):
        return None
    return _first(got, expected, (got != expected).reshape(-1))


def _first(got: torch.Tensor, expected: torch.Tensor, wrong: torch.Tensor) -> _Difference:
    first = int(wrong.to(torch.uint8).argmax())
    index = torch.unravel_index(torch.tensor(first), got.shape)
    return first, got[index].item(), expected[index].item(), int(wrong.sum())


def _first_beyond(
    got: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance
) -> tuple[float, _Difference | None]:
    """As ``_first_difference``, by tolerance; NaN and infinities must stand in the same places."""
    worst, found, count, done = 0.0, None, 0, 0
    for piece, target in zip(_pieces(got), _pieces(expected), strict=True):
        x, y = piece.double(), target.double()
        error = (x - y).abs()
        same = (x == y) | (x.isnan() & y.isnan())
        finite = x.isfinite() & y.isfinite()
        allowed = _allowed(y.abs(), tolerance)
        wrong = ~(same | (finite & (error <= allowed)))
        share = torch.where(same, 0.0, torch.where(finite, error / allowed, float("inf")))
        worst = max(worst, float(share.max()))
        if bool(wrong.any()):
            flat, *values, number = _first(piece, target, wrong)
            found = found or (done + flat, *values)
            count += number
        done += piece.numel()
    return worst, None if found is None else (*found, count)


def _allowed(size: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    if tolerance.either:
        return (tolerance.relative * (size + 1e-6)).clamp(min=tolerance.absolute)
    return tolerance.absolute + tolerance.relative * size


def _cosine_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """``1 - 2 <a, b> / (|a|^2 + |b|^2)`` over the values that are finite, 0 where all are 0."""
    apart = norms = 0.0
    for piece, target in zip(_pieces(got), _pieces(expected), strict=True):
        x, y = piece.double(), target.double()
        finite = x.isfinite() & y.isfinite()
        x, y = x[finite], y[finite]
        apart += float((x - y).square().sum())  # which is |a|^2 + |b|^2 - 2 <a, b>
        norms += float((x.square() + y.square()).sum())
    return apart / norms if norms else 0.0


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The elements in row-major order, a bounded number at a time, without copying them all."""
    if tensor.numel() <= _PIECE or tensor.dim() == 0:
        yield tensor.reshape(-1)
    else:
        rows = _PIECE // tensor[0].numel()
        for part in torch.split(tensor, rows) if rows else tensor:
            yield from _pieces(part)


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The same view with integers for elements, so that NaN equals NaN and -0 differs from 0."""
    return tensor.view(_BYTES_AS[tensor.element_size()])


def _show(element: torch.Tensor) -> str:
    digits = 2 * element.element_size()
    bits = int(_raw(element).item()) & ((1 << 4 * digits) - 1)
    return f"{element.item()} ({bits:#0{digits + 2}x})"


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
