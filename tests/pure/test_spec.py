"""What an author writes becomes the manifest's records."""

from __future__ import annotations

import msgspec

from dsv4_aot.generator.discover import record
from dsv4_aot.generator.spec import (
    CudaSource,
    KernelSpec,
    bound,
    dtype_of,
    launch,
    number,
    pointer,
    rule,
    scalar,
    tensor,
    tuned,
)
from dsv4_aot.runtime.expr import Const, cdiv, numel, value
from dsv4_aot.runtime.schema import AxisValue, DtypeOf, Expression, KernelRecord

SPEC = KernelSpec(
    name="scale",
    summary="x *= factor",
    arguments=[
        tensor("x", ["bfloat16", "float32"], [None, value("width")], align=16, access="readwrite"),
        scalar("factor", "float", default=1.0),
        scalar("width", "int", minimum=1),
    ],
    axes=[
        bound("element", {"half": "bfloat16", "single": "float32"}, dtype_of("x")),
        bound("width", [64, 128], value("width")),
        tuned("threads", [128, 256]),
    ],
    rules=[rule(where={"width": [64]}, threads=128), rule(threads=256)],
    params=lambda choices: [pointer("x"), number("factor", "f32", value("factor"))],
    launch=lambda choices: launch([cdiv(numel("x"), choices["threads"])], choices["threads"]),
    source=lambda choices: CudaSource(entry=f"scale_{choices['element']}"),
)


def test_record_survives_its_own_json() -> None:
    declared = record(SPEC)
    assert msgspec.json.decode(msgspec.json.encode(declared), type=KernelRecord) == declared


def test_bound_axes_name_choice_and_bound_value() -> None:
    element, width, threads = SPEC.axes
    assert element.values[0] == AxisValue(choice="half", when="bfloat16")
    assert element.bind == DtypeOf(arg="x")
    assert width.bind == Expression(node=value("width"))
    assert threads.bind is None
    assert SPEC.bound_axes() == (element, width)


def test_domain_left_out_is_the_product_of_the_bound_axes() -> None:
    assert SPEC.products() == ({"element": ("half", "single"), "width": (64, 128)},)


def test_launch_fills_missing_dims_with_one() -> None:
    geometry = SPEC.launch({"threads": 128})
    assert geometry.grid[1:] == (Const(1), Const(1))
    assert geometry.block == (128, 1, 1)
    assert geometry.cluster == (1, 1, 1)
    assert launch([1, 2, 3], (8, 4), cluster=(2,)).block == (8, 4, 1)


def test_params_and_source_may_depend_on_choices() -> None:
    assert [param.name for param in SPEC.params_of({})] == ["x", "factor"]
    source = SPEC.source_of({"element": "half"})
    assert isinstance(source, CudaSource)
    assert source.entry == "scale_half"
