"""Other implementations of dequant_gather, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

VLLM = "vllm.models.deepseek_v41.common.ops.cache_utils"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        from torch.utils.weak import WeakIdKeyDictionary

        gather = importlib.import_module(VLLM).dequantize_and_gather_k_cache_triton
    except ImportError:
        return {}
    tables: Any = WeakIdKeyDictionary()

    def vllm_triton(
        out: Any, k_cache: Any, seq_lens: Any, gather_lens: Any, block_table: Any, offset: int = 0
    ) -> None:
        # It wants a table without gaps, which is made before the timing starts, and its grid
        # follows a bound on the gathered rows that a server knows on the host.
        if block_table not in tables:
            tables[block_table] = block_table.contiguous()
        table = tables[block_table]
        rows = out.shape[1] - offset
        arguments = (out, k_cache, seq_lens, gather_lens, table, k_cache.shape[1], offset)
        gather(*arguments, max_gather_len=rows)

    return {"vllm_triton": vllm_triton}
