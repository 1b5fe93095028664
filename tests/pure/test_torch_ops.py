"""Torch operators without a GPU: schemas, what compilers make of them, launches as recorded."""

from __future__ import annotations

import json
import keyword
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv4_aot.generator import spec
from dsv4_aot.generator.discover import KernelFolder, discover
from dsv4_aot.generator.spec import Case
from dsv4_aot.generator.trial import run_case
from dsv4_aot.integrations import torch_ops
from dsv4_aot.runtime import (
    ArgumentError,
    ConflictError,
    Library,
    ManifestError,
    NoArtifactError,
    UnknownKernelError,
)
from dsv4_aot.runtime.resolve import Installed
from dsv4_aot.runtime.schema import Argument, KernelRecord, TensorArg
from dsv4_aot.runtime.target import Target
from tests.artifact import (
    GATHER,
    gather_call,
    gather_cubins,
    manifest_of,
    record_of,
    write_artifact,
)
from tests.on_gpu import OnGpu
from tests.opcheck import utilities
from tests.recording import RecordingDriver, open_recorded

FOLDERS = discover()
RECORDS = {name: record_of(folder.spec, ()) for name, folder in FOLDERS.items()}
CPU = torch.device("cpu")


def record(name: str, *arguments: Argument) -> KernelRecord:
    return structs.replace(
        record_of(GATHER, ()), name=name, arguments=arguments, checks=(), axes=()
    )


def library_of(*records: KernelRecord, targets: tuple[str, ...] = ("sm_90a",)) -> Library:
    """Installed as manifests alone: enough for everything but a launch."""
    return Library(
        [
            Installed(Path(), manifest_of(target, records), Target.parse(target), target)
            for target in targets
        ]
    )


def parse(record: KernelRecord) -> Any:
    return torch._C.parse_schema(f"dsv4_aot::{torch_ops.schema_of(record)}")


# Schemas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_a_schema_says_what_the_argument_table_says(name: str) -> None:
    schema = parse(RECORDS[name])
    assert schema.name == f"dsv4_aot::{name}" and schema.returns == []
    for arg, found in zip(RECORDS[name].arguments, schema.arguments, strict=True):
        assert found.name == arg.name
        if isinstance(arg, TensorArg):
            assert str(found.type) == ("Optional[Tensor]" if arg.optional else "Tensor")
            assert found.is_write is (arg.access != "read")
        else:
            assert str(found.type) == {"int": "int", "float": "float", "bool": "bool"}[arg.type]
            assert (
                arg.default is None
                or not found.has_default_value()
                or (found.default_value == arg.default)
            )
    assert schema.is_mutable


def test_a_schema_by_hand() -> None:
    assert torch_ops.schema_of(record_of(GATHER, ())) == (
        "gather(Tensor(a0!) out, Tensor k_cache, Tensor seq_lens, Tensor? gather_lens, "
        "Tensor block_table, SymInt block_size, SymInt offset=0) -> ()"
    )
    arguments = (
        spec.scalar("eps", "float", default=1),  # no default in the schema: one after it has none
        spec.tensor("cache", "uint8", (None,), access="readwrite"),
        spec.tensor("lse", "float32", (None,), access="write", optional=True),
        spec.scalar("scale", "float", default=1),
        spec.scalar("causal", "bool", default=False),
    )
    assert torch_ops.schema_of(record("step", *arguments)) == (
        "step(float eps, Tensor(a1!) cache, Tensor(a2!)? lse=None, float scale=1.0, "
        "bool causal=False) -> ()"
    )


DEFAULTS = st.one_of(
    st.tuples(st.just("int"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(
        st.just("float"), st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    ),
    st.tuples(st.just("bool"), st.booleans()),
)


@given(DEFAULTS)
def test_defaults_come_through_a_schema_exactly(default: tuple[Any, Any]) -> None:
    kind, value = default
    (found,) = parse(record("k", spec.scalar("x", kind, default=value))).arguments
    assert found.default_value == value and type(found.default_value) is type(value)


@given(st.one_of(
    st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True),
    st.sampled_from(sorted({
        *keyword.kwlist, *keyword.softkwlist, "self", "input", "out", "tensor", "int", "float",
        "bool", "str", "list", "inf", "nan", "print", "async", "device", "layout", "dtype",
    })),
))  # fmt: skip
def test_names_are_taken_as_they_are_or_refused(name: str) -> None:
    tensor = spec.tensor("x", "int8", (None,), access="write")
    for made in (record("k", structs.replace(tensor, name=name)), record(name, tensor)):
        try:
            schema = parse(made)
        except ManifestError:
            assert keyword.iskeyword(name) or name in {"stream", "choices", "self"}
        else:
            assert (schema.name, schema.arguments[0].name) == (
                f"dsv4_aot::{made.name}", made.arguments[0].name
            )  # fmt: skip


# Registering --------------------------------------------------------------------------------------


def test_registering_is_explicit_idempotent_and_by_name() -> None:
    arguments = (spec.tensor("x", "int8", (None,), access="write"),)
    names = ("registered_a", "registered_b", "registered_c")
    library = library_of(*(record(name, *arguments) for name in names))
    assert not any(hasattr(torch.ops.dsv4_aot, name) for name in names)
    assert torch_ops.register(library, ["registered_b"]) == ("dsv4_aot::registered_b",)
    assert not hasattr(torch.ops.dsv4_aot, "registered_a")
    operator = torch.ops.dsv4_aot.registered_b.default
    every = tuple(f"dsv4_aot::{name}" for name in names)
    assert torch_ops.register(library) == torch_ops.register(library) == every
    assert torch.ops.dsv4_aot.registered_b.default is operator


def test_what_cannot_be_registered() -> None:
    x = spec.tensor("x", "int8", (None,), access="write")
    library = library_of(record("refused", x))
    with pytest.raises(NoArtifactError, match="no artifacts are installed"):
        torch_ops.register(Library([]))
    with pytest.raises(UnknownKernelError, match="nearest: refused"):
        torch_ops.register(library, ["refusd"])
    other = structs.replace(record("refused", x), arguments=(x, structs.replace(x, name="y")))
    differing = Library([*library.installed, *library_of(other, targets=("sm_100a",)).installed])
    with pytest.raises(ConflictError, match="sm_90a and sm_100a give different arguments for ref"):
        torch_ops.register(differing)
    with pytest.raises(ManifestError, match="may not be named 'in'"):
        torch_ops.register(library_of(record("refused", structs.replace(x, name="in"))))
    assert not hasattr(torch.ops.dsv4_aot, "refused")
    torch_ops.register(library_of(record("refused", x), targets=("sm_90a", "sm_100a")))
    with pytest.raises(ConflictError, match="launches from another library already"):
        torch_ops.register(library)


def test_importing_does_nothing_and_torch_is_asked_for_in_words(folder: Path) -> None:
    code = """
import json, sys
from dsv4_aot.integrations import torch_ops
met = "torch" in sys.modules
sys.modules["torch"] = None
from dsv4_aot.runtime import Library
try:
    torch_ops.register(Library.open(sys.argv[1]))
except Exception as error:
    print(json.dumps([met, type(error).__name__, str(error)]))
"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True)
    met, kind, message = json.loads(done.stdout)
    assert not met and kind == "Dsv4AotError"
    assert message.startswith("torch operators need torch") and "pip install torch" in message


# Compiling ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[None]:
    """The discovered kernels' operators; on the CPU their references stand in for the launch."""
    torch_ops.register(library_of(*RECORDS.values()), RECORDS)
    implementations = torch.library.Library("dsv4_aot", "IMPL")
    for name, folder in FOLDERS.items():
        implementations.impl(name, _reference(folder), "CPU")
    yield
    implementations._destroy()


def _reference(folder: KernelFolder) -> Callable[..., None]:
    """Torch leaves out arguments at the end that equal their defaults."""
    names = [arg.name for arg in folder.spec.arguments]
    defaults = {arg.name: getattr(arg, "default", None) for arg in folder.spec.arguments}

    def call(*args: Any) -> None:
        folder.reference()(**defaults | dict(zip(names, args, strict=False)))

    return call


def small(folder: KernelFolder) -> Case:
    """The kernel's case by hand: it runs on the CPU too."""
    return min(folder.cases(), key=lambda case: (case.expected is None, case.read + case.write))


@pytest.mark.parametrize("name", FOLDERS)
def test_pytorch_agrees_with_the_schema(name: str, on_cpu: None) -> None:
    """Only what is declared is written, and every way of compiling gives the same."""
    arguments = small(FOLDERS[name]).make(CPU, 0)
    torch.library.opcheck(operator(name), (), arguments, test_utils=utilities(arguments))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_compiled_call_writes_what_a_plain_one_writes(name: str, on_cpu: None) -> None:
    torch.compiler.reset()
    folder = FOLDERS[name]
    call = torch.compile(operator(name), fullgraph=True, backend="aot_eager")
    outcome = run_case(folder.spec.arguments, small(folder), folder.reference(), call, CPU)
    assert outcome.passed, outcome.message


@pytest.mark.parametrize("name", FOLDERS)
def test_fake_tensors_of_a_gpu_need_none(name: str, on_cpu: None) -> None:
    arguments = small(FOLDERS[name]).make(CPU, 0)
    with FakeTensorMode():
        fakes = {
            key: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
            if isinstance(x, torch.Tensor) else x
            for key, x in arguments.items()
        }  # fmt: skip
        assert operator(name)(**fakes) is None


def _fill(x: torch.Tensor, rows: int) -> None:
    x.fill_(rows)


def test_a_compiled_size_is_passed_on_without_compiling_again() -> None:
    """And what comes after an operator sees what it wrote."""
    torch.compiler.reset()
    arguments = (spec.tensor("x", "int64", (None,), access="write"), spec.scalar("rows", "int"))
    torch_ops.register(library_of(record("fill_rows", *arguments)))
    fragment: Any = torch.library.Library("dsv4_aot", "IMPL")
    fragment.impl("fill_rows", _fill, "CPU")
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, dynamic=True, backend=count)
    def step(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        torch.ops.dsv4_aot.fill_rows(out, x.shape[0])
        return out + 1

    for rows in (3, 5, 8):
        assert step(torch.zeros(rows, dtype=torch.int64)).tolist() == [rows + 1] * rows
    assert len(graphs) == 1


def operator(name: str) -> Any:
    return getattr(torch.ops.dsv4_aot, name).default


# Launching ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, RecordingDriver]:
    """The one library of this process that ``gather`` is registered from."""
    folder = write_artifact(tmp_path_factory.mktemp("a") / "sm_90a", list(gather_cubins()))
    library, driver = open_recorded(folder)
    torch_ops.register(library)
    return library, driver


def gather_tensors() -> dict[str, Any]:
    """A right call of ``gather`` in torch's tensors."""
    call = gather_call(offset=2)
    for name, x in call.items():
        if hasattr(x, "shape"):
            dtype = getattr(torch, x.dtype)
            made = torch.empty_strided(x.shape, x.stride(), dtype=dtype)
            call[name] = made.as_subclass(OnGpu)
    return call


def test_an_operator_launches_what_the_runtime_launches(
    recorded: tuple[Library, RecordingDriver],
) -> None:
    library, driver = recorded
    driver.launches.clear()
    call = gather_tensors()
    library.launch("gather", **call)
    assert torch.ops.dsv4_aot.gather(**call) is None
    torch.ops.dsv4_aot.gather(*call.values())
    plain, *operators = driver.launches
    assert operators == [plain, plain]
    call["gather_lens"], call["offset"] = call["seq_lens"], 0
    library.launch("gather", **call)
    torch.ops.dsv4_aot.gather(*list(call.values())[:-1])  # the offset's default
    assert driver.launches[3] == driver.launches[4] != plain


def test_a_wrong_call_is_refused_in_the_runtimes_words(
    recorded: tuple[Library, RecordingDriver],
) -> None:
    _, driver = recorded
    driver.launches.clear()
    call = gather_tensors()
    with pytest.raises(ArgumentError, match="gather: offset is -1, allowed: 0 to"):
        torch.ops.dsv4_aot.gather(**call | {"offset": -1})
    plain = {k: torch.empty(x.shape) if hasattr(x, "shape") else x for k, x in call.items()}
    with pytest.raises(ArgumentError, match="gather: out is a torch tensor on cpu, allowed: a CUD"):
        torch.ops.dsv4_aot.gather(**plain)
    assert driver.launches == []
