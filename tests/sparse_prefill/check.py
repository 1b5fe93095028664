"""A plan of a chunk, held against its reference: on any device, with any launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsv4_aot.integrations.sparse_prefill import (
    Attention,
    AttentionInputs,
    KCache,
    RequestWindows,
    SparsePrefillPlan,
    SparsePrefillWorkspace,
    TokenWindows,
)
from tests.sparse_prefill.reference import Reference, attention, meant_rows
from tests.sparse_prefill.scene import LOGICAL_PAGE, Cache, Pools, Scene

MIXED = ((1, 1), (127, 127), (128, 5), (131, 131), (300, 7), (700, 200), (3, 0), (2, 2))
SCENES = {
    "mixed lengths": Scene(MIXED, padding=5),
    "one request": Scene(((1030, 260),), seed=1),
    "one token": Scene(((1, 1),)),
    "no compressed rows": Scene(((3, 3), (2, 1)), padding=2),
    "a wide selection": Scene(((900, 300), (40, 40)), topk=192),
    "64 requests": Scene(tuple((40 + 5 * i, 1 + i % 9) for i in range(64))),
    "V4.1, interleaved": Scene(MIXED, record=528, interleaved=True, swa_record=528, swa_page=32),
    "V4.1, split": Scene(MIXED, record=528, swa_record=528, swa_page=256, seed=3),
    "V4.1 FP4 beside FP8, interleaved": Scene(MIXED, record=288, interleaved=True, swa_record=528),
    "V4.1 FP4 beside FP8, split": Scene(MIXED, record=288, swa_record=528, swa_page=256, seed=4),
    "windows of requests": Scene(MIXED, padding=3, windows=True),
    "windows of one request": Scene(((500, 20),), windows=True, swa_page=128),
    "shares of a chunk": Scene(
        ((600, 300), (90, 60), (400, 8)), shares=(75, 0, 4), padding=1, seed=5
    ),
}
RATIOS = (0, 4, 128, 1, 2)


def windows_of(pools: Pools) -> TokenWindows | RequestWindows:
    if pools.scene.windows:
        return RequestWindows(pools.window_size, pools.swa_indices, pools.swa_lengths)
    return TokenWindows(pools.req_pool_indices, pools.req_to_token, pools.full_to_swa)


def plan_of(
    pools: Pools, workspace: SparsePrefillWorkspace, launch: Callable[..., None], **changes: Any
) -> SparsePrefillPlan:
    """As a server would plan it; positions are given where the plan cannot know them."""
    given: dict[str, Any] = {"query_rows": pools.rows}
    if pools.scene.shares is not None:
        given = {"query_lens": pools.query_lens, "query_pos": pools.query_pos}
    return SparsePrefillPlan(
        workspace, pools.seq_lens, pools.extend_lens, windows_of(pools), launch=launch,
        **given | changes,
    )  # fmt: skip


def as_k_cache(cache: Cache) -> KCache:
    return KCache(cache.data, cache.page, cache.record, cache.interleaved)


def ensure(plan: SparsePrefillPlan, pools: Pools, ratio: int) -> None:
    if ratio == 128:
        plan.ensure_c128(pools.page_indices())
    elif ratio:
        plan.ensure_compressed(ratio, pools.page_table, LOGICAL_PAGE // ratio)


def step(
    plan: SparsePrefillPlan, pools: Pools, ratio: int, selected: Tensor | None
) -> AttentionInputs:
    cache = as_k_cache(pools.cache(ratio)) if ratio else None
    return plan.step(as_k_cache(pools.swa), ratio, cache, selected)


def check(scene: Scene, device: Any, launch: Callable[..., None]) -> None:
    """Every tensor of the plan and of a layer of each ratio, and what its queries attend to."""
    pools = scene.make(device)
    reference = Reference(pools)
    workspace = SparsePrefillWorkspace(pools.device)
    known = (128, 4) if scene.seed % 2 else ()
    plan = plan_of(pools, workspace, launch, compress_ratios=known)
    for name, expected in reference.tensors.items():
        same(getattr(plan, name), expected, name)
    for ratio in RATIOS:
        ensure(plan, pools, ratio)
        gather = plan.gathers[ratio]
        if ratio:
            same(gather.flat_token_ids, reference.flat_token_ids(ratio), f"ids of {ratio}")
        for name, expected in zip(
            ("compressed_base", "swa_base"), reference.bases(ratio), strict=True
        ):
            same(getattr(gather, name), expected, f"{name} of {ratio}")
    for ratio in (*RATIOS, 4):
        selected = pools.select(ratio) if ratio in {1, 2, 4} else None
        check_layer(step(plan, pools, ratio, selected), reference, ratio, selected)


def check_layer(
    inputs: AttentionInputs, reference: Reference, ratio: int, selected: Tensor | None
) -> None:
    expected = reference.layer(ratio, selected)
    same(inputs.kv, expected.kv[:, None], f"kv of {ratio}")
    same(inputs.indices, expected.indices[:, None], f"indices of {ratio}")
    same(inputs.topk_length, expected.lens, f"lengths of {ratio}")
    kv, indices, lens = (tensor.cpu() for tensor in inputs)
    pools = reference.pools
    for row in range(0, len(pools.positions), max(len(pools.positions) // 40, 1)):
        listed = indices[row, 0, : lens[row]]
        meant = meant_rows(pools, row, ratio, selected)
        same(kv[listed[listed >= 0], 0], meant, f"what query row {row} of {ratio} reads")
    assert (lens[len(pools.positions) :] == 0).all()


# Attention ----------------------------------------------------------------------------------------


def check_attention(
    scene: Scene, device: Any, launch: Callable[..., None], heads: int, ratios: tuple[int, ...]
) -> None:
    """Layers of a chunk one after another, against attention to what their queries mean."""
    pools = replace(scene, small=True).make(device)
    plan = plan_of(pools, SparsePrefillWorkspace(pools.device), launch)
    q = torch.randn(pools.rows, heads, 512, generator=pools.random).bfloat16()
    sink = torch.randn(heads, generator=pools.random)
    for ratio in ratios:
        ensure(plan, pools, ratio)
    for ratio in ratios:
        selected = pools.select(ratio) if ratio in {1, 2, 4} else None
        cache = as_k_cache(pools.cache(ratio)) if ratio else None
        found = plan.attend(
            q.to(device), as_k_cache(pools.swa), ratio, cache, selected, attn_sink=sink.to(device)
        )
        check_attended(found, pools, ratio, selected, q, sink)


def check_attended(
    found: Attention, pools: Pools, ratio: int, selected: Tensor | None, q: Tensor, sink: Tensor
) -> None:
    out, max_logits, lse = (tensor.cpu() for tensor in found)
    owned = len(pools.positions)
    for row in range(0, owned, max(owned // 40, 1)):
        rows = meant_rows(pools, row, ratio, selected)
        right = attention(q[row], rows, 512**-0.5, sink)
        # Weights are rounded to bf16, which shows beside the greatest values.
        absolute = float(rows.abs().max()) / 256
        for each, expected, atol, rtol in (
            (out[row], right[0], absolute, 3 / 128),
            (max_logits[row], right[1], 1e-5, 1e-4),
            (lse[row], right[2], 1e-5, 1e-4),
        ):
            torch.testing.assert_close(
                each.double(), expected, atol=atol, rtol=rtol,
                msg=lambda text, row=row: f"query row {row} of {ratio}: {text}",
            )  # fmt: skip
    assert not out[owned:].any()
    assert (max_logits[owned:] == -torch.inf).all() and (lse[owned:] == torch.inf).all()


def same(found: Tensor, expected: Tensor, what: str) -> None:
    """Types, shapes and bits."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
    bits = torch.int16 if expected.dtype == torch.bfloat16 else expected.dtype
    assert torch.equal(found.cpu().view(bits), expected.view(bits)), what
