// Which columns a block has, and where they are. Counts on the constants that the kernel begins
// with.
#pragma once
#include "work.cuh"

struct Place {
  int heads;  // of the block
  int pairs;  // of heads and parts of columns that its warps are dealt to
  int head, column;  // the first of the block
};

__device__ Place place_of(const Call& call) {
  const int heads = min(call.heads, kMaxHeads);
  const int parts = (call.columns() + kColumns - 1) / kColumns;
  const int own = min(parts, kWarps / heads), slices = call.heads / heads;
  return {heads, heads * own, int(blockIdx.y) % slices * heads,
          int(blockIdx.y) / slices * own * kColumns};
}

// What each column of each pair is: found once, as divisions are long.
struct Rows {
  int count;
  int list[kRows];   // columns that there are, by head
  int row[kRows];    // by column: (token, head) in the request, or -1 where there is none
  int token[kRows];  // by column: among the queries

  // By one warp.
  __device__ void fill(const Call& call, const Place& place) {
    const int own = min(place.pairs / place.heads * kColumns, call.columns() - place.column);
    const int lane = threadIdx.x % 32;
    if (lane == 0) count = place.heads * own;
#pragma unroll 1
    for (int i = lane; i < place.pairs * kColumns; i += 32) {
      const int part = i / kColumns / place.heads, head = i / kColumns - part * place.heads;
      const int nth = part * kColumns + i % kColumns, column = place.column + nth;
      const bool any = column < call.columns();
      const int at = any ? column / call.group : 0;
      token[i] = at;
      row[i] = any ? (at * call.heads + place.head + head) * call.group + column - at * call.group
                   : -1;
      if (any) list[head * own + nth] = i;
    }
  }
};
