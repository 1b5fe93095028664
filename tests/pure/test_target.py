"""Targets: their text form, which device runs which, and which is preferred."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_aot.runtime.errors import Dsv4AotError
from dsv4_aot.runtime.target import (
    Accepted,
    Capability,
    Target,
    rank_targets,
    suggest_targets,
)

capabilities = st.builds(Capability, st.sampled_from([8, 9, 10, 11, 12]), st.integers(0, 9))
targets = st.builds(
    Target, st.sampled_from([10, 11, 12]), st.integers(0, 9), st.sampled_from(["", "a", "f"])
) | st.builds(Target, st.sampled_from([8, 9]), st.integers(0, 9), st.sampled_from(["", "a"]))


@given(targets)
def test_text_and_back(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["sm_90b", "sm90a", "sm_9", "sm_90a ", "sm_90f", "compute_90", ""])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(Dsv4AotError, match="is not a target"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("target", "runs", "refused"),
    [
        ("sm_90", ["9.0", "9.9"], ["8.9", "10.0"]),
        ("sm_90a", ["9.0"], ["9.1", "8.9", "10.0"]),
        ("sm_100f", ["10.0", "10.3"], ["11.0", "12.0", "9.0"]),
        ("sm_103f", ["10.3"], ["10.0", "12.3"]),
        ("sm_100a", ["10.0"], ["10.3"]),
        ("sm_120f", ["12.0", "12.1"], ["11.0"]),
        ("sm_80", ["8.0", "8.6", "8.9"], ["7.5", "9.0"]),
    ],
)
def test_which_device_runs_which(target: str, runs: list[str], refused: list[str]) -> None:
    judge = Target.parse(target).judge
    assert all(isinstance(judge(Capability.parse(text)), Accepted) for text in runs)
    assert not any(isinstance(judge(Capability.parse(text)), Accepted) for text in refused)


def test_exact_before_family_before_plain_then_the_highest_minor() -> None:
    names = ["sm_100", "sm_103", "sm_100f", "sm_103f", "sm_103a", "sm_100a", "sm_90a"]
    accepted, rejected = rank_targets(map(Target.parse, names), Capability(10, 3))
    assert [str(t) for t in accepted] == ["sm_103a", "sm_103f", "sm_100f", "sm_103", "sm_100"]
    assert {str(r.target): r.reason for r in rejected} == {
        "sm_100a": "runs on 10.0 exactly, the device is 10.3",
        "sm_90a": "runs on 9.0 exactly, the device is 10.3",
    }


@given(capabilities)
def test_what_is_suggested_runs(device: Capability) -> None:
    suggested = suggest_targets(device)
    accepted, _ = rank_targets(suggested, device)
    assert suggested == accepted != []
