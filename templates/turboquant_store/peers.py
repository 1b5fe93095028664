"""Other implementations of turboquant_store, timed beside it where they can be imported."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

VLLM = "vllm.v1.attention.ops.triton_turboquant_store"


# vLLM's terms, for all kernels on the cache ------------------------------------------------------


def preset(head_dim: int, key_bits: int, value_bits: int) -> dict[str, Any]:
    """The bytes of a slot, as vLLM's functions are told of them."""
    fp8 = key_bits == 8
    return {
        "mse_bits": min(key_bits, 4),
        "key_packed_size": head_dim * key_bits // 8 + (0 if fp8 else 2),
        "value_quant_bits": value_bits,
        "key_fp8": fp8,
    }


@functools.cache
def rotation(head_dim: int, device: Any, dtype: Any) -> Any:
    """What a server makes once: the orthonormal matrix ``[head_dim, head_dim]``."""
    from dsv4_aot.templates.turboquant_store.reference import hadamard

    return (hadamard(head_dim, device) / head_dim**0.5).to(dtype)


@functools.cache
def centroids(head_dim: int, bits: int, device: Any) -> Any:
    """Likewise what codes stand for, float32 ``[2^bits]``."""
    from dsv4_aot.templates.turboquant_store.reference import codebook

    return codebook(head_dim, bits, device)


# Storing -----------------------------------------------------------------------------------------


def peers() -> dict[str, Callable[..., Any]]:
    try:
        store = importlib.import_module(VLLM).triton_turboquant_store
    except ImportError:
        return {}
    import torch

    from dsv4_aot.templates.turboquant_store.reference import midpoints

    borders = functools.cache(midpoints)

    def vllm_triton(
        key: Any, value: Any, kv_cache: Any, slot_mapping: Any, key_bits: int, value_bits: int
    ) -> None:
        """A matrix product and several kernels before its own, unless keys are FP8."""
        tokens, head_dim = len(slot_mapping), key.shape[2]
        if tokens == 0:
            raise NotImplementedError("its grid may not be empty")
        form = preset(head_dim, key_bits, value_bits)
        store(
            key[:tokens],
            value[:tokens],
            kv_cache,
            slot_mapping,
            rotation(head_dim, key.device, torch.float32),
            borders(head_dim, form["mse_bits"], key.device),
            **form,
        )

    return {"vllm_triton": vllm_triton}
