// Runs random cases of every op, `driver FIRST_SEED COUNT`, or a fuzzer's, `driver replay FILE...`.
// Built with the address and undefined behaviour sanitisers, which end the process at the first
// fault; the last line names the case.
#include <sanitizer/common_interface_defs.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "isa.h"
#include "native.h"

using namespace specedge::native;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::string running;  // the case

void name_case() { std::fprintf(stderr, "%s\n", running.c_str()); }

void run_seed(unsigned long long seed) {
  running = "seed " + std::to_string(seed);
  Random random(seed);
  kChecks[seed % std::size(kChecks)](random);
}

void replay(const char* path) {
  running = path;
  std::ifstream file(path, std::ios::binary);
  expect(file.is_open(), "cannot read this file");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

}  // namespace

int main(int argc, char** argv) try {
  const char* const isa = specedge::isa().name;
  __sanitizer_set_death_callback(name_case);
  unsigned long long count = 0;
  if (argc > 2 && argv[1] == std::string("replay")) {
    for (; argv[2 + count]; ++count) replay(argv[2 + count]);
  } else if (argc == 3) {
    const unsigned long long first = std::strtoull(argv[1], nullptr, 10);
    const unsigned long long last = first + std::strtoull(argv[2], nullptr, 10);
    for (; first + count < last; ++count) run_seed(first + count);
  } else {
    return std::fprintf(stderr, "usage: driver FIRST_SEED COUNT | replay FILE...\n"), 2;
  }
  std::printf("%llu cases on %s\n", count, isa);
} catch (const std::exception& fault) {
  std::fprintf(stderr, "%s\n", fault.what());
  name_case();
  return 1;
}
