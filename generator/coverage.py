"""Whether every call in a kernel's domain resolves to one entry: proved by enumeration.

Written against the manifest alone, apart from what expanded the spec, so that it checks that too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dsv4_aot.runtime.schema import (
    Choice,
    KernelRecord,
    Manifest,
    Rule,
    choices_text,
)

Choices = dict[str, Choice]


def closed(what: Manifest | KernelRecord) -> list[str]:
    """What is missing, ambiguous or unused; empty when coverage is closed.

    Every combination of bound choices in the domain is tried with every rule that may decide it:
    each outcome must be exactly one entry, an unconditional rule must come last, and no rule,
    axis value or entry may be out of reach.
    """
    if isinstance(what, KernelRecord):
        return list(_kernel_problems(what))
    return [
        f"{kernel.name}: {problem}"
        for kernel in what.kernels
        for problem in _kernel_problems(kernel)
    ]


def combinations(kernel: KernelRecord) -> list[Choices]:
    """Every combination of bound choices in the domain, once, in the order of the products."""
    found: dict[str, Choices] = {}
    for product in kernel.domain:
        for values in itertools.product(*product.values()):
            choices = dict(zip(product, values, strict=True))
            found.setdefault(choices_text(choices), choices)
    return list(found.values())


def _kernel_problems(kernel: KernelRecord) -> Iterator[str]:
    entries: dict[str, int] = {}
    for entry in kernel.entries:
        key = choices_text(entry.choices)
        entries[key] = entries.get(key, 0) + 1
    domain = combinations(kernel)
    if not domain:
        yield "the domain is empty, so no call is served"
    reached: set[str] = set()
    used: set[int] = set()
    for bound in domain:
        rules = _rules_for(kernel, bound)
        if not rules or rules[-1][1].when is not None:
            yield f"[{choices_text(bound)}] has no unconditional rule at the end"
        for index, rule in rules:
            used.add(index)
            key = choices_text({**bound, **rule.choose})
            reached.add(key)
            count = entries.get(key, 0)
            if count != 1:
                yield f"rule {index} sends [{choices_text(bound)}] to [{key}]: {count} entries"
    for index in range(len(kernel.rules)):
        if index not in used:
            yield f"rule {index} can never decide a call"
    for key in entries:
        if key not in reached:
            yield f"the entry [{key}] is out of reach"
    yield from _unserved_values(kernel, domain)


def _rules_for(kernel: KernelRecord, bound: Choices) -> list[tuple[int, Rule]]:
    """Rules that may decide a call with these bound choices: up to the first unconditional one."""
    rules = []
    for index, rule in enumerate(kernel.rules):
        if all(_among(bound[name], allowed) for name, allowed in rule.where.items()):
            rules.append((index, rule))
            if rule.when is None:
                break
    return rules


def _unserved_values(kernel: KernelRecord, domain: list[Choices]) -> Iterator[str]:
    for axis in kernel.axes:
        if axis.bind is None:
            continue
        served = tuple(choices[axis.name] for choices in domain)
        for value in axis.values:
            if not _among(value.choice, served):
                yield f"{choices_text({axis.name: value.choice})} is in no domain product"


def _among(choice: Choice, allowed: tuple[Choice, ...]) -> bool:
    """Membership that tells True from 1."""
    return any(type(choice) is type(other) and choice == other for other in allowed)
