"""Source, toolchain and target -> the build key: equal keys, equal cubins.

The key holds content alone, so it is the same in any folder, for any user, on any machine.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from dsv4_aot.generator.render import Source, directives, quoted_includes
from dsv4_aot.generator.toolchain import Toolchain
from dsv4_aot.runtime.errors import BuildError, SpecError
from dsv4_aot.runtime.target import Target

KEY_SCHEMA = 1
"""Raise it when the same inputs are compiled differently than before."""

_OPTIONS = re.compile(
    r"--(?:std=c\+\+\d\d|use_fast_math|extra-device-vectorization|restrict|device-int128"
    r"|maxrregcount=\d+|minrregcount=\d+|(?:ftz|prec-div|prec-sqrt|fmad)=(?:true|false)"
    r"|ptxas-options=-?-[A-Za-z0-9=_-]+|define-macro=\w+(?:=[\w.]+)?|diag-suppress=\d+(?:,\d+)*)"
)
"""The NVRTC options whose whole effect is in their text: none of them names a file."""
_CLOCK = re.compile(r"__(?<!\w__)(?:DATE|TIME|TIMESTAMP)__\b")
"""A whole word; the literal stands first because that is what a search is quick to find."""
_READS = re.compile(r"#[ \t]*embed\b")


def build_key(source: Source, toolchain: Toolchain, target: Target) -> str:
    """64 hex digits. Raises BuildError on a source with an input that the key cannot see."""
    if toolchain.kind != source.kind:
        raise BuildError(f"a {source.kind} source is not built by the {toolchain.kind} toolchain")
    _refuse_unseen(source)
    seen = {
        "schema": KEY_SCHEMA,
        "kind": source.kind,
        "entry": source.entry,
        "text": source.text,
        "options": source.options,
        "files": source.files,
        "function": source.function,
        # A rendered text has its choices in it; a traced kernel is given them.
        "choices": dict(source.choices) if source.kind == "cute" else {},
        "toolchain": toolchain.packages,
        "target": str(target),
    }
    return hashlib.sha256(msgspec.json.encode(seen, order="deterministic")).hexdigest()


def _refuse_unseen(source: Source) -> None:
    hashes = tuple(hashlib.sha256(body).hexdigest() for body in source.bodies)
    if hashes != tuple(digest for _, digest in source.files):
        raise BuildError("the source's files are not those that it lists the hashes of")
    if source.kind == "cute":
        if source.options:
            raise BuildError(f"the CuTe DSL takes no options, came {list(source.options)}")
        return
    for option in source.options:
        if not _OPTIONS.fullmatch(option):
            raise BuildError(
                f"the option {option!r} is not among those whose effect the key can see",
                tip="include files with #include; allowed are --std, --maxrregcount, "
                "--use_fast_math, --define-macro and the like, in their long form",
            )
    names = [name for name, _ in source.files]
    for text in (source.text, *(body.decode() for body in source.bodies)):
        _refuse_unseen_text(text, names)


def _refuse_unseen_text(text: str, names: list[str]) -> None:
    clock = _CLOCK.search(text)
    if clock:
        raise BuildError(f"{clock[0]} makes every build different", tip="remove it")
    if any(directives(_READS, text)):
        raise BuildError("#embed reads a file that the key cannot see", tip="use #include")
    try:
        unseen = [name for name in quoted_includes(text) if not _listed(name, names)]
    except SpecError as error:
        raise BuildError(error.message, tip=error.tip) from error
    if unseen:
        raise BuildError(f'#include "{unseen[0]}" is not among the files of the source: {names}')


def _listed(name: str, names: list[str]) -> bool:
    return any(path.endswith(f"/{name}") for path in names)
