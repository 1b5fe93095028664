"""What a kernel author writes: one ``KERNEL = KernelSpec(...)`` in ``templates/<name>/kernel.py``.

A spec is declarative data: arguments, axes, dispatch rules, and two small functions from choices
to launch geometry and source. It needs no compiler, no torch and no GPU to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Union

from dsv4_aot.runtime import schema
from dsv4_aot.runtime.abi import ITEMSIZE, Dtype, ParamType
from dsv4_aot.runtime.expr import Node, Operand, lift
from dsv4_aot.runtime.schema import Access, Choice
from dsv4_aot.runtime.target import Target

Choices = Mapping[str, Any]
"""One choice for every axis: ``{"block_size": 64, "record": "v4", ...}``."""

# Arguments --------------------------------------------------------------------------------------


def tensor(
    name: str,
    dtype: Dtype | Sequence[Dtype],
    shape: Sequence[Operand | None],
    *,
    strides: Sequence[Operand | None] | None = None,
    leading: bool = False,
    contiguous: bool = False,
    align: int | None = None,
    optional: bool = False,
    access: Access = "read",
    doc: str = "",
) -> schema.TensorArg:
    """A tensor argument; see :class:`dsv4_aot.runtime.schema.TensorArg` for the meaning of each.

    ``align`` counts bytes; that an element is aligned to its own size is asked in any case.
    ``strides`` left out are all free.
    """
    dims = tuple(None if dim is None else lift(dim) for dim in shape)
    steps = (
        (None,) * len(dims)
        if strides is None
        else tuple(None if step is None else lift(step) for step in strides)
    )
    dtypes = (dtype,) if isinstance(dtype, str) else tuple(dtype)
    least = min(ITEMSIZE[each] for each in dtypes)
    return schema.TensorArg(
        name=name, dtypes=dtypes, shape=dims, strides=steps, leading=leading,
        contiguous=contiguous, align=max(align or 1, least), optional=optional, access=access,
        doc=doc,
    )  # fmt: skip


def scalar(
    name: str,
    type: Literal["int", "float", "bool"],
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    default: bool | float | None = None,
    doc: str = "",
) -> schema.ScalarArg:
    """A number argument; bounds are inclusive, and without a default it is required."""
    return schema.ScalarArg(
        name=name, type=type, minimum=minimum, maximum=maximum, default=default, doc=doc
    )


def check(
    require: Node, message: str, *, where: Mapping[str, Sequence[Choice]] | None = None
) -> schema.Check:
    """A condition on calls with bound choices in ``where``. ``message`` says what is allowed, as a
    clause.
    """
    return schema.Check(where=_listed(where), require=require, message=message)


# Axes and dispatch ------------------------------------------------------------------------------


def bound(
    name: str, values: Sequence[Choice] | Mapping[Any, Choice], by: Node | schema.DtypeOf
) -> schema.Axis:
    """An axis that the call decides. A mapping gives the bound value that selects each choice.

    Bound by ``present(...)`` or another condition, the choices are False and True.
    """
    pairs = values.items() if isinstance(values, Mapping) else ((v, v) for v in values)
    return schema.Axis(
        name=name,
        values=tuple(schema.AxisValue(choice=choice, when=when) for choice, when in pairs),
        bind=by if isinstance(by, schema.DtypeOf) else schema.Expression(node=by),
    )


def tuned(name: str, values: Sequence[Choice]) -> schema.Axis:
    """An axis that dispatch rules decide, by measurement."""
    return schema.Axis(
        name=name, values=tuple(schema.AxisValue(choice=v, when=v) for v in values), bind=None
    )


def dtype_of(arg: str) -> schema.DtypeOf:
    """The element type of a tensor; ``"absent"`` where it is optional and was not given."""
    return schema.DtypeOf(arg=arg)


def rule(
    *,
    when: Node | None = None,
    where: Mapping[str, Sequence[Choice]] | None = None,
    **choose: Choice,
) -> schema.Rule:
    """For calls with bound choices in ``where`` that meet ``when``, choose these tuned values."""
    return schema.Rule(
        where=_listed(where),
        when=when,
        choose=dict(choose),
    )


@dataclass(frozen=True)
class OnTargets:
    """Rules that count where the kernel is built for one of these targets."""

    targets: tuple[str, ...]
    rules: tuple[schema.Rule, ...]


def only(targets: Sequence[str] | str, *rules: schema.Rule) -> OnTargets:
    """Rules of these targets alone; on others the rules after them decide.

    Raises Dsv4AotError when a target is none.
    """
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    return OnTargets(tuple(str(Target.parse(name)) for name in names), rules)


def _listed(where: Mapping[str, Sequence[Choice]] | None) -> dict[str, tuple[Choice, ...]]:
    return {name: tuple(choices) for name, choices in (where or {}).items()}


# Parameters and launch --------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter, in the order of the kernel's signature."""

    name: str
    type: ParamType
    source: schema.Pointer | schema.Number


def pointer(arg: str) -> Parameter:
    """The address of a tensor argument, 0 when it is absent."""
    return Parameter(arg, "pointer", schema.Pointer(arg=arg))


def number(name: str, type: ParamType, node: Operand) -> Parameter:
    """An integer expression, or ``value(name)`` of a float argument."""
    return Parameter(name, type, schema.Number(node=lift(node)))


def launch(
    grid: Sequence[Operand],
    block: Sequence[int] | int,
    *,
    cluster: Sequence[int] | int = 1,
    shared: int = 0,
    programmatic: bool = False,
) -> schema.Launch:
    """Launch geometry; missing dims are 1. ``shared``: dynamic shared memory in bytes."""

    def three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
        x, y, z = (*values, 1, 1)[:3]
        return x, y, z

    return schema.Launch(
        grid=three([lift(extent) for extent in grid] + [lift(1)] * (3 - len(grid))),
        block=three((block,) if isinstance(block, int) else block),
        cluster=three((cluster,) if isinstance(cluster, int) else cluster),
        shared=shared,
        programmatic=programmatic,
    )


# Sources ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CuteSource:
    """A CuTe DSL kernel.

    ``<module>.<function>(choices)`` gives ``(host_function, fake_arguments)``.
    module: file in the kernel's folder. entry: symbol of the kernel in the cubin.
    """

    entry: str
    module: str = "device.py"
    function: str = "build"


@dataclass(frozen=True)
class CudaSource:
    """A CUDA C++ kernel for NVRTC, rendered by jinja2 with the choices as variables.

    template: file in the kernel's folder. entry: its ``extern "C"`` symbol.
    options: further NVRTC options; include paths, target and language level are the build's.
    """

    entry: str
    template: str = "kernel.cu.j2"
    variables: Mapping[str, Choice] = field(default_factory=dict)
    options: tuple[str, ...] = ()


SourceSpec = Union[CuteSource, CudaSource]

# Cases ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """A value passes within ``absolute + relative * |expected|``.

    NaN and infinities must coincide.

    either: within the greater of the two bounds instead, the relative one being
        ``relative * (|expected| + 1e-6)``.
    cosine: most that ``1 - 2 <a, b> / (|a|^2 + |b|^2)`` may be over the finite values of a tensor,
        which sees small errors that all go one way; None asks for none.
    """

    absolute: float
    relative: float
    either: bool = False
    cosine: float | None = None


@dataclass(frozen=True)
class Case:
    """One call of the kernel on real input; tests, validation and benchmarks run the same list.

    make: ``make(device, seed)`` gives the call's arguments as a dict of torch tensors, numbers and
        None, the written tensors poisoned. The reference is run on a clone of all of them, and
        the whole storage behind every written tensor must then agree, so untouched bytes count.
    tolerance: None asks for equal bytes. By name, the tensors that are not named have none.
    expected: ``expected()`` gives written tensors as worked out by hand, on the CPU. The
        reference is held against them, so every kernel has such a case.
    read, write: least bytes moved, for benchmarks; flops likewise.
    bench: whether the benchmark times this case. Figures from elsewhere go to the benchmark docs.
    memory: device bytes needed, so that a smaller GPU can skip it and say so.
    instrumented: whether compute-sanitizer, under which only small cases run, is to see this one
        too.
    peer_share: of the written elements that a peer, which may round otherwise, may have beyond the
        tolerance and still be timed.
    """

    name: str
    make: Callable[[Any, int], dict[str, Any]]
    tolerance: Tolerance | Mapping[str, Tolerance] | None = None
    expected: Callable[[], Mapping[str, Any]] | None = None
    read: int = 0
    write: int = 0
    flops: int = 0
    bench: bool = False
    memory: int = 0
    instrumented: bool = False
    peer_share: float = 0.0

    def tolerance_of(self, name: str) -> Tolerance | None:
        """Of one written tensor."""
        if self.tolerance is None or isinstance(self.tolerance, Tolerance):
            return self.tolerance
        return self.tolerance.get(name)


# The spec ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """One kernel.

    domain: products of bound choices that are served; None is the full product of the bound axes.
    rules: tried in order, some of them ``only`` on some targets. A kernel with more than one body
        has a tuned axis ``body``, which the rules decide and the source follows.
    params: the cubin's parameters in order, or a function from choices where bodies differ.
    launch: choices -> geometry. source: one source, or choices -> source.
    max_registers: a variant over this budget fails the build.
    spills_allowed: the reason why local-memory spills are accepted, or None to refuse them.

    The folder's ``reference.py`` has ``reference(**arguments) -> None``, which writes the expected
    values into the written tensors; ``cases.py`` has ``cases() -> list[Case]``. An optional
    ``peers.py`` has ``peers() -> dict[str, Callable]``: other implementations to time, called
    with the case's arguments; it returns those that can be imported. A peer writes what the kernel
    writes, or returns tensors of its own by those names.
    """

    name: str
    summary: str
    arguments: Sequence[schema.Argument]
    axes: Sequence[schema.Axis]
    params: Sequence[Parameter] | Callable[[Choices], Sequence[Parameter]]
    launch: Callable[[Choices], schema.Launch]
    source: SourceSpec | Callable[[Choices], SourceSpec]
    checks: Sequence[schema.Check] = ()
    rules: Sequence[schema.Rule | OnTargets] = (schema.Rule(where={}, when=None, choose={}),)
    domain: Sequence[Mapping[str, Sequence[Choice]]] | None = None
    max_registers: int = 255
    spills_allowed: str | None = None

    def bound_axes(self) -> tuple[schema.Axis, ...]:
        return tuple(axis for axis in self.axes if axis.bind is not None)

    def rules_of(self, target: str | None = None) -> tuple[schema.Rule, ...]:
        """The rules of one target, or without one all that there are.

        Those that a target's own rules leave nothing to are not its rules.
        """
        found: list[schema.Rule] = []
        for each in self.rules:
            if isinstance(each, schema.Rule):
                found.append(each)
            elif target is None or target in each.targets:
                found += each.rules
                if target is not None and any(not r.where and r.when is None for r in each.rules):
                    break
        return tuple(found)

    def choosing(self, choices: Mapping[str, str]) -> KernelSpec:
        """The same kernel with those rules alone that choose this; choices as text."""

        def fits(rule: schema.Rule) -> bool:
            return all(
                name in rule.choose and schema.choice_text(rule.choose[name]) == choice
                for name, choice in choices.items()
            )

        kept: list[schema.Rule | OnTargets] = []
        for each in self.rules:
            if isinstance(each, OnTargets):
                kept.append(OnTargets(each.targets, tuple(filter(fits, each.rules))))
            elif fits(each):
                kept.append(each)
        return replace(self, rules=kept)

    def params_of(self, choices: Choices) -> Sequence[Parameter]:
        return self.params(choices) if callable(self.params) else self.params

    def source_of(self, choices: Choices) -> SourceSpec:
        return self.source(choices) if callable(self.source) else self.source

    def products(self) -> tuple[dict[str, tuple[Choice, ...]], ...]:
        """The domain as the manifest writes it."""
        if self.domain is None:
            return (
                {axis.name: tuple(v.choice for v in axis.values) for axis in self.bound_axes()},
            )
        return tuple({name: tuple(values) for name, values in p.items()} for p in self.domain)
