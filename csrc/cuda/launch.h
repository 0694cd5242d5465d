// Launchers of the CUDA kernels: they enqueue on a stream, never wait, and return null or the
// error's text.
#pragma once

#include <cstdint>

namespace specedge {

struct AppendKv;
struct CompactKv;
struct RopeAppendKv;

const char* launch_append_kv(const AppendKv& arguments, int64_t rows, void* stream);

// planes = 2 L
const char* launch_compact_kv(const CompactKv& arguments, int64_t planes, int64_t batch,
                              void* stream);

const char* launch_rope_append_kv(const RopeAppendKv& arguments, int64_t rows, void* stream);

}  // namespace specedge
