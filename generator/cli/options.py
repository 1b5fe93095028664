"""What several commands take: targets, kernel names, folders of artifacts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

import dsv4_aot.templates
from dsv4_aot.generator.discover import KernelFolder
from dsv4_aot.runtime import resolve
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import choice_text
from dsv4_aot.runtime.target import Target

TARGETS = (
    "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_100f", "sm_103a",
    "sm_103f", "sm_120a", "sm_120f", "sm_121a",
)  # fmt: skip
"""Targets that both pinned compilers accept. A kernel may still need more than one offers."""

DEFAULT_TARGETS = "sm_90a,sm_100a"

Value = TypeVar("Value")
Command = TypeVar("Command", bound=Callable[..., Any])


def nearest(name: str, names: Sequence[str], count: int = 5) -> str:
    """The names that ``name`` may have meant, for an error message."""
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.4)
    if close:
        return "nearest: " + ", ".join(close)
    return "there are: " + ", ".join(names) if names else "there are none"


class TargetList(click.ParamType[tuple[Target, ...]]):
    """``sm_90a,sm_100a`` as targets, in that order."""

    name = "targets"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Target, ...]:
        if isinstance(value, tuple):
            return value
        names = [name.strip() for name in str(value).split(",")]
        for name in names:
            if name not in TARGETS:
                self.fail(f"{name!r} is not a target; {nearest(name, TARGETS)}", param, ctx)
        return tuple(Target.parse(name) for name in dict.fromkeys(names))


def pick(things: Mapping[str, Value], names: Sequence[str]) -> dict[str, Value]:
    """The named ones of ``things``, all when none is named. A wrong name is wrong usage."""
    for name in names:
        if name not in things:
            raise click.BadParameter(
                f"there is no kernel {name!r}; {nearest(name, sorted(things))}",
                param_hint="'--kernel'",
            )
    return {name: thing for name, thing in things.items() if not names or name in names}


def choosing(folder: KernelFolder, chosen: Sequence[str]) -> KernelFolder:
    """The kernel as ``--choose AXIS=CHOICE`` asks for it; what it lacks is wrong usage."""
    choices: dict[str, str] = {}
    tuned = {
        axis.name: [choice_text(value.choice) for value in axis.values]
        for axis in folder.spec.axes
        if axis.bind is None
    }
    for text in chosen:
        axis, _, choice = text.partition("=")
        if choice not in tuned.get(axis, []):
            raise click.BadParameter(
                f"{text!r} is no choice of {folder.name}; its tuned axes are {tuned}",
                param_hint="'--choose'",
            )
        if choices.setdefault(axis, choice) != choice:
            raise click.BadParameter(
                f"{axis} is {choices[axis]} and {choice}: a build has one choice of an axis",
                param_hint="'--choose'",
            )
    return replace(folder, spec=folder.spec.choosing(choices))


def cache_option(command: Command) -> Command:
    """``--cache``: where compiled variants are kept between builds."""
    return click.option(
        "--cache", type=click.Path(file_okay=False, path_type=Path),
        help="Folder of compiled variants.  [default: dsv4-aot in the user's cache folder]",
    )(command)  # fmt: skip


def templates_option(command: Command) -> Command:
    """``--templates``: kernels of another repository with the same layout."""
    return click.option(
        "--templates", type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of kernels, with artifacts/ beside it.  [default: the project's own]",
    )(command)  # fmt: skip


# Folders ----------------------------------------------------------------------------------------


def checkout() -> Path | None:
    """The repository that the templates lie in; None where the package is installed."""
    root = Path(dsv4_aot.templates.__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def artifacts_folder(templates: Path | None = None) -> Path:
    """Where lock files and validation records lie, and builds go by default."""
    root = (checkout() or Path.cwd()) if templates is None else templates.resolve().parent
    return root / "artifacts"


def build_folder(templates: Path | None = None) -> Path:
    return artifacts_folder(templates) / "build"


def shown(path: Path) -> str:
    """The path as short as it can be said from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def find_artifacts(paths: Sequence[Path]) -> list[Installed]:
    """Artifacts in ``paths``; without any, everything installed and what the checkout built."""
    if paths:
        return resolve.find(paths, environ={}, entry_points=False)
    built = build_folder()
    return resolve.find([built] if built.is_dir() else [])
