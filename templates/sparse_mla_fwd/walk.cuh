// The call, and the walk through it: items, their slots, the ring.

#pragma once

// Strides of q, kv and out are bytes. halves: 1 where a query is two items, else 0.
struct Call {
  const char* q;
  const char* kv;
  const int* indices;
  const float* attn_sink;
  const int* topk_length;
  char* out;
  float* max_logits;
  float* lse;
  int s_q, h_q, halves, s_kv, topk, q_token, q_head, kv_row;
  int64 indices_token;
  int out_token, out_head, base2;
  float sm_scale;

  __device__ int items() const { return s_q << halves; }
  // What topk_length says of an item's query, as it is there.
  __device__ int length(int item) const {
    return topk_length != nullptr && item < items() ? load(topk_length + (item >> halves)) : topk;
  }
  __device__ int clamped(int length) const { return max(min(length, topk), 0); }
};

// Even an empty set takes a slot, all of whose rows are masked.
__device__ int slots_of(int length) { return max((length + kRows - 1) / kRows, 1); }

// A place in the ring. Every warp walks through the same sequence of slots.
struct Ring {
  uint32 slot = 0, phase = 0;
  __device__ void next() {
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
};

constexpr uint32 kMoved = 1;  // O is to be rescaled
constexpr uint32 kFirst = 2;  // slot of an item
constexpr uint32 kLast = 4;
