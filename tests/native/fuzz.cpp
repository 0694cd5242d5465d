// The same cases, chosen by the bytes of a fuzzer. Without libFuzzer, main.cpp runs kept ones.
#include "isa.h"
#include "native.h"

using namespace specedge::native;

// Ends the process here where SPECEDGE_ISA names a set that the processor lacks.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  specedge::isa();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Random random({data, size});
  kChecks[random.between(0, std::size(kChecks) - 1)](random);
  return 0;
}
