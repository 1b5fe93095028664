"""Launches without a GPU: the runtime checks them, and the kernels' references do them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dsv4_aot.generator.discover import discover
from dsv4_aot.generator.expand import expand
from dsv4_aot.runtime.target import Target
from tests.artifact import cubin_of, write_artifact
from tests.on_gpu import OnGpu
from tests.recording import open_recorded


class Launches:
    """A launch on the CPU of the kernels that are named, which notes what it is asked for.

    calls: names, with the number of sources where it decodes.
    """

    def __init__(self, folder: Path, kernels: Iterable[str]) -> None:
        self.folders, self.calls = discover(), list[str]()
        variants = [v for n in kernels for v in expand(self.folders[n], Target.parse("sm_90a"))]
        cubins = [(v.folder.spec, v.choices, cubin_of(v.folder.name, v.choices)) for v in variants]
        self.library, _ = open_recorded(write_artifact(folder / "sm_90a", cubins))

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> None:
        table = [arg.name for arg in self.folders[name].spec.arguments]
        call = dict(zip(table, args, strict=False)) | kwargs
        self.library.launch(name, **{key: on_gpu(value) for key, value in call.items()})
        self.folders[name].reference()(**call)
        two = call.get("window_out") is not None
        self.calls.append(f"{name} {1 + two}" if name == "dequant_paged" else name)

    def taken(self) -> list[str]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


def on_gpu(value: Any) -> Any:
    return value.as_subclass(OnGpu) if isinstance(value, torch.Tensor) else value
