// What sm_90a has for warps that work for each other: barriers, proxies, products of a warpgroup.
// Addresses are those of shared memory.

#pragma once

#include "numbers.cuh"

// Barriers ---------------------------------------------------------------------------------------

__device__ void init(uint32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ void arrive(uint32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ void arrive(uint32 barrier, int times) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(times)
               : "memory");
}

// Arrives when the copies that this thread has begun are complete.
__device__ void arrive_with_copies(uint32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ void wait(uint32 barrier, uint32 parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

// Whether that phase has ended.
__device__ bool passed(uint32 barrier, uint32 parity) {
  uint32 done;
  asm volatile(
      "{ .reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

// For the threads of whole warps that name the same barrier, of which 0 is __syncthreads's.
__device__ void group_barrier(uint32 id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same; whether any of them says so.
__device__ bool any_of_group(uint32 id, int threads, bool own) {
  uint32 any;
  asm volatile(
      "{ .reg .pred p, any;\n"
      "setp.ne.b32 p, %3, 0;\n"
      "barrier.cta.red.or.pred any, %1, %2, p;\n"
      "selp.u32 %0, 1, 0, any; }"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(uint32(own))
      : "memory");
  return any;
}

// Barriers that have been initialised, for copies and other threads behind a __syncthreads.
__device__ void init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// What wgmma reads, it reads through another proxy than stores and cp.async write.
__device__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Not recomputed from the special register wherever it is used.
__device__ uint32 thread() {
  uint32 id;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(id));
  return id;
}

// Copies -----------------------------------------------------------------------------------------

// 16 bytes to shared memory, zeros unless valid: then nothing is read.
__device__ void copy(uint32 target, const char* source, bool valid, uint64 policy) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(target),
      "l"(source), "r"(valid ? 16 : 0), "l"(policy)
      : "memory");
}

// Until this thread's copies are complete.
__device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// To L2, the 128 bytes in which that is.
__device__ void prefetch(const char* source) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(source));
}

// Policies of L2, as createpolicy would make them.
constexpr uint64 kEvictFirst = 0x12f0000000000000;
constexpr uint64 kEvictLast = 0x14f0000000000000;

// Whole pieces of 16 bytes from shared memory, which stores have been fenced for. L2 need not keep
// them.
__device__ void store_bulk(char* target, uint32 source, uint32 bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;"
      ::"l"(target), "r"(source), "r"(bytes), "l"(kEvictFirst)
      : "memory");
}

// Until what this thread has begun to store has been read.
__device__ void wait_for_bulk_reads() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Volatile, so that nothing waits for the value before it is used.
__device__ int load(const int* source) {
  int value;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(source));
  return value;
}

// Products of a warpgroup -------------------------------------------------------------------------
// Operands in shared memory are tiles of 64 columns, 128 bytes a row, swizzled; eight rows are 1024
// bytes.

constexpr int kTile = 64 * 128;  // bytes of 64 rows

// Rows along the result, columns along the sum.
__device__ uint64 k_major(uint32 address) {
  return (uint64(1) << 62) | (uint64(1024 >> 4) << 32) | (uint64(1) << 16) | (address >> 4);
}

// Columns along the result, from tile to tile; rows along the sum.
__device__ uint64 columns_major(uint32 address) {
  return (uint64(1) << 62) | (uint64(1024 >> 4) << 32) | (uint64(kTile >> 4) << 16) |
         (address >> 4);
}

// Descriptors have their upper word in common. Of the lower one multiples of 16 bytes can be added
// to, and where it is known to be the same in all lanes that is all that a product has to wait for.
__device__ uint32 lower(uint64 descriptor) { return __shfl_sync(~0u, uint32(descriptor), 0); }
__device__ uint64 at(uint32 lower, int bytes) {
  return (uint64(1) << 62) | (uint64(1024 >> 4) << 32) | (lower + (bytes >> 4));
}

__device__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until no more than so many of the latest groups are left.
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

__device__ void load_matrices(uint32 (&m)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 { %0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

__device__ void store_matrices(uint32 address, const uint32 (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], { %1, %2, %3, %4};" ::"r"(address),
               "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
}

// Rows of a matrix in memory are columns of the fragment.
__device__ void store_transposed(uint32 address, const uint32 (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], { %1, %2, %3, %4};"
               ::"r"(address), "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
}

// Registers ---------------------------------------------------------------------------------------

// Of a thread; the whole warpgroup calls.
template <int kRegisters>
__device__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
