// What the programs share that run the bodies of CUDA kernels on a CPU: arguments come from stdin,
// what the kernel wrote goes to stdout. Every buffer is exactly as large as its tensor, so that the
// sanitiser sees any byte beyond it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ops.h"

template <typename T>
std::vector<T> read_array(int64_t n) {
  std::vector<T> values(n);
  if (std::fread(values.data(), sizeof(T), n, stdin) != size_t(n)) std::exit(2);
  return values;
}

inline std::vector<char> read_bytes() { return read_array<char>(read_array<int64_t>(1)[0]); }

inline void write_bytes(const std::vector<char>& bytes) {
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
}

// A cache and its bytes.
struct HostCache {
  std::vector<int64_t> sizes = read_array<int64_t>(8);
  std::vector<char> bytes = read_bytes();

  specedge::Cache view() {
    return {bytes.data(), specedge::Dtype(sizes[0]),
            sizes[1],     sizes[2],
            sizes[3],     sizes[4],
            sizes[5],     sizes[6],
            sizes[7]};
  }
};
