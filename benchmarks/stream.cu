// Reads `reads` and writes `writes` 16-byte vectors and does nothing else: the limit of a kernel
// that moves as much. The work is cut into tiles, each with its even share of both. Every load of
// a tile is issued before its first store, and every stored value depends on all of its loads.

#if STREAMING  // neither side is used again
#define LOAD "ld.global.nc.L1::no_allocate.v4.u32"
#define STORE "st.global.cs.v4.u32"
#else
#define LOAD "ld.global.nc.v4.u32"
#define STORE "st.global.v4.u32"
#endif

struct Vector {
    unsigned x, y, z, w;
};

__device__ __forceinline__ Vector load(const uint4* from) {
    Vector v;
    asm volatile(LOAD " {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

__device__ __forceinline__ void store(uint4* to, Vector v) {
    asm volatile(STORE " [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ __forceinline__ int share(long long total, long long first, long long tile) {
    return (int)max(0LL, min(tile, total - first));
}

extern "C" __global__ void __launch_bounds__(THREADS)
stream(const uint4* __restrict__ in, uint4* __restrict__ out, long long reads, long long writes,
       long long tile_reads, long long tile_writes, long long tiles) {
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint4* from = in + tile * tile_reads;
        uint4* to = out + tile * tile_writes;
        int to_read = share(reads, tile * tile_reads, tile_reads);
        int to_write = share(writes, tile * tile_writes, tile_writes);
        Vector v[READS];
#pragma unroll
        for (int i = 0; i < READS; ++i) {
            int at = i * THREADS + (int)threadIdx.x;
            v[i] = at < to_read ? load(from + at) : Vector{0, 0, 0, 0};
        }
        Vector sum = v[0];
#pragma unroll
        for (int i = 1; i < READS; ++i) {
            sum.x ^= v[i].x;
            sum.y ^= v[i].y;
            sum.z ^= v[i].z;
            sum.w ^= v[i].w;
        }
#pragma unroll
        for (int i = 0; i < WRITES; ++i) {
            int at = i * THREADS + (int)threadIdx.x;
            if (at < to_write) store(to + at, Vector{sum.x + i, sum.y, sum.z, sum.w});
        }
        // With nothing to write, a store that random data does not lead to keeps the loads alive.
        if (writes == 0 && sum.x == 0x5EEDu && sum.y == 0xFACEu && sum.z == 0xCAFEu) store(out, sum);
    }
}
