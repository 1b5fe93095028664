// Tiles from the cache to shared memory. Counts on the constants that the kernel begins with.
#pragma once
#include "place.cuh"

// Stages of shared memory that tiles go round in. A stage's barriers: it is full, it is empty.
struct Ring {
  uint32 tiles, barriers, tile_bytes;
  int stages;

  __device__ uint32 tile(int stage) const { return tiles + stage * tile_bytes; }
  __device__ uint32 full(int stage) const { return barriers + 16 * stage; }
  __device__ uint32 empty(int stage) const { return barriers + 16 * stage + 8; }

  // By one warp, the one that fetches. pairs: warps that empty a stage.
  __device__ void init(int pairs) const {
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < stages; i += 32) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), pairs);
    }
    barrier_init_fence();
    __syncwarp();
  }
};

// By one warp: a few lanes at a time, a tile each. segment: the first, if there is one; the walk
// is behind it.
__device__ void fetch_tiles(const Call& call, const Place& place, bool more, Segment segment,
                            Walk walk, const Ring& ring) {
  const int lane = threadIdx.x % 32;
  const int step = max(1, min(ring.stages / 4, 32));
  const int64 token_bytes = int64(call.heads) * Layout::kBytes;
  const uint32 row_bytes = place.heads * Layout::kBytes;
  const uint64 policy = evict_first();
  int stage = lane, lap = 0;
  auto advance = [&](int by) {
    for (stage += by; stage >= ring.stages; stage -= ring.stages) ++lap;
  };
  advance(0);
  for (; more; more = walk.next(call, segment)) {
    const int* pages = call.pages + int64(segment.request) * call.pages_stride;
    // The pages of a tile's runs, as far as it has tokens.
    auto look_up_pages = [&](int tile, int (&found)[kRuns]) {
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        const int token = tile * kTile + run * kRun;
        const bool any = lane < step && tile < segment.end && token < segment.length;
        found[run] = any ? min(max(pages[token >> call.page_shift], 0), call.last_page) : -1;
      }
    };
    int found[kRuns], ahead[kRuns];
    look_up_pages(segment.first + lane, ahead);
#pragma unroll 1
    for (int tile = segment.first; tile < segment.end; tile += step) {
      const int count = min(step, segment.end - tile);
#pragma unroll
      for (int run = 0; run < kRuns; ++run) found[run] = ahead[run];
      look_up_pages(tile + step + lane, ahead);
      if (lane < count) {
        uint32 bytes = 0;
#pragma unroll
        for (int run = 0; run < kRuns; ++run) bytes += found[run] < 0 ? 0 : kRun * row_bytes;
        wait(ring.empty(stage), lap & 1 ^ 1);
        arrive_expecting(ring.full(stage), bytes);
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
          if (found[run] < 0) continue;
          const int token = (tile + lane) * kTile + run * kRun & (1 << call.page_shift) - 1;
          const uint8* source = call.cache + found[run] * call.page_stride + token * token_bytes +
                                int64(place.head) * Layout::kBytes;
          const uint32 target = ring.tile(stage) + run * kRun * row_bytes;
          if (place.heads == call.heads) {
            fetch(target, source, kRun * row_bytes, ring.full(stage), policy);
          } else {
#pragma unroll 1
            for (int i = 0; i < kRun; ++i) {
              fetch(target + i * row_bytes, source + i * token_bytes, row_bytes, ring.full(stage),
                    policy);
            }
          }
        }
      }
      __syncwarp();
      advance(count);
    }
  }
}

constexpr int kTilesAhead = 4;

// Brings a block's first tiles as far as the L2 while the kernel before still runs: those that
// lengths and pages mean now. Both are read again when they are final, so if they change, only time
// is lost; whatever they are, nothing outside of the tensors is touched. By one warp.
__device__ void prefetch_tiles(const Call& call, const Place& place, const Dealer& dealer) {
  if (place.heads != call.heads) return;  // runs are not in one piece
  const int lane = threadIdx.x % 32;
  Deal deal;
  Walk walk = deal_few_tiles<true>(call, dealer, deal);
  Segment segment;
  if (!walk.next<true>(call, segment)) return;
  const int tile = segment.first + lane / kRuns, token = tile * kTile + lane % kRuns * kRun;
  if (lane >= kTilesAhead * kRuns || tile >= segment.end || token >= segment.length) return;
  const int64 at = int64(segment.request) * call.pages_stride + (token >> call.page_shift);
  const int page = min(max(__ldcg(call.pages + at), 0), call.last_page);
  const int within = token & (1 << call.page_shift) - 1;
  const uint32 row_bytes = place.heads * Layout::kBytes;
  prefetch_bulk(call.cache + page * call.page_stride + int64(within) * row_bytes, kRun * row_bytes);
}
