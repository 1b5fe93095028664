"""Other implementations of sparse_mla_fwd, timed beside it where they can be imported.

They are FlashMLA's kernel as three packages ship it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

MODULES = {
    "flash_mla": "flash_mla",
    "sglang_flash_mla": "sgl_kernel.flash_mla",
    "vllm_flash_mla": "vllm.third_party.flashmla.flash_mla_interface",
}


def peers() -> dict[str, Callable[..., Any]]:
    found = {}
    for name, module in MODULES.items():
        try:
            found[name] = peer(importlib.import_module(module).flash_mla_sparse_fwd)
        except (ImportError, AttributeError):
            continue
    return found


def peer(forward: Callable[..., Any]) -> Callable[..., Mapping[str, Any]]:
    """Its results are tensors of its own, which are handed on as they are."""
    taken = inspect.signature(forward).parameters

    def flash_mla(
        q: Any,
        kv: Any,
        indices: Any,
        out: Any,  # noqa: ARG001  # what the kernel writes
        max_logits: Any,  # noqa: ARG001
        lse: Any,  # noqa: ARG001
        sm_scale: float,
        attn_sink: Any = None,
        topk_length: Any = None,
        base2: bool = False,
    ) -> Mapping[str, Any]:
        if q.shape[1] not in {64, 128} or indices.shape[2] % 128 or base2:
            raise NotImplementedError("64 or 128 heads, whole blocks of 128 indices, natural units")
        optional = {"attn_sink": attn_sink, "topk_length": topk_length}
        given = {name: value for name, value in optional.items() if value is not None}
        if not given.keys() <= taken.keys():
            raise NotImplementedError(f"no {' and '.join(given.keys() - taken.keys())}")
        results = forward(q, kv, indices, sm_scale, **given)
        return dict(zip(("out", "max_logits", "lse"), results, strict=True))

    return flash_mla
