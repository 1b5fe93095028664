"""``artifacts/validation/<gpu>.json``: which cubins were run on which GPU, and agreed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dsv4_aot.generator.publish import write_file
from dsv4_aot.runtime.errors import BuildError
from dsv4_aot.runtime.schema import Sha256, Validation


class ValidationRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cubin whose cases all agreed with the reference.

    key: the variant, for the reader; the hash is what counts. worst: greatest absolute error, 0.0
    where bytes were equal. date: ISO 8601 day.
    """

    sha256: Sha256
    key: str
    cases: int
    worst: float
    date: str
    driver: str


class ValidationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one GPU model validated. ``driver``: of the latest run."""

    gpu: str
    driver: str
    records: tuple[ValidationRecord, ...]


def encode_validation(file: ValidationFile) -> bytes:
    """Canonical JSON: records in the order of their keys, then hashes."""
    for record in file.records:
        if not math.isfinite(record.worst):
            raise BuildError(f"{record.key}: the worst error is {record.worst}, no finite number")
    ordered = sorted(file.records, key=lambda record: (record.key, record.sha256))
    canonical = msgspec.structs.replace(file, records=tuple(ordered))
    return msgspec.json.format(msgspec.json.encode(canonical), indent=1) + b"\n"


def write_validation(path: Path, file: ValidationFile) -> None:
    """Raises BuildError when the file cannot be written."""
    write_file(path, encode_validation(file))


def read_validation(path: Path) -> ValidationFile:
    """Raises BuildError unless the file can be read and fits the schema."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ValidationFile)
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BuildError(
            f"{path} is no validation file: {error}", tip="run `dsv4-aot validate` again"
        ) from error


def validations_of(folder: Path, hashes: Iterable[str]) -> tuple[Validation, ...]:
    """What the folder's files say of cubins with these hashes, by hash, then GPU.

    A record of other bytes says nothing about these, so it is left out.
    """
    wanted = set(hashes)
    return tuple(
        sorted(
            (
                Validation(
                    sha256=record.sha256,
                    gpu=file.gpu,
                    driver=record.driver,
                    date=record.date,
                    cases=record.cases,
                    worst=record.worst,
                )
                for file in map(read_validation, sorted(folder.glob("*.json")))
                for record in file.records
                if record.sha256 in wanted
            ),
            key=lambda validation: (validation.sha256, validation.gpu),
        )
    )
