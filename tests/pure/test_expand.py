"""Which variants are built: those that a call in the domain can end at, and no others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_aot.generator.discover import KernelFolder
from dsv4_aot.generator.expand import expand, parse_key
from dsv4_aot.generator.spec import (
    CudaSource,
    KernelSpec,
    bound,
    launch,
    number,
    only,
    pointer,
    rule,
    tensor,
    tuned,
)
from dsv4_aot.runtime.errors import Dsv4AotError, SpecError
from dsv4_aot.runtime.expr import numel, size
from dsv4_aot.runtime.schema import Choice, choices_text
from dsv4_aot.runtime.target import Target

TARGET = Target.parse("sm_90a")
SPEC = KernelSpec(
    name="copy",
    summary="copies",
    arguments=[tensor("x", "uint8", [None, None])],
    axes=[
        tuned("threads", [128, 256]),
        bound("rows", [1, 2, 4], size("x", 0)),
        bound("even", [False, True], size("x", 1) % 2),
    ],
    rules=[rule(threads=128)],
    params=[number("n", "i32", numel("x")), pointer("x")],
    launch=lambda choices: launch([1], choices["threads"]),
    source=CudaSource(entry="copy"),
)


def folder(spec: KernelSpec) -> KernelFolder:
    return KernelFolder(spec.name, Path("templates") / spec.name, spec)


def keys(spec: KernelSpec) -> list[str]:
    return [choices_text(variant.choices) for variant in expand(folder(spec), TARGET)]


def test_rules_of_other_targets_do_not_count() -> None:
    spec = replace(SPEC, rules=[only(["sm_100a"], rule(threads=256)), rule(threads=128)])
    here, there = (
        {variant.choices["threads"] for variant in expand(folder(spec), Target.parse(name))}
        for name in ("sm_90a", "sm_100a")
    )
    assert (here, there) == ({128}, {256})
    assert [r.choose["threads"] for r in spec.rules_of("sm_90a")] == [128]
    assert [r.choose["threads"] for r in spec.rules_of("sm_100a")] == [256]
    assert [r.choose["threads"] for r in spec.rules_of()] == [256, 128]


def test_rules_are_of_targets_that_exist() -> None:
    with pytest.raises(Dsv4AotError, match="'sm90' is not a target"):
        only("sm90", rule(threads=128))


def test_a_choice_of_another_target_can_be_asked_for() -> None:
    spec = replace(SPEC, rules=[only("sm_90a", rule(threads=256)), rule(threads=128)])
    assert {v.choices["threads"] for v in expand(folder(spec), TARGET)} == {256}
    asked = spec.choosing({"threads": "128"})
    assert {v.choices["threads"] for v in expand(folder(asked), TARGET)} == {128}
    elsewhere = spec.choosing({"threads": "256"})
    with pytest.raises(SpecError, match="no rule is certain"):
        expand(folder(elsewhere), Target.parse("sm_100a"))


def test_bound_product_times_reachable_choices() -> None:
    spec = replace(
        SPEC,
        domain=[{"rows": [1], "even": [False, True]}, {"rows": [1, 4], "even": [True]}],
        rules=[rule(where={"even": [True]}, when=numel("x") < 9, threads=256), rule(threads=128)],
    )
    assert keys(spec) == [
        "even=false,rows=1,threads=128",
        "even=true,rows=1,threads=256",
        "even=true,rows=1,threads=128",
        "even=true,rows=4,threads=256",
        "even=true,rows=4,threads=128",
    ]


def test_choices_stand_in_the_order_of_the_axes() -> None:
    variant = expand(folder(SPEC), TARGET)[0]
    assert list(variant.choices) == ["threads", "rows", "even"]
    assert variant.key == "copy/sm_90a/even=false,rows=1,threads=128"


def test_rules_after_a_certain_one_are_not_built() -> None:
    assert len(keys(replace(SPEC, rules=[rule(threads=128), rule(threads=256)]))) == 6


def test_uncovered_call_is_refused() -> None:
    spec = replace(SPEC, rules=[rule(where={"rows": [1, 2]}, threads=128)])
    with pytest.raises(SpecError, match=r"no rule is certain to choose for even=false,rows=4"):
        keys(spec)
    with pytest.raises(SpecError, match="no rule is certain"):
        keys(replace(SPEC, rules=[rule(when=numel("x") < 9, threads=128)]))


def test_true_is_not_one() -> None:
    spec = replace(
        SPEC,
        axes=[tuned("threads", [128, 256]), bound("wide", [True, 1], numel("x"))],
        rules=[rule(where={"wide": [1]}, threads=256), rule(threads=128)],
    )
    assert keys(spec) == ["threads=128,wide=true", "threads=256,wide=1"]


def test_variant_that_cannot_launch_is_refused() -> None:
    spec = replace(SPEC, launch=lambda choices: launch([1], choices["threads"] * 16))
    with pytest.raises(SpecError, match="2048 threads a block, at most 1024"):
        keys(spec)
    with pytest.raises(SpecError, match="no tensor argument 'y'"):
        keys(replace(SPEC, launch=lambda _: launch([size("y", 0)], 32)))


def test_parameters_are_laid_out_as_in_c() -> None:
    params = expand(folder(SPEC), TARGET)[0].params
    assert [(param.name, param.offset, param.size) for param in params] == [
        ("n", 0, 4),
        ("x", 8, 8),
    ]


@given(st.data())
def test_variants_are_what_calls_end_at(data: st.DataObject) -> None:
    """Against the meaning of rules: every truth assignment of their conditions, one by one."""
    some_rule = st.builds(
        lambda where, threads, certain: rule(
            where=where, when=None if certain else numel("x") < 9, threads=threads
        ),
        st.dictionaries(
            st.just("rows"), st.lists(st.sampled_from([1, 2, 4]), min_size=1, unique=True)
        ),
        st.sampled_from([128, 256]),
        st.booleans(),
    )
    rules = [*data.draw(st.lists(some_rule, max_size=5)), rule(threads=128)]
    ended: set[tuple[Choice, Choice, Choice]] = set()
    for rows, even in itertools.product([1, 2, 4], [False, True]):
        for truths in itertools.product([False, True], repeat=len(rules)):
            first = next(
                r
                for r, true in zip(rules, truths, strict=True)
                if rows in r.where.get("rows", (rows,)) and (r.when is None or true)
            )
            ended.add((first.choose["threads"], rows, even))
    built = [tuple(v.choices.values()) for v in expand(folder(replace(SPEC, rules=rules)), TARGET)]
    assert len(set(built)) == len(built)
    assert set(built) == ended


@given(
    st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    st.sampled_from(["sm_90", "sm_90a", "sm_100f", "sm_120a"]),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True),
        st.from_regex(r"[A-Za-z0-9_.+-]{1,9}", fullmatch=True),
        max_size=4,
    ),
)
def test_keys_parse_back(kernel: str, target: str, choices: dict[str, str]) -> None:
    text = f"{kernel}/{target}/{choices_text(dict(choices))}"
    parsed = parse_key(text)
    assert (parsed.kernel, str(parsed.target), parsed.choices) == (kernel, target, choices)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text", ["", "copy", "copy/sm_90a", "copy/sm_90a/x", "copy/90/", "/sm_90/"]
)
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(Dsv4AotError, match=r"not a variant key|not a target"):
        parse_key(text)
