from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dsv4_aot.generator.coverage import closed
from dsv4_aot.runtime.expr import numel
from dsv4_aot.runtime.schema import KernelRecord, Rule

if TYPE_CHECKING:
    from tests.conftest import Sample

replace = msgspec.structs.replace


def kernel(sample: Sample) -> KernelRecord:
    return sample.manifest.kernels[0]


def test_what_was_packed_is_closed(sample: Sample) -> None:
    assert closed(sample.manifest) == []
    assert len(kernel(sample).entries) == 4


def test_missing_entry(sample: Sample) -> None:
    broken = replace(kernel(sample), entries=kernel(sample).entries[1:])
    assert closed(broken) == [
        "rule 0 sends [element=float] to [element=float,threads=256]: 0 entries"
    ]


def test_entry_out_of_reach(sample: Sample) -> None:
    broken = replace(kernel(sample), rules=kernel(sample).rules[1:])
    assert closed(broken) == [
        "the entry [element=float,threads=256] is out of reach",
        "the entry [element=int,threads=256] is out of reach",
    ]


def test_last_rule_must_be_unconditional(sample: Sample) -> None:
    conditional = Rule(where={}, when=numel("x") >= 1, choose={"threads": 128})
    broken = replace(kernel(sample), rules=(*kernel(sample).rules[:1], conditional))
    assert closed(broken) == [
        "[element=float] has no unconditional rule at the end",
        "[element=int] has no unconditional rule at the end",
    ]


def test_rule_behind_an_unconditional_one(sample: Sample) -> None:
    rules = kernel(sample).rules
    assert closed(replace(kernel(sample), rules=(*rules, rules[0]))) == [
        "rule 2 can never decide a call"
    ]


def test_value_in_no_domain_product(sample: Sample) -> None:
    broken = replace(kernel(sample), domain=({"element": ("float",)},))
    assert closed(broken) == [
        "the entry [element=int,threads=256] is out of reach",
        "the entry [element=int,threads=128] is out of reach",
        "element=int is in no domain product",
    ]


def test_empty_domain(sample: Sample) -> None:
    broken = replace(sample.manifest, kernels=(replace(kernel(sample), domain=()),))
    assert "scale: the domain is empty, so no call is served" in closed(broken)
