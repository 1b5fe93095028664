"""Artifacts written by hand, for tests without a compiler: a kernel with all there is to check.

The cubins are arbitrary bytes, which only the recording driver loads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from dsv4_aot.generator import spec
from dsv4_aot.generator.discover import record as record_of
from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.abi import lay_out
from dsv4_aot.runtime.expr import cdiv, present, size, stride, value
from dsv4_aot.runtime.schema import (
    SCHEMA,
    Choice,
    Entry,
    KernelRecord,
    Manifest,
    Param,
    Resources,
    choices_text,
)
from dsv4_aot.runtime.target import Target
from dsv4_aot.runtime.tensor import row_major


@dataclass(frozen=True)
class Tensor:
    """Speaks torch's protocol without torch."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    pointer: int = 0x7F00_0000_0000
    device: int = 0

    def stride(self) -> tuple[int, ...]:
        return row_major(self.shape) if self.strides is None else self.strides

    def data_ptr(self) -> int:
        return self.pointer

    def get_device(self) -> int:
        return self.device

    def numel(self) -> int:
        return math.prod(self.shape)

    def is_contiguous(self) -> bool:
        return self.numel() == 0 or all(
            a == b or n == 1
            for a, b, n in zip(self.stride(), row_major(self.shape), self.shape, strict=True)
        )


GATHER = spec.KernelSpec(
    name="gather",
    summary="the argument table of a paged gather",
    arguments=(
        spec.tensor(
            "out", "bfloat16", (None, None, 512), strides=(None, None, 1), align=32, access="write"
        ),
        spec.tensor("k_cache", "uint8", (None, value("block_size"), None), strides=(None, None, 1)),
        spec.tensor("seq_lens", "int32", (size("out", 0),), contiguous=True),
        spec.tensor("gather_lens", "int32", (size("out", 0),), contiguous=True, optional=True),
        spec.tensor("block_table", "int32", (size("out", 0), None), strides=(None, 1)),
        spec.scalar("block_size", "int"),
        spec.scalar("offset", "int", minimum=0, default=0),
    ),
    checks=(
        spec.check(value("offset") <= size("out", 1), "offset is within out"),
        spec.check(
            (stride("k_cache", 0) % 16).eq(0),
            "k_cache.stride(0) is a multiple of 16",
            where={"record": ("v41",)},
        ),
    ),
    axes=(
        spec.bound("block_size", (2, 64, 256), value("block_size")),
        spec.bound("record", {"v4": 584, "v41": 528}, size("k_cache", 2)),
        spec.bound("lens", (False, True), present("gather_lens")),
        spec.tuned("rows", (4, 8)),
    ),
    rules=(
        spec.rule(where={"block_size": (2,)}, rows=4),
        spec.rule(where={"record": ("v4",)}, when=size("out", 0) >= 64, rows=8),
        spec.rule(rows=4),
    ),
    params=(
        spec.pointer("out"),
        spec.number("out_row", "i64", stride("out", 1)),
        spec.pointer("k_cache"),
        spec.number("page_stride", "i64", stride("k_cache", 0)),
        spec.number("offset", "i32", value("offset")),
        spec.pointer("seq_lens"),
        spec.pointer("gather_lens"),
        spec.pointer("block_table"),
        spec.number("pitch", "i32", stride("block_table", 0)),
    ),
    launch=lambda choices: spec.launch(
        (size("out", 0), cdiv(size("out", 1) - value("offset"), choices["rows"])),
        128,
        shared=choices["rows"] * 1024,
        programmatic=True,
    ),
    source=spec.CudaSource(entry="gather"),
)
GATHER_CHOICES: list[dict[str, Choice]] = [
    {"block_size": b, "record": r, "lens": n, "rows": w}
    for b, r, n, w in product((2, 64), ("v4", "v41"), (False, True), (4, 8))
]
"""256 is an axis value that is not built."""


def gather_call(requests: int = 3, rows: int = 10, **changes: Any) -> dict[str, Any]:
    """A right call of ``gather``; ``changes`` replace arguments."""
    return {
        "out": Tensor("bfloat16", (requests, rows, 512), pointer=0x1000),
        "k_cache": Tensor("uint8", (100, 64, 584), (40000, 584, 1), pointer=0x2000),
        "seq_lens": Tensor("int32", (requests,), pointer=0x3000),
        "gather_lens": None,
        "block_table": Tensor("int32", (requests, 7), (9, 1), pointer=0x5000),
        "block_size": 64,
        "offset": 0,
        **changes,
    }


def cubin_of(name: str, choices: dict[str, Choice]) -> bytes:
    return f"cubin of {name} {choices_text(choices)}".encode()


def entry_of(kernel: spec.KernelSpec, choices: dict[str, Choice], cubin: bytes) -> Entry:
    parameters = kernel.params_of(choices)
    slots = lay_out(parameter.type for parameter in parameters)
    source = kernel.source_of(choices)
    digest = hashlib.sha256(cubin).hexdigest()
    return Entry(
        choices=choices,
        file=f"{kernel.name}-{digest[:16]}.cubin",
        bytes=len(cubin),
        sha256=digest,
        symbol=source.entry,
        params=tuple(
            Param(name=p.name, type=p.type, source=p.source, offset=s.offset, size=s.size)
            for p, s in zip(parameters, slots, strict=True)
        ),
        launch=kernel.launch(choices),
        resources=Resources(registers=32, stack=0, local=0, shared=0, spills=0, code=len(cubin)),
        build_key="0" * 64,
    )


def manifest_of(target: str, records: Sequence[KernelRecord], **changes: Any) -> Manifest:
    manifest = Manifest(
        schema=SCHEMA, target=target, version="0.1.0", toolchain={"nvidia-cuda-nvrtc": "13.5.37"},
        source_digest="0" * 64, kernels=tuple(records), validation=(),
    )  # fmt: skip
    return msgspec.structs.replace(manifest, **changes)


def write_artifact(
    folder: Path,
    cubins: Sequence[tuple[spec.KernelSpec, dict[str, Choice], bytes]],
    target: str = "sm_90a",
) -> Path:
    """A target folder with these cubins and a manifest that names them."""
    folder.mkdir(parents=True)
    entries: dict[str, tuple[spec.KernelSpec, list[Entry]]] = {}
    for kernel, choices, cubin in cubins:
        entry = entry_of(kernel, choices, cubin)
        entries.setdefault(kernel.name, (kernel, []))[1].append(entry)
        (folder / entry.file).write_bytes(cubin)
    here = Target.parse(target)
    records = [record_of(kernel, listed, here) for kernel, listed in entries.values()]
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(manifest_of(target, records)))
    return folder


def gather_cubins() -> Iterator[tuple[spec.KernelSpec, dict[str, Choice], bytes]]:
    for choices in GATHER_CHOICES:
        yield GATHER, choices, cubin_of("gather", choices)
