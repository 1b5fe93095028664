"""sparse_mla_fwd on a GPU: what no comparison with a reference can ask."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from dsv4_aot.runtime import Library


@pytest.mark.parametrize("dim", [512, 576])
@pytest.mark.parametrize("heads", [16, 64, 128])
def test_equal_calls_give_equal_bits(
    heads: int, dim: int, kernel_names: list[str], library: Library, device: torch.device
) -> None:
    """Also while another call has a part of the multiprocessors."""
    import torch

    if "sparse_mla_fwd" not in kernel_names:
        pytest.skip("sparse_mla_fwd is not built here")
    cases = importlib.import_module("dsv4_aot.templates.sparse_mla_fwd.cases")
    call = cases.Call(700, heads, 4000, 640, dim).make(device, 0)
    written = {"out": torch.int16, "max_logits": torch.int32, "lse": torch.int32}
    results: list[dict[str, Any]] = [
        {name: torch.full_like(call[name], torch.nan) for name in written} for _ in range(8)
    ]
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    torch.cuda.synchronize(device)
    for i, result in enumerate(results):
        with torch.cuda.stream(streams[i % 2]):
            library.launch("sparse_mla_fwd", **call | result)
    torch.cuda.synchronize(device)
    for name, bits in written.items():
        first, *others = (result[name].view(bits) for result in results)
        assert not results[0][name].isnan().any()
        assert all(torch.equal(first, each) for each in others), name
