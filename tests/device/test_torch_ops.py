"""Torch operators on the GPU: PyTorch's own checks, compiled calls and captured ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.opcheck import utilities

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dsv4_aot.runtime import Library
    from tests.device.conftest import KernelCase

pytestmark = pytest.mark.filterwarnings("ignore:::torch")  # its compilers warn of themselves

TINY_BYTES = 4 << 20
CHECKED, COMPILED = 12, 3
"""Cases of each kernel that are checked or compiled, which takes far longer than to launch them."""


@pytest.fixture(scope="module")
def operators(library: Library) -> dict[str, Any]:
    """Kernel name -> ``torch.ops.dsv4_aot.<kernel>``."""
    import torch

    from dsv4_aot.integrations import torch_ops

    names = [name.removeprefix("dsv4_aot::") for name in torch_ops.register(library)]
    return {name: getattr(torch.ops.dsv4_aot, name) for name in names}


def held(each: KernelCase) -> int:
    """Bytes, all of which PyTorch's checks copy several times."""
    return max(each.case.memory, each.case.read + each.case.write)


@pytest.fixture(scope="module")
def tiny_cases(all_small_cases: list[KernelCase]) -> list[KernelCase]:
    """A kernel's smallest cases, and at least one of each."""
    least = {each.name: each for each in sorted(all_small_cases, key=held, reverse=True)}
    return [each for each in all_small_cases if held(each) <= TINY_BYTES or each in least.values()]


@pytest.fixture(scope="module")
def compiled_cases(tiny_cases: list[KernelCase]) -> list[KernelCase]:
    return some(tiny_cases, COMPILED)


def some(cases: list[KernelCase], most: int) -> list[KernelCase]:
    """At most so many of each kernel, spread over its list."""
    chosen = []
    for name in {each.name: None for each in cases}:
        own = [each for each in cases if each.name == name]
        chosen += own[:: -(-len(own) // most)]
    return chosen


def by_position(each: KernelCase, operator: Any) -> Callable[..., None]:
    """Takes names and passes places: Dynamo refuses a strided tensor by the name ``out``."""
    table = each.folder.spec.arguments

    def call(**given: Any) -> None:
        operator(*[given.get(arg.name, getattr(arg, "default", None)) for arg in table])

    return call


def refusals(
    cases: list[KernelCase], library: Library, device: torch.device, make: Callable[..., Any]
) -> list[str]:
    """Where ``make(case, arguments)`` gives a call that differs from a plain launch by a byte."""
    from dsv4_aot.generator.trial import Trial

    failures = []
    for each in cases:
        case = replace(each.case, tolerance=None)
        plain = library.op(each.name)
        trial = Trial(each.folder.spec.arguments, case, plain, device)
        outcome = trial.run(make(each, trial.arguments))
        if not outcome.passed:
            failures.append(f"{each}: {outcome.message}")
    return failures


def test_every_kernel_is_an_operator(operators: dict[str, Any], kernel_names: list[str]) -> None:
    assert set(kernel_names) <= operators.keys()


def test_pytorch_agrees_with_the_schemas(
    tiny_cases: list[KernelCase], operators: dict[str, Any], device: torch.device
) -> None:
    import torch

    assert {each.name for each in tiny_cases} <= operators.keys()
    for each in some(tiny_cases, CHECKED):
        arguments = each.case.make(device, 0)
        result = torch.library.opcheck(
            operators[each.name], (), arguments, test_utils=utilities(arguments)
        )
        assert set(result.values()) == {"SUCCESS"}, str(each)


def test_an_operator_is_a_launch(
    tiny_cases: list[KernelCase], library: Library, operators: dict[str, Any], device: torch.device
) -> None:
    assert not refusals(tiny_cases, library, device, lambda each, _: operators[each.name])


def test_a_compiled_call_is_a_launch(
    compiled_cases: list[KernelCase],
    library: Library,
    operators: dict[str, Any],
    device: torch.device,
) -> None:
    import torch

    def make(each: KernelCase, arguments: dict[str, Any]) -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(by_position(each, operators[each.name]), fullgraph=True)

    assert not refusals(compiled_cases, library, device, make)


def test_tensors_of_a_compiled_function_keep_their_strides(
    compiled_cases: list[KernelCase],
    library: Library,
    operators: dict[str, Any],
    device: torch.device,
) -> None:
    """The written tensors are made inside, where a compiler might lay them out otherwise."""
    import torch

    def make(each: KernelCase, arguments: dict[str, Any]) -> Callable[..., Any]:
        torch.compiler.reset()
        written = [
            arg.name
            for arg in each.folder.spec.arguments
            if getattr(arg, "result", False) and arguments.get(arg.name) is not None
        ]

        call = by_position(each, operators[each.name])

        def step(**given: Any) -> None:
            made = {
                name: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
                for name in written
                for x in (given[name],)
            }
            for name, x in made.items():
                x.copy_(given[name])
            call(**given | made)
            for name, x in made.items():
                given[name].copy_(x)

        return torch.compile(step, fullgraph=True)

    assert not refusals(compiled_cases, library, device, make)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # so is an empty call's
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_call_is_a_launch(
    compiled: bool,
    compiled_cases: list[KernelCase],
    library: Library,
    operators: dict[str, Any],
    device: torch.device,
) -> None:
    import torch

    def make(each: KernelCase, arguments: dict[str, Any]) -> Callable[..., Any]:
        call = by_position(each, operators[each.name])
        if compiled:
            torch.compiler.reset()
            call = torch.compile(call, fullgraph=True)
            call(**arguments)  # compiles, which no capture allows
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(**arguments)
        return lambda **_: graph.replay()

    assert not refusals(compiled_cases, library, device, make)
