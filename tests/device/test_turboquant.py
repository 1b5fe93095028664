"""TurboQuant on the GPU: codes at the borders of cells, and the documentation's program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dsv4_aot.runtime import Library

KERNELS = {"turboquant_store", "turboquant_decode", "turboquant_dequant"}
NEAR = 1e-6
"""Of an element of a key of norm 1 to a border: what sums in another order may decide."""
SHARE = 1e-5
"""Most codes that may be one off."""


@pytest.fixture(autouse=True)
def _built(kernel_names: list[str]) -> None:
    missing = KERNELS - set(kernel_names)
    if missing:
        pytest.skip(f"not built here: {', '.join(sorted(missing))}")


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("bits", [3, 4])
def test_codes_differ_by_one_and_next_to_borders_alone(
    bits: int, head_dim: int, library: Library, device: torch.device
) -> None:
    """The cases of turboquant_store leave out keys that a last bit decides; these do not."""
    import torch

    from dsv4_aot.templates.turboquant_dequant.reference import unpack
    from dsv4_aot.templates.turboquant_store import reference

    random = torch.Generator(device).manual_seed(2)
    tokens, heads = (1 << 21) // head_dim, 2
    form = (tokens, heads, head_dim)
    key = torch.randn(form, generator=random, device=device).bfloat16()
    cache = torch.zeros(tokens // 16, 16, heads, head_dim * (bits + 4) // 8 + 6,
                        dtype=torch.uint8, device=device)  # fmt: skip
    slots = torch.arange(tokens, device=device)
    library.launch("turboquant_store", key, key, cache, slots, bits, 4)
    stored = cache.flatten(0, 1)
    end = head_dim * bits // 8
    codes = unpack(stored[..., :end], bits)

    rotated, norm = reference.rotate(key.float())
    borders = reference.midpoints(head_dim, bits, device).double()
    expected = (rotated[..., None] >= borders).sum(-1)
    off = codes != expected
    distance = (rotated[..., None] - borders).abs().amin(-1)
    assert int((codes - expected).abs().max()) <= 1
    assert not bool((off & (distance > NEAR)).any())
    assert int(off.sum()) <= SHARE * codes.numel()

    norms = stored[..., end : end + 2].contiguous().view(torch.float16)[..., 0]
    assert bool(((norms - norm.half()).abs() <= torch.finfo(torch.float16).eps * norm).all())
    value = reference.encode_value(key.float(), 4)
    assert torch.equal(stored[..., end + 2 :], value)  # to the byte


@pytest.mark.parametrize(
    ("preset", "least", "most"),
    [("k8v4", 0.99, 0.3), ("4bit_nc", 0.985, 0.5), ("k3v4_nc", 0.97, 0.9), ("3bit_nc", 0.95, 0.9)],
)
def test_the_example_of_the_documentation(
    preset: str,
    least: float,
    most: float,
    library: Library,
    record_property: Callable[[str, object], None],
) -> None:
    from dsv4_aot.integrations.turboquant import Shape
    from tests.pure.test_turboquant_cache import example

    shape = Shape(layers=3, heads=32, kv_heads=8, head_dim=128)
    compare = example()["compare"]
    cosine, worst = compare(
        f"turboquant_{preset}", shape, (300, 37, 1024, 16), 200, launch=library.launch
    )
    record_property("cosine", cosine)
    record_property("greatest difference", worst)
    assert cosine > least
    assert worst < most


@pytest.mark.parametrize("preset", [(8, 4), (4, 4)])
def test_the_last_block_does_what_others_left(
    preset: tuple[int, int], library: Library, device: torch.device
) -> None:
    """A block that waited too long adds 2^16 to the request's counter; here none need do so."""
    import torch

    from dsv4_aot.templates.turboquant_decode.cases import alike

    plain, left = (alike(preset, 1, 32768).make(device, 0) for _ in range(2))
    left["counters"][0] = 1 << 16
    for call in (plain, left):
        library.launch("turboquant_decode", **call)
        assert not bool(call["counters"].any())
    assert torch.equal(plain["out"].view(torch.int16), left["out"].view(torch.int16))


def test_launches_of_two_streams_overlap(library: Library, device: torch.device) -> None:
    """Each may hold multiprocessors that blocks of the other wait for."""
    import torch

    from dsv4_aot.templates.turboquant_decode.cases import alike

    calls = [alike((4, 4), 1, 32768).make(device, 0) for _ in range(3)]
    library.launch("turboquant_decode", **calls[0])
    torch.cuda.synchronize(device)
    streams = [torch.cuda.Stream(device, priority=p) for p in (0, -1)]  # type: ignore[no-untyped-call]
    for _ in range(100):
        for stream, call in zip(streams, calls[1:], strict=True):
            with torch.cuda.stream(stream):
                library.launch("turboquant_decode", **call)
    torch.cuda.synchronize(device)
    for call in calls[1:]:
        assert torch.equal(call["out"].view(torch.int16), calls[0]["out"].view(torch.int16))
        assert not bool(call["counters"].any())
