"""sparse_mla_fwd without a GPU: its bodies, what it refuses, what it is timed on."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dsv4_aot.generator.cli.app import app
from dsv4_aot.generator.discover import discover
from dsv4_aot.generator.expand import expand
from dsv4_aot.integrations.sparse_prefill import (
    SparsePrefillPlan,
    SparsePrefillWorkspace,
    TokenWindows,
)
from dsv4_aot.runtime import ArgumentError
from dsv4_aot.runtime.target import Target
from tests.artifact import Tensor, cubin_of, write_artifact
from tests.launches import Launches
from tests.sparse_prefill.scene import KERNELS

FOLDER = discover()["sparse_mla_fwd"]
CASES = importlib.import_module("dsv4_aot.templates.sparse_mla_fwd.cases")


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    return Launches(tmp_path_factory.mktemp("mla"), KERNELS)


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a", "sm_100f", "sm_103a", "sm_120a"])
def test_one_target_has_bodies_of_its_own(target: str) -> None:
    bodies = {
        (v.choices["head_dim"], v.choices["heads"]): v.choices["body"]
        for v in expand(FOLDER, Target.parse(target))
    }
    few, many = ("narrow", "wgmma") if target == "sm_90a" else ("mma", "mma")
    by_heads = {16: few, 32: many, 64: many}
    assert bodies == {(dim, heads): by_heads[heads] for dim in (512, 576) for heads in by_heads}


def test_list_says_which_body_an_entry_is(tmp_path: Path) -> None:
    for target in ("sm_90a", "sm_100a"):
        cubins = [
            (FOLDER.spec, v.choices, cubin_of(FOLDER.name, v.choices))
            for v in expand(FOLDER, Target.parse(target))
        ]
        write_artifact(tmp_path / target, cubins, target)
    rows = json.loads(CliRunner().invoke(app, ["list", str(tmp_path), "--json"]).stdout)
    assert {row["target"]: row["bodies"] for row in rows} == {
        "sm_90a": ["narrow", "wgmma"],
        "sm_100a": ["mma"],
    }
    listed = CliRunner().invoke(app, ["list", str(tmp_path), "--variants", "--json"]).stdout
    keys = {row["key"] for row in json.loads(listed)}
    assert "sparse_mla_fwd/sm_90a/body=wgmma,head_dim=576,heads=64" in keys
    assert "sparse_mla_fwd/sm_100a/body=mma,head_dim=576,heads=64" in keys


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


WRONG: dict[str, dict[str, Any]] = {
    "q has 1 to 128 heads": {
        "q": zeros(3, 129, 512), "out": zeros(3, 129, 512),
        "max_logits": zeros(3, 129, dtype=torch.float32),
        "lse": zeros(3, 129, dtype=torch.float32),
    },
    "q.shape[1] = 0": {
        "q": zeros(3, 0, 512), "out": zeros(3, 0, 512),
        "max_logits": zeros(3, 0, dtype=torch.float32), "lse": zeros(3, 0, dtype=torch.float32),
    },
    "q has dtype float16": {"q": zeros(3, 4, 512, dtype=torch.float16)},
    "q starts at address": {"q": zeros(6145)[1:].view(3, 4, 512)},
    "q.stride(2) is 0": {"q": zeros(1).expand(3, 4, 512)},
    "kv is": {"kv": zeros(9, 1, 576)},
    "kv.shape[1] is 2": {"kv": zeros(9, 2, 512)},
    "q.shape[2] is 520, which was not built": {"q": zeros(3, 4, 520), "kv": zeros(9, 1, 520)},
    "q.stride": {"q": zeros(3, 4, 516)[..., :512]},
    "kv.stride": {"kv": zeros(9, 1, 516)[..., :512]},
    "out.stride": {"out": zeros(3, 4, 516)[..., :512]},
    "out is": {"out": zeros(3, 4, 576)},
    "indices is": {"indices": zeros(2, 1, 64, dtype=torch.int32)},
    "indices.shape": {"indices": zeros(3, 1, 0, dtype=torch.int32)},
    "indices": {"indices": zeros(3, 1, 64, dtype=torch.int64)},
    "max_logits has strides": {"max_logits": zeros(4, 3, dtype=torch.float32).t()},
    "sm_scale is 0.0": {"sm_scale": 0.0},
    "sm_scale is nan": {"sm_scale": float("nan")},
    "base2": {"base2": 2},
    "attn_sink has dtype": {"attn_sink": zeros(4)},
    "attn_sink is": {"attn_sink": zeros(5, dtype=torch.float32)},
    "topk_length has dtype": {"topk_length": zeros(3, dtype=torch.int64)},
    "topk_length is": {"topk_length": zeros(4, dtype=torch.int32)},
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_calls_are_refused_in_words(words: str, launches: Launches) -> None:
    call = {
        "q": zeros(3, 4, 512), "kv": zeros(9, 1, 512),
        "indices": zeros(3, 1, 64, dtype=torch.int32), "out": zeros(3, 4, 512),
        "max_logits": zeros(3, 4, dtype=torch.float32), "lse": zeros(3, 4, dtype=torch.float32),
        "sm_scale": 0.1,
    }  # fmt: skip
    launches("sparse_mla_fwd", **call)
    assert launches.taken() == ["sparse_mla_fwd"]
    with pytest.raises(ArgumentError) as raised:
        launches("sparse_mla_fwd", **call | WRONG[words])
    assert words in str(raised.value)
    assert launches.taken() == []


@pytest.mark.parametrize("name", ["q", "kv", "out"])
@pytest.mark.parametrize(
    ("stride", "fits"), [(2**30 - 8, True), (0, True), (2**30, False), (-512, False)]
)
def test_strides_are_those_whose_bytes_an_int32_holds(
    name: str, stride: int, fits: bool, launches: Launches
) -> None:
    shapes = {"q": (3, 4, 512), "kv": (9, 1, 512), "out": (3, 4, 512)}
    call = {
        each: Tensor("bfloat16", shape, (stride if each == name else 2048, 512, 1), pointer=4096)
        for each, shape in shapes.items()
    }
    launch = partial(
        launches.library.launch, "sparse_mla_fwd", **call, sm_scale=0.1,
        indices=Tensor("int32", (3, 1, 64)),
        max_logits=Tensor("float32", (3, 4)), lse=Tensor("float32", (3, 4)),
    )  # fmt: skip
    if fits:
        launch()
        return
    with pytest.raises(ArgumentError, match=rf"{name}.stride\(0\) .*between 0 and 2\^30"):
        launch()


def test_timed_patterns_are_those_of_a_plan(launches: Launches) -> None:
    """Of one request: windows, what of a selection its last queries can see, and where it lies."""
    queries, compressed, topk = 50, 300, 640
    rows = compressed + queries + 127
    call = CASES.Call(queries, 1, rows, topk, indices="prefill", bad=0.0, lengths="full")
    arguments = call.make("cpu", 0)
    length = 4 * compressed
    table = torch.arange(length, dtype=torch.int32)[None]
    windows = TokenWindows(torch.tensor([0]), table, torch.arange(length))
    plan = SparsePrefillPlan(
        SparsePrefillWorkspace("cpu"), [length], [queries], windows, launch=launches
    )
    window_only = plan.gathers[0].combined_indices
    assert window_only is not None
    listed = arguments["indices"][:, 0]
    assert torch.equal(listed[:, topk - 128 :], window_only + compressed)
    seen = (plan.query_pos + 1) // 4
    assert (listed[:, : topk - 128] < seen[:, None]).all()
    assert arguments["kv"].shape == (compressed + len(plan.swa_token_ids), 1, 512)
    assert arguments["topk_length"].tolist() == [topk] * queries


def test_a_case_of_every_body_reaches_far_into_the_queries() -> None:
    far = {c.heads for c in CASES.correctness() if c.s_q > 65535}
    assert min(far) <= 16 < max(far)


def test_a_peer_hands_its_own_tensors_on() -> None:
    peers: Any = importlib.import_module("dsv4_aot.templates.sparse_mla_fwd.peers")

    def old(q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int = 512) -> Any:
        return q, kv, sm_scale

    def new(
        q: Any, kv: Any, indices: Any, sm_scale: float, d_v: int = 512, attn_sink: Any = None,
        topk_length: Any = None,
    ) -> Any:  # fmt: skip
        return attn_sink, topk_length, sm_scale

    q, indices = zeros(2, 64, 512), zeros(2, 1, 128, dtype=torch.int32)
    sink, length = zeros(64), zeros(2)
    call = {"q": q, "kv": q, "indices": indices, "out": 0, "max_logits": 0, "lse": 0}
    given = {**call, "sm_scale": 0.5, "attn_sink": sink, "topk_length": length}
    assert peers.peer(new)(**given) == {"out": sink, "max_logits": length, "lse": 0.5}
    assert peers.peer(old)(**call, sm_scale=0.5)["lse"] == 0.5
    for forward, changed in (
        (old, {}), (new, {"base2": True}), (new, {"q": zeros(2, 16, 512)}),
        (new, {"indices": zeros(2, 1, 64)}),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError):
            peers.peer(forward)(**given | changed)
