// Records of a paged K cache: how they lie there, and how a warp fetches those of its ids.
//
// A warp owns a tile of rows and meets no other warp. Lane i knows the id of row i and fetches its
// record with one bulk copy, or, where ids follow each other within a page, the whole run.
#pragma once

using uint8 = unsigned char;
using uint32 = unsigned int;
using uint64 = unsigned long long;
using int64 = long long;

// A record of 584 bytes is V4, of 528 V4.1 FP8, of 288 V4.1 FP4. Interleaved, its scales follow its
// data; otherwise a page holds the data of all rows first. In shared memory a tile of kTile records
// lies as in a page of as many rows.
template <int kRecord, bool kInterleaved, int kTile>
struct Records {
  static constexpr bool is_v4 = kRecord == 584;
  static constexpr bool split = !kInterleaved;
  static constexpr bool runs = kTile > 2;  // fewer take longer to look at than looking saves
  static constexpr int data = is_v4 ? 576 : kRecord == 528 ? 512 : 256;  // bytes of a row
  static constexpr int scales = kRecord - data;
  static constexpr int pitch = kInterleaved ? kRecord : data;          // between rows' data
  static constexpr int group = is_v4 ? 64 : kRecord == 528 ? 32 : 16;  // elements of a scale
  static constexpr int bytes = kTile * kRecord;
  static constexpr int scales_at = kInterleaved ? data : kTile * data;
  static constexpr int scale_pitch = kInterleaved ? pitch : scales;
  static_assert(bytes % 16 == 0 && kTile <= 32);
};

// Volatile, so that the load stays where it is written, ahead of what else there is to do.
__device__ inline int load(const int* at) {
  int v;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

__device__ inline int64 load(const int64* at) {
  int64 v;
  asm volatile("ld.global.b64 %0, [%1];" : "=l"(v) : "l"(at) : "memory");
  return v;
}

__device__ inline uint32 shared(const void* at) {
  return static_cast<uint32>(__cvta_generic_to_shared(at));
}

// The L2 policy of what is not touched again soon.
__device__ inline uint64 evict_first() {
  uint64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Bulk copy to shared memory, counted by the barrier.
template <bool kOnce>
__device__ void fetch(const void* target, const uint8* source, uint32 size, uint32 barrier) {
  if constexpr (kOnce) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1], %2, [%3], %4;"
        :: "r"(shared(target)), "l"(source), "r"(size), "r"(barrier), "l"(evict_first())
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :: "r"(shared(target)), "l"(source), "r"(size), "r"(barrier) : "memory");
  }
}

// Does not hold up what is read from shared memory after it.
template <bool kOnce>
__device__ void store(uint8* at, uint4 v) {
  if constexpr (kOnce) {
    asm volatile("st.global.L2::cache_hint.v4.b32 [%0], { %1, %2, %3, %4}, %5;"
                 :: "l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(evict_first()));
  } else {
    asm volatile("st.global.v4.b32 [%0], { %1, %2, %3, %4};"
                 :: "l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
  }
}

// By the whole warp that the barrier belongs to.
__device__ inline void prepare(uint32 barrier, int lane) {
  if (lane == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
}

// An id outside the pool is a mistake that no host sees: it means the nearest record there is.
// last: the greatest id there is, -1 if there is none.
template <typename Id>
__device__ int within(Id id, int last) {
  return id < 0 ? 0 : id < last ? int(id) : last;
}

// The records of the first `tile` lanes' ids to s_rows and s_scales; by a whole warp, which waits.
// inverse: 2^40 / page_size, rounded up.
template <typename R, bool kOnce>
__device__ void fetch_records(uint8* s_rows, uint8* s_scales, uint32 barrier, const uint8* cache,
                              int64 page_stride, int64 inverse, int page_size, int id, int tile,
                              int lane) {
  const bool mine = lane < tile;
  // Exact for ids below 2^31 and pages of up to 256 rows.
  const int page = __umul64hi(uint64(uint32(id)) << 24, inverse);
  const int slot = id - page * page_size;
  const uint8* const g_page = cache + page * page_stride;
  const uint8* const g_scales = g_page + (page_size * R::data + slot * R::scales);

  int run = 1;  // rows that lie one behind the other, this being the first
  bool leads = mine;
  if (R::runs) {
    const int before = __shfl_up_sync(~0u, id, 1);
    leads = mine && (lane == 0 || slot == 0 || id != before + 1);
    const uint32 above = __ballot_sync(~0u, leads) >> lane >> 1;
    run = above ? __ffs(above) : tile - lane;
  }
  if (lane == 0) {
    const uint32 bytes = tile * (R::is_v4 ? R::data : R::data + R::scales);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(barrier), "r"(bytes) : "memory");
  }
  __syncwarp();
  if (leads) {
    fetch<kOnce>(s_rows + lane * R::pitch, g_page + slot * R::pitch, run * R::pitch, barrier);
    if constexpr (R::split && !R::is_v4)
      fetch<kOnce>(s_scales + lane * R::scales, g_scales, run * R::scales, barrier);
  }
  if constexpr (R::is_v4) {
    if (mine) {  // eight bytes are too few for a bulk copy
      const int64 scales = load(reinterpret_cast<const int64*>(g_scales));
      *reinterpret_cast<int64*>(s_scales + lane * R::scales) = scales;
    }
    __syncwarp();
  }
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n"
      "@!p bra again; }" :: "r"(barrier) : "memory");
}
