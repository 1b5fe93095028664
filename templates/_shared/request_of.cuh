// Which request a row or an id belongs to: the last one that starts at or before it, so that those
// without rows are passed over.
#pragma once

constexpr int kNever = 0x7fffffff;  // the start of what comes after all requests

// Up to kThreads neighbouring requests in shared memory. All that a block has to know of them is read
// in one go: reads that wait for each other are what makes lists slow.
//
// `Request` is what is known of one, and Request{} stands for one that does not exist.
template <class Request, int kThreads>
struct Window {
  int starts[kThreads + 1];
  Request requests[kThreads];

  // By all threads of a block: fills the window from the request of `first` on, and gives the place of
  // that request in it, whatever the starts hold. `origin` is what they count from, `read(r)` is what
  // is known of a request.
  template <class Read>
  __device__ int load(int first, const int* all, int count, int origin, const Read& read) {
    int low = 0;
    for (int among = count; among > kThreads;) {  // it is one of [low, low + among)
      const int step = (among + kThreads - 1) / kThreads, probe = threadIdx.x * step;
      const bool before = probe < among && all[low + probe] - origin <= first;
      const int last = max(__syncthreads_count(before) - 1, 0);
      low += last * step;
      among = min(step, among - last * step);
    }
    const int r = low + threadIdx.x, behind = low + kThreads;
    const int start = r < count ? all[r] - origin : kNever;
    requests[threadIdx.x] = r < count ? read(r) : Request{};
    starts[threadIdx.x] = start;
    if (threadIdx.x == 0) starts[kThreads] = behind < count ? all[behind] - origin : kNever;
    return max(__syncthreads_count(start <= first) - 1, 0);
  }

  // The first row or id after `first` that is not one of the window's; a list that does not ascend
  // must not keep a block from getting on.
  __device__ int end(int first) const { return max(starts[kThreads], first + 1); }

  // The place of the request of `id`, which is before the end; that at `place` does not start later.
  __device__ int find(int place, int id) const {
    if (id < starts[place + 1]) return place;
    int after = kThreads;
    while (after - place > 1) {
      const int middle = place + (after - place) / 2;
      if (starts[middle] <= id) place = middle;
      else after = middle;
    }
    return place;
  }
};
