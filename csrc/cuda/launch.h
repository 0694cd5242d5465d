// Launchers of the CUDA kernels: they enqueue on a stream, never wait, and return null or the
// error's text.
#pragma once

#include <cstdint>

namespace specedge {

struct CompactKv;

// planes = 2 L
const char* launch_compact_kv(const CompactKv& arguments, int64_t planes, int64_t batch,
                              void* stream);

}  // namespace specedge
