// How the tokens of a batch are dealt to blocks: in tiles, an equal share for each, whatever the
// lengths of requests. Counts on the constants that the kernel begins with.
#pragma once

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
__device__ Extent extent(const Call& call, int request) {
  const int length = min(max(call.lengths[request], 0), call.max_tokens);
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

  __device__ bool next(const Call& call, Segment& segment) {
#pragma unroll 1
    while (from < to) {
      const Extent e = extent(call, request);
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
  int tiles, blocks;
  int most;  // blocks there can be

  __device__ int begin(int block) const {
    return block * (tiles / blocks) + min(block, tiles % blocks);
  }
  __device__ int owner(int tile) const {
    const int few = tiles / blocks, longer = tiles % blocks, behind = tile - longer * (few + 1);
    return behind < 0 ? tile / (few + 1) : longer + behind / few;
  }
};

// Which columns a warp has, and where they are.
struct Place {
  int heads;  // of the block
  int pairs;  // of heads and parts of columns that its warps are dealt to
  int head, column;  // the first of the block

  // Query rows are numbered (token, head). Of column `n` of a pair, or -1 where there is none.
  __device__ int row(const Call& call, int pair, int n) const {
    const int c = column + pair / heads * kColumns + n;
    if (c >= call.columns()) return -1;
    const int token = c / call.group;
    return (token * call.heads + head + pair % heads) * call.group + c - token * call.group;
  }
};

__device__ Place place_of(const Call& call) {
  const int heads = min(call.heads, kMaxHeads);
  const int parts = (call.columns() + kColumns - 1) / kColumns;
  const int own = min(parts, kWarps / heads), slices = call.heads / heads;
  return {heads, heads * own, int(blockIdx.y) % slices * heads,
          int(blockIdx.y) / slices * own * kColumns};
}

// What threads of a block tell each other.
struct Shared {
  int tiles[32];  // of the requests of a warp's threads
  Walk walk, fetched;  // the block's share, and how far it is fetched
  Segment segment;
  Place place;
  Deal deal;
  bool more, last;
};

static_assert(kStateAt + sizeof(Shared) <= 227 * 1024);

// Deals out the tiles of the batch. By all threads; s_shared.walk becomes the block's share.
__device__ void deal_tiles(const Call& call, Shared& s_shared, int least) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int each = (call.requests + kThreads - 1) / kThreads;
  const int first = min(int(threadIdx.x) * each, call.requests);
  const int end = min(first + each, call.requests);
  int own = 0;
#pragma unroll 1
  for (int i = first; i < end; ++i) own += extent(call, i).tiles;
  int before = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(~0u, before, distance);
    if (lane >= distance) before += other;
  }
  if (lane == 31) s_shared.tiles[warp] = before;
  __syncthreads();
  int all = 0;
  before -= own;
#pragma unroll 1
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i < warp) before += s_shared.tiles[i];
    all += s_shared.tiles[i];
  }
  const int most = max(1, int(gridDim.x / gridDim.y));
  const Deal deal = {all, max(1, min(most, all / least)), most};
  const bool works = blockIdx.x < deal.blocks && all > 0;
  const int from = works ? deal.begin(blockIdx.x) : 0;
  const int to = works ? deal.begin(blockIdx.x + 1) : 0;
  if (works ? before <= from && from < before + own : threadIdx.x == 0) {
    s_shared.walk = s_shared.fetched = {from, to, first, before};
  }
  if (threadIdx.x == 0) s_shared.deal = deal;
  __syncthreads();
}
