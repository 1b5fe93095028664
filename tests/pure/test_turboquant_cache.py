"""TurboQuantCache without a GPU: sizes, pages, and the kernels' references in their place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4_aot.integrations.turboquant import (
    KERNELS,
    PRESETS,
    OutOfPagesError,
    Shape,
    TurboQuantCache,
    capacity,
    table,
)
from dsv4_aot.runtime.errors import ArgumentError
from tests.launches import Launches

PAGE = Path(__file__).resolve().parents[2] / "docs/turboquant.md"
SMALL = Shape(layers=2, heads=4, kv_heads=2, head_dim=64)
Launch = Callable[..., None]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return Launches(tmp_path_factory.mktemp("turboquant"), KERNELS)


def small(launch: Launch, preset: str = "turboquant_4bit_nc", **changes: Any) -> TurboQuantCache:
    settings = {"pages": 5, "requests": 3, "max_tokens": 64, "device": "cpu"} | changes
    return TurboQuantCache(preset, SMALL, launch=launch, **settings)


# Sizes --------------------------------------------------------------------------------------------


def test_slots_are_as_the_format_has_them() -> None:
    sizes = {
        "turboquant_k8v4": (100, 196, 388),
        "turboquant_4bit_nc": (70, 134, 262),
        "turboquant_k3v4_nc": (62, 118, 230),
        "turboquant_3bit_nc": (54, 102, 198),
    }
    dims = (64, 128, 256)
    assert sizes == {n: tuple(p.slot_bytes(dim) for dim in dims) for n, p in PRESETS.items()}


@pytest.mark.parametrize(
    ("head_dim", "ratios"),
    [
        (64, (1, 2.18, 2.82, 3.06, 3.35)),
        (128, (1, 2.22, 2.91, 3.16, 3.47)),
        (256, (1, 2.23, 2.95, 3.22, 3.53)),
    ],
)
def test_capacity_counts_layers_that_stay_as_they_are(
    head_dim: int, ratios: tuple[float, ...]
) -> None:
    rows = capacity(Shape(36, 32, 8, head_dim, native=4), 1 << 30)
    assert tuple(round(row.ratio, 2) for row in rows) == ratios


def test_capacity_is_in_whole_pages() -> None:
    one = Shape(1, 1, 1, 64)
    tokens = [row.tokens for row in capacity(one, 10_000, page_size=32)]
    assert tokens == [32, 96, 128, 160, 160]  # of 256, 100, 70, 62 and 54 bytes


def test_the_documentation_has_this_table() -> None:
    lines = table(capacity(Shape(36, 32, 8, 128, native=4), 40_000_000_000))
    assert "\n".join(lines) in PAGE.read_text()


# Pages --------------------------------------------------------------------------------------------


def test_tokens_get_slots_of_their_requests(launch: Launch) -> None:
    cache = small(launch)
    first = cache.extend([17, 0, 3])
    pages = cache.block_table[[0, 0, 2], [0, 1, 0]].tolist()
    assert len(set(pages)) == 3
    expected = [pages[0] * 16 + i for i in range(16)] + [pages[1] * 16]
    assert first.tolist() == expected + [pages[2] * 16 + i for i in range(3)]
    assert cache.extend([1]).tolist() == [pages[1] * 16 + 1]
    assert cache.lengths == cache.seq_lens.tolist() == [18, 0, 3]
    assert cache.free_tokens == 32
    assert first.dtype == torch.int64


def test_released_pages_serve_others(launch: Launch) -> None:
    cache = small(launch)
    cache.extend([64, 16])
    with pytest.raises(OutOfPagesError, match="1 more pages are needed, and 0 are free"):
        cache.extend([0, 0, 1])
    cache.release(0)
    assert cache.seq_lens.tolist() == [0, 16, 0]
    slots = cache.extend([0, 0, 64])
    mine = set(cache.block_table[2].tolist())
    assert len(mine) == 4 and int(cache.block_table[1, 0]) not in mine
    assert {int(slot) // 16 for slot in slots} == mine


def test_a_refusal_takes_nothing(launch: Launch) -> None:
    cache = small(launch)
    cache.extend([20, 5])
    for tokens in ([1, 60], [45], [0, 30, 64]):
        with pytest.raises(OutOfPagesError):
            cache.extend(tokens)
        assert cache.lengths == cache.seq_lens.tolist() == [20, 5, 0]
        assert cache.free_tokens == 32
    with pytest.raises(OutOfPagesError, match="would have 65 tokens, and max_tokens allows 64"):
        cache.extend([45])


def test_wrong_settings_are_refused(launch: Launch) -> None:
    with pytest.raises(ArgumentError, match="preset is 'fp8', allowed: turboquant_k8v4, "):
        small(launch, "fp8")
    query = torch.zeros(6, 4, 64, dtype=torch.float16)
    with pytest.raises(ArgumentError, match="queries is 2, and the cache was made for at most 1"):
        small(launch).decode(0, query, query.clone(), queries=2)


# Kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_stored_is_attended_to(preset: str, launch: Launch) -> None:
    """Attention over what ``load`` gives is what ``decode`` gives."""
    cache = small(launch, preset, max_queries=2)
    random = torch.Generator().manual_seed(1)
    lengths, rows = (21, 0, 35), 60
    slots = cache.extend(lengths)
    key, value = (
        torch.randn(2, 56, 2, 64, generator=random).half() for _ in range(2)
    )  # of two layers
    for layer in range(2):
        cache.store(layer, key[layer], value[layer], slots)
    query = torch.randn(6, 4, 64, generator=random).half()
    out = torch.full_like(query, torch.nan)
    cache.decode(1, query, out, queries=2)

    starts = torch.tensor([2, 23, 25], dtype=torch.int32)
    keys, values = (torch.zeros(rows, 2, 64, dtype=torch.float16) for _ in range(2))
    cache.load(1, keys, values, starts)
    assert not keys[:2].any() and not values[:2].any()
    for request, length in enumerate(lengths):
        begin = int(starts[request])
        for i in range(2):
            seen = slice(begin, begin + length - 1 + i)
            k, v = (x[seen].float().repeat_interleave(2, 1) for x in (keys, values))
            scores = torch.einsum("hd,thd->ht", query[2 * request + i].float(), k) / 8
            expected = torch.einsum("ht,thd->hd", scores.softmax(-1), v)
            assert torch.allclose(out[2 * request + i].float(), expected, atol=4e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_example_of_the_documentation(preset: str, launch: Launch) -> None:
    cosine, worst = example()["compare"](preset, SMALL, (20, 3), 2, device="cpu", launch=launch)
    assert cosine > (0.99 if preset == "turboquant_k8v4" else 0.96)
    assert worst < 1.0


def example() -> dict[str, Any]:
    """The names that the page's program defines."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("tokens", [[1, 1, 1, 1], [2, -1]])
def test_extending_what_is_not_there_is_refused(tokens: list[int], launch: Launch) -> None:
    cache = small(launch)
    with pytest.raises(ArgumentError, match=r"up to 3 numbers, one for each request, from 0 on"):
        cache.extend(tokens)
    assert cache.lengths == [0, 0, 0]


@pytest.mark.parametrize("request_", [-1, 3])
def test_releasing_what_is_not_there_is_refused(request_: int, launch: Launch) -> None:
    cache = small(launch)
    cache.extend([0, 0, 20])
    with pytest.raises(ArgumentError, match=rf"request is {request_}, allowed: 0 to 2"):
        cache.release(request_)
    assert cache.lengths == [0, 0, 20]
