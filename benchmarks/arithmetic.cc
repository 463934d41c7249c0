// What the processor gives: single-precision multiply-adds of two threads, in registers, in GFLOP/s.
#include <chrono>
#include <cstdio>
#include <thread>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kSums = 12;  // independent ones: they hide the latency of each
constexpr long kSteps = 20000000;

void Work() {
  Vector sums[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = Vector{} + static_cast<float>(k);
  for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kSums; ++k) sums[k] = sums[k] * 0.999f + 0.001f;
  }
  volatile float kept = 0.0f;
  for (const Vector& sum : sums) kept = kept + sum[0];
}

}  // namespace

int main() {
  const auto start = std::chrono::steady_clock::now();
  std::thread other(Work);
  Work();
  other.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double flops = 2.0 * 2.0 * kSums * kSteps * (kBytes / sizeof(float));
  std::printf("%.1f\n", flops / seconds / 1e9);
}
