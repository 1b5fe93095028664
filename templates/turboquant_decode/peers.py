"""Other implementations of turboquant_decode, timed beside it where they can be imported."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

from dsv4_aot.templates.turboquant_store.peers import centroids, preset, rotation

VLLM = "vllm.v1.attention.ops.triton_turboquant_decode"


def peers() -> dict[str, Callable[..., Any]]:
    found = {"torch_sdpa_bf16": torch_sdpa_bf16()}
    with contextlib.suppress(ImportError, AttributeError):
        found["vllm_triton"] = vllm(
            importlib.import_module(VLLM).triton_turboquant_decode_attention
        )
    return found


def vllm(attention: Callable[..., Any]) -> Callable[..., Any]:
    """With as many splits as it has by default, which a graph fixes."""
    import torch

    def call(
        out: Any, q: Any, kv_cache: Any, block_table: Any, seq_lens: Any, scale: float,
        key_bits: int, value_bits: int, queries: int, window: int, sinks: Any, lse: Any,
        **_rest: Any,
    ) -> None:  # fmt: skip
        if queries > 1 or window or sinks is not None or len(q) == 0:
            raise NotImplementedError("one query a request, no window, no sinks")
        form = preset(q.shape[2], key_bits, value_bits)
        matrix = rotation(q.shape[2], q.device, torch.float32)
        attention(
            *(q, kv_cache, block_table, seq_lens, matrix),
            *(centroids(q.shape[2], form["mse_bits"], q.device), scale),
            **form,
            norm_correction=not form["key_fp8"],
            PiT=matrix,
            output_buf=out,
            lse_buf=lse,
        )

    return call


def torch_sdpa_bf16() -> Callable[..., Any]:
    """What one would run without compression: PyTorch's attention on the same numbers in bf16."""
    import torch
    from torch.utils.weak import WeakIdKeyDictionary

    from dsv4_aot.templates.turboquant_dequant.reference import decode_key, decode_value

    plain: Any = WeakIdKeyDictionary()

    def decompress(
        kv_cache: torch.Tensor, block_table: torch.Tensor, length: int, head_dim: int, bits: int,
        value_bits: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Both ``[requests, kv_heads, length, head_dim]``, in the queries' own basis."""
        form = (len(block_table), kv_cache.shape[2], length, head_dim)
        keys, values = (
            torch.empty(form, dtype=torch.bfloat16, device=kv_cache.device) for _ in range(2)
        )
        key_bytes = preset(head_dim, bits, value_bits)["key_packed_size"]
        for request, pages in enumerate(block_table.long()):
            slots = kv_cache[pages[: -(-length // kv_cache.shape[1])]].flatten(0, 1)[:length]
            key = decode_key(slots[..., :key_bytes], head_dim, bits, rotate=True)
            keys[request] = key.transpose(0, 1)
            values[request] = decode_value(slots[..., key_bytes:], value_bits).transpose(0, 1)
        return keys, values

    def call(
        out: Any, q: Any, kv_cache: Any, block_table: Any, scale: float, key_bits: int,
        value_bits: int, queries: int, window: int, sinks: Any, lse: Any, **rest: Any,
    ) -> None:  # fmt: skip
        if queries > 1 or window or sinks is not None or lse is not None or len(q) == 0:
            raise NotImplementedError("one query a request, no window, no sinks, no lse")
        if kv_cache not in plain:  # not while a graph is captured: every call is made once before
            lengths = set(rest["seq_lens"].tolist())
            if len(lengths) > 1 or q.dtype != torch.bfloat16:
                raise NotImplementedError("requests of one length, in bf16")
            size = (lengths.pop(), q.shape[2], key_bits, value_bits)
            plain[kv_cache] = decompress(kv_cache, block_table, *size)
        keys, values = plain[kv_cache]
        out[:, :, None] = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, None], keys, values, scale=scale, enable_gqa=True
        )

    return call
