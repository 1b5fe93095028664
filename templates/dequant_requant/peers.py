"""Other implementations of dequant_requant, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

SGLANG = "sglang.kernels.ops.attention.dsv4.dequant_k_cache"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        requantize = importlib.import_module(SGLANG).gather_dequant_requant_fp8_paged_dsv4
    except ImportError:
        return {}

    def sglang_triton(
        out: Any,
        k_cache: Any,
        token_ids: Any,
        page_size: int,
        record: int = 584,
        interleaved: bool = False,
    ) -> None:
        if record != 584 or interleaved:
            raise NotImplementedError("V4 records alone have this peer")
        extra = out.shape[0] - token_ids.shape[0]  # zeroed by a launch of its own
        requantize(k_cache, token_ids, page_size, extra_rows=extra, out=out)

    return {"sglang_triton": sglang_triton}
