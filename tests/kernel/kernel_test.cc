// The kernels without Python or MindSpore, for cross-compiled targets, sanitizers and valgrind:
//   ms_ce_kernel_test [--every-float | --stride N] [--isa NAME | best]
//   ms_ce_kernel_test --replay FILE [--at-most N] [--library FILE] [--isa NAME | best]
//   ms_ce_kernel_test --refused    on a processor that runs no instruction set of the kernel
// --at-most leaves out calls of tensors of more than N elements; --library replays them by a libms_ce.so,
// not by the kernel that is linked in.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>

#include "check.h"
#include "library.h"

int main(int argc, char** argv) {
  // A prime: over the run the samples meet every residue of the vector width and of the mantissa.
  unsigned stride = 1009;
  std::string only, replay, path;
  int64_t at_most = std::numeric_limits<int64_t>::max();
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--every-float") == 0) stride = 1;
    if (std::strcmp(argv[i], "--stride") == 0 && i + 1 < argc)
      stride = static_cast<unsigned>(std::atoi(argv[++i]));
    if (std::strcmp(argv[i], "--refused") == 0) return ms_ce_test::TestRefused() ? 0 : 1;
    if (std::strcmp(argv[i], "--isa") == 0 && i + 1 < argc) only = argv[++i];
    if (std::strcmp(argv[i], "--replay") == 0 && i + 1 < argc) replay = argv[++i];
    if (std::strcmp(argv[i], "--library") == 0 && i + 1 < argc) path = argv[++i];
    if (std::strcmp(argv[i], "--at-most") == 0 && i + 1 < argc) at_most = std::atoll(argv[++i]);
  }
  if (stride == 0 || (!path.empty() && replay.empty())) return 2;
  if (!path.empty() && !ms_ce_test::Open(path.c_str())) return 1;
  ms_ce_test::TestShapes();
  ms_ce_test::TestError();
  std::istringstream isas(ms_ce_test::library.isa_list());
  int tested = 0;
  for (std::string isa; std::getline(isas, isa, ',');) {
    if (only == "best") only = isa;
    if (!only.empty() && isa != only) continue;
    ms_ce_test::Check(ms_ce_test::library.set_isa(isa.c_str()) == 0, "%s is listed but cannot be chosen",
                      isa.c_str());
    if (!replay.empty()) {
      ms_ce_test::TestReplay(replay.c_str(), at_most);
      ++tested;
      continue;
    }
    ms_ce_test::TestMath(stride);
    ms_ce_test::TestEnvironment();
    ++tested;
  }
  ms_ce_test::Check(tested > 0, "no instruction set was tested");
  std::printf("%ld checks, %ld failures, %d instruction sets\n", ms_ce_test::tally.checks,
              ms_ce_test::tally.failures, tested);
  return ms_ce_test::tally.failures == 0 ? 0 : 1;
}
