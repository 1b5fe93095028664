"""Other implementations of combine_topk_swa, timed beside it where they can be imported."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

SGLANG = "sglang.kernels.ops.attention.dsv4.sparse_prefill_kernels"
KERNEL = "_combine_topk_swa_indices_kernel"
VLLM = "vllm.models.deepseek_v41.common.ops.cache_utils"


def peers() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    with contextlib.suppress(ImportError, AttributeError):
        found["vllm_triton"] = vllm(importlib.import_module(VLLM).combine_topk_swa_indices)
    with contextlib.suppress(ImportError, AttributeError):
        found["sglang_triton"] = sglang(getattr(importlib.import_module(SGLANG), KERNEL))
    return found


def vllm(combine: Callable[..., Any]) -> Callable[..., Any]:
    def call(out: Any, lens: Any, topk_indices: Any = None, **rest: Any) -> None:
        if topk_indices is None or "query_pos" in rest or not rest["v41"] or "left_visible" in rest:
            raise NotImplementedError("vLLM's convention, with a list, by the rule for V4.1")
        names = ("query_start_loc", "seq_lens", "gather_lens", "window_size", "compress_ratio")
        arguments = [rest[name] for name in (*names, "topk", "m", "n")]
        combine(topk_indices, *arguments, out=(out, lens))

    return call


def sglang(kernel: Any) -> Callable[..., Any]:
    """Launched as its own caller does: two tokens a program, two warps."""

    def call(out: Any, lens: Any, topk_indices: Any = None, **rest: Any) -> None:
        if topk_indices is None or "query_pos" not in rest or "swa_indices" in rest:
            raise NotImplementedError("SGLang's convention, with a list, without a listed window")
        queries, width = out.shape
        requests = len(rest["seq_lens"])
        names = ("query_start_loc", "query_pos", "seq_lens", "gather_lens", "compressed_base")
        kernel[(-(-queries // 2),)](
            *(out, out.stride(0), lens, topk_indices, topk_indices.stride(0)),
            *(rest[name] for name in (*names, "swa_base")),
            *(queries, requests, rest["topk"]),
            COMPRESS_RATIO=rest["compress_ratio"],
            WINDOW_SIZE=rest["window_size"],
            WIDTH=width,
            PADDED_WIDTH=1 << (width - 1).bit_length(),
            BLOCK_T=2,
            SEARCH_STEPS=requests.bit_length(),
            num_warps=2,
        )

    return call
