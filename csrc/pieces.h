// In which order, and by whom, the pieces of a product are worked on: tiles of outputs of each run.
// Static, as vec.h.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "isa.h"

namespace specedge {
namespace {

struct Piece {
  int64_t run, tile;
};

// Piece i of runs.count * n_tiles: set after set and each from end to end, as it lies in memory.
// Where a set has several runs, all of them pass while a tile is near.
inline Piece piece_at(const Runs& runs, int64_t n_tiles, int64_t i) {
  const int64_t run = i / n_tiles, set = runs.sets[run];
  int64_t first = run, end = run + 1;
  while (first > 0 && runs.sets[first - 1] == set) --first;
  while (end < runs.count && runs.sets[end] == set) ++end;
  const int64_t n_runs = end - first, place = i - first * n_tiles;
  return {first + place % n_runs, place / n_runs};
}

// Pieces that a thread takes at a time: neighbours, so that what it fetches ahead is for itself,
// but few enough for all threads to end together.
inline int64_t pieces_at_a_time(int64_t n_pieces) {
#if defined(_OPENMP)
  const int64_t n = n_pieces / (16 * omp_get_max_threads());
  return n > 1 ? n : 1;
#else
  return n_pieces > 1 ? n_pieces : 1;
#endif
}

}  // namespace
}  // namespace specedge
