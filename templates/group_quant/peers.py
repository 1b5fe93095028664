"""Other implementations of group_quant, timed beside it where they can be imported."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from typing import Any

VLLM = "vllm._C_stable_libtorch"
VLLM_OP = "_C.per_token_group_fp8_quant_packed"


def peers() -> dict[str, Callable[..., Any]]:
    try:
        import torch

        importlib.import_module(VLLM)  # registers the op
    except ImportError:
        return {}
    packed = operator.attrgetter(VLLM_OP)(torch.ops)

    def vllm_cuda(input: Any, output_q: Any, output_s: Any, **numbers: Any) -> None:
        if output_s.dtype != torch.int32 or output_q.dtype != torch.float8_e4m3fn:
            raise NotImplementedError("the packed form in e4m3 alone has this peer")
        settings = (numbers[name] for name in ("group_size", "eps", "min", "max"))
        packed(input, output_q, output_s, *settings)

    return {"vllm_cuda": vllm_cuda}
