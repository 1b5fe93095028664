"""What the GPU tests share: the built kernels, their cases, and why nothing runs where nothing can.

Artifacts come from ``$DSV4_AOT_ARTIFACTS`` or ``artifacts/build``, kernels from the checkout; the
probe alone is compiled here.
Without a GPU or artifacts the whole folder is skipped, and torch is not even imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.runtime import Library
from dsv4_aot.runtime.driver import CudaDriver
from dsv4_aot.runtime.errors import Dsv4AotError
from dsv4_aot.runtime.resolve import FOLDERS_VARIABLE, Installed, find
from tests.artifact import write_artifact
from tests.device.probe import KINDS, PROBE, nvrtc_cubin

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
    try:
        if not CudaDriver().device_count():
            return "there is no CUDA GPU here"
        installed = find_artifacts()
    except Dsv4AotError as error:
        return str(error)
    return None if installed else "no artifacts are built here"


def find_artifacts() -> list[Installed]:
    """Those of the environment, else those of this checkout."""
    named = os.environ.get(FOLDERS_VARIABLE)
    return find([] if named else [BUILD], entry_points=False)


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


def kernel_bodies() -> list[tuple[str, str]]:
    """Every kernel that is built, with each of its bodies, or with "" where it has one."""
    catalog = open_library().catalog()
    return sorted({(each.kernel, str(each.choices.get("body", ""))) for each in catalog})


def open_library() -> Library:
    return Library(find_artifacts())


def named(parameter: KernelCase | tuple[str, str]) -> str:
    """A test's name ends with this."""
    return "-".join(filter(None, parameter)) if isinstance(parameter, tuple) else str(parameter)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if reason is not None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``kernel_case`` is every case; ``small_case`` those that leave room for others;
    ``kernel_body`` what is built of every kernel.
    """
    for name, listed in (
        ("kernel_case", kernel_cases), ("small_case", small_cases), ("kernel_body", kernel_bodies),
    ):  # fmt: skip
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [] if why_not() else listed(), ids=named)


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


@pytest.fixture(scope="session")
def target() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    if major < 9:
        pytest.skip("the probe uses clusters, which begin with compute capability 9.0")
    return f"sm_{major}{minor}a"


@pytest.fixture(scope="session")
def cubin(target: str) -> bytes:
    return nvrtc_cubin(target)


@pytest.fixture
def folder(tmp_path: Path, target: str, cubin: bytes) -> Path:
    return write_artifact(tmp_path / target, [(PROBE, {"kind": k}, cubin) for k in KINDS], target)


@pytest.fixture
def probe(folder: Path) -> Library:
    return Library.open(folder)


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    import torch

    torch.cuda.empty_cache()
