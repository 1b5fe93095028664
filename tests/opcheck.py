"""What of ``torch.library.opcheck`` a call can be held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UTILITIES = (
    "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic",
)  # fmt: skip


def utilities(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """All four, but for the schema's where PyTorch cannot compare two tensors of eight-bit floats.

    That nothing undeclared is written is then left to comparisons with the reference, which look
    at every byte.
    """
    eight_bit = any("float8" in str(getattr(each, "dtype", "")) for each in arguments.values())
    return UTILITIES[1:] if eight_bit else UTILITIES
