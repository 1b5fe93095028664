// The instructions that C++ has no word for.
#pragma once

using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;
using int64 = long long;

// Shared memory, by address ----------------------------------------------------------------------

__device__ __forceinline__ uint32 shared_address(const void* at) {
  return static_cast<uint32>(__cvta_generic_to_shared(at));
}

// An address that the compiler takes as it is: what is added to it goes into the instructions.
__device__ __forceinline__ uint32 opaque(uint32 at) {
  asm volatile("" : "+r"(at));
  return at;
}

// Volatile, so that they stay behind the wait for what they read.
__device__ __forceinline__ uint32 load16(uint32 at) {
  uint16 v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
  return v;
}

__device__ __forceinline__ uint32 load32(uint32 at) {
  uint32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}

// Of a table that never changes, so free to move.
__device__ __forceinline__ uint32 look_up(uint32 at) {
  uint32 v;
  asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}

// Numbers ----------------------------------------------------------------------------------------

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000); }

__device__ __forceinline__ uint32 permute(uint32 a, uint32 b, uint32 bytes) {
  return __byte_perm(a, b, bytes);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// fp16 bits -> float.
__device__ __forceinline__ float half_bits(uint32 bits) {
  float y;
  asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(y) : "r"(bits));
  return y;
}

__device__ __forceinline__ float bfloat_bits(uint32 bits) { return __uint_as_float(bits << 16); }

// A pair of fp16, `low` in the lower half.
__device__ __forceinline__ uint32 half_pair(float low, float high) {
  uint32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ uint32 bfloat_pair(float low, float high) {
  uint32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// a * b + c of fp16 pairs.
__device__ __forceinline__ uint32 fma_pair(uint32 a, uint32 b, uint32 c) {
  uint32 v;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

// Four E4M3 codes -> two fp16 pairs.
__device__ __forceinline__ void widen(uint32 codes, uint32& low, uint32& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high) : "r"(codes));
}

// Matrices ---------------------------------------------------------------------------------------

// d += a * b, 16 x 16 times 16 x 8.
__device__ __forceinline__ void mma(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An 8 x 8 matrix of fp16, turned over.
__device__ __forceinline__ uint32 transpose(uint32 pair) {
  uint32 v;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(pair));
  return v;
}

// Barriers and copies ----------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}

__device__ __forceinline__ void arrive_expecting(uint32 barrier, uint32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(barrier), "r"(bytes) : "memory");
}

// Until the phase of this parity is over.
__device__ __forceinline__ void wait(uint32 barrier, uint32 parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again; }" :: "r"(barrier), "r"(parity) : "memory");
}

// The same by a whole warp, which stays together.
__device__ __forceinline__ void wait_together(uint32 barrier, uint32 parity) {
  uint32 over;
  do {
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }" : "=r"(over) : "r"(barrier), "r"(parity) : "memory");
  } while (!__all_sync(~0u, over));
}

// What is not read again soon.
__device__ __forceinline__ uint64 evict_first() {
  uint64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Bulk copy to shared memory, counted by the barrier.
__device__ __forceinline__ void fetch(uint32 target, const uint8* source, uint32 bytes,
                                      uint32 barrier, uint64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;"
      :: "r"(target), "l"(source), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
}

// The same as far as the L2, as a hint.
__device__ __forceinline__ void prefetch_bulk(const uint8* source, uint32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(source), "r"(bytes));
}

// Words that blocks share ------------------------------------------------------------------------

// What it was before. What the block wrote before its threads last met is seen by whoever adds or
// loads later, and what those before wrote by this block once its threads have met again.
__device__ __forceinline__ int add_globally(int* at, int v) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before) : "l"(at), "r"(v) : "memory");
  return before;
}

__device__ __forceinline__ int load_acquire(const int* at) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

// Adds 1, and wraps to 0 behind `most`. What it was before.
__device__ __forceinline__ int count_globally(int* at, int most) {
  int before;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before) : "l"(at), "r"(most) : "memory");
  return before;
}

// Threads of a block -----------------------------------------------------------------------------

// A barrier of the first `threads` threads of the block.
template <int kThreads>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" :: "n"(kThreads) : "memory");
}

// Another, of `threads` threads, of which some wait and some do not.
template <int kThreads>
__device__ __forceinline__ void await_news() {
  asm volatile("bar.sync 2, %0;" :: "n"(kThreads) : "memory");
}

template <int kThreads>
__device__ __forceinline__ void tell_news() {
  asm volatile("bar.arrive 2, %0;" :: "n"(kThreads) : "memory");
}

// Registers a thread of this group of four warps is to have. By all of them.
template <int kRegisters>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(kRegisters));
}

// The kernel before this one is over, and what it wrote is there.
__device__ __forceinline__ void await_predecessor() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void let_successor_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
