"""Finds the kernel folders under ``templates/`` and reads their specs.

A folder is a kernel when its name starts with neither ``_`` nor ``.``; ``kernel.py`` in it
declares ``KERNEL``. Nothing is registered anywhere else.
"""

from __future__ import annotations

import hashlib
import importlib
import keyword
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from dsv4_aot import templates
from dsv4_aot.generator.spec import Case, KernelSpec
from dsv4_aot.runtime.consistency import kernel_problems
from dsv4_aot.runtime.errors import SpecError
from dsv4_aot.runtime.schema import Entry, KernelRecord
from dsv4_aot.runtime.target import Target

ROOT = Path(templates.__file__).resolve().parent
"""The project's own templates."""
SPEC_FILE = "kernel.py"
RESERVED_ARGUMENTS = frozenset({"stream", "choices", "self"})
"""Names that ``launch`` and ``op`` take for themselves."""
_PACKAGE = templates.__name__
_CHOICE_TEXT = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True, eq=False)
class KernelFolder:
    """One kernel: its folder, and what its ``kernel.py`` declared when it was discovered.

    package: the import package of the templates that the folder belongs to.
    """

    name: str
    path: Path
    spec: KernelSpec
    package: str = _PACKAGE

    def reference(self) -> Callable[..., None]:
        """``reference.py``'s function of that name; it needs torch."""
        found: Callable[..., None] = self._load("reference").reference
        return found

    def cases(self) -> list[Case]:
        """What ``cases.py`` lists; it needs torch."""
        return list(self._load("cases").cases())

    def peers(self) -> dict[str, Callable[..., Any]]:
        """Other implementations that can be imported here; empty without a ``peers.py``."""
        if not (self.path / "peers.py").is_file():
            return {}
        return dict(self._load("peers").peers())

    def _load(self, module: str) -> ModuleType:
        if not (self.path / f"{module}.py").is_file():
            raise SpecError(f"{self.name} has no {module}.py", tip=f"write it in {self.path}")
        return importlib.import_module(f"{self.package}.{self.name}.{module}")


def discover(root: Path | None = None) -> dict[str, KernelFolder]:
    """The kernels under ``root`` (the project's own templates when left out), sorted by name.

    Raises SpecError when a folder contradicts itself.
    """
    root = ROOT if root is None else root.resolve()
    if not root.is_dir():
        raise SpecError(f"there is no templates folder {root}")
    package = _package(root)
    folders = sorted(path for path in root.iterdir() if _is_kernel(path))
    return {path.name: _read(path, package) for path in folders}


def record(
    spec: KernelSpec, entries: Iterable[Entry] = (), target: Target | None = None
) -> KernelRecord:
    """The spec as the manifest of a target writes it; without one, with the rules of all."""
    return KernelRecord(
        name=spec.name,
        summary=spec.summary,
        arguments=tuple(spec.arguments),
        checks=tuple(spec.checks),
        axes=tuple(spec.axes),
        domain=spec.products(),
        rules=spec.rules_of(None if target is None else str(target)),
        entries=tuple(entries),
    )


def _is_kernel(path: Path) -> bool:
    """A folder with nothing but compiled Python in it is what a removed kernel leaves behind."""
    return (
        path.is_dir()
        and not path.name.startswith(("_", "."))
        and any(child.name != "__pycache__" for child in path.iterdir())
    )


def _package(root: Path) -> str:
    """The package whose modules lie under ``root``, fresh unless they are the project's own."""
    importlib.invalidate_caches()
    if root == ROOT:
        return _PACKAGE
    name = f"dsv4_aot_templates_{hashlib.sha256(bytes(root)).hexdigest()[:16]}"
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[loaded]
    package = ModuleType(name)
    package.__path__ = [str(root)]
    sys.modules[name] = package
    return name


def _read(path: Path, package: str) -> KernelFolder:
    if not (path / SPEC_FILE).is_file():
        raise SpecError(
            f"{path.name} has no {SPEC_FILE}",
            tip="declare KERNEL = KernelSpec(...) there, or start the folder's name with '_'",
        )
    try:
        module = importlib.import_module(f"{package}.{path.name}.kernel")
    except Exception as error:
        problem = f"{path.name}: {SPEC_FILE} does not import: {type(error).__name__}: {error}"
        raise SpecError(problem) from error
    spec = getattr(module, "KERNEL", None)
    if not isinstance(spec, KernelSpec):
        raise SpecError(f"{path.name}: {SPEC_FILE} declares no KERNEL = KernelSpec(...)")
    problems = list(spec_problems(path.name, spec))
    if problems:
        raise SpecError(f"{path.name}: {problems[0]}")
    return KernelFolder(path.name, path, spec, package)


def spec_problems(folder: str, spec: KernelSpec) -> Iterator[str]:
    """What makes a spec unusable, before any variant of it is looked at."""
    if spec.name != folder:
        yield f"the spec is named {spec.name!r}, its folder {folder!r}: one word names a kernel"
    if keyword.iskeyword(spec.name):
        yield f"{spec.name!r} is a Python keyword"
    for argument in spec.arguments:
        if argument.name in RESERVED_ARGUMENTS or keyword.iskeyword(argument.name):
            yield f"no argument may be named {argument.name!r}"
    declared = record(spec)
    try:
        msgspec.json.decode(msgspec.json.encode(declared), type=KernelRecord)
    except (msgspec.MsgspecError, TypeError) as error:
        yield f"the spec does not fit the manifest's schema: {error}"
        return
    for axis in spec.axes:
        for value in axis.values:
            if isinstance(value.choice, str) and not _CHOICE_TEXT.fullmatch(value.choice):
                yield f"axis {axis.name}: write {value.choice!r} with letters, digits and _.+-"
    yield from kernel_problems(declared)
