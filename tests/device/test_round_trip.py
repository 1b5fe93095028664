"""Rows that quantize_insert writes are the rows that the kernels that decode read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from dsv4_aot.runtime import Library

KERNELS = {"quantize_insert", "dequant_paged", "dequant_requant", "dequant_gather"}
PAGES, PAGE, LENGTH = 40, 64, 1937
"""Of the cache, rows a page, and rows of the one sequence in it."""


@dataclass(frozen=True)
class Format:
    """A record in a layout. ``group`` elements share a scale; from ``verbatim`` on all are bf16."""

    record: int
    interleaved: bool
    group: int
    verbatim: int = 512

    def rounding(self, groups: torch.Tensor) -> torch.Tensor:
        """What each element of ``[..., group]`` may be off.

        That is half the distance of neighbouring numbers, which is a share of the number, or for
        the smallest of the scale, and that follows from the group's greatest magnitude.
        """
        greatest = groups.abs().amax(-1, keepdim=True)
        if self.record == 288:  # of scales, e4m3 is up to 1/8 off here
            return groups.abs() / 4 + greatest / 6 * 1.125 / 4
        return groups.abs() / 16 + greatest / 448 * 2 / 1024


FORMATS = (
    Format(584, False, 64, verbatim=448),
    Format(528, True, 32),
    Format(528, False, 32),
    Format(288, True, 16),
    Format(288, False, 16),
)


@dataclass(frozen=True)
class Written:
    """A sequence's rows in bf16, and where they were written; ``pages`` is ``[pages, bytes]``."""

    rows: torch.Tensor
    slots: torch.Tensor
    table: torch.Tensor
    cache: torch.Tensor
    pages: torch.Tensor


@pytest.fixture
def written(form: Format, library: Library, device: torch.device) -> Written:
    import torch

    missing = KERNELS - {entry.kernel for entry in library.catalog()}
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} not built here")
    random = torch.Generator(device).manual_seed(1)
    rows = torch.randn(LENGTH, 512, generator=random, device=device)
    rows *= torch.exp2(torch.randint(-4, 7, (LENGTH, 1), generator=random, device=device).float())
    stride = -(-PAGE * form.record // 576) * 576
    pages = torch.full((PAGES, stride), 0xA5, dtype=torch.uint8, device=device)
    cache = pages.as_strided((PAGES, PAGE, form.record), (stride, form.record, 1))
    table = torch.randperm(PAGES, generator=random, device=device)[: -(-LENGTH // PAGE)]
    at = torch.arange(LENGTH, device=device)
    slots = table[at // PAGE] * PAGE + at % PAGE
    split = not form.interleaved
    library.launch("quantize_insert", rows.bfloat16(), cache, slots, block_split=split)
    return Written(rows.bfloat16(), slots, table.int()[None], cache, pages)


@pytest.fixture
def read(form: Format, written: Written, library: Library) -> torch.Tensor:
    """By dequant_paged, ``[LENGTH, 1, 512]``."""
    out = written.rows.new_empty(LENGTH, 1, 512)
    ids = (written.slots, PAGE, form.record, form.interleaved)
    library.launch("dequant_paged", out, written.pages, *ids)
    return out


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_what_is_written_is_read(form: Format, written: Written, read: torch.Tensor) -> None:
    import torch

    before, after = written.rows.double(), read[:, 0].double()
    assert torch.equal(before[:, form.verbatim :], after[:, form.verbatim :])
    shape = (LENGTH, -1, form.group)
    groups = before[:, : form.verbatim].reshape(shape)
    excess = (after[:, : form.verbatim].reshape(shape) - groups).abs() - form.rounding(groups)
    assert excess.max() <= 0


@pytest.mark.parametrize("form", [form for form in FORMATS if form.record == 584 or
                                  (form.record == 528 and form.interleaved)], ids=str)  # fmt: skip
def test_gathering_by_a_block_table_reads_the_same(
    form: Format, written: Written, read: torch.Tensor, library: Library
) -> None:
    import torch

    gathered = torch.empty_like(read).view(1, LENGTH, 512)
    lengths = torch.tensor([LENGTH], dtype=torch.int32, device=read.device)
    library.launch("dequant_gather", gathered, written.cache, lengths, None, written.table)
    assert torch.equal(gathered.view(torch.int16), read.view(1, LENGTH, 512).view(torch.int16))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_rows_of_e4m3_are_the_same_rounded(
    form: Format, written: Written, read: torch.Tensor, library: Library
) -> None:
    import torch

    rounded = torch.ones(LENGTH + 1, 1, 512, device=read.device).to(torch.float8_e4m3fn)
    ids = (written.slots, PAGE, form.record, form.interleaved)
    library.launch("dequant_requant", rounded, written.pages, *ids)
    nearest = read.float().clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(rounded[:LENGTH].view(torch.uint8), nearest.view(torch.uint8))
    assert not rounded[LENGTH].view(torch.uint8).any()
