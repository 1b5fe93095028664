"""Builds of two small kernels: incremental, parallel, and unharmed by whatever is killed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv4_aot.generator.build import BuildResult, Event, build
from dsv4_aot.generator.store import Store
from dsv4_aot.runtime.errors import BuildError, CompileError, SpecError

if TYPE_CHECKING:
    from conftest import Tiny

TARGETS = ("sm_90a", "sm_100a")
COUNT = 10
CUDA, STAGED = (
    "tiny_cuda/sm_90a/shifted=true,threads=64",
    "tiny_cute/sm_90a/staged=true,threads=128",
)
RUN = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import Tiny
from dsv4_aot.generator.build import build
from dsv4_aot.generator.store import Store
if __name__ == "__main__":
    tiny, store = Tiny(Path(sys.argv[2])), Store(Path(sys.argv[3]))
    print("started", flush=True)
    result = build(tiny.variants("sm_90a", "sm_100a").values(), store, jobs=2,
                   on_event=lambda event: print(event.kind, event.key, flush=True))
    print("compiled", result.compiled, "failures", len(result.failures))
    heavy = {"cutlass", "cuda", "torch"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 by variant key of a build that nothing disturbed."""
    # The fixture `tiny` serves one test; the templates are the same.
    from dsv4_aot.generator.discover import discover
    from dsv4_aot.generator.expand import expand
    from dsv4_aot.runtime.target import Target

    folders = discover(Path(__file__).parent / "templates").values()
    found = [v for f in folders for t in TARGETS for v in expand(f, Target.parse(t))]
    return hashes(build(found, Store(tmp_path_factory.mktemp("expected")), jobs=1))


def hashes(result: BuildResult) -> dict[str, str]:
    assert not result.failures
    return {key: artifact.sha256 for key, artifact in result.artifacts.items()}


def run(tiny: Tiny, store: Store) -> subprocess.Popen[str]:
    """A build in a process, and a process group, of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, Path(__file__).parent, tiny.root, store.root],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_unchanged_rebuild_compiles_nothing(
    tiny: Tiny, store: Store, expected: dict[str, str]
) -> None:
    variants = tiny.variants(*TARGETS).values()
    events: list[Event] = []
    first = build(variants, store, jobs=2, on_event=events.append)
    assert (first.compiled, first.reused) == (COUNT, 0)
    assert list(first.artifacts) == [variant.key for variant in variants]
    assert hashes(first) == expected
    assert [event.done for event in events] == list(range(1, COUNT + 1))
    assert {(event.kind, event.total) for event in events} == {("compiled", COUNT)}

    started = time.perf_counter()
    again = build(variants, store, on_event=events.append)
    assert time.perf_counter() - started < 0.2
    assert (again.compiled, again.reused) == (0, COUNT)
    assert again.artifacts == first.artifacts
    assert {event.kind for event in events[COUNT:]} == {"reused"}


def test_edit_rebuilds_what_uses_it(tiny: Tiny, store: Store) -> None:
    def rebuilt() -> set[str]:
        events: list[Event] = []
        build(tiny.variants("sm_90a").values(), store, jobs=1, on_event=events.append)
        return {event.key.split("/")[0] for event in events if event.kind == "compiled"}

    assert rebuilt() == {"tiny_cuda", "tiny_cute"}
    tiny.edit("tiny_cuda/kernel.cu.j2", "2.0f", "4.0f")
    assert rebuilt() == {"tiny_cuda"}
    tiny.edit("_shared/tiny.py", "1.0", "2.0")
    assert rebuilt() == {"tiny_cute"}
    tiny.edit("_shared/tiny.cuh", "1.0f", "3.0f")
    assert rebuilt() == {"tiny_cuda"}
    tiny.edit("tiny_cuda/kernel.py", "adds one, or doubles", "adds three, or quadruples")
    assert rebuilt() == set()


def test_variants_of_one_source_compile_once(tiny: Tiny, store: Store) -> None:
    tiny.edit("tiny_cuda/kernel.cu.j2", "{{ threads }}", "blockDim.x")
    result = build(tiny.variants("sm_90a").values(), store, jobs=1)
    first, second = (result.artifacts[CUDA.replace("64", n)] for n in ("64", "128"))
    assert (result.compiled, result.reused) == (4, 1)
    assert first.build_key == second.build_key
    assert (first.key, second.key) == (CUDA, CUDA.replace("64", "128"))


def test_failures_are_reported_and_stop_no_other(tiny: Tiny, store: Store) -> None:
    tiny.edit(
        "tiny_cuda/kernel.cu.j2", "out[i] =", "{% if threads == 64 %}oops{% endif %} out[i] ="
    )
    tiny.edit("tiny_cute/device.py", "cute.arch.barrier()", "cute.arch.nowhere()")
    result = build(tiny.variants("sm_90a").values(), store, jobs=2)
    assert set(result.failures) == {CUDA, STAGED}
    assert len(result.artifacts) == 3
    for key, word in ((CUDA, "oops"), (STAGED, "nowhere")):
        error = result.failures[key]
        assert isinstance(error, CompileError)
        assert error.message.startswith(f"{key}: ")
        assert word in error.message + error.log


def test_faulty_template_fails_its_own_variants(tiny: Tiny, store: Store) -> None:
    tiny.edit("tiny_cuda/kernel.cu.j2", "{{ threads }}", "{{ warps }}")
    result = build(tiny.variants("sm_90a").values(), store, jobs=1)
    assert {key.split("/")[0] for key in result.artifacts} == {"tiny_cute"}
    assert all(isinstance(error, SpecError) for error in result.failures.values())


def test_cubin_that_breaks_its_spec_is_refused_also_when_it_is_reused(
    tiny: Tiny, store: Store
) -> None:
    tiny.edit("tiny_cute/kernel.py", "shared=4 * THREADS", "shared=8 * THREADS")
    for compiled, reused in ((2, 0), (0, 1)):
        variants = [v for v in tiny.variants("sm_90a").values() if v.folder.name == "tiny_cute"]
        result = build(variants, store, jobs=1)
        assert (result.compiled, result.reused) == (compiled, reused)
        assert list(result.failures) == [STAGED]
        assert "1024 bytes of dynamic shared memory, the kernel uses 512" in str(
            result.failures[STAGED]
        )
    tiny.edit("tiny_cuda/kernel.py", 'number("n", "i32"', 'number("n", "i64"')
    cuda = [v for v in tiny.variants("sm_90a").values() if v.folder.name == "tiny_cuda"]
    failures = build(cuda, store, jobs=1).failures
    assert len(failures) == 3
    assert "n [16:24]" in str(failures[CUDA])
    assert "[16:20]" in str(failures[CUDA])


SPILL = """
    float v[64];
    for (int k = 0; k < 64; ++k) v[k] = out[k * n];
    __syncthreads();
    for (int k = 0; k < 64; ++k) out[k * n] = v[k] * v[63 - k];
}
"""


def test_spills_need_a_reason(tiny: Tiny, store: Store) -> None:
    tiny.edit("tiny_cuda/kernel.cu.j2", "= __FILE__;\n}", "= __FILE__;" + SPILL)
    tiny.edit("tiny_cuda/kernel.py", '(entry="', '(options=("--maxrregcount=32",), entry="')

    def failure() -> str:
        return str(build([tiny.variants("sm_90a")[CUDA]], store, jobs=1).failures.get(CUDA))

    assert "gives no reason in spills_allowed" in failure()
    tiny.edit("tiny_cuda/kernel.py", "    source=", '    spills_allowed="a test",\n    source=')
    assert failure() == "None"
    tiny.edit("tiny_cuda/kernel.py", "    source=", "    max_registers=16,\n    source=")
    assert "registers a thread, the spec allows 16" in failure()


def test_other_executors_serve(tiny: Tiny, store: Store, expected: dict[str, str]) -> None:
    with ThreadPoolExecutor(2) as executor:
        result = build(tiny.variants(*TARGETS).values(), store, executor=executor)
    assert hashes(result) == expected


def test_conductor_loads_no_compiler(tiny: Tiny, store: Store) -> None:
    with run(tiny, store) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"compiled {COUNT} failures 0" in out


def test_two_builds_at_once_share_the_work(
    tiny: Tiny, store: Store, expected: dict[str, str]
) -> None:
    with run(tiny, store) as one, run(tiny, store) as two:
        ends = [process.communicate(timeout=60) for process in (one, two)]
    assert [err for _, err in ends] == ["", ""]
    compiled = [
        line for out, _ in ends for line in out.splitlines() if line.startswith("compiled tiny")
    ]
    assert len(compiled) == len(set(compiled)) == COUNT
    assert hashes(build(tiny.variants(*TARGETS).values(), store)) == expected


@pytest.mark.parametrize("events", [0, 1, 4])
def test_killed_build_leaves_nothing_half_done(
    tiny: Tiny, store: Store, expected: dict[str, str], events: int
) -> None:
    with run(tiny, store) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        for _ in range(events):
            assert process.stdout.readline().startswith("compiled")
        time.sleep(0.05)
        process.kill()
        process.stdout.read()  # ends when the last worker has gone with its conductor
    assert ended(process.pid)
    again = build(tiny.variants(*TARGETS).values(), store, jobs=2)
    assert again.compiled <= COUNT - events
    assert hashes(again) == expected
    assert list((store.root / "tmp").iterdir()) == []


def ended(session: int) -> bool:
    """Whether every process of a session ends soon."""
    deadline = time.monotonic() + 10
    while running(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def running(session: int) -> list[int]:
    """Processes of a session, which is named after its first process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_killed_worker_is_named_and_stops_no_other(tiny: Tiny, store: Store) -> None:
    end = '    if staged:\n        __import__("os")._exit(9)\n'
    tiny.edit("tiny_cute/device.py", "    @cute.kernel\n", f"{end}\n    @cute.kernel\n")
    result = build(tiny.variants("sm_90a").values(), store, jobs=2)
    assert list(result.failures) == [STAGED]
    assert len(result.artifacts) == 4
    error = result.failures[STAGED]
    assert isinstance(error, BuildError)
    assert error.message == f"{STAGED}: the process that compiled it was killed"
    assert "--jobs" in str(error.tip)


def test_interrupt_ends_the_workers(tiny: Tiny, store: Store) -> None:
    with run(tiny, store) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert process.stdout.readline().startswith("compiled")
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1
    assert ended(process.pid)


def test_store_that_cannot_be_written_is_one_error(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"cannot write .*: Not a directory"):
        build(tiny.variants("sm_90a").values(), Store(tmp_path / "file" / "store"), jobs=1)


def test_full_disk_is_one_error(tiny: Tiny, store: Store) -> None:
    """A limit on file sizes, which workers inherit, stands in for the disk's end."""
    cuda = [v for v in tiny.variants("sm_90a").values() if v.folder.name == "tiny_cuda"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(BuildError, match=r"cannot write .*: File too large"):
            build(cuda, store, jobs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert build(cuda, store, jobs=1).compiled == len(cuda)


def test_damaged_entry_is_built_again(tiny: Tiny, store: Store, expected: dict[str, str]) -> None:
    variants = tiny.variants("sm_90a").values()
    first = build(variants, store, jobs=1)
    entry = store.folder(first.artifacts[CUDA].build_key)
    data = (entry / "kernel.cubin").read_bytes()
    (entry / "kernel.cubin").write_bytes(data[:-1])
    shutil.rmtree(store.folder(first.artifacts[STAGED].build_key))
    again = build(variants, store, jobs=1)
    assert again.compiled == 2
    assert hashes(again) == {key: expected[key] for key in again.artifacts}
