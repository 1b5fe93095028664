#pragma once

__device__ inline float bumped(float value) { return value + 1.0f; }
