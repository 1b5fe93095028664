"""Other implementations of turboquant_store, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

VLLM = "vllm.v1.attention.ops.triton_turboquant_store"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        store = importlib.import_module(VLLM).triton_turboquant_store
    except ImportError:
        return {}
    import functools

    import torch

    from dsv4_aot.templates.turboquant_store.reference import hadamard, midpoints

    @functools.cache
    def tables(head_dim: int, bits: int, device: torch.device) -> tuple[Any, Any]:
        """What a server makes once: the rotation, and the borders of codes."""
        rotation = (hadamard(head_dim, device) / head_dim**0.5).float()
        return rotation, midpoints(head_dim, bits, device)

    def vllm_triton(
        key: Any, value: Any, kv_cache: Any, slot_mapping: Any, key_bits: int, value_bits: int
    ) -> None:
        """A matrix product and several kernels before its own, unless keys are FP8."""
        tokens, head_dim, fp8 = len(slot_mapping), key.shape[2], key_bits == 8
        if tokens == 0:
            raise NotImplementedError("its grid may not be empty")
        bits = 4 if fp8 else key_bits
        rotation, borders = tables(head_dim, bits, key.device)
        store(
            key[:tokens],
            value[:tokens],
            kv_cache,
            slot_mapping,
            rotation,
            borders,
            mse_bits=bits,
            key_packed_size=head_dim * key_bits // 8 + (0 if fp8 else 2),
            value_quant_bits=value_bits,
            key_fp8=fp8,
        )

    return {"vllm_triton": vllm_triton}
