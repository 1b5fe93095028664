"""Tensors for launches that only a recording driver sees."""

from __future__ import annotations

import torch


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on the first GPU; the recording driver reads no memory."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device(self) -> int:
        return 0
