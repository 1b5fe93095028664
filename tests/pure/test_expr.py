"""Expressions: the generated Python means what the walked node means, and travels as JSON."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_aot.runtime import expr
from dsv4_aot.runtime.expr import Node, cdiv, lift, maximum, minimum, size, value

LEAVES: list[Node] = [
    expr.Size("x", 0), expr.Size("x", -1), expr.Stride("x", 1), expr.Numel("x"), expr.Value("n"),
    expr.Present("x"), expr.Multiprocessors(),
]  # fmt: skip
NAMES = [f"v{index}" for index in range(len(LEAVES))]
FREE = ["add", "sub", "mul", "min", "max", "lt", "le", "eq", "ne", "and", "or"]
DIVIDING = ["floordiv", "cdiv", "mod"]


def combine(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    divisor = st.integers(1, 1000).map(expr.Const) | children.map(lambda x: maximum(x, 1))
    return st.builds(expr.Apply, st.sampled_from(FREE), children, children) | st.builds(
        expr.Apply, st.sampled_from(DIVIDING), children, divisor
    )


nodes = st.recursive(
    st.integers(-(2**40), 2**40).map(expr.Const) | st.sampled_from(LEAVES), combine, max_leaves=20
)
numbers = st.lists(st.integers(-(2**40), 2**40), min_size=len(LEAVES), max_size=len(LEAVES))


class Lookup:
    """An environment that gives every leaf its number."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def size(self, arg: str, dim: int) -> int:
        return self.values[0 if dim == 0 else 1]

    def stride(self, arg: str, dim: int) -> int:
        return self.values[2]

    def numel(self, arg: str) -> int:
        return self.values[3]

    def value(self, arg: str) -> int:
        return self.values[4]

    def present(self, arg: str) -> int:
        return self.values[5]

    def multiprocessors(self) -> int:
        return self.values[6]


@given(nodes, numbers)
def test_generated_python_means_the_same(node: Node, values: list[int]) -> None:
    source = expr.to_python(node, lambda leaf: NAMES[LEAVES.index(leaf)])
    came = eval(source, dict(zip(NAMES, values, strict=True)))
    assert came == expr.evaluate(node, Lookup(values))


@given(nodes)
def test_json_and_back(node: Node) -> None:
    assert msgspec.json.decode(msgspec.json.encode(node), type=Node) == node


@given(nodes)
def test_good_nodes_have_no_problems(node: Node) -> None:
    assert list(expr.problems(node, {"x": expr.Rank(2, leading=False)}, {"n"})) == []


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (size("y", 0), "there is no tensor argument 'y'"),
        (size("x", 2), "x has rank 2"),
        (size("x", -3), "x has rank 2"),
        (size("any", 2), "any has rank 2 or more, counted from either end"),
        (size("any", -3), "any has rank 2 or more, counted from either end"),
        (value("m"), "there is no scalar argument 'm'"),
        (size("x", 0) // size("x", 1), "the divisor may be zero"),
        (cdiv(1, minimum(value("n"), 1)), "the divisor may be zero"),
        (lift(3) % 0, "the divisor may be zero"),
    ],
)
def test_problems_are_named(node: Node, problem: str) -> None:
    tensors = {"x": expr.Rank(2, leading=False), "any": expr.Rank(2, leading=True)}
    assert any(problem in text for text in expr.problems(node, tensors, {"n"}))


def test_expressions_that_would_blow_up_are_refused() -> None:
    wide, deep = value("n"), value("n")
    for _ in range(12):
        wide = minimum(wide, wide)
    for _ in range(2000):
        deep = deep + 1
    for node in (wide, deep):
        assert any("over 40 deep" in text for text in expr.problems(node, {}, {"n"}))


def test_operators_take_integers_on_either_side() -> None:
    n = value("n")
    numbers = [0, 0, 0, 0, 5, 0, 0]
    for node, meant in [
        (17 + n, 22), (n + 17, 22), (17 - n, 12), (n - 17, -12), (3 * n, 15), (n * 3, 15),
        (17 // maximum(n, 1), 3), (n // 2, 2), (n % 3, 2), (n > 4, 1), (n >= 6, 0),
    ]:  # fmt: skip
        assert expr.evaluate(node, Lookup(numbers)) == meant


def test_text_for_people() -> None:
    node = cdiv(size("out", 1) - value("offset"), 8)
    assert expr.to_text(node) == "cdiv((out.shape[1] - offset), 8)"


def test_a_node_is_no_condition_at_build_time() -> None:
    with pytest.raises(TypeError, match=r"combine with & and \|"):
        bool(value("n") < 3)
