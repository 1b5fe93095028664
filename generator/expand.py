"""A kernel folder and a target -> the variants that are built: one choice on every axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from dsv4_aot.generator.discover import KernelFolder, record
from dsv4_aot.generator.spec import KernelSpec, SourceSpec
from dsv4_aot.runtime.abi import lay_out
from dsv4_aot.runtime.consistency import kernel_problems
from dsv4_aot.runtime.errors import Dsv4AotError, SpecError
from dsv4_aot.runtime.schema import (
    Choice,
    Entry,
    Launch,
    Param,
    Resources,
    Rule,
    choices_text,
    entry_key,
)
from dsv4_aot.runtime.target import Target


@dataclass(frozen=True)
class Variant:
    """One cubin to build. Printed by its key, ``dequant_gather/sm_90a/block_size=64,record=v4``."""

    folder: KernelFolder
    target: Target
    choices: dict[str, Choice]

    def __str__(self) -> str:
        return self.key

    @cached_property
    def key(self) -> str:
        return entry_key(self.folder.name, str(self.target), self.choices)

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """The kernel's parameters, laid out by the C rules."""
        params = self.folder.spec.params_of(self.choices)
        slots = lay_out(param.type for param in params)
        return tuple(
            Param(
                name=param.name,
                type=param.type,
                source=param.source,
                offset=slot.offset,
                size=slot.size,
            )
            for param, slot in zip(params, slots, strict=True)
        )

    @cached_property
    def launch(self) -> Launch:
        return self.folder.spec.launch(self.choices)

    @cached_property
    def source(self) -> SourceSpec:
        return self.folder.spec.source_of(self.choices)

    def entry(
        self, *, file: str, size: int, sha256: str, resources: Resources, build_key: str
    ) -> Entry:
        """The variant as the manifest writes it. ``size``: of the cubin, in bytes."""
        return Entry(
            choices=self.choices,
            file=file,
            bytes=size,
            sha256=sha256,
            symbol=self.source.entry,
            params=self.params,
            launch=self.launch,
            resources=resources,
            build_key=build_key,
        )


class VariantKey(NamedTuple):
    """A variant's name, taken apart. ``choices`` as text, since only a spec knows their types."""

    kernel: str
    target: Target
    choices: dict[str, str]

    def __str__(self) -> str:
        return entry_key(self.kernel, str(self.target), dict(self.choices))


def parse_key(text: str) -> VariantKey:
    """The inverse of :attr:`Variant.key`. Raises Dsv4AotError."""
    kernel, _, rest = text.partition("/")
    target, slash, choices = rest.partition("/")
    pairs = [item.partition("=") for item in choices.split(",") if item]
    if not (kernel and slash) or not all(name and sign for name, sign, _ in pairs):
        raise Dsv4AotError(
            f"{text!r} is not a variant key",
            tip="write it as dequant_gather/sm_90a/block_size=64,record=v4",
        )
    return VariantKey(kernel, Target.parse(target), {name: value for name, _, value in pairs})


@lru_cache(maxsize=256)
def expand(folder: KernelFolder, target: Target) -> tuple[Variant, ...]:
    """The variants that calls in the spec's domain can reach, in the order of domain and rules.

    Raises SpecError when a rule set leaves a call without a choice, or a variant contradicts
    the spec's argument table.
    """
    found: dict[str, Variant] = {}
    for choices in _reachable(folder.spec, target):
        variant = Variant(folder, target, choices)
        found.setdefault(variant.key, variant)
    variants = tuple(found.values())
    for problem in _problems(folder.spec, target, variants):
        raise SpecError(f"{folder.name}: {problem}")
    return variants


def _reachable(spec: KernelSpec, target: Target) -> Iterator[dict[str, Choice]]:
    rules = spec.rules_of(str(target))
    for product in spec.products():
        for combination in itertools.product(*product.values()):
            bound = dict(zip(product, combination, strict=True))
            for rule in _rules_for(spec.name, rules, bound):
                merged = {**bound, **rule.choose}
                yield {axis.name: merged[axis.name] for axis in spec.axes}


def _rules_for(name: str, rules: tuple[Rule, ...], bound: dict[str, Choice]) -> Iterator[Rule]:
    """The rules that a call with these bound choices can end at, in order."""
    for rule in rules:
        if all(_among(bound[name], allowed) for name, allowed in rule.where.items()):
            yield rule
            if rule.when is None:
                return
    raise SpecError(
        f"{name}: no rule is certain to choose for {choices_text(bound) or 'a call'}",
        tip="end the rules with one that has no `when`, or --choose what serves every call",
    )


def _among(choice: Choice, allowed: tuple[Choice, ...]) -> bool:
    """Tells True from 1, which ``in`` does not."""
    return any(type(choice) is type(other) and choice == other for other in allowed)


def _problems(spec: KernelSpec, target: Target, variants: tuple[Variant, ...]) -> Iterator[str]:
    """What would make the manifest of these variants unusable, asked before any compile."""
    nothing = Resources(registers=0, stack=0, local=0, shared=0, spills=0, code=0)
    entries = [
        variant.entry(file="none", size=0, sha256="0" * 64, resources=nothing, build_key="0" * 64)
        for variant in variants
    ]
    yield from kernel_problems(record(spec, entries, target))
