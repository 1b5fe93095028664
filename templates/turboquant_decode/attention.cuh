// One warp's attention: scores, weights and weighted sums of values. Counts on the constants that
// the kernel begins with.
#pragma once
#include "codes.cuh"
#include "results.cuh"

// What a warp knows of its columns after some tiles.
struct Attention {
  // A lane has column 2 * part + c of every column tile.
  float acc[kDim / 16][kColumnTiles][4];  // elements by columns
  float top[kColumnTiles][2];             // what scores are relative to, in powers of two
  float sum[kColumnTiles][2];             // of weights, over the lane's tokens
  float bias[kColumnTiles][2];            // of weights times minimums, likewise
  float step_unit;                        // a power of two that steps are multiplied by

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) acc[i][j][k] = 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) top[j][c] = kLowest, sum[j][c] = 0.0f, bias[j][c] = 0.0f;
    }
    step_unit = 0x1p100f;
  }

  // 1 / x of the bits of a power of two; of 0 as well something large.
  __device__ static float power_inverse(uint32 bits) { return __uint_as_float((254 << 23) - bits); }

  // Takes new maximums of scores [token][column] and of steps.
  __device__ __forceinline__ void rescale(const float (&scores)[kRuns][kColumnTiles][4],
                                          const float (&step)[kRuns][2]) {
    float greatest = 0.0f;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) greatest = fmaxf(greatest, fmaxf(step[i][0], step[i][1]));
    const uint32 most =
        __reduce_max_sync(~0u, __float_as_uint(greatest)) + 0x007fffff & 0x7f800000;
    const float unit = fminf(step_unit, kWeightScale * power_inverse(most));
    const float shrink = unit * power_inverse(__float_as_uint(step_unit));
    step_unit = unit;
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float most = top[j][c];
#pragma unroll
        for (int i = 0; i < kRuns; ++i) {
          most = fmaxf(most, fmaxf(scores[i][j][c], scores[i][j][c + 2]));
        }
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
          most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
        }
        const float alpha = exp2_fast(top[j][c] - most);
        top[j][c] = most;
        sum[j][c] *= alpha;
        bias[j][c] *= alpha;
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) {
          acc[i][j][c] *= alpha * shrink;
          acc[i][j][c + 2] *= alpha * shrink;
        }
      }
    }
  }

  // Products become sums of weighted values, and sums over the lane's tokens such over all.
  __device__ __forceinline__ void finish() {
    const float unit = power_inverse(__float_as_uint(step_unit));
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
          sum[j][c] += __shfl_xor_sync(~0u, sum[j][c], distance);
          bias[j][c] += __shfl_xor_sync(~0u, bias[j][c], distance);
        }
#pragma unroll
        for (int own = 0; own < Value::kOwn; ++own) {
          float& v = acc[own / 2][j][own % 2 * 2 + c];
          v = v * (unit * Value::unit(own)) + bias[j][c];
        }
      }
    }
  }

  // Four elements that follow each other.
  __device__ __forceinline__ float4 four(int j, int c, int f) const {
    return make_float4(acc[2 * f][j][c], acc[2 * f][j][c + 2], acc[2 * f + 1][j][c],
                       acc[2 * f + 1][j][c + 2]);
  }

  // Hands finished sums over to another warp. slot: of the lane's first column.
  __device__ __forceinline__ void give(float* s_partials, float2* s_sums, int slot, int row) const {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int n = slot + 8 * j + c;
#pragma unroll
        for (int f = 0; f < Value::kOwn / 4; ++f) {
          *reinterpret_cast<float4*>(s_partials + n * kPartialPitch + Value::element(row, f)) =
              four(j, c, f);
        }
        if (row == 0) s_sums[n] = make_float2(top[j][c], sum[j][c]);
      }
    }
  }

  __device__ __forceinline__ void take(const float* s_partials, const float2* s_sums, int slot,
                                       int row) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int n = slot + 8 * j + c;
        const float2 other = s_sums[n];
        const float most = fmaxf(top[j][c], other.x);
        const float mine = exp2_fast(top[j][c] - most), its = exp2_fast(other.x - most);
        top[j][c] = most;
        sum[j][c] = sum[j][c] * mine + other.y * its;
#pragma unroll
        for (int f = 0; f < Value::kOwn / 4; ++f) {
          const float4 v = *reinterpret_cast<const float4*>(s_partials + n * kPartialPitch +
                                                            Value::element(row, f));
          const float its_own[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& x = acc[2 * f + i / 2][j][i % 2 * 2 + c];
            x = x * mine + its_own[i] * its;
          }
        }
      }
    }
  }
};

// The lane's constants for a request.
struct Columns {
  uint32 q[Key::kSteps][kColumnTiles][2];
  float factor[kColumnTiles][2];
};

// Where the lane finds what it takes of a tile, in bytes.
struct Lane {
  uint32 slot, key, value, token, table;
};

// Takes in a tile. Of each run of it the lane scores the tokens `row` and `row + 8`.
// whole: all columns see all of it; else view(scores, steps, minimums) hides what they do not.
template <class View>
__device__ __forceinline__ void attend(Attention& state, const Columns& columns, uint32 tile,
                                       const Lane& own, bool whole, View view) {
  const int row = threadIdx.x / 4 % 8;

  // Scores.
  float scores[kRuns][kColumnTiles][4];
  float step[kRuns][2], minimum[kRuns][2];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const uint32 at = opaque(tile + run * kRun * own.token);
    const uint32 upper = opaque(at + own.key), lower = opaque(upper + 8 * own.token);
    // Two sums a column tile, so that products need not wait for each other.
    float even[kColumnTiles][4] = {}, odd[kColumnTiles][4] = {};
    uint32 squares[4] = {};
#pragma unroll
    for (int group = 0; group < Key::kSteps / Key::kAtOnce; ++group) {
      uint32 a[Key::kAtOnce][4];
      Key::load(upper, lower, group, own.table, a);
#pragma unroll
      for (int i = 0; i < Key::kAtOnce; ++i) {
        const int s = group * Key::kAtOnce + i;
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          mma(s % 2 ? odd[j] : even[j], a[i], columns.q[s][j][0], columns.q[s][j][1]);
        }
        if constexpr (!Layout::kFp8) {
#pragma unroll
          for (int k = 0; k < 4; ++k) squares[k] = fma_pair(a[i][k], a[i][k], squares[k]);
        }
      }
    }
    const uint32 upper_slot = opaque(at + own.slot);
    const uint32 lower_slot = opaque(upper_slot + 8 * own.token);
    float length[2] = {1.0f, 1.0f};
    if constexpr (!Layout::kFp8) {
      float all[4] = {};
      mma(all, squares, 0x3c003c00, 0x3c003c00);  // ones: sums over elements and lanes
      length[0] = half_bits(load16(upper_slot + Layout::kNorm)) * rsqrt_fast(all[0]);
      length[1] = half_bits(load16(lower_slot + Layout::kNorm)) * rsqrt_fast(all[2]);
    }
    step[run][0] = half_bits(load16(upper_slot + Layout::kStep));
    step[run][1] = half_bits(load16(lower_slot + Layout::kStep));
    minimum[run][0] = half_bits(load16(upper_slot + Layout::kMinimum));
    minimum[run][1] = half_bits(load16(lower_slot + Layout::kMinimum));
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float product = even[j][k] + odd[j][k];
        scores[run][j][k] = product * length[k / 2] * columns.factor[j][k % 2];
      }
    }
  }
  if (!whole) view(scores, step, minimum);

  bool beyond = false;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float most = fmaxf(scores[run][j][c], scores[run][j][c + 2]);
        beyond |= most > state.top[j][c] + kHeadroom;
      }
    }
    beyond |= fmaxf(step[run][0], step[run][1]) * state.step_unit > kWeightScale;
  }
  if (__any_sync(~0u, beyond)) state.rescale(scores, step);

#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    // Weights, times the step that values are in.
    uint32 weights[kColumnTiles][2];
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      float w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int c = k % 2;
        const float weight = exp2_fast(scores[run][j][k] - state.top[j][c]);
        state.sum[j][c] += weight;
        state.bias[j][c] += weight * minimum[run][k / 2];
        w[k] = weight * (step[run][k / 2] * state.step_unit);
      }
      weights[j][0] = transpose(half_pair(w[0], w[1]));
      weights[j][1] = transpose(half_pair(w[2], w[3]));
    }
    const uint32 first = opaque(tile + run * kRun * own.token + own.value);
    const uint32 ninth = opaque(first + 8 * own.token);
    const uint32 tokens[4] = {first, opaque(first + own.token), ninth, opaque(ninth + own.token)};
#pragma unroll
    for (int group = 0; group < Value::kTiles / Value::kAtOnce; ++group) {
      uint32 a[Value::kAtOnce][4];
      Value::load(tokens, row, group, a);
#pragma unroll
      for (int i = 0; i < Value::kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          mma(state.acc[group * Value::kAtOnce + i][j], a[i], weights[j][0], weights[j][1]);
        }
      }
    }
  }
}
