// How the tokens of a batch are dealt to blocks: in tiles, an equal share for each, whatever the
// lengths of requests. Counts on the constants that the kernel begins with.
#pragma once
#include "instructions.cuh"

struct Call {
  const uint8* q;
  const uint8* cache;
  const int* pages;
  const int* lengths;
  int64 q_row, q_head;  // strides in bytes
  int64 page_stride;
  int requests, queries, heads, group, page_shift, pages_stride, max_tokens, last_page, window;
  bool bfloat;
  float scale;

  __device__ int columns() const { return queries * group; }
};

// Rounded up; 0 of what is negative.
__device__ int cdiv(int a, int b) { return (max(a, 0) + b - 1) / b; }

// What of a request is read: tiles from `first` on.
struct Extent {
  int length, first, tiles;
};

// A length that the page table has no room for is cut, so that nothing outside of it is read.
// kEarly: while the kernel before may still write it. What is found then serves hints alone, and is
// read past the L1, so that no old length stays there.
template <bool kEarly = false>
__device__ Extent extent(const Call& call, int request) {
  const int* const g_length = call.lengths + request;
  const int length = min(max(kEarly ? __ldcg(g_length) : *g_length, 0), call.max_tokens);
  const int first = max(length - call.queries - call.window + 1, 0) / kTile;
  return {length, first, (length + kTile - 1) / kTile - first};
}

// A block's share of one request.
struct Segment {
  int request;
  int start;       // of the request, in tiles of the batch
  int tiles;       // of the request
  int first, end;  // the share's tiles, in the request's own numbers
  int length;
};

// Walks over the segments of tiles [from, to) of the batch; `request` begins at tile `start`.
struct Walk {
  int from, to, request, start;

  template <bool kEarly = false>
  __device__ bool next(const Call& call, Segment& segment) {
#pragma unroll 1
    while (from < to) {
      if (kEarly && request >= call.requests) return false;  // a length changed meanwhile
      const Extent e = extent<kEarly>(call, request);
      const int end = start + e.tiles;
      if (from < end) {
        const int shift = e.first - start;
        segment = {request, start, e.tiles, from + shift, min(to, end) + shift, e.length};
        from = min(to, end);
        return true;
      }
      start = end;
      ++request;
    }
    return false;
  }
};

// How the tiles of the batch are dealt to blocks.
struct Deal {
  int blocks;
  int most;         // blocks there can be
  int few, longer;  // tiles of a block, and blocks that have one more

  __device__ int begin(int block) const { return block * few + min(block, longer); }
  __device__ int owner(int tile) const {
    const int behind = tile - longer * (few + 1);
    return behind < 0 ? tile / (few + 1) : longer + behind / few;
  }
};

// Deals tiles. The long divisions come before tiles are known.
struct Dealer {
  int most, least;  // blocks there can be, and tiles that one has at least
  uint32 factor;    // 2^32 / most, rounded up

  __device__ explicit Dealer(int least)
      : most(max(1, int(gridDim.x / gridDim.y))), least(least),
        factor(0xffffffffu / uint32(most) + 1) {}
  __device__ Deal operator()(int tiles) const {
    if (tiles < most * least || most == 1) {
      const int blocks = min(most, max(1, tiles / least));
      return {blocks, most, tiles / blocks, tiles % blocks};
    }
    int few = __umulhi(uint32(tiles), factor);
    if (few * most > tiles) --few;  // at most one too many, as tiles are below 2^31
    return {most, most, few, tiles - few * most};
  }
};

// Sums over this lane and those before it.
__device__ int running_sum(int v) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(~0u, v, distance);
    if (lane >= distance) v += other;
  }
  return v;
}

// Deals out the tiles of the batch, and finds the block's share. By all threads; s_tiles: a word
// for each warp.
__device__ void deal_tiles(int warp, const Call& call, const Dealer& dealer, int* s_tiles,
                           Walk& s_walk, Deal& s_deal) {
  const int each = (call.requests + kThreads - 1) / kThreads;
  const int first = min(int(threadIdx.x) * each, call.requests);
  const int end = min(first + each, call.requests);
  int own = 0;
#pragma unroll 1
  for (int i = first; i < end; ++i) own += extent(call, i).tiles;
  int before = running_sum(own);
  if (threadIdx.x % 32 == 31) s_tiles[warp] = before;
  __syncthreads();
  int all = 0;
  before -= own;
#pragma unroll 1
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i < warp) before += s_tiles[i];
    all += s_tiles[i];
  }
  const Deal deal = dealer(all);
  const bool works = blockIdx.x < deal.blocks && all > 0;
  const int from = works ? deal.begin(blockIdx.x) : 0;
  const int to = works ? deal.begin(blockIdx.x + 1) : 0;
  if (works ? before <= from && from < before + own : threadIdx.x == 0) {
    s_walk = {from, to, first, before};
  }
  if (threadIdx.x == 0) s_deal = deal;
  __syncthreads();
}

constexpr int kFewRequests = 128;  // that one warp deals out

// The same by one warp, where requests are few. Gives the block's share.
template <bool kEarly>
__device__ Walk deal_few_tiles(const Call& call, const Dealer& dealer, Deal& deal) {
  if (call.requests == 1) {
    const int all = extent<kEarly>(call, 0).tiles;
    deal = dealer(all);
    if (blockIdx.x >= deal.blocks) return {0, 0, 0, 0};
    return {deal.begin(blockIdx.x), deal.begin(blockIdx.x + 1), 0, 0};
  }
  constexpr int kEach = kFewRequests / 32;
  const int lane = threadIdx.x % 32, each = (call.requests + 31) / 32, first = lane * each;
  int own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (i < each && first + i < call.requests) own += extent<kEarly>(call, first + i).tiles;
  }
  int before = running_sum(own);
  const int all = __shfl_sync(~0u, before, 31);
  before -= own;
  deal = dealer(all);
  if (blockIdx.x >= deal.blocks || all == 0) return {0, 0, 0, 0};
  const int from = deal.begin(blockIdx.x), to = deal.begin(blockIdx.x + 1);
  const int source = __ffs(__ballot_sync(~0u, before <= from && from < before + own)) - 1;
  return {from, to, source * each, __shfl_sync(~0u, before, source)};
}
