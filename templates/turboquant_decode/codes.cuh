// Packed codes -> operands of matrix products.
//
// Which element of a key or a value goes where in a product is free: elements of a key only meet
// those of a query that is laid out alike, and the rows of a product of values are put right where
// it is written. So every lane takes what lies together, two bytes at a time, since no more is
// known of where a slot begins.
//
// In the names of the PTX manual lane = 4 * groupID + threadID_in_group; here that is row and part.
#pragma once
#include "instructions.cuh"
#include "turboquant.cuh"

namespace turboquant {

// Keys -------------------------------------------------------------------------------------------

// A code that is not FP8 is looked up together with its neighbour: a table holds the fp16 pairs of
// all pairs of codes, once for every lane, so that no two lanes meet in a bank.
template <int kBits>
constexpr int kPairCodes = kBits == 8 ? 0 : 1 << 2 * kBits;
constexpr int kPairStride = 32 * 4;  // bytes between entries
// The sum of squares of centroids is taken in fp16; this keeps it far from both of its ends.
constexpr float kTableScale = 16.0f;

template <int kBits, int kDim>
struct Centroids {
  float of[1 << kBits];
  __host__ __device__ constexpr Centroids() : of() {
    for (int i = 0; i < 1 << kBits; ++i) of[i] = centroid<kBits, kDim>(i);
  }
};

template <int kBits, int kDim>
__device__ void fill_table(uint8* table, const Centroids<kBits, kDim>& centroids, int thread,
                           int threads) {
  for (int i = thread; i < kPairCodes<kBits> * (kPairStride / 16); i += threads) {
    const int codes = i / (kPairStride / 16);
    const float low = centroids.of[codes & ((1 << kBits) - 1)], high = centroids.of[codes >> kBits];
    const uint32 pair = half_pair(low * kTableScale, high * kTableScale);
    reinterpret_cast<uint4*>(table)[i] = make_uint4(pair, pair, pair, pair);
  }
}

// Fragments of 16 tokens by 16 elements, some at a time.
template <int kBits, int kDim>
struct Keys {
  static constexpr int kSteps = kDim / 16;
  static constexpr int kAtOnce = kBits == 3 ? 4 : 1;

  // Of the elements that a lane has at a step: the first, then come the next and two more.
  __device__ static int element(int part, int step) {
    if (kBits != 3) return 4 * (part + 4 * step);
    return 16 * chunk(part, step / kAtOnce) + 4 * (step % kAtOnce);
  }

  // Bytes from a key to the first codes of a lane.
  __device__ static int begin(int part) { return element(part, 0) * kBits / 8; }

  // a: the fragments of steps group * kAtOnce..., from two tokens' keys as of the lane's begin.
  // table: the lane's entry for code 0, whose address has zeros where codes go.
  __device__ __forceinline__ static void load(uint32 upper, uint32 lower, int group, uint32 table,
                                              uint32 (&a)[kAtOnce][4]) {
    const int at = element(0, group * kAtOnce) * kBits / 8;
    if constexpr (kBits == 8) {
      widen(load32(upper + at), a[0][0], a[0][2]);
      widen(load32(lower + at), a[0][1], a[0][3]);
    } else if constexpr (kBits == 4) {
      const uint32 u = load16(upper + at), l = load16(lower + at);
      a[0][0] = look_up(table | (u << 7 & 0x7f80));
      a[0][1] = look_up(table | (l << 7 & 0x7f80));
      a[0][2] = look_up(table | (u >> 1 & 0x7f80));
      a[0][3] = look_up(table | (l >> 1 & 0x7f80));
    } else {
      sixteen(upper + at, table, a, 0);
      sixteen(lower + at, table, a, 1);
    }
  }

 private:
  // Sixteen codes of 3 bits are three half words: chunks. Neighbouring parts are two chunks apart,
  // which keeps them in different banks.
  __device__ static int chunk(int part, int index) {
    return kDim == 64 ? part : 2 * part + index % 2 + 8 * (index / 2);
  }

  __device__ __forceinline__ static void sixteen(uint32 at, uint32 table,
                                                 uint32 (&a)[kAtOnce][4], int token) {
    const uint32 middle = load16(at + 2);
    const uint32 first = permute(load16(at), middle, 0x5410);   // bits 0-31 of 48
    const uint32 last = permute(middle, load16(at + 4), 0x5410);  // bits 16-47
#pragma unroll
    for (int pair = 0; pair < 8; ++pair) {
      const bool early = pair < 5;
      const uint32 word = early ? first : last;
      const int shift = 6 * pair - (early ? 0 : 16) - 7;  // 2^7 is kPairStride
      const uint32 offset = shift < 0 ? word << -shift : word >> shift;
      a[pair / 2][2 * (pair % 2) + token] = look_up(table | (offset & 63 * kPairStride));
    }
  }
};

// Values -----------------------------------------------------------------------------------------

// Codes need no conversion: as the lowest bits of an fp16 they are a subnormal number, and anywhere
// in the ten bits of its mantissa a multiple of that. Fragments are 16 elements by 16 tokens.
template <int kBits, int kDim>
struct Values {
  static constexpr int kTiles = kDim / 16;
  static constexpr int kAtOnce = kBits == 4 ? 2 : kDim == 64 ? 4 : 8;
  // Elements of a lane: those of rows `row` and `row + 8` of all tiles.
  static constexpr int kOwn = kDim / 8;

  // The element of the lane's rows numbered from 0, the first of four that follow each other.
  __device__ static int element(int row, int four) {
    if (kBits == 4) return 4 * (row + 8 * four);
    if (kDim == 64) return 8 * row + 4 * four;
    return 16 * (row + 8 * (four / 4)) + 4 * (four % 4);
  }

  // What the product of the lane's element numbered so must be multiplied by.
  __device__ static constexpr float unit(int own) {
    constexpr int bit[] = {0, 3, 6, 1, 4, 7, 2, 5};
    return 0x1p24f / (1 << (kBits == 4 ? own % 2 * 4 : bit[own % 8]));
  }

  // Bytes from a value to the first codes of a lane.
  __device__ static int begin(int row) {
    return kBits == 4 ? 2 * row : kDim == 64 ? 3 * row & ~1 : 6 * row;
  }

  // a: the fragments of tiles group * kAtOnce..., from four tokens' values as of the lane's begin.
  __device__ __forceinline__ static void load(const uint32 (&tokens)[4], int row, int group,
                              uint32 (&a)[kAtOnce][4]) {
    if constexpr (kBits == 4) {
      const int at = 16 * group;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32 codes =
            permute(load16(tokens[2 * half] + at), load16(tokens[2 * half + 1] + at), 0x5410);
        a[0][2 * half] = codes & 0x000f000f;
        a[0][2 * half + 1] = codes & 0x00f000f0;
        a[1][2 * half] = codes >> 8 & 0x000f000f;
        a[1][2 * half + 1] = codes >> 8 & 0x00f000f0;
      }
    } else if constexpr (kDim == 64) {
      // Three bytes, which begin at an even address or behind one.
      const int at = 0;
      const uint32 skew = (row & 1) * 0x1111;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32 x = tokens[2 * half] + at, y = tokens[2 * half + 1] + at;
        const uint32 u = permute(load16(x), load16(x + 2), 0x5410);
        const uint32 v = permute(load16(y), load16(y + 2), 0x5410);
        eight(permute(u, v, 0x5410 + skew), permute(u, v, 0x6521 + skew),
              permute(u, v, 0x6622 + skew), a, 0, half);
      }
    } else {
      const int at = 48 * group;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32 x = tokens[2 * half] + at, y = tokens[2 * half + 1] + at;
        const uint32 w0 = permute(load16(x), load16(y), 0x5410);
        const uint32 w1 = permute(load16(x + 2), load16(y + 2), 0x5410);
        const uint32 w2 = permute(load16(x + 4), load16(y + 4), 0x5410);
        eight(w0, permute(w0, w1, 0x6341), w1, a, 0, half);
        eight(permute(w1, w2, 0x6341), w2, w2 >> 8, a, 4, half);
      }
    }
  }

 private:
  // Eight codes of 3 bits from pairs of half words: those that begin with the first, the second and
  // the third byte of the 24 bits.
  __device__ __forceinline__ static void eight(uint32 w0, uint32 w1, uint32 w2,
                                               uint32 (&a)[kAtOnce][4], int tile, int half) {
    a[tile][2 * half] = w0 & 0x00070007;
    a[tile][2 * half + 1] = w0 & 0x00380038;
    a[tile + 1][2 * half] = w0 & 0x01c001c0;
    a[tile + 1][2 * half + 1] = w1 & 0x000e000e;
    a[tile + 2][2 * half] = w1 & 0x00700070;
    a[tile + 2][2 * half + 1] = w1 & 0x03800380;
    a[tile + 3][2 * half] = w2 & 0x001c001c;
    a[tile + 3][2 * half + 1] = w2 & 0x00e000e0;
  }
};

}  // namespace turboquant
