"""One small kernel, built for real once a session: what the tests of the output side share."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.runtime import manifest as manifests
from dsv4_aot.runtime.schema import Manifest
from dsv4_aot.runtime.target import Target

if TYPE_CHECKING:
    from dsv4_aot.generator.discover import KernelFolder
    from dsv4_aot.generator.store import Artifact

# Tensors of the tests are small: threads that wait for their share cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SPEC = """\
from dsv4_aot.generator.spec import (
    CudaSource, KernelSpec, bound, dtype_of, launch, number, pointer, rule, scalar, tensor, tuned,
)
from dsv4_aot.runtime.expr import cdiv, numel, value

KERNEL = KernelSpec(
    name="scale",
    summary="y = x * factor",
    arguments=(
        tensor("x", ("float32", "int32"), (None,), contiguous=True),
        tensor("y", ("float32", "int32"), (None,), contiguous=True, access="write"),
        scalar("factor", "int", minimum=-100, maximum=100),
    ),
    axes=(
        bound("element", {"float": "float32", "int": "int32"}, dtype_of("x")),
        tuned("threads", (128, 256)),
    ),
    rules=(rule(when=numel("x") >= 4096, threads=256), rule(threads=128)),
    params=(pointer("x"), number("factor", "i32", value("factor")),
            number("count", "i64", numel("x")), pointer("y")),
    launch=lambda choices: launch((cdiv(numel("x"), choices["threads"]),), choices["threads"]),
    source=CudaSource(entry="scale"),
)
"""
TEMPLATE = """\
extern "C" __global__ void __launch_bounds__({{ threads }})
scale(const {{ element }}* x, int factor, long long count, {{ element }}* y) {
  long long i = blockIdx.x * (long long){{ threads }} + threadIdx.x;
  if (i < count) y[i] = x[i] * factor;
}
"""


@dataclass(frozen=True)
class Sample:
    """The kernel ``scale`` for sm_90a: four variants, two element types by two block sizes."""

    target: Target
    folders: dict[str, KernelFolder]
    artifacts: dict[str, Artifact]
    folder: Path
    manifest: Manifest

    def copy(self, place: Path) -> Path:
        """A target folder of its own for a test that spoils it."""
        return Path(shutil.copytree(self.folder, place / str(self.target)))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    # Here and not above: the runtime's tests run without the packages that a build needs.
    from dsv4_aot.generator.build import build
    from dsv4_aot.generator.discover import discover
    from dsv4_aot.generator.expand import expand
    from dsv4_aot.generator.pack import pack
    from dsv4_aot.generator.store import Store

    root = tmp_path_factory.mktemp("sample")
    kernel = root / "templates" / "scale"
    kernel.mkdir(parents=True)
    (kernel / "kernel.py").write_text(SPEC)
    (kernel / "kernel.cu.j2").write_text(TEMPLATE)
    target = Target.parse("sm_90a")
    folders = discover(root / "templates")
    result = build(expand(folders["scale"], target), Store(root / "store"), jobs=1)
    assert not result.failures
    pack(target, folders, result.artifacts, root / "out", root / "validation")
    folder = root / "out" / str(target)
    return Sample(target, folders, dict(result.artifacts), folder, manifests.read(folder))
