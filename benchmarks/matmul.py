"""The yardstick of kernels that compute: a large bf16 matrix product, as torch does it."""

from __future__ import annotations

import functools

import timing
import torch

SIZE = 8192


def tflops() -> float:
    """Of ``SIZE`` x ``SIZE`` matrices, timed as kernels are."""
    random = torch.Generator("cuda").manual_seed(0)
    sets = [
        [
            torch.randn(SIZE, SIZE, generator=random, device="cuda").bfloat16()
            for _ in ("a", "b", "product")
        ]
        for _ in range(2)
    ]
    launches = [functools.partial(torch.matmul, a, b, out=product) for a, b, product in sets]
    return 2 * SIZE**3 / timing.graph_time(launches, least_us=1000.0) / 1e6
