"""Other implementations of swa_token_ids, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

SGLANG = "sglang.kernels.ops.attention.dsv4.sparse_prefill_kernels"
KERNEL = "_build_swa_token_ids_kernel"
WORKERS = 128
"""Programs of a request, as its own caller asks for."""


def peers() -> dict[str, Callable[..., Any]]:
    try:
        from torch.utils.weak import WeakIdKeyDictionary

        kernel = getattr(importlib.import_module(SGLANG), KERNEL)
    except (ImportError, AttributeError):
        return {}
    lengths: Any = WeakIdKeyDictionary()

    def sglang_triton(
        out: Any,
        req_to_token: Any,
        full_to_swa: Any,
        req_pool_indices: Any,
        swa_first_pos: Any,
        swa_offsets: Any,
    ) -> None:
        if swa_offsets not in lengths:  # which its caller has at hand
            lengths[swa_offsets] = swa_offsets.diff()
        kernel[(len(swa_first_pos), WORKERS)](
            *(out, swa_first_pos, lengths[swa_offsets], swa_offsets, req_pool_indices),
            *(req_to_token, req_to_token.stride(0), full_to_swa),
        )

    return {"sglang_triton": sglang_triton}
