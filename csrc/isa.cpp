#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace specedge {
namespace {

// A set by its name, what of it multiplies quantised weights, and the rest.
#define SPECEDGE_ISA_OF(name, quantized, isa)                                          \
  Isa {                                                                                \
    #name, isa::linear, isa::round_activations, quantized::multiply_rounded,           \
        quantized::multiply_exact, isa::rms_norm, isa::silu_mul, isa::weighted_sum,    \
        isa::tree_attention, isa::row_max, isa::divide, isa::find_above, isa::exp_sum, \
        isa::add_noise, isa::noisy_argmax                                              \
  }

#if defined(__x86_64__)
// clang 14 has no __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

#if defined(__x86_64__)
const std::string kNames = "generic, avx2, avx512 or avx512vnni";
#elif defined(__aarch64__)
const std::string kNames = "generic or dotprod";
#else
const std::string kNames = "generic";
#endif

bool runs(const std::string& isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == "avx2") return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == "avx512") return avx512;
  if (isa == "avx512vnni") return avx512 && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__) && defined(__linux__)
  if (isa == "dotprod") return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
  if (isa == "dotprod") return true;  // since the first of Apple's own
#endif
  return isa == "generic";
}

Isa choose() {
  const char* forced = std::getenv("SPECEDGE_ISA");
  const std::string wanted = forced ? forced : "";
  if (!wanted.empty() && !runs(wanted)) {
    throw std::invalid_argument("SPECEDGE_ISA=" + wanted +
                                " is not an instruction set of this processor; expected " + kNames +
                                ", or leave it unset");
  }
#if defined(__x86_64__)
  if (wanted == "avx512vnni" || (wanted.empty() && runs("avx512vnni"))) {
    return SPECEDGE_ISA_OF(avx512vnni, avx512vnni, avx512);
  }
  if (wanted == "avx512" || (wanted.empty() && runs("avx512")))
    return SPECEDGE_ISA_OF(avx512, avx512, avx512);
  if (wanted == "avx2" || (wanted.empty() && runs("avx2")))
    return SPECEDGE_ISA_OF(avx2, avx2, avx2);
#elif defined(__aarch64__)
  if (wanted == "dotprod" || (wanted.empty() && runs("dotprod"))) {
    return SPECEDGE_ISA_OF(dotprod, dotprod, generic);
  }
#endif
  return SPECEDGE_ISA_OF(generic, generic, generic);
}

}  // namespace

const Isa& isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace specedge
