"""Other implementations of turboquant_dequant, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dsv4_aot.templates.turboquant_store.peers import centroids, preset, rotation

VLLM = "vllm.v1.attention.ops.triton_turboquant_decode"
KERNEL = "_tq_full_dequant_kv"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        kernel = getattr(importlib.import_module(VLLM), KERNEL)
    except (ImportError, AttributeError):
        return {}
    import torch
    from torch.utils.weak import WeakIdKeyDictionary

    spans: Any = WeakIdKeyDictionary()

    def dequant(
        keys: Any, values: Any, kv_cache: Any, block_table: Any, key_bits: int, value_bits: int
    ) -> None:
        """One request's into fp16 ``[heads, tokens, head_dim]``, launched as its own caller does.

        Keys stay rotated.
        """
        heads, tokens, head_dim = keys.shape
        form = preset(head_dim, key_bits, value_bits)
        kernel[(tokens, heads)](
            *(kv_cache, block_table, centroids(head_dim, form["mse_bits"], keys.device)),
            *(keys, values),
            *(keys[None].stride()[:3] + values[None].stride()[:3]),
            *(kv_cache.stride()[:3] + block_table.stride()[:1]),
            HEAD_DIM=head_dim,
            BLOCK_SIZE=kv_cache.shape[1],
            NUM_KV_HEADS=heads,
            MSE_BYTES=head_dim * key_bits // 8,
            KPS=form["key_packed_size"],
            VQB=value_bits,
            VAL_DATA_BYTES=head_dim * value_bits // 8,
            MSE_BITS=form["mse_bits"],
            KEY_FP8=int(form["key_fp8"]),
            BLOCK_D=head_dim,
            NORM_CORRECTION=int(not form["key_fp8"]),
            num_warps=4,
        )

    def vllm_triton(
        key_out: Any, value_out: Any, kv_cache: Any, block_table: Any, seq_lens: Any, starts: Any,
        key_bits: int, value_bits: int, rotate: bool = True,
    ) -> None:  # fmt: skip
        """A request at a time: its kernel, the product that turns keys back, in fp16, and copies
        to where attention reads, unless the outputs are tensors such as its kernel writes.
        """
        if seq_lens not in spans:  # a server has them on the host
            spans[seq_lens] = list(zip(starts.tolist(), seq_lens.tolist(), strict=True))
        turned = rotate and key_bits != 8
        for request, (start, length) in enumerate(spans[seq_lens]):
            if length == 0:
                raise NotImplementedError("its grid may not be empty")
            outs = [out[start : start + length].transpose(0, 1) for out in (key_out, value_out)]
            own = all(out.dtype == torch.float16 and out.is_contiguous() for out in outs)
            keys, values = (
                out if own else torch.empty(out.shape, dtype=torch.float16, device=out.device)
                for out in outs
            )
            as_stored = torch.empty_like(keys) if turned else keys
            table = block_table[request : request + 1]
            dequant(as_stored, values, kv_cache, table, key_bits, value_bits)
            if turned:
                matrix = rotation(keys.shape[2], keys.device, torch.float16)
                torch.mm(as_stored.flatten(0, 1), matrix, out=keys.view(-1, keys.shape[2]))
            if not own:
                outs[0].copy_(keys)
                outs[1].copy_(values)

    return {"vllm_triton": vllm_triton}
