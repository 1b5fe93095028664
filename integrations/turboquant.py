"""A TurboQuant KV cache of a whole model: its memory, its pages, and the kernels on them.

    cache = TurboQuantCache("turboquant_4bit_nc", Shape(36, 32, 8, 128), pages=4096, requests=8,
                            max_tokens=32768)
    slots = cache.extend([1200, 800])                  # once a step: request 0, request 1
    cache.store(layer, key, value, slots)              # once a layer
    cache.decode(layer, query, out)                    # once a layer

Slots are byte-compatible with vLLM's (attention-token layout). docs/turboquant.md tells more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4_aot import runtime
from dsv4_aot.runtime.errors import ArgumentError, Dsv4AotError

KERNELS = ("turboquant_store", "turboquant_decode", "turboquant_dequant")


class Preset(NamedTuple):
    """Bits of a key's element (8 is E4M3) and of a value's."""

    key_bits: int
    value_bits: int

    def slot_bytes(self, head_dim: int) -> int:
        """Bytes of one head of one token: codes, a value's step and minimum, a key's norm."""
        return head_dim * (self.key_bits + self.value_bits) // 8 + (4 if self.key_bits == 8 else 6)


PRESETS = {
    "turboquant_k8v4": Preset(8, 4),
    "turboquant_4bit_nc": Preset(4, 4),
    "turboquant_k3v4_nc": Preset(3, 4),
    "turboquant_3bit_nc": Preset(3, 3),
}
"""By the names that vLLM's ``--kv-cache-dtype`` has for them."""


class Shape(NamedTuple):
    """A model's attention. ``native``: layers whose cache stays in 16 bits, usually the outermost
    ones, which a TurboQuantCache does not hold.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    native: int = 0


class OutOfPagesError(Dsv4AotError):
    """More tokens than there are pages, or than a request may have. Nothing was taken."""


# Capacity -----------------------------------------------------------------------------------------


class Capacity(NamedTuple):
    """What a preset makes of some memory. ``ratio`` compares with 16 bits throughout."""

    preset: str
    token_bytes: int
    ratio: float
    tokens: int


def capacity(shape: Shape, memory: int, page_size: int = 16) -> list[Capacity]:
    """How many tokens, in whole pages, fit into ``memory`` bytes: in 16 bits, and compressed."""
    native = 4 * shape.head_dim * shape.kv_heads
    plain = shape.layers * native

    def row(name: str, token_bytes: int) -> Capacity:
        tokens = memory // (token_bytes * page_size) * page_size
        return Capacity(name, token_bytes, plain / token_bytes, tokens)

    return [row("16 bits", plain)] + [
        row(
            name,
            shape.native * native
            + (shape.layers - shape.native) * shape.kv_heads * preset.slot_bytes(shape.head_dim),
        )
        for name, preset in PRESETS.items()
    ]


# The cache ----------------------------------------------------------------------------------------


class TurboQuantCache:
    """The compressed layers of a model, for a fixed number of requests that come and go.

    data: uint8 [layers, pages, page_size, kv_heads, slot bytes].
    block_table: int32 [requests, pages of the longest], and seq_lens: int32 [requests], as kernels
    read them; a request that is not there has length 0, and attention gives zeros for it. Their
    addresses stay, so a captured ``decode`` follows every ``extend``.

    Serves one stream at a time: decoding needs scratch memory, which all layers share.
    """

    def __init__(
        self,
        preset: str,
        shape: Shape,
        *,
        pages: int,
        requests: int,
        max_tokens: int,
        page_size: int = 16,
        max_queries: int = 1,
        device: torch.device | str = "cuda",
        launch: Callable[..., None] = runtime.launch,
    ) -> None:
        """``max_tokens``: of a request. ``max_queries``: query tokens of a request in a decode.

        Raises ArgumentError for a preset that there is none of.
        """
        if preset not in PRESETS:
            raise ArgumentError(f"preset is {preset!r}, allowed: {', '.join(PRESETS)}")
        self.preset, self.shape, self.page_size = PRESETS[preset], shape, page_size
        self.max_queries = max_queries
        self._launch = launch
        slot = self.preset.slot_bytes(shape.head_dim)
        form = (shape.layers - shape.native, pages, page_size, shape.kv_heads, slot)
        self.data = torch.zeros(form, dtype=torch.uint8, device=device)
        width = -(-max_tokens // page_size)
        self._table = torch.zeros(requests, width, dtype=torch.int32)
        self.block_table = self._table.to(device)
        self.seq_lens = torch.zeros(requests, dtype=torch.int32, device=device)
        self.lengths = [0] * requests
        self._pages: list[list[int]] = [[] for _ in range(requests)]
        self._free = list(range(pages))[::-1]
        count = _multiprocessors(self.data.device)
        self._workspace = torch.empty(
            2 * count * max_queries * shape.heads * (shape.head_dim + 4), device=device
        )
        self._counters = torch.zeros(4 * count, dtype=torch.int32, device=device)

    @property
    def free_tokens(self) -> int:
        """Tokens that pages are left for."""
        return len(self._free) * self.page_size

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Makes room for ``tokens[r]`` more tokens of request r, and says where they are.

        Gives int64 [sum of tokens]: the slots of request 0's new tokens in order, then of request
        1's, and so on. Requests behind the last one named are left alone. Raises OutOfPagesError,
        and ArgumentError for more requests than there are or a number below 0.
        """
        if len(tokens) > len(self.lengths) or min(tokens, default=0) < 0:
            raise ArgumentError(
                f"tokens is {list(tokens)}, allowed: up to {len(self.lengths)} numbers, one for "
                "each request, from 0 on",
                tip="make the cache for more requests, or release one",
            )
        wanted = [self.lengths[r] + count for r, count in enumerate(tokens)]
        missing = [self._pages_of(length) - len(self._pages[r]) for r, length in enumerate(wanted)]
        longest = self.block_table.shape[1] * self.page_size
        if max(wanted, default=0) > longest:
            raise OutOfPagesError(
                f"a request would have {max(wanted)} tokens, and max_tokens allows {longest}",
                tip="make the cache with greater max_tokens",
            )
        if sum(missing) > len(self._free):
            raise OutOfPagesError(
                f"{sum(missing)} more pages are needed, and {len(self._free)} are free",
                tip="release requests, or make the cache with more pages",
            )
        slots = [torch.empty(0, dtype=torch.int64)]
        for request, length in enumerate(wanted):
            slots.append(self._grow(request, length))
        self._upload(any(missing))
        return torch.cat(slots).to(self.data.device)

    def release(self, request: int) -> None:
        """Forgets a request; its pages are free again. Raises ArgumentError where there is none."""
        if not 0 <= request < len(self.lengths):
            raise ArgumentError(
                f"request is {request}, allowed: 0 to {len(self.lengths) - 1}",
                tip="release takes a request's number, as extend counts them",
            )
        self._free += self._pages[request][::-1]
        self._pages[request], self.lengths[request] = [], 0
        self._upload(False)

    def store(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Compresses the new tokens of a layer: ``key``, ``value`` [tokens, kv_heads, head_dim].

        ``layer`` counts those that are held here.
        """
        self._launch("turboquant_store", key, value, self.data[layer], slots, *self.preset)

    def decode(
        self,
        layer: int,
        query: Tensor,
        out: Tensor,
        *,
        queries: int = 1,
        scale: float | None = None,
        window: int = 0,
        sinks: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> None:
        """Attention of the last ``queries`` tokens of the first requests over all that these have.

        ``query``, ``out`` [requests * queries, heads, head_dim], as many requests as there are rows
        for. scale: ``head_dim ** -0.5`` if left out.
        """
        if not 1 <= queries <= self.max_queries:
            raise ArgumentError(
                f"queries is {queries}, and the cache was made for at most {self.max_queries}",
                tip="pass 1 or more, or make it with greater max_queries",
            )
        count = query.shape[0] // queries
        self._launch(
            "turboquant_decode",
            out,
            query,
            self.data[layer],
            self.block_table[:count],
            self.seq_lens[:count],
            self._workspace,
            self._counters,
            scale=self.shape.head_dim**-0.5 if scale is None else scale,
            queries=queries,
            window=window,
            sinks=sinks,
            lse=lse,
            **self.preset._asdict(),
        )

    def load(
        self, layer: int, key: Tensor, value: Tensor, starts: Tensor, *, rotate: bool = True
    ) -> None:
        """Decodes the first requests whole, for a later chunk of a prefill.

        Token t of request r becomes row ``starts[r] + t`` of ``key`` and ``value``, which are
        [rows, kv_heads, head_dim]; other rows stay as they are. ``starts``: int32, ascending.
        """
        self._launch(
            "turboquant_dequant",
            key,
            value,
            self.data[layer],
            self.block_table[: len(starts)],
            self.seq_lens[: len(starts)],
            starts,
            *self.preset,
            rotate=rotate,
        )

    # Pages ----------------------------------------------------------------------------------------

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _grow(self, request: int, length: int) -> Tensor:
        """Takes the pages for so many tokens; gives the slots of the new ones."""
        pages = self._pages[request]
        while len(pages) < self._pages_of(length):
            pages.append(self._free.pop())
            self._table[request, len(pages) - 1] = pages[-1]
        new = torch.arange(self.lengths[request], length)
        self.lengths[request] = length
        return self._table[request, new // self.page_size].long() * self.page_size + (
            new % self.page_size
        )

    def _upload(self, table: bool) -> None:
        if table:
            self.block_table.copy_(self._table)
        self.seq_lens.copy_(torch.tensor(self.lengths, dtype=torch.int32))


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 256  # enough for any GPU that a test pretends to have
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def table(rows: Sequence[Capacity]) -> Iterator[str]:
    """The lines of a capacity table, as Markdown."""
    yield "| cache | bytes a token | of 16 bits | tokens |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {row.preset} | {row.token_bytes} | {row.ratio:.2f} x | {row.tokens} |"


__all__ = [
    "KERNELS",
    "PRESETS",
    "Capacity",
    "OutOfPagesError",
    "Preset",
    "Shape",
    "TurboQuantCache",
    "capacity",
    "table",
]
