"""Which GPU a record was made on: its name, capability and driver."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv4_aot.runtime.errors import DriverError
from dsv4_aot.runtime.target import Capability

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One CUDA device as records name it.

    slug: file name of its records, ``nvidia-h200``. driver: its version, ``580.159.04``.
    memory: bytes.
    """

    index: int
    name: str
    capability: Capability
    driver: str
    memory: int

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index)


def current_gpu(index: int | None = None) -> Gpu:
    """The GPU ``index``, or torch's current one. Raises DriverError when there is none."""
    if not torch.cuda.is_available():
        raise DriverError(
            "no CUDA GPU is visible here, and cases run on a GPU only",
            tip="run this on a machine with an NVIDIA GPU and a PyTorch that supports it",
        )
    number = torch.cuda.current_device() if index is None else index
    properties = torch.cuda.get_device_properties(number)
    return Gpu(
        index=number,
        name=properties.name,
        capability=Capability(properties.major, properties.minor),
        driver=driver_version(),
        memory=properties.total_memory,
    )


def driver_version() -> str:
    """The version of the loaded NVIDIA kernel driver. Raises DriverError when nothing tells it."""
    if _DRIVER_FILE.exists():
        match = re.search(r"Module\D*(\d+(?:\.\d+)+)", _DRIVER_FILE.read_text())
        if match:
            return match[1]
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.split()[0]
    raise DriverError(
        f"the driver's version is told neither by {_DRIVER_FILE} nor by nvidia-smi",
        tip="install nvidia-smi, which comes with the driver",
    )
