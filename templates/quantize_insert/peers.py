"""Other implementations of quantize_insert, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

VLLM = "vllm.models.deepseek_v41.common.ops.cache_utils"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        insert = importlib.import_module(VLLM).quantize_and_insert_k_cache
    except (ImportError, AttributeError):  # a checkout with other functions of that file alone
        return {}

    def vllm_triton(
        k: Any, k_cache: Any, slot_mapping: Any, block_split: bool = False, sglang: bool = False
    ) -> None:
        page_size, record = k_cache.shape[1:]
        if record not in {584, 528} or sglang or (block_split and record == 528):
            raise NotImplementedError("vLLM's V4 and V4.1 FP8 records alone have this peer")
        if k.stride(0) != k.shape[1]:
            raise NotImplementedError("rows of k are contiguous for this peer")
        insert(k, k_cache, slot_mapping, page_size, bytes_per_token=record)

    return {"vllm_triton": vllm_triton}
