"""What the GPU tests share: the built kernels, their cases, and why nothing runs where nothing can.

Artifacts come from ``$DSV4_AOT_ARTIFACTS`` or ``artifacts/build``, kernels from the checkout.
Without a GPU or artifacts the whole folder is skipped, and torch is not even imported.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.runtime import Library

if TYPE_CHECKING:
    import torch

    from dsv4_aot.generator.spec import Case

BUILD = Path(__file__).parents[2] / "artifacts" / "build"
SMALL_BYTES = 256 << 20
"""A case that moves or holds more than this is left to validation and benchmarks alone."""


@dataclass(frozen=True)
class KernelCase:
    """One case of one discovered kernel."""

    folder: KernelFolder
    case: Case

    @property
    def name(self) -> str:
        return self.folder.name

    def __str__(self) -> str:
        return f"{self.name}-{self.case.name}"


@functools.cache
def why_not() -> str | None:
    """Why no kernel can be run here, or None."""
    from cuda.bindings import driver

    status, *_ = driver.cuInit(0)
    count = driver.cuDeviceGetCount()[1] if status == driver.CUresult.CUDA_SUCCESS else 0
    if not count:
        return f"there is no CUDA GPU here (cuInit: {status.name})"
    if not artifact_paths() and not os.environ.get("DSV4_AOT_ARTIFACTS"):
        return f"nothing is built in {BUILD}, and DSV4_AOT_ARTIFACTS names no other folder"
    return None


def artifact_paths() -> list[Path]:
    """Folders to open beside those that the environment names."""
    if os.environ.get("DSV4_AOT_ARTIFACTS"):
        return []
    return [BUILD] if any(BUILD.glob("*/manifest.json")) else []


@functools.cache
def kernel_cases() -> tuple[KernelCase, ...]:
    """Every case of every kernel that is built, in the kernels' order."""
    built = {entry.kernel for entry in open_library().catalog()}
    return tuple(
        KernelCase(folder, case)
        for folder in discover().values()
        if folder.name in built
        for case in folder.cases()
    )


def small_cases() -> list[KernelCase]:
    return [
        each
        for each in kernel_cases()
        if max(each.case.memory, each.case.read + each.case.write) <= SMALL_BYTES
    ]


def open_library() -> Library:
    return Library.open(*artifact_paths())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if reason is not None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``kernel_case`` is every case; ``small_case`` those that leave room for others."""
    for name, listed in (("kernel_case", kernel_cases), ("small_case", small_cases)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [] if why_not() else listed(), ids=str)


@pytest.fixture(scope="session")
def library() -> Library:
    """All that is built, loaded, so that every test may capture."""
    opened = open_library()
    opened.preload()
    return opened


@pytest.fixture(scope="session")
def all_cases() -> tuple[KernelCase, ...]:
    return kernel_cases()


@pytest.fixture(scope="session")
def all_small_cases() -> list[KernelCase]:
    return small_cases()


@pytest.fixture(scope="session")
def kernel_names() -> list[str]:
    return sorted({each.name for each in kernel_cases()})


@pytest.fixture(scope="session")
def device() -> torch.device:
    import torch

    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _give_memory_back(request: pytest.FixtureRequest) -> None:
    import torch

    request.addfinalizer(torch.cuda.empty_cache)
