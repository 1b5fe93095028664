// Which request a row or an id belongs to: the last one that starts at or before it, so that those
// without rows are passed over. Always in [0, requests), whatever the starts hold.
#pragma once

// By a whole warp, for one row that all its lanes share: 32 probes a round. `origin` is what all
// starts count from.
__device__ inline int request_of(int row, const int* starts, int origin, int requests, int lane) {
  int low = 0, count = requests;  // it lies in [low, low + count)
  while (count > 1) {
    const int step = (count + 31) / 32, probe = lane * step;
    const bool before = probe < count && starts[low + probe] - origin <= row;
    const int last = max(__popc(__ballot_sync(~0u, before)) - 1, 0);
    low += last * step;
    count = min(step, count - last * step);
  }
  return low;
}

// By a lane of its own, which knows that it is not before `low`.
__device__ inline int request_from(int low, int id, const int* starts, int requests) {
  int end = requests;
  while (end - low > 1) {
    const int middle = low + (end - low) / 2;
    if (starts[middle] <= id) low = middle;
    else end = middle;
  }
  return low;
}
