"""Sparse-prefill plans without a GPU: their tensors, launches, reuse and workspace."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4_aot.integrations.sparse_prefill import (
    KCache,
    SparsePrefillPlan,
    SparsePrefillWorkspace,
    TokenWindows,
)
from tests.launches import Launches
from tests.sparse_prefill.check import (
    RATIOS,
    SCENES,
    as_k_cache,
    check,
    check_attention,
    check_layer,
    ensure,
    plan_of,
    same,
    step,
)  # fmt: skip
from tests.sparse_prefill.reference import Reference
from tests.sparse_prefill.scene import KERNELS, Pools


@pytest.fixture(scope="module")
def every_launch(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(tmp_path_factory.mktemp("plan"), KERNELS)


@pytest.fixture
def launches(every_launch: Launches) -> Launches:
    every_launch.taken()
    return every_launch


@pytest.fixture
def workspace() -> SparsePrefillWorkspace:
    return SparsePrefillWorkspace("cpu")


@pytest.mark.parametrize("name", SCENES)
def test_a_plan_is_what_the_formulas_say(name: str, launches: Launches) -> None:
    check(SCENES[name], "cpu", launches)


def test_a_plan_by_hand(launches: Launches, workspace: SparsePrefillWorkspace) -> None:
    """6 tokens of which 2 are new, and 3 new ones; windows of 3; ratio 2; a row of padding."""
    full_to_swa = torch.arange(20, dtype=torch.int64) + 100
    table = torch.tensor([[0] * 6, [9, 8, 7, 6, 5, 4], [1, 2, 3, 0, 0, 0]], dtype=torch.int32)
    windows = TokenWindows(torch.tensor([1, 2]), table, full_to_swa)
    plan = SparsePrefillPlan(
        workspace, [6, 3], [2, 3], windows, query_rows=6, swa_window=3, launch=launches
    )
    assert plan.query_start_loc.tolist() == [0, 2, 5]
    assert plan.query_pos.tolist() == [4, 5, 0, 1, 2, 0]
    assert plan.swa_gather_lens.tolist() == [4, 3] and plan.swa_first_pos.tolist() == [2, 0]
    assert plan.swa_offsets.tolist() == [0, 4, 7]
    assert plan.swa_token_ids.tolist() == [107, 106, 105, 104, 101, 102, 103]
    alone = plan.gathers[0]
    assert alone.combined_indices is not None and alone.combined_lens is not None
    assert alone.combined_lens.tolist() == [3, 3, 1, 2, 3, 0]
    assert [row[:4] for row in alone.combined_indices.tolist()] == [
        [0, 1, 2, -1], [1, 2, 3, -1], [4, -1, -1, -1], [4, 5, -1, -1], [4, 5, 6, -1], [-1] * 4,
    ]  # fmt: skip

    pages = torch.tensor([[5, 3], [5, 3], [8, -1], [8, -1], [8, -1], [0, 0]], dtype=torch.int32)
    gather = plan.ensure_compressed(2, pages, page_size=2)
    assert gather.flat_token_ids.tolist() == [10, 11, 6, 16]
    assert gather.compressed_base.tolist() == [0, 3] and gather.swa_base.tolist() == [4, 8]
    selected = torch.tensor(
        [[1, 0], [2, -1], [-1, -1], [0, -1], [0, -1], [-1, -1]], dtype=torch.int32
    )
    cache = KCache(torch.zeros(120, 2 * 584, dtype=torch.uint8), 2)
    kv, indices, lens = plan.step(cache, 2, cache, selected)
    assert kv.shape == (11, 1, 512) and indices.shape == (6, 1, 128)
    assert lens.tolist() == [5, 5, 1, 3, 4, 0]
    assert [row[0][:6] for row in indices.tolist()] == [
        [1, 0, 4, 5, 6, -1], [2, -1, 5, 6, 7, -1], [8, -1, -1, -1, -1, -1],
        [3, 8, 9, -1, -1, -1], [3, 8, 9, 10, -1, -1], [-1] * 6,
    ]  # fmt: skip


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCENES if name != "64 requests"])
def test_layers_attend_to_what_their_queries_mean(name: str, launches: Launches) -> None:
    check_attention(SCENES[name], "cpu", launches, heads=4, ratios=RATIOS)


def test_a_layer_with_its_attention_is_one_launch_more(launches: Launches, pools: Pools) -> None:
    plan, _ = planned(pools, launches)
    ensure(plan, pools, 4)
    launches.taken()
    q = torch.zeros(pools.rows, 3, 512, dtype=torch.bfloat16)
    wide = torch.full((pools.rows, 8, 512), 7.0, dtype=torch.bfloat16)
    cache, windows = as_k_cache(pools.cache(4)), as_k_cache(pools.swa)
    found = plan.attend(q, windows, 4, cache, pools.select(4), out=wide[:, 2:5])
    assert launches.taken() == ["dequant_paged 2", "combine_topk_swa", "sparse_mla_fwd"]
    assert found.out.data_ptr() == wide[:, 2:5].data_ptr()
    assert (wide[:, :2] == 7).all() and (wide[:, 5:] == 7).all()


# What is launched, and when -----------------------------------------------------------------------


def planned(pools: Pools, launches: Launches) -> tuple[SparsePrefillPlan, SparsePrefillWorkspace]:
    workspace = SparsePrefillWorkspace("cpu")
    return plan_of(pools, workspace, launches), workspace


@pytest.fixture
def pools() -> Pools:
    return SCENES["mixed lengths"].make("cpu")


def test_a_chunk_and_its_ratios_are_launched_once(launches: Launches, pools: Pools) -> None:
    plan, _ = planned(pools, launches)
    assert launches.taken() == ["swa_token_ids", "combine_topk_swa"]
    ensure(plan, pools, 4)
    assert launches.taken() == ["flatten_page_table"] and 128 not in plan.gathers
    ensure(plan, pools, 128)
    assert launches.taken() == ["flatten_page_table", "combine_topk_swa"]
    made = dict(plan.gathers)
    for ratio in (4, 128):
        ensure(plan, pools, ratio)
    assert launches.taken() == [] and plan.gathers == made


def test_a_layer_is_one_launch_and_its_combination(launches: Launches, pools: Pools) -> None:
    plan, _ = planned(pools, launches)
    for ratio in (4, 128):
        ensure(plan, pools, ratio)
    launches.taken()
    step(plan, pools, 0, None)
    assert launches.taken() == ["dequant_paged 1"]
    step(plan, pools, 128, None)
    assert launches.taken() == ["dequant_paged 2"]
    step(plan, pools, 4, pools.select(4))
    assert launches.taken() == ["dequant_paged 2", "combine_topk_swa"]


@pytest.mark.parametrize("layout", ["interleaved", "split"])
def test_records_of_two_kinds_are_one_launch(layout: str, launches: Launches) -> None:
    pools = SCENES[f"V4.1 FP4 beside FP8, {layout}"].make("cpu")
    plan, _ = planned(pools, launches)
    ensure(plan, pools, 2)
    launches.taken()
    step(plan, pools, 2, pools.select(2))
    assert launches.taken() == ["dequant_paged 2", "combine_topk_swa"]


def test_windows_of_requests_need_no_list(launches: Launches) -> None:
    plan, _ = planned(SCENES["windows of requests"].make("cpu"), launches)
    assert launches.taken() == ["combine_topk_swa"]
    assert plan.swa_token_ids.tolist() == list(range(len(plan.swa_token_ids)))


def test_a_selection_of_another_width_has_tensors_of_its_own(
    launches: Launches, pools: Pools
) -> None:
    plan, _ = planned(pools, launches)
    ensure(plan, pools, 4)
    reference = Reference(pools)
    narrow = pools.select(4)
    wide = torch.nn.functional.pad(narrow, (0, 300), value=-1)
    for selected in (narrow, wide, narrow):
        check_layer(step(plan, pools, 4, selected), reference, 4, selected)


# Reuse --------------------------------------------------------------------------------------------


def test_layers_that_share_a_cache_decode_it_once(launches: Launches, pools: Pools) -> None:
    """And their windows each time: a layer has its own window cache."""
    plan, _ = planned(pools, launches)
    ensure(plan, pools, 4)
    reference, selected = Reference(pools), pools.select(4)
    shared, windows = as_k_cache(pools.cache(4)), as_k_cache(pools.swa)
    plan.step(windows, 4, shared, selected)
    launches.taken()
    pools.swa.data[:, :576] ^= 1  # another layer's windows
    pools.swa.host[:] = pools.swa.data
    again = shared._replace(data=shared.data[:])  # the same memory
    check_layer(plan.step(windows, 4, again, selected), reference, 4, selected)
    assert launches.taken() == ["dequant_paged 1", "combine_topk_swa"]


def test_compressed_rows_are_decoded_again_once_anything_differs(
    launches: Launches, pools: Pools
) -> None:
    plan, workspace = planned(pools, launches)
    for ratio in (1, 2, 4):
        ensure(plan, pools, ratio)
    selected = {ratio: pools.select(ratio) for ratio in (1, 2, 4)}
    windows, cache = as_k_cache(pools.swa), as_k_cache(pools.cache(4))
    other = as_k_cache(pools.another_cache(4))

    def decodes() -> list[str]:
        return [call for call in launches.taken() if call.startswith("dequant_paged")]

    def four(source: KCache = cache, by: SparsePrefillPlan = plan) -> list[str]:
        by.step(windows, 4, source, selected[4])
        return decodes()

    decodes()
    both, windows_alone = ["dequant_paged 2"], ["dequant_paged 1"]
    assert four() == both and four() == windows_alone
    assert four(other) == both and four(cache) == both  # another cache
    plan.step(windows)  # window rows from the first on
    assert decodes() == windows_alone and four() == both
    plan.step(windows, 2, as_k_cache(pools.cache(2)), selected[2])  # another list
    assert decodes() == both and four() == both
    plan.step(windows, 1, as_k_cache(pools.cache(1)), selected[1])  # the workspace grows
    assert decodes() == both and four() == both and four() == windows_alone
    successor = plan_of(pools, workspace, launches)  # the next chunk, of the same rows
    ensure(successor, pools, 4)
    decodes()
    assert four(by=successor) == both and four(by=successor) == windows_alone


def test_a_failed_launch_leaves_nothing_to_reuse(launches: Launches, pools: Pools) -> None:
    plan, _ = planned(pools, launches)
    ensure(plan, pools, 4)
    selected = pools.select(4)

    def failing(name: str, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError

    step(plan, pools, 4, selected)
    plan._launch = failing
    with pytest.raises(RuntimeError):
        plan.step(as_k_cache(pools.swa), 4, as_k_cache(pools.another_cache(4)), selected)
    plan._launch = launches
    launches.taken()
    check_layer(step(plan, pools, 4, selected), Reference(pools), 4, selected)
    assert launches.taken()[0] == "dequant_paged 2"


# The workspace ------------------------------------------------------------------------------------


def test_a_workspace_only_grows(launches: Launches) -> None:
    workspace = SparsePrefillWorkspace("cpu")
    sizes, buffers = [], []
    for name in ("one token", "mixed lengths", "no compressed rows", "mixed lengths"):
        pools = SCENES[name].make("cpu")
        plan = plan_of(pools, workspace, launches)
        kv = step(plan, pools, 0, None).kv
        same(kv, Reference(pools).layer(0, None).kv[:, None], name)
        assert kv.data_ptr() == workspace.buffer.data_ptr()
        sizes.append(len(workspace.buffer))
        buffers.append(workspace.buffer.data_ptr())
    windows = sum(min(n, new + 127) for n, new in SCENES["mixed lengths"].requests)
    assert sizes == [1, windows, windows, windows] and len(set(buffers[1:])) == 1


def test_layers_follow_a_workspace_that_has_grown(launches: Launches, pools: Pools) -> None:
    plan, workspace = planned(pools, launches)
    before = step(plan, pools, 0, None).kv
    workspace.split(5000, 0)
    after = step(plan, pools, 0, None).kv
    assert after.data_ptr() == workspace.buffer.data_ptr() != before.data_ptr()
    same(after, before, "window rows")


def test_a_cache_of_another_type_is_looked_at_as_bytes(launches: Launches, pools: Pools) -> None:
    plan, _ = planned(pools, launches)
    plain = as_k_cache(pools.swa)
    expected = plan.step(plain).kv.clone()
    typed = plain._replace(data=plain.data.view(torch.float8_e4m3fn))
    same(plan.step(typed).kv, expected, "kv")


# The docs -----------------------------------------------------------------------------------------


def test_the_example_of_the_docs_runs(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sparse-prefill.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setitem(SparsePrefillPlan.__init__.__kwdefaults__, "launch", launches)
    scope: dict[str, Any] = {}
    exec(example.replace('"cuda"', '"cpu"'), scope)
    inputs = scope["inputs"]
    assert inputs.kv.shape == (1000 // 4 + 72 // 4 + 227 + 72, 1, 512)
    assert inputs.indices.shape == (172, 1, 640) and inputs.topk_length[-1] == 72 // 4 + 72
    assert not scope["attention"].out.any()  # of empty caches
    assert scope["attention"].lse[0, 0] == pytest.approx(math.log(128))
    layer = ["dequant_paged 2", "combine_topk_swa"]
    assert launches.taken()[-5:] == [
        *layer,
        "dequant_paged 1",
        "combine_topk_swa",
        "sparse_mla_fwd",
    ]
