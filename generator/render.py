"""A variant -> its source: text, entry, options, and every file that the compiler will read.

A source holds content alone, never a place: the same folder elsewhere gives an equal source.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

from dsv4_aot.generator.discover import KernelFolder
from dsv4_aot.generator.expand import Variant
from dsv4_aot.generator.spec import CudaSource, CuteSource
from dsv4_aot.generator.toolchain import Kind
from dsv4_aot.runtime.errors import SpecError
from dsv4_aot.runtime.schema import Choice

SHARED = "_shared"
"""The folder beside the kernels whose files every kernel may include or import."""
CUDA_OPTIONS = ("--std=c++17",)
CUTE_IMPORTS = frozenset({
    "__future__", "abc", "collections", "cutlass", "dataclasses", "enum", "functools", "itertools",
    "math", "operator", "types", "typing",
})  # fmt: skip
"""What device code may import beside its own files: all of it is covered by the toolchain."""
_INCLUDE = re.compile(r'#[ \t]*include[ \t]*(?:"([^"\n]+)"|(<[^>\n]+>)|(.*))')


@dataclass(frozen=True)
class Source:
    """What is compiled.

    text: the rendered CUDA C++, or the CuTe DSL module. entry: the kernel's symbol.
    files: path under ``templates/`` and SHA-256 of every file read from there, the main module of
        a CuTe DSL kernel first. bodies: their bytes, in the same order.
    function: for a CuTe DSL kernel, what ``choices`` are given to.
    """

    kind: Kind
    entry: str
    text: str
    options: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    choices: Mapping[str, Choice]
    function: str = ""
    bodies: tuple[bytes, ...] = field(default=(), repr=False)


def render(variant: Variant) -> Source:
    """Raises SpecError when the template is at fault or a file is missing or not allowed."""
    spec = variant.source
    try:
        if isinstance(spec, CudaSource):
            return _render_cuda(variant, spec)
        return _render_cute(variant, spec)
    except SpecError as error:
        raise SpecError(f"{variant.folder.name}: {error.message}", tip=error.tip) from error


def _read(root: Path, name: str) -> bytes:
    """A file under ``templates/``, by its path there."""
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read {name}: {error.strerror}") from error


def _text(name: str, body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error


def _hashed(bodies: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "files": tuple((name, hashlib.sha256(body).hexdigest()) for name, body in bodies.items()),
        "bodies": tuple(bodies.values()),
    }


# CUDA C++ ---------------------------------------------------------------------------------------


def _render_cuda(variant: Variant, spec: CudaSource) -> Source:
    folder = variant.folder
    clash = sorted(set(spec.variables) & set(variant.choices))
    if clash:
        raise SpecError(f"the variables {clash} have the names of axes")
    try:
        template = _environment(folder.path).get_template(spec.template)
        text = template.render({**variant.choices, **spec.variables})
    except jinja2.TemplateNotFound as error:
        raise SpecError(f"there is no template {error.name}") from error
    except jinja2.TemplateSyntaxError as error:
        raise SpecError(f"{error.name or spec.template}:{error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise SpecError(f"{spec.template}: {error.message}") from error
    return Source(
        kind="cuda",
        entry=spec.entry,
        text=text,
        options=(*CUDA_OPTIONS, *spec.options),
        choices=variant.choices,
        **_hashed(_headers(folder, text)),
    )


@lru_cache(maxsize=64)
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, folder.parent / SHARED]),
        undefined=jinja2.StrictUndefined,
        finalize=_literal,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - C++, not HTML
    )


def _literal(value: object) -> object:
    """Booleans come out as C++ spells them."""
    return str(value).lower() if isinstance(value, bool) else value


def directives(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches of ``#...`` that begin a line, blanks aside.

    To search for the sign and then look back is ten times faster than to search from every line.
    """
    for found in pattern.finditer(text):
        line = text.rfind("\n", 0, found.start()) + 1
        if not text[line : found.start()].strip(" \t"):
            yield found


def quoted_includes(text: str) -> Iterator[str]:
    """The names in ``#include "name"``. Raises SpecError on an include that names no file."""
    for found in directives(_INCLUDE, text):
        quoted, angled, other = found.groups()
        if quoted:
            yield quoted
        elif not angled:
            raise SpecError(f"#include {other.strip()}: write the file's name out")


def _headers(folder: KernelFolder, text: str) -> dict[str, bytes]:
    """Every header that the text reaches through quoted includes, by path, sorted."""
    root = folder.path.parent
    found: dict[str, bytes] = {}
    pending = [(folder.name, name) for name in quoted_includes(text)]
    while pending:
        beside, name = pending.pop()
        path = _resolve(root, (beside, folder.name, SHARED), name)
        if path not in found:
            found[path] = _read(root, path)
            place = str(PurePosixPath(path).parent)
            pending += [(place, n) for n in quoted_includes(_text(path, found[path]))]
    return dict(sorted(found.items()))


def _resolve(root: Path, places: tuple[str, ...], name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SpecError(f'#include "{name}": name a file in the kernel\'s folder or in {SHARED}')
    candidates = dict.fromkeys(str(PurePosixPath(place, name)) for place in places)
    present = [path for path in candidates if (root / path).is_file()]
    if len(present) > 1:
        raise SpecError(f'#include "{name}" could be any of {present}', tip="rename all but one")
    if not present:
        raise SpecError(
            f'#include "{name}" is none of {list(candidates)}',
            tip="write headers of the toolkit and of CCCL as <name>",
        )
    return present[0]


# CuTe DSL ---------------------------------------------------------------------------------------


def _render_cute(variant: Variant, spec: CuteSource) -> Source:
    folder = variant.folder
    main = f"{folder.name}/{spec.module}"
    bodies = _modules(folder, main)
    return Source(
        kind="cute",
        entry=spec.entry,
        text=_text(main, bodies[main]),
        options=(),
        choices=variant.choices,
        function=spec.function,
        **_hashed(bodies),
    )


def _modules(folder: KernelFolder, main: str) -> dict[str, bytes]:
    """Every module under ``templates/`` that importing ``main`` can import, ``main`` first."""
    root = folder.path.parent
    bodies = {main: _read(root, main)}
    pending = [main]
    while pending:
        name = pending.pop()
        for dotted in _relative_imports(name, _text(name, bodies[name])):
            for path in _module_files(root, dotted):
                if path not in bodies:
                    bodies[path] = _read(root, path)
                    pending.append(path)
    return {main: bodies.pop(main), **dict(sorted(bodies.items()))}


@lru_cache(maxsize=256)
def _relative_imports(name: str, text: str) -> tuple[tuple[str, ...], ...]:
    """What a module imports from ``templates/``, as path parts that may end in an attribute."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise SpecError(f"{name}:{error.lineno}: {error.msg}") from error
    found: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _check_import(name, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            _check_import(name, node.lineno, node.module or "")
        elif isinstance(node, ast.ImportFrom):
            parts = PurePosixPath(name).parts
            if node.level > len(parts) or any(alias.name == "*" for alias in node.names):
                raise SpecError(f"{name}:{node.lineno}: import names from {SHARED} or this folder")
            base = (*parts[: -node.level], *(node.module.split(".") if node.module else ()))
            found += [(*base, alias.name) for alias in node.names]
    return tuple(found)


def _check_import(name: str, line: int, module: str) -> None:
    if module.partition(".")[0] not in CUTE_IMPORTS:
        raise SpecError(
            f"{name}:{line}: device code may not import {module}, only {sorted(CUTE_IMPORTS)}",
            tip="import files under templates/ relatively: from .._shared.pipeline import Ring",
        )


def _module_files(root: Path, dotted: tuple[str, ...]) -> list[str]:
    """The files that importing ``dotted`` runs: packages on the way, and the module it ends in."""
    files: list[str] = []
    for length in range(1, len(dotted) + 1):
        path = PurePosixPath(*dotted[:length])
        if (root / path / "__init__.py").is_file():
            files.append(str(path / "__init__.py"))
        elif (root / f"{path}.py").is_file():
            return [*files, f"{path}.py"]
        elif not (root / path).is_dir():
            break
    if files:
        return files  # an attribute of a package
    raise SpecError(f"there is no module {'.'.join(dotted)} under templates/")
