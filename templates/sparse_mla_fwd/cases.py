"""Calls of sparse_mla_fwd: every shape of heads, rows that do not exist anywhere among the indices,
NaN in rows that must not be looked at, empty sets, sinks, views with gaps; and prefill, timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dsv4_aot.generator.spec import Case, Tolerance

BF16 = torch.bfloat16
NAN, INF = float("nan"), float("inf")
VALUE_DIM = 512
STATISTICS = Tolerance(1e-6, 2.01 / 65536, either=True, cosine=1e-7)
TOLERANCES = {
    "out": Tolerance(8e-4, 3.01 / 128, either=True, cosine=7e-6),
    "max_logits": STATISTICS,
    "lse": STATISTICS,
}
"""As kernels of this kind are judged, where values are a tenth or so: P is rounded to bf16, and so
errors of out grow with the greatest value that takes part.
"""
INT32 = 2**31 - 1
OUTSIDE = (-INT32 - 1, -123456, -1, 114514, 1919810, 2147480000, INT32)


@dataclass(frozen=True)
class Call:
    """One call.

    indices: random rows without repetition where there are enough, or those of a prefill chunk.
    bad: share of indices that name no row, and all of one query's. lengths: topk_length, where
    given: topk, or random with some that mean 0 and topk.
    gap: elements between rows of q, kv, indices and out that do not belong to them.
    sm_scale: some tens make logits so unlike that maxima keep growing on the way.
    """

    s_q: int
    heads: int
    s_kv: int
    topk: int
    dim: int = 512
    indices: Literal["random", "prefill"] = "random"
    bad: float = 0.2
    lengths: Literal["none", "full", "random"] = "random"
    sink: bool = True
    gap: int = 0
    base2: bool = False
    sm_scale: float = 0.5
    window: int = 128

    @property
    def name(self) -> str:
        parts = [f"{self.heads} heads of {self.dim}", f"{self.s_q} x {self.topk} of {self.s_kv}"]
        plain = Call(self.s_q, self.heads, self.s_kv, self.topk, self.dim)
        fields = (
            "indices", "bad", "lengths", "sink", "gap", "base2", "sm_scale", "window"
        )  # fmt: skip
        unusual = [each for each in fields if getattr(self, each) != getattr(plain, each)]
        values = (getattr(self, each) for each in unusual)
        texts = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
        return ", ".join([*parts, *map(" ".join, zip(unusual, texts, strict=True))])

    def make(self, device: Any, seed: int) -> dict[str, Any]:
        random = torch.Generator(device).manual_seed(seed)
        shift = float(torch.rand(1, generator=random, device=device)) / 10 - 0.05

        def normal(*shape: int) -> torch.Tensor:
            """With a gap behind every row and every dimension of rows."""
            wide = [*(n + (i > 0) * self.gap // 64 for i, n in enumerate(shape[:-1]))]
            storage = torch.empty(*wide, shape[-1] + self.gap, dtype=BF16, device=device)
            storage.normal_(generator=random)
            storage.mul_(0.1).add_(shift).clamp_(-10, 10)
            return storage[tuple(slice(n) for n in shape)]

        q, kv = normal(self.s_q, self.heads, self.dim), normal(self.s_kv, 1, self.dim)
        indices, lengths = self._indices(device, random), None
        if self.lengths != "none":
            lengths = torch.full((self.s_q,), self.topk, dtype=torch.int32, device=device)
        if self.lengths == "random" and lengths is not None:
            lengths.random_(0, self.topk + 1, generator=random)
            ends = torch.tensor([0, INT32, -INT32, self.topk], dtype=torch.int32, device=device)
            lengths[-1:], lengths[1:2], lengths[2:3], lengths[:1] = ends
        self._poison_unused(kv, indices, lengths)
        stored = torch.full((self.s_q, 1, self.topk + self.gap), 2, device=device).int()
        stored[..., : self.topk] = indices[:, None]
        out = torch.full((self.s_q, self.heads, VALUE_DIM + self.gap), NAN, device=device)
        return {
            "q": q,
            "kv": kv,
            "indices": stored[..., : self.topk],
            "out": out.to(BF16)[..., :VALUE_DIM],
            "max_logits": torch.full((self.s_q, self.heads), NAN, device=device),
            "lse": torch.full((self.s_q, self.heads), NAN, device=device),
            "sm_scale": self.sm_scale,
            "attn_sink": self._sinks(device, random) if self.sink else None,
            "topk_length": lengths,
            "base2": self.base2,
        }

    def _indices(self, device: Any, random: torch.Generator) -> torch.Tensor:
        shape = (self.s_q, self.topk)
        if self.indices == "prefill":
            return self._prefill(device, random)
        if self.s_kv < self.topk:
            ids = torch.randint(0, max(self.s_kv, 1), shape, generator=random, device=device)
        else:  # a few hundred different choices are enough
            count = max(min(self.s_q, 256), 1)
            different = torch.rand(count, self.s_kv, generator=random, device=device)
            chosen = different.topk(self.topk).indices
            ids = chosen[torch.arange(self.s_q, device=device) % count]
        fillers = torch.tensor([self.s_kv, *OUTSIDE], device=device)
        which = torch.randint(0, len(fillers), shape, generator=random, device=device)
        bad = torch.rand(shape, generator=random, device=device) < self.bad
        if self.bad and self.s_q > 1:
            bad[self.s_q // 2] = True
        return torch.where(bad, fillers[which], ids).int()

    def _prefill(self, device: Any, random: torch.Generator) -> torch.Tensor:
        """Of the last queries of one long request, whose layer has a compressed row for every four
        tokens: some of the compressed rows before the query, which come first in kv, and then the
        window of rows that ends with it and that it shares with its neighbours.
        """
        compressed = self.s_kv - (self.s_q + self.window - 1)
        query = torch.arange(self.s_q, device=device)[:, None]
        seen = compressed + (query - self.s_q + 1) // 4
        selected = self.topk - self.window
        picks = torch.rand(self.s_q, selected, generator=random, device=device)
        window = compressed + query + torch.arange(self.window, device=device)
        return torch.cat([(picks * seen).long(), window], 1).int()

    def _poison_unused(
        self, kv: torch.Tensor, indices: torch.Tensor, lengths: torch.Tensor | None
    ) -> None:
        """NaN in rows that no query names within its length, in place. Row 3 becomes one."""
        counted = (indices >= 0) & (indices < self.s_kv)
        if lengths is not None:
            columns = torch.arange(self.topk, device=indices.device)
            counted &= columns < lengths[:, None]
        if self.indices == "random" and self.s_kv > 3:
            indices[counted & (indices == 3)] = 2
        unused = torch.ones(self.s_kv, dtype=torch.bool, device=kv.device)
        unused[indices[counted].long()] = False
        kv[unused] = NAN

    def _sinks(self, device: Any, random: torch.Generator) -> torch.Tensor:
        sinks = torch.randn(self.heads, generator=random, device=device)
        kind = torch.rand(self.heads, generator=random, device=device)
        return sinks.masked_fill_(kind < 0.3, INF).masked_fill_(kind > 0.7, -INF)

    def case(self, *, bench: bool = False, instrumented: bool = False) -> Case:
        """``read`` counts memory: q, indices, and kv once, however often its rows are used."""
        states = self.s_q * self.heads
        used = min(self.s_kv, self.s_q * self.topk)
        return Case(
            name=self.name,
            make=self.make,
            tolerance=TOLERANCES,
            read=2 * self.dim * (states + used) + 4 * self.s_q * self.topk,
            write=states * (2 * VALUE_DIM + 8),
            flops=2 * states * self.topk * (self.dim + VALUE_DIM),
            bench=bench,
            instrumented=instrumented,
            memory=states * (6 * (self.dim + self.gap) + 4 * VALUE_DIM)
            + 4 * self.s_kv * self.dim
            + self.s_q * self.topk * 40,
        )


# What must be right -------------------------------------------------------------------------------

SEVERAL = 140
"""Queries, more than an H200 has multiprocessors: blocks that stay take a second one."""
ROWS = ((128, 128), (592, 512), (1521, 512), (95, 128), (114, 384), (32, 2048), (64, 8192))


def correctness() -> Iterator[Call]:
    for dim in (512, 576):
        for heads in (16, 64, 128):
            for s_q, (s_kv, topk) in zip((1, 62, 213, 62, 213, 1, 62), ROWS, strict=True):
                yield Call(s_q, heads, s_kv, topk, dim)
            plain = Call(62, heads, 1521, 512, dim, bad=0.0, lengths="none", sink=False)
            yield plain
            yield replace(plain, sink=True)
            yield replace(plain, lengths="random")
            yield replace(plain, bad=0.2)
            yield replace(plain, gap=64, bad=0.2, lengths="random")
            yield replace(plain, sm_scale=40.0)
            yield replace(plain, indices="prefill", s_kv=700, topk=640)
            yield replace(plain, s_q=213, s_kv=4321, topk=4096, bad=0.2)
        for heads in (16, 32, 64, 100):  # small, for tools under which launches take long
            yield Call(3, heads, 200, 192, dim, gap=64)
        yield Call(SEVERAL, 17, 200, 128, dim)
        for heads in (1, 16, 32, 63, 65, 96):
            yield Call(77, heads, 999, 192, dim, gap=64)
        for heads in (16, 64):  # of two bodies where there are more
            for topk in (1, 63, 64, 65, 100):
                yield Call(SEVERAL, heads, 999, topk, dim)
            yield Call(5, heads, 0, 64, dim)
            yield Call(0, heads, 99, 64, dim)
            yield Call(1000, heads, 1521, 64, dim, bad=1.0)
            yield Call(1024, heads, 4321, 640, dim)
        for heads in (16, 128):
            yield Call(300, heads, 999, 320, dim, base2=True)
    for heads in (16, 17):
        yield Call(70_000, heads, 1521, 64)


# Worked out by hand -------------------------------------------------------------------------------


def by_hand(device: Any, _seed: int) -> dict[str, Any]:
    """Two queries of one head. Row 0 is 1 in column 0, row 1 is 3 in column 0 and 8 in column 1."""
    q, kv = torch.zeros(2, 1, 512, dtype=BF16), torch.zeros(2, 1, 512, dtype=BF16)
    q[0, 0, 0], q[1, 0, 1] = 2.0, 1.0
    kv[0, 0, 0], kv[1, 0, :2] = 1.0, torch.tensor([3.0, 8.0])
    return {
        "q": q.to(device),
        "kv": kv.to(device),
        "indices": torch.tensor([[[7, -1, 1, 0]], [[0, 2, -5, 1]]], dtype=torch.int32).to(device),
        "out": torch.full((2, 1, 512), NAN, dtype=BF16, device=device),
        "max_logits": torch.full((2, 1), NAN, device=device),
        "lse": torch.full((2, 1), NAN, device=device),
        "sm_scale": 0.5,
        "attn_sink": torch.tensor([3.0], device=device),
        "topk_length": torch.tensor([3, 0], dtype=torch.int32, device=device),
        "base2": False,
    }


def expected() -> dict[str, Any]:
    """The first query's length takes in row 1 alone: the logit is 2 * 3 / 2, and the sink has the
    same, so that out is half of the row. The second query's set is empty.
    """
    out = torch.zeros(2, 1, 512, dtype=BF16)
    out[0, 0, :2] = torch.tensor([1.5, 4.0])
    three = torch.tensor([[3.0], [-INF]])
    return {"out": out, "max_logits": three, "lse": torch.tensor([[3.0], [INF]])}


# What serving sees --------------------------------------------------------------------------------


def timed() -> Iterator[Call]:
    """Random rows, as kernels of this kind are compared; and a chunk's, without and with a choice
    of 512 and of 1024 compressed rows.
    """
    plain = Call(4096, 64, 8192, 640, bad=0.0, lengths="full", sm_scale=512**-0.5)
    sizes = (
        (4096, 4096, 640), (4096, 8192, 640), (4096, 32768, 640), (4096, 32768, 1152),
        (4096, 65536, 2048), (1024, 8192, 640), (64, 8192, 640),
    )  # fmt: skip
    for s_q, s_kv, topk in sizes:
        for heads in (64, 128):
            yield replace(plain, s_q=s_q, heads=heads, s_kv=s_kv, topk=topk)
    chunk = replace(plain, indices="prefill")
    for heads, topk in ((64, 128), (128, 128), (64, 640), (128, 1152), (16, 640), (32, 640)):
        compressed = 8192 if topk > chunk.window else 0
        s_kv = compressed + chunk.s_q + chunk.window - 1
        yield replace(chunk, heads=heads, s_kv=s_kv, topk=topk)


def cases() -> list[Case]:
    return [
        Case("by hand", by_hand, tolerance=TOLERANCES, expected=expected),
        *(
            call.case(instrumented=call.s_q == SEVERAL and call.heads < 64)
            for call in correctness()
        ),
        *(call.case(bench=True) for call in timed()),
    ]
