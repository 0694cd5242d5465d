// Runs random cases of every op: `driver FIRST_SEED COUNT`. Built with the address and undefined
// behaviour sanitisers, which end the process at the first fault; the last line names the seed.
#include <sanitizer/common_interface_defs.h>

#include <cstdio>
#include <cstdlib>

#include "isa.h"
#include "native.h"

using namespace specedge::native;

namespace {

unsigned long long seed;  // of the case that runs

void name_seed() { std::fprintf(stderr, "seed %llu\n", seed); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: driver FIRST_SEED COUNT\n"), 2;
  void (*const checks[])(Random&) = {
      check_build_tree,     check_verify,        check_tree_attention, check_append_kv,
      check_rope_append_kv, check_compact_kv,    check_target_tokens,  check_draft_topk,
      check_linear,         check_tree_attention};
  const char* const isa = specedge::isa().name;
  __sanitizer_set_death_callback(name_seed);
  const unsigned long long first = std::strtoull(argv[1], nullptr, 10);
  const unsigned long long count = std::strtoull(argv[2], nullptr, 10);
  for (seed = first; seed < first + count; ++seed) {
    Random random(seed);
    try {
      checks[seed % std::size(checks)](random);
    } catch (const std::exception& fault) {
      std::fprintf(stderr, "%s\n", fault.what());
      name_seed();
      return 1;
    }
  }
  std::printf("%llu cases on %s\n", count, isa);
}
