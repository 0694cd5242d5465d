// The body of the CUDA kernel that compacts the KV cache, as a host-device function of the block
// and thread, so that the tests run this very source on a CPU.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace specedge {

constexpr int kCompactThreads = 128;

// kv [L, X, P, S, Hk, D]; runs of D elements are contiguous; strides in bytes.
struct CompactKv {
  char* kv;
  int64_t n_parts, n_heads, page_size, pages_per_request, max_path;
  int64_t word_bytes, words_per_run;  // a run is copied as words of 1, 2, 4, 8 or 16 bytes
  int64_t layer_stride, part_stride, page_stride, token_stride, head_stride;
  const int32_t* page_table;     // [B, M]
  const int32_t* prefix_lens;    // [B]
  const int32_t* path;           // [B, A]
  const int32_t* accepted_lens;  // [B]
};

struct alignas(16) Word16 {
  uint64_t low, high;
};

SPECEDGE_HOST_DEVICE inline void copy_word(char* to, const char* from, int64_t bytes) {
  switch (bytes) {
    case 16:
      *reinterpret_cast<Word16*>(to) = *reinterpret_cast<const Word16*>(from);
      break;
    case 8:
      *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
      break;
    case 4:
      *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
      break;
    case 2:
      *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
      break;
    default:
      *to = *from;
  }
}

// Block (plane of L * X, request), thread: every thread owns whole columns of words and moves them
// in ascending order. A path increases, so its source never lies before its target, and no thread
// reads what another writes: in place without a barrier.
SPECEDGE_HOST_DEVICE inline void compact_kv_thread(const CompactKv& a, int64_t plane,
                                                   int64_t request, int64_t thread,
                                                   int64_t n_threads) {
  const int32_t* pages = a.page_table + request * a.pages_per_request;
  const int32_t* nodes = a.path + request * a.max_path;
  const int64_t prefix = a.prefix_lens[request];
  char* base = a.kv + plane / a.n_parts * a.layer_stride + plane % a.n_parts * a.part_stride;
  for (int64_t word = thread; word < a.n_heads * a.words_per_run; word += n_threads) {
    const int64_t column =
        word / a.words_per_run * a.head_stride + word % a.words_per_run * a.word_bytes;
    for (int64_t j = 0; j < a.accepted_lens[request]; ++j) {
      if (nodes[j] == j) continue;
      const int64_t from = prefix + nodes[j], to = prefix + j;
      copy_word(base + pages[to / a.page_size] * a.page_stride + to % a.page_size * a.token_stride +
                    column,
                base + pages[from / a.page_size] * a.page_stride +
                    from % a.page_size * a.token_stride + column,
                a.word_bytes);
    }
  }
}

}  // namespace specedge
