"""SM targets and which devices run them.

The rules are those of NVIDIA's compute-capability tables: a plain target runs on every later
minor of its major, an architecture-specific one (``a``) on its own capability alone, a
family-specific one (``f``) on the members of its family from its own minor on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from dsv4_aot.runtime.errors import Dsv4AotError

Suffix = Literal["", "a", "f"]

_TEXT = re.compile(r"sm_(\d{1,2})(\d)([af]?)")
_FAMILY_MAJORS = frozenset({10, 11, 12})
"""Majors that have family targets; each major is one family today (10.0-10.3, 11.0, 12.0-12.1)."""


# The runtime's records are structs: making a dataclass takes 0.4 ms, and a start makes a score.
class Capability(msgspec.Struct, frozen=True, order=True):
    """A device's compute capability, printed as ``9.0``."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parse(cls, text: str) -> Capability:
        major, dot, minor = text.partition(".")
        if not (dot and major.isdecimal() and minor.isdecimal()):
            raise Dsv4AotError(f"{text!r} is not a compute capability", tip="write it as 9.0")
        return cls(int(major), int(minor))


class Accepted(msgspec.Struct, frozen=True):
    target: Target


class Rejected(msgspec.Struct, frozen=True):
    target: Target
    reason: str


class Target(msgspec.Struct, frozen=True):
    """What a cubin is built for, printed and parsed as ``sm_90a``."""

    major: int
    minor: int
    suffix: Suffix = ""

    def __str__(self) -> str:
        return f"sm_{self.major}{self.minor}{self.suffix}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises Dsv4AotError when ``text`` is not a target name."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise Dsv4AotError(
                f"{text!r} is not a target", tip="write it as sm_90a, sm_100f or sm_90"
            )
        major, minor, suffix = int(match[1]), int(match[2]), match[3]
        if suffix == "f" and major not in _FAMILY_MAJORS:
            raise Dsv4AotError(
                f"{text!r} is not a target: there are no family targets before sm_100f",
                tip=f"sm_{major}{minor} and sm_{major}{minor}a exist",
            )
        return cls(major, minor, suffix)  # type: ignore[arg-type]  # the pattern allows no other

    @property
    def capability(self) -> Capability:
        return Capability(self.major, self.minor)

    @property
    def sm(self) -> int:
        """The number the ELF header of a cubin carries (90, 100, ...)."""
        return self.major * 10 + self.minor

    def judge(self, device: Capability) -> Accepted | Rejected:
        """Whether a device of this capability runs this target, and if not, why."""
        own = self.capability
        if self.suffix == "a":
            return self._verdict(device == own, f"runs on {own} exactly, the device is {device}")
        reach = f"the {self.major}.x family" if self.suffix == "f" else f"{self.major}.x"
        return self._verdict(
            device.major == own.major and device.minor >= own.minor,
            f"runs on {reach} from {own} on, the device is {device}",
        )

    def _verdict(self, accepted: bool, reason: str) -> Accepted | Rejected:
        return Accepted(self) if accepted else Rejected(self, reason)

    @property
    def rank(self) -> tuple[int, int]:
        """Preference among the targets that one device accepts: a > f > plain, then the minor."""
        return ({"a": 2, "f": 1, "": 0}[self.suffix], self.minor)


def rank_targets(
    targets: Iterable[Target], device: Capability
) -> tuple[list[Target], list[Rejected]]:
    """Splits targets into those the device runs, best first, and the refused with reasons."""
    accepted: list[Target] = []
    rejected: list[Rejected] = []
    for target in targets:
        verdict = target.judge(device)
        if isinstance(verdict, Accepted):
            accepted.append(target)
        else:
            rejected.append(verdict)
    accepted.sort(key=lambda target: target.rank, reverse=True)
    return accepted, rejected


def suggest_targets(device: Capability) -> list[Target]:
    """Targets that could be built for a device, best first."""
    suffixes: tuple[Suffix, ...] = ("a", "f", "") if device.major in _FAMILY_MAJORS else ("a", "")
    if device.major < 9:
        suffixes = ("",)
    return [Target(device.major, device.minor, suffix) for suffix in suffixes]
