"""Other implementations of dequant_paged, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

SGLANG = "sglang.kernels.ops.attention.dsv4.dequant_k_cache"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        dequantize = importlib.import_module(SGLANG).dequantize_k_cache_paged_dsv4
    except ImportError:
        return {}

    def sglang_triton(
        out: Any,
        k_cache: Any,
        token_ids: Any,
        page_size: int,
        record: int = 584,
        interleaved: bool = False,
        window_out: Any = None,
        window_k_cache: Any = None,
        window_token_ids: Any = None,
        window_page_size: int = 0,
        window_record: int = 0,
    ) -> None:
        if record != 584 or interleaved or window_record not in {0, 584}:
            raise NotImplementedError("records of V4.1 have this peer on later GPUs alone")
        dequantize(k_cache, token_ids, page_size, out=out)
        if window_out is not None:  # a launch of its own
            dequantize(window_k_cache, window_token_ids, window_page_size, out=window_out)

    return {"sglang_triton": sglang_triton}
