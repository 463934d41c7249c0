#include "platform/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ms_ce {

#define MS_CE_DECLARE(isa)                           \
  namespace isa {                                    \
  const Kernels* KernelTable(bool double_precision); \
  }
#if defined(__x86_64__)
MS_CE_DECLARE(x86_64_v4)
MS_CE_DECLARE(x86_64_v3)
MS_CE_DECLARE(x86_64_v2)
#elif defined(__aarch64__)
#ifdef MS_CE_HAS_SVE
MS_CE_DECLARE(sve)
#endif
MS_CE_DECLARE(neon)
#else
MS_CE_DECLARE(baseline)
#endif
#undef MS_CE_DECLARE

namespace {

struct Isa {
  const Kernels* (*table)(bool double_precision);
  bool (*runs_here)();
};

#if defined(__x86_64__)
bool RunsV3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

bool RunsV4() {
  return RunsV3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

bool RunsV2() { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"); }

constexpr Isa kIsas[] = {
    {x86_64_v4::KernelTable, RunsV4}, {x86_64_v3::KernelTable, RunsV3}, {x86_64_v2::KernelTable, RunsV2}};
#elif defined(__aarch64__)
constexpr Isa kIsas[] = {
#ifdef MS_CE_HAS_SVE
    {sve::KernelTable, [] { return (getauxval(AT_HWCAP) & HWCAP_SVE) != 0; }},
#endif
    {neon::KernelTable, [] { return true; }}};
#else
constexpr Isa kIsas[] = {{baseline::KernelTable, [] { return true; }}};
#endif

std::string Name(const Isa& isa) { return isa.table(false)->name; }

const Isa* Best() {
  for (const Isa& isa : kIsas) {
    if (isa.runs_here()) return &isa;
  }
  throw std::runtime_error("ms_ce: this CPU must run at least " + Name(*(std::end(kIsas) - 1)) +
                           "; use backend=\"composed\"");
}

const Isa* Find(const char* name) {
  const std::string wanted = name == nullptr ? "" : name;
  if (wanted.empty() || wanted == "auto") return Best();
  for (const Isa& isa : kIsas) {
    if (Name(isa) == wanted && isa.runs_here()) return &isa;
  }
  throw std::runtime_error(std::string("ms_ce: MS_CE_ISA must be one of ") + IsaList() + ", got " + wanted);
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const Kernels& SelectKernels(bool double_precision) {
  const Isa* isa = chosen.load(std::memory_order_acquire);
  if (isa == nullptr) {
    isa = Find(std::getenv("MS_CE_ISA"));
    chosen.store(isa, std::memory_order_release);
  }
  return *isa->table(double_precision);
}

void SetIsa(const char* name) { chosen.store(Find(name), std::memory_order_release); }

const char* IsaList() {
  static const std::string list = [] {
    std::string text;
    for (const Isa& isa : kIsas) {
      if (isa.runs_here()) text += (text.empty() ? "" : ",") + Name(isa);
    }
    return text;
  }();
  return list.c_str();
}

}  // namespace ms_ce
