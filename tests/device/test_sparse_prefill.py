"""Sparse-prefill plans on the GPU: every tensor against the reference, and nothing waits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from dsv4_aot.runtime import Library
    from tests.sparse_prefill.scene import Scene

KERNELS = {
    "combine_topk_swa", "dequant_paged", "flatten_page_table", "sparse_mla_fwd", "swa_token_ids",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _built(kernel_names: list[str]) -> None:
    missing = KERNELS - set(kernel_names)
    if missing:
        pytest.skip(f"not built here: {', '.join(sorted(missing))}")


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """What runs on the CPU too, and chunks of more tokens."""
    from tests.sparse_prefill.check import SCENES
    from tests.sparse_prefill.scene import Scene

    return SCENES | {
        "long requests": Scene(((9000, 1500), (70, 70), (4100, 900)), topk=512, padding=30),
        "a long request, V4.1": Scene(
            ((5000, 600),), topk=512, record=528, swa_record=528, interleaved=True, swa_page=32
        ),
    }


def test_plans_are_what_the_formulas_say(
    scenes: dict[str, Scene], library: Library, device: torch.device
) -> None:
    from tests.sparse_prefill.check import check

    for scene in scenes.values():
        check(scene, device, library.launch)


def test_layers_attend_to_what_their_queries_mean(
    scenes: dict[str, Scene], library: Library, device: torch.device
) -> None:
    """Chunks of mixed lengths through layers of every ratio, heads of every kind."""
    from tests.sparse_prefill.check import RATIOS, check_attention

    heads = (64, 16, 128, 32, 5, 100)
    for i, scene in enumerate(scenes.values()):
        check_attention(scene, device, library.launch, heads[i % len(heads)], RATIOS)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_gpu(
    scenes: dict[str, Scene], library: Library, device: torch.device
) -> None:
    import torch

    from dsv4_aot.integrations.sparse_prefill import SparsePrefillWorkspace
    from tests.sparse_prefill.check import as_k_cache, ensure, plan_of, step

    pools = scenes["mixed lengths"].make(device)
    workspace, selected = SparsePrefillWorkspace(device), pools.select(4)
    indices = pools.page_indices()
    q = torch.zeros(pools.rows, 64, 512, dtype=torch.bfloat16, device=device)
    for ratio in (4, 128):
        pools.cache(ratio)
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan = plan_of(pools, workspace, library.launch)
        ensure(plan, pools, 4)
        plan.ensure_c128(indices)
        for ratio in (0, 4, 128):
            step(plan, pools, ratio, selected if ratio == 4 else None)
        plan.attend(q, as_k_cache(pools.swa))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_chunks_follow_each_other_without_a_pause(
    scenes: dict[str, Scene], library: Library, device: torch.device
) -> None:
    """While the GPU is behind, lengths of the next chunk do not reach the chunk before."""
    import torch

    from dsv4_aot.integrations.sparse_prefill import SparsePrefillWorkspace
    from tests.sparse_prefill.check import plan_of
    from tests.sparse_prefill.reference import Reference
    from tests.sparse_prefill.scene import Scene

    many = [Scene(tuple((200 + 7 * i + n, 20 + i) for i in range(16))) for n in range(8)]
    pools = [scene.make(device) for scene in many]
    workspace = SparsePrefillWorkspace(device)
    plans: list[Any] = []
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    for each in pools:
        plans.append(plan_of(each, workspace, library.launch))  # noqa: PERF401  # one by one
    for plan, each in zip(plans, pools, strict=True):
        for name, expected in Reference(each).tensors.items():
            assert torch.equal(getattr(plan, name).cpu(), expected), name


def test_shared_caches_and_grown_workspaces(
    scenes: dict[str, Scene], library: Library, device: torch.device
) -> None:
    from dsv4_aot.integrations.sparse_prefill import SparsePrefillWorkspace
    from tests.sparse_prefill.check import check_layer, ensure, plan_of, step
    from tests.sparse_prefill.reference import Reference

    workspace = SparsePrefillWorkspace(device)
    calls: list[tuple[str, bool]] = []

    def launch(name: str, *args: Any, **kwargs: Any) -> None:
        calls.append((name, len(args) > 6))
        library.launch(name, *args, **kwargs)

    for name in ("one token", "mixed lengths", "long requests", "mixed lengths"):
        pools = scenes[name].make(device)
        reference = Reference(pools)
        plan = plan_of(pools, workspace, launch)
        for ratio in (4, 128):
            ensure(plan, pools, ratio)
        calls.clear()
        for ratio in (4, 4, 0, 128, 128, 4):
            selected = pools.select(4) if ratio == 4 else None
            check_layer(step(plan, pools, ratio, selected), reference, ratio, selected)
        fused = [two for call, two in calls if call == "dequant_paged"]
        some = name != "one token"
        assert fused == [some, False, False, True, False, some]


def test_wrong_devices_are_refused_in_words(
    scenes: dict[str, Scene], library: Library, device: torch.device
) -> None:
    from dsv4_aot.integrations.sparse_prefill import SparsePrefillWorkspace
    from dsv4_aot.runtime import ArgumentError
    from tests.sparse_prefill.check import plan_of

    here = scenes["one request"].make("cpu")
    with pytest.raises(ArgumentError, match="swa_token_ids: req_to_token is a torch tensor on cpu"):
        plan_of(here, SparsePrefillWorkspace(device), library.launch)


def test_the_example_of_the_docs_runs(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsv4_aot.integrations.sparse_prefill import SparsePrefillPlan

    text = (Path(__file__).parents[2] / "docs" / "sparse-prefill.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    defaults = SparsePrefillPlan.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "launch", library.launch)
    scope: dict[str, Any] = {}
    exec(example, scope)
    assert not scope["inputs"].kv.any() and scope["inputs"].topk_length.sum() > 0
    assert not scope["attention"].out.any() and scope["attention"].lse.isfinite().all()
