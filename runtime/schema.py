"""The manifest's schema: what one JSON file per target says about its kernels.

Reading and writing is :mod:`dsv4_aot.runtime.manifest`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

import msgspec

from dsv4_aot.runtime.abi import ITEMSIZE, Dtype, ParamType
from dsv4_aot.runtime.expr import Node

SCHEMA = 1

Identifier = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")]
"""A plain name in the manifest's own folder: no separators, so nothing outside can be named."""
Choice = Union[bool, int, str]
ABSENT = "absent"
"""What an axis is bound to by the dtype of an optional tensor that was not given."""
Access = Literal["read", "write", "readwrite", "scratch"]
"""``scratch`` is written, and what it holds afterwards means nothing."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Every field is required in the file, so a default can never hide a missing one."""


# Arguments --------------------------------------------------------------------------------------


class TensorArg(_Record, frozen=True, tag="tensor", tag_field="kind"):
    """One tensor of the call.

    shape, strides: one node a dim that the call must equal, null where it is free. A stride is
    checked only where the dim has more than one element. Strides count elements.
    leading: any number of further dims may come before those of ``shape``.
    contiguous: the whole tensor must be row-major without gaps.
    align: of the first element's address, in bytes; at least that of an element, in any case.
    """

    name: Identifier
    dtypes: tuple[Dtype, ...]
    shape: tuple[Node | None, ...]
    strides: tuple[Node | None, ...]
    leading: bool
    contiguous: bool
    align: int
    optional: bool
    access: Access
    doc: str

    @property
    def result(self) -> bool:
        """Whether what the kernel leaves in it means something."""
        return self.access in ("write", "readwrite")

    def alignment(self, dtype: str) -> int:
        """Of the first element's address where the tensor has this dtype, in bytes."""
        return max(self.align, ITEMSIZE[dtype])


class ScalarArg(_Record, frozen=True, tag="scalar", tag_field="kind"):
    """One number of the call. Bounds are inclusive; ``default`` null makes it required."""

    name: Identifier
    type: Literal["int", "float", "bool"]
    minimum: int | float | None
    maximum: int | float | None
    default: bool | int | float | None
    doc: str


Argument = Union[TensorArg, ScalarArg]


class Check(_Record, frozen=True):
    """A condition on the whole call, and how to say what it asks for.

    It is asked of calls whose bound choices lie in ``where``, as a rule's are.
    """

    where: dict[str, tuple[Choice, ...]]
    require: Node
    message: str


# Axes -------------------------------------------------------------------------------------------


class DtypeOf(_Record, frozen=True, tag="dtype"):
    """Binds an axis to the element type of a tensor argument, or to ``absent``."""

    arg: str


class Expression(_Record, frozen=True, tag="expression"):
    """Binds an axis to an integer of the call; ``present`` binds to 0 and 1."""

    node: Node


Binding = Union[DtypeOf, Expression]


class AxisValue(_Record, frozen=True):
    """One choice, and the bound value that selects it (the choice itself on a tuned axis)."""

    choice: Choice
    when: Choice


class Axis(_Record, frozen=True):
    """A compile-time choice: bound by the call, or tuned (``bind`` null) by dispatch rules."""

    name: Identifier
    values: tuple[AxisValue, ...]
    bind: Binding | None


class Rule(_Record, frozen=True):
    """Chooses the tuned axes for calls whose bound choices lie in ``where`` and that meet ``when``.

    Rules are tried in order. ``where`` names allowed choices of bound axes; axes it does not
    name are free.
    """

    where: dict[str, tuple[Choice, ...]]
    when: Node | None
    choose: dict[str, Choice]


# Entries ----------------------------------------------------------------------------------------


class Pointer(_Record, frozen=True, tag="pointer"):
    """The address of a tensor's first element; 0 when the tensor is absent."""

    arg: str


class Number(_Record, frozen=True, tag="number"):
    """An integer over the call, or a float scalar argument passed through."""

    node: Node


class Param(_Record, frozen=True):
    """One kernel parameter: what is passed, and where it lies in the parameter block (bytes)."""

    name: Identifier
    type: ParamType
    source: Union[Pointer, Number]
    offset: int
    size: int


class Launch(_Record, frozen=True):
    """Launch geometry. ``shared`` is dynamic shared memory in bytes.

    programmatic: launch with programmatic stream serialization, so that the kernel may start
    while its predecessor drains; the kernel itself waits before it touches memory.
    """

    grid: tuple[Node, Node, Node]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared: int
    programmatic: bool


class Resources(_Record, frozen=True):
    """What a cubin takes, read from the cubin. Bytes, but for ``registers`` (a thread).

    ``local`` is local memory beyond the stack; ``spills`` counts local loads and stores in SASS.
    """

    registers: int
    stack: int
    local: int
    shared: int
    spills: int
    code: int


class Entry(_Record, frozen=True):
    """One cubin: a kernel with one choice on every axis."""

    choices: dict[str, Choice]
    file: FileName
    bytes: int
    sha256: Sha256
    symbol: str
    params: tuple[Param, ...]
    launch: Launch
    resources: Resources
    build_key: Sha256


class KernelRecord(_Record, frozen=True):
    """One kernel: how it is called, how a call chooses its entry, and its entries.

    domain: products of bound choices; a call is served when its choices lie in one of them.
    """

    name: Identifier
    summary: str
    arguments: tuple[Argument, ...]
    checks: tuple[Check, ...]
    axes: tuple[Axis, ...]
    domain: tuple[dict[str, tuple[Choice, ...]], ...]
    rules: tuple[Rule, ...]
    entries: tuple[Entry, ...]


class Validation(_Record, frozen=True):
    """A cubin whose cases were run on a GPU against the reference, and agreed."""

    sha256: Sha256
    gpu: str
    driver: str
    date: str
    cases: int
    worst: float


class Manifest(_Record, frozen=True):
    """One target's kernels. ``toolchain`` maps package names to exact versions."""

    schema: Literal[1]
    target: str
    version: str
    toolchain: dict[str, str]
    source_digest: Sha256
    kernels: tuple[KernelRecord, ...]
    validation: tuple[Validation, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(record.name for record in self.kernels)

    def kernel(self, name: str) -> KernelRecord | None:
        return next((record for record in self.kernels if record.name == name), None)


# Names ------------------------------------------------------------------------------------------


def choices_text(choices: dict[str, Choice]) -> str:
    """``block_size=64,record=v4``: sorted, booleans in lower case."""
    return ",".join(f"{name}={choice_text(choices[name])}" for name in sorted(choices))


def choice_text(choice: Choice) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def entry_key(kernel: str, target: str, choices: dict[str, Choice]) -> str:
    """``dequant_gather/sm_90a/block_size=64,record=v4``: the one name of a variant."""
    return f"{kernel}/{target}/{choices_text(choices)}"
