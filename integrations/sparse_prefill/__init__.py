"""Sparse prefill of DeepSeek-V4: what the layers of one chunk share, and what each of them does.

    workspace = SparsePrefillWorkspace("cuda")                    # once
    plan = SparsePrefillPlan(workspace, seq_lens, extend_lens,    # once a chunk
                             TokenWindows(req_pool_indices, req_to_token, full_to_swa))
    plan.ensure_compressed(4, page_table, page_size=64)           # once a chunk and ratio
    plan.attend(q, swa_cache, 4, c4_cache, topk_indices)          # once a layer

``plan.step`` is the same without the attention. The plan is the counterpart of SGLang's
``SparsePrefillChunkCache`` and holds the same tensors; docs/sparse-prefill.md says which is which.
"""

from dsv4_aot.integrations.sparse_prefill.chunk import RequestWindows, TokenWindows
from dsv4_aot.integrations.sparse_prefill.plan import (
    Attention,
    AttentionInputs,
    CompressedGather,
    SparsePrefillPlan,
)
from dsv4_aot.integrations.sparse_prefill.workspace import KCache, SparsePrefillWorkspace

__all__ = [
    "Attention",
    "AttentionInputs",
    "CompressedGather",
    "KCache",
    "RequestWindows",
    "SparsePrefillPlan",
    "SparsePrefillWorkspace",
    "TokenWindows",
]
