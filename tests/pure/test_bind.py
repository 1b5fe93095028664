"""The generated function of a kernel: what it refuses, in which words, and that nothing drifts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_aot.runtime import ArgumentError, Library
from dsv4_aot.runtime.bind import bind
from dsv4_aot.runtime.tensor import ALLOWED
from tests.artifact import (
    GATHER,
    GATHER_CHOICES,
    Tensor,
    entry_of,
    gather_call,
    gather_cubins,
    record_of,
    write_artifact,
)
from tests.recording import RecordingDriver, open_recorded


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, RecordingDriver]:
    folder = tmp_path_factory.mktemp("gather") / "sm_90a"
    return open_recorded(write_artifact(folder, list(gather_cubins())))


def test_what_is_packed(recorded: tuple[Library, RecordingDriver]) -> None:
    library, driver = recorded
    lens = Tensor("int32", (3,), pointer=0x4000)
    call = gather_call(rows=11, gather_lens=lens, offset=2)
    library.launch("gather", **call)
    (launch,) = driver.launches[-1:]
    assert launch.params == (0x1000, 512, 0x2000, 40000, 2, 0x3000, 0x4000, 0x5000, 9)
    assert (launch.grid, launch.block, launch.shared) == ((3, 3, 1), (128, 1, 1), 4096)
    assert launch.stream == 0
    assert {number: data[:4] for number, data in launch.attributes.items()} == {6: b"\1\0\0\0"}
    library.launch("gather", *call.values(), stream=2)  # by position, the same
    assert driver.launches[-1] == dataclasses.replace(launch, stream=2)


def test_a_check_is_asked_only_where_it_applies(recorded: tuple[Library, RecordingDriver]) -> None:
    select = recorded[0].op("gather").select
    odd = Tensor("uint8", (9, 64, 584), (40001, 584, 1))
    assert select(**gather_call(k_cache=odd)).choices["record"] == "v4"


def test_bound_values_and_rules_choose_the_entry(
    recorded: tuple[Library, RecordingDriver],
) -> None:
    select = recorded[0].op("gather").select
    small, large = gather_call(requests=3), gather_call(requests=64)
    v41 = gather_call(requests=64, k_cache=Tensor("uint8", (9, 64, 528)))
    two = gather_call(requests=64, block_size=2, k_cache=Tensor("uint8", (9, 2, 584)))
    assert [select(**call).choices["rows"] for call in (small, large, v41, two)] == [4, 8, 4, 4]
    assert select(**v41).choices["record"] == "v41"
    assert select(**two).choices["block_size"] == 2
    forced = recorded[0].op("gather", choices={"rows": 8})
    assert forced.select(**small).choices["rows"] == 8
    assert {entry.choices["rows"] for entry in forced.candidates(**small)} == {4, 8}


def bf16(*shape: int, **changes: Any) -> Tensor:
    return Tensor("bfloat16", shape, **changes)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"out": None}, f"out is a NoneType, allowed: {ALLOWED}"),
    ({"out": [1.0]}, f"out is a list, allowed: {ALLOWED}"),
    ({"seq_lens": Tensor("int64", (3,))}, "seq_lens has dtype int64, allowed: int32"),
    ({"seq_lens": Tensor("int32", (3, 1))}, "seq_lens has 2 dims, allowed: 1 (int32 [3, 1])"),
    ({"out": bf16(3, 10, 511)},
     "out.shape[2] is 511, allowed: 512 (out is bfloat16 [3, 10, 511])"),
    ({"seq_lens": Tensor("int32", (4,))},
     "seq_lens.shape[0] is 4, allowed: 3 (= out.shape[0]) (seq_lens is int32 [4])"),
    ({"gather_lens": Tensor("int32", (4,))},
     "gather_lens.shape[0] is 4, allowed: 3 (= out.shape[0]) (gather_lens is int32 [4])"),
    ({"block_table": Tensor("int32", (3, 7), (1, 3))},
     "block_table.stride(1) is 3, allowed: 1 (block_table is int32 [3, 7])"),
    ({"seq_lens": Tensor("int32", (3,), (2,))},
     "seq_lens has strides [2], allowed: row-major without gaps (seq_lens is int32 [3])"),
    ({"out": bf16(3, 10, 512, pointer=0x1010)},
     "out starts at address 0x1010, 16 bytes past a multiple of 32, allowed: multiples of 32"),
    ({"block_table": Tensor("int32", (3, 7), device=1)},
     "block_table is on device 1, allowed: device 0, where the first tensor is"),
    ({"offset": -1}, "offset is -1, allowed: 0 to 2147483647"),
    ({"offset": 2**31}, "offset is 2147483648, allowed: 0 to 2147483647"),
    ({"offset": 1.0}, "offset is 1.0, allowed: an integer"),
    ({"offset": True}, "offset is True, allowed: an integer"),
    ({"block_size": "64"}, "block_size is '64', allowed: an integer"),
    ({"block_size": Tensor("int32", ())}, "block_size is a Tensor, allowed: an integer"),
    ({"offset": 11}, "required: offset is within out; came: offset = 11, out.shape[1] = 10"),
    ({"k_cache": Tensor("uint8", (9, 64, 528), (40001, 528, 1))},
     "required: k_cache.stride(0) is a multiple of 16; came: k_cache.stride(0) = 40001"),
    ({"block_size": 256, "k_cache": Tensor("uint8", (9, 256, 584))},
     "block_size is 256, which was not built; built: 2, 64"),
    ({"k_cache": Tensor("uint8", (9, 64, 600))},
     "k_cache.shape[2] is 600, which was not built; built: 584 (v4), 528 (v41)"),
    ({"k_cache": Tensor("uint8", (9, 64, 584), (2**63, 584, 1))},
     f"k_cache.stride(0) is {2**63}, allowed: {-(2**63)} to {2**63 - 1}, which i64 holds"),
    ({"block_table": Tensor("int32", (3, 7), (2**31, 1))},
     "block_table.stride(0) is 2147483648, allowed: -2147483648 to 2147483647, which i32 holds"),
    ({"out": bf16(3, 65536 * 4, 512)},
     "grid y = cdiv((out.shape[1] - offset), 4) is 65536, allowed: 0 to 65535"),
]  # fmt: skip


@pytest.mark.parametrize("loaded", [False, True], ids=["first call", "later call"])
@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_a_wrong_argument_is_named_and_nothing_is_launched(
    recorded: tuple[Library, RecordingDriver],
    wrong: dict[str, Any],
    words: str,
    loaded: bool,
) -> None:
    library, driver = recorded
    if not loaded:
        library = Library(library.installed, driver)
    else:
        library.launch("gather", **gather_call())
    before = len(driver.launches)
    with pytest.raises(ArgumentError) as caught:
        library.launch("gather", **gather_call(**wrong))
    assert caught.value.message == f"gather: {words}"
    assert len(driver.launches) == before


@pytest.mark.parametrize(
    ("args", "named", "words"),
    [
        ((), {"ofset": 1}, "gather has no argument 'ofset', did you mean offset?"),
        ((0,) * 8, {}, "gather takes 7 arguments, 8 came by position"),
        ((0,), {"out": 1}, "gather: out came twice, by position and by name"),
        ((), {}, "gather: the argument out is missing (bfloat16)"),
    ],
)
def test_what_does_not_fit_the_signature(
    recorded: tuple[Library, RecordingDriver], args: Any, named: Any, words: str
) -> None:
    for call in (lambda *a, **k: recorded[0].launch("gather", *a, **k), recorded[0].op("gather")):
        with pytest.raises(ArgumentError) as caught:
            call(*args, **named)
        assert caught.value.message == words
        assert "out, k_cache, seq_lens" in str(caught.value.tip)


def test_a_scalar_that_is_missing_is_named(recorded: tuple[Library, RecordingDriver]) -> None:
    call = gather_call()
    del call["block_size"]
    with pytest.raises(ArgumentError, match=r"the argument block_size is missing \(int\)"):
        recorded[0].launch("gather", **call)


def test_integers_of_other_libraries_count(recorded: tuple[Library, RecordingDriver]) -> None:
    class Int32:
        def __index__(self) -> int:
            return 3

    recorded[0].launch("gather", **gather_call(offset=Int32()))
    assert recorded[1].launches[-1].params[4] == 3


def test_an_empty_grid_launches_nothing(recorded: tuple[Library, RecordingDriver]) -> None:
    library, driver = recorded
    before = len(driver.launches)
    library.launch("gather", **gather_call(requests=0))
    library.launch("gather", **gather_call(rows=10, offset=10))
    library.op("gather", **gather_call(requests=0))()
    assert len(driver.launches) == before


# Drift --------------------------------------------------------------------------------------------

sizes = st.sampled_from([0, 1, 2, 3, 64])
pointers = st.sampled_from([0, 0x1000, 0x1010])
dtypes = st.sampled_from(["bfloat16", "uint8", "int32"])
devices = st.sampled_from([0, 0, 0, 1])


def tensors(dtype: st.SearchStrategy[str], *dims: st.SearchStrategy[int]) -> Any:
    strides = st.none() | st.tuples(*[st.sampled_from([0, 1, 2, 512, 600]) for _ in dims])
    rank = st.tuples(*dims)
    return st.builds(Tensor, dtype, rank, strides, pointers, devices) | st.builds(
        Tensor, dtypes, st.lists(sizes, max_size=3).map(tuple), st.none(), pointers, devices
    )


requests = st.sampled_from([2, 2, 3])
calls = st.fixed_dictionaries(
    {
        "out": tensors(st.just("bfloat16"), requests, sizes, st.sampled_from([512, 512, 8])),
        "k_cache": tensors(st.just("uint8"), sizes, st.just(64), st.sampled_from([584, 528, 1])),
        "seq_lens": tensors(st.just("int32"), requests),
        "gather_lens": st.none() | tensors(st.just("int32"), requests),
        "block_table": tensors(st.just("int32"), requests, sizes),
        "block_size": st.sampled_from([64, 64, 2, 256]),
        "offset": st.sampled_from([0, 0, 1, 64, -1, 2**31]),
    }
)


BINDING = bind(
    record_of(GATHER, [entry_of(GATHER, choices, b"x") for choices in GATHER_CHOICES]), {}
)


@given(calls)
def test_the_fast_function_and_the_diagnosis_agree(call: dict[str, Any]) -> None:
    """What the fast function lets pass has no diagnosis, and what it refuses has one."""
    refused: list[bool] = []
    passed: list[tuple[Any, ...]] = []

    class Everything(dict[Any, Any]):
        """A table in which every bound value was built."""

        def __missing__(self, key: Any) -> Any:
            return lambda *values: passed.append((key, values))

    fast, trace = BINDING.link(
        _table=Everything(), _refuse=lambda *_: refused.append(True), _current=lambda _: 0
    )
    fast(**call)
    failed, values = trace(**call)
    if failed is None:
        assert refused == []
        assert passed == [(values["_key"], (0, *(values[name] for name in BINDING.passes)))]
        return
    wording = BINDING.words[failed]
    assert wording.tell(values)
    if "was not built" in wording.tell(values):
        # Only the table knows; a call that is wrong in a second way is refused before.
        assert len(passed) + len(refused) == 1
    else:
        assert refused == [True]
