"""Sparse-prefill plans refuse what contradicts itself, and launch nothing for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsv4_aot.integrations.sparse_prefill import (
    RequestWindows,
    SparsePrefillPlan,
    SparsePrefillWorkspace,
    TokenWindows,
)
from dsv4_aot.runtime import ArgumentError
from tests.launches import Launches
from tests.sparse_prefill.check import SCENES, as_k_cache, ensure, plan_of
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


@pytest.fixture
def pools() -> Pools:
    return SCENES["mixed lengths"].make("cpu")


@pytest.fixture
def plan(pools: Pools, workspace: SparsePrefillWorkspace, launches: Launches) -> SparsePrefillPlan:
    made = plan_of(pools, workspace, launches)
    launches.taken()
    return made


class OnDevice(torch.Tensor):
    is_cuda = True  # type: ignore[assignment]


def windows(pool: int = 2, positions: int = 6) -> TokenWindows:
    table = torch.zeros(3, positions, dtype=torch.int32)
    return TokenWindows(torch.arange(pool), table, torch.zeros(1, dtype=torch.int64))


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"seq_lens": [3]}, "lengths are of 1, 2 and 2 requests (seq_lens, extend_lens, query_l"),
    ({"seq_lens": [], "extend_lens": []}, "allowed: the same number, 1 or more"),
    ({"extend_lens": [2, 4]}, "request 1 has 3 tokens, 4 new ones and 4 query rows, allowed"),
    ({"seq_lens": [6, 2**31]}, "request 1 has 2147483648 tokens"),
    ({"extend_lens": [-1, 3]}, "request 0 has 6 tokens, -1 new ones"),
    ({"seq_lens": [6, 3.0]}, "seq_lens has 3.0 in it, allowed: an integer a request"),
    ({"extend_lens": [2, True]}, "extend_lens has True in it"),
    ({"seq_lens": torch.tensor([6, 3]).as_subclass(OnDevice)}, "seq_lens is on the GPU"),
    ({"query_lens": [1, 1]}, "query_lens comes without query_pos"),
    ({"query_rows": 4}, "there are 4 query rows, allowed: 5 or more"),
    ({"query_pos": torch.zeros(4, dtype=torch.int32)}, "there are 4 query rows, allowed: 5"),
    ({"query_pos": torch.zeros(5), "query_rows": 5}, "query_rows comes with query_pos"),
    ({"query_rows": 2**31}, "the chunk has 2147483648 rows, allowed: 0 to 2^30"),
    ({"query_pos": torch.zeros(5)}, "combine_topk_swa: query_pos"),
    ({"compress_ratios": (4, 0)}, "a compression ratio is 0, allowed: 1 or more"),
    ({"swa_window": 0}, "swa_window is 0, allowed: 1 or more"),
    ({"seq_lens": [7, 3]}, "a request has 7 tokens, and req_to_token has room for 6"),
    ({"windows": windows(pool=3)}, "swa_token_ids: req_pool_indices"),
    ({"windows": windows(positions=5)}, "has room for 5"),
]


@pytest.mark.parametrize(
    ("changes", "message"), CONTRADICTIONS, ids=["+".join(each) for each, _ in CONTRADICTIONS]
)
def test_a_chunk_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, launches: Launches, workspace: SparsePrefillWorkspace
) -> None:
    call: dict[str, Any] = {"seq_lens": [6, 3], "extend_lens": [2, 3], "windows": windows()}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        SparsePrefillPlan(workspace, launch=launches, **call | changes)
    assert set(launches.taken()) <= {"swa_token_ids"}


def test_windows_of_another_number_of_rows_are_refused(
    launches: Launches, workspace: SparsePrefillWorkspace
) -> None:
    listed = torch.zeros(4, 128, dtype=torch.int32)
    kept = RequestWindows(256, listed, torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ArgumentError, match="combine_topk_swa: swa_indices"):
        SparsePrefillPlan(workspace, [6, 3], [2, 3], kept, launch=launches)
    with pytest.raises(ArgumentError, match="the chunk has -1 rows"):
        SparsePrefillPlan(workspace, [4], [4], kept._replace(size=-1), launch=launches)
    assert launches.taken() == []


def tables(plan: SparsePrefillPlan, pools: Pools) -> dict[str, Callable[[], object]]:
    few = torch.zeros(plan.query_start_loc[-1] - 1, 9, dtype=torch.int32)
    narrow = torch.zeros(len(plan.query_pos), 2, dtype=torch.int32)
    return {
        "page_table is [472, 9], allowed: [473 or more, 3 or more]": lambda: plan.ensure_compressed(
            4, few, 64
        ),
        "page_table is [478, 2], allowed: [473 or more, 3 or more] (the chunk has 473 query rows, "
        "and its longest request has 700 tokens)": lambda: plan.ensure_compressed(4, narrow, 64),
        "page_table is [956], allowed": lambda: plan.ensure_compressed(4, narrow.flatten(), 64),
        "page_indices is [478, 2], allowed: [473 or more, 5 or more]": lambda: plan.ensure_c128(
            narrow
        ),
        "compress_ratio is -4 and page_size 64": lambda: plan.ensure_compressed(-4, narrow, 64),
        "compress_ratio is 128, whose layers select nothing (ensure_c128)": lambda: (
            plan.ensure_compressed(128, narrow, 2)
        ),
        "compress_ratio is 4 and page_size 0": lambda: plan.ensure_compressed(4, narrow, 0),
        "flatten_page_table: page_table has dtype float32": lambda: plan.ensure_compressed(
            4, pools.page_table.float(), 64
        ),
    }


def test_tables_that_are_too_small_are_refused(
    plan: SparsePrefillPlan, launches: Launches, pools: Pools
) -> None:
    for message, call in tables(plan, pools).items():
        with pytest.raises(ArgumentError, match=re.escape(message)):
            call()
    assert launches.taken() == [] and list(plan.gathers) == [0]


def test_layers_that_do_not_fit_their_ratio_are_refused(
    plan: SparsePrefillPlan, launches: Launches, pools: Pools
) -> None:
    for ratio in (4, 128):
        ensure(plan, pools, ratio)
    launches.taken()
    windows, cache, selected = as_k_cache(pools.swa), as_k_cache(pools.cache(4)), pools.select(4)
    wrong: dict[str, tuple[Any, ...]] = {
        "compress_ratio is 2, allowed: 0, 4, 128": (windows, 2, cache, selected),
        "a layer of compress_ratio 4 needs compressed_cache": (windows, 4, None, selected),
        "a layer of compress_ratio 4 needs topk_indices": (windows, 4, cache),
        "a layer of compress_ratio 0 takes no compressed_cache": (windows, 0, cache),
        "a layer of compress_ratio 128 takes no topk_indices": (windows, 128, cache, selected),
        "compressed_cache has pages of 32 rows, and the rows of compress_ratio 4 were listed "
        "with 64": (windows, 4, cache._replace(page_size=32), selected),
        "dequant_paged: record is 600": (windows._replace(record=600),),
        "interleaved is True of swa_cache and False of compressed_cache, allowed: the same": (
            windows._replace(record=528, interleaved=True),
            4,
            cache,
            selected,
        ),
        "528 beside a record of 288; came: window_record = 528, record = 584": (
            windows._replace(record=528),
            4,
            cache,
            selected,
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(ArgumentError, match=re.escape(message)):
            plan.step(*call)
    assert launches.taken() == []


def test_queries_of_another_shape_are_refused_before_anything_is_launched(
    pools: Pools, plan: SparsePrefillPlan, launches: Launches
) -> None:
    for shape in ((pools.rows - 1, 4, 512), (pools.rows, 512), (pools.rows, 4, 576)):
        wrong = torch.zeros(shape, dtype=torch.bfloat16)
        message = f"q is {list(shape)}, allowed: [{pools.rows}, heads, 512]"
        with pytest.raises(ArgumentError, match=re.escape(message)):
            plan.attend(wrong, as_k_cache(pools.swa))
    assert launches.taken() == []


def test_records_that_are_not_kept_together_are_refused(launches: Launches) -> None:
    def rows(page: int, ids: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        out = torch.empty(3, 1, 512, dtype=torch.bfloat16)
        return out, torch.zeros(2, page, dtype=torch.uint8), torch.zeros(3, dtype=ids), 4

    narrow, wide, room = torch.int32, torch.int64, 4 * 528
    together = "window_record is 0 or record, which is the same, or 528 beside a record of 288"
    wrong: dict[str, tuple[int, int, int, torch.dtype]] = {
        f"{together}; came: window_record = 600, record = 288": (288, 600, room, narrow),
        f"{together}; came: window_record = 288, record = 528": (528, 288, room, narrow),
        f"{together}; came: window_record = -1, record = 528": (528, -1, room, narrow),
        "token_ids is int32 where window_record differs from record": (288, 528, room, wide),
        "a page of window_k_cache has room for window_page_size records": (
            288, 528, room - 16, narrow,
        ),
    }  # fmt: skip
    for message, (record, second, page, ids) in wrong.items():
        with pytest.raises(ArgumentError, match=re.escape(message)):
            launches(
                "dequant_paged", *rows(4 * 528, ids), record, True, *rows(page, narrow), second
            )
    assert launches.taken() == []
    launches("dequant_paged", *rows(4 * 288, narrow), 288, True, *rows(room, narrow), 528)
    assert launches.taken() == ["dequant_paged 2"]
