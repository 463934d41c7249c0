// A check that counts, for the stand-alone kernel test: no framework to cross-compile.
#ifndef MS_CE_TESTS_KERNEL_CHECK_H_
#define MS_CE_TESTS_KERNEL_CHECK_H_

#include <cstdint>
#include <cstdio>

namespace ms_ce_test {

struct Tally {
  long checks = 0, failures = 0;
};
inline Tally tally;

// Prints the first failures only: a broken kernel fails everywhere.
template <class... Values>
bool Check(bool held, const char* format, Values... values) {
  ++tally.checks;
  if (held) return true;
  if (++tally.failures <= 20) {
    std::printf("FAILED: ");
    if constexpr (sizeof...(values) == 0) {
      std::fputs(format, stdout);
    } else {
      std::printf(format, values...);
    }
    std::printf("\n");
  }
  return false;
}

void TestMath(unsigned stride);  // every `stride`-th float
void TestEnvironment();
void TestError();
bool TestRefused();
// The calls of a file that tests/kernel/replay.py wrote, of tensors of at most so many elements.
void TestReplay(const char* path, int64_t at_most);
void TestShapes();

}  // namespace ms_ce_test

#endif  // MS_CE_TESTS_KERNEL_CHECK_H_
