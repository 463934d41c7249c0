// exp, log and tanh of the kernels against libm's double functions, over the floats in their range.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "platform/dispatch.h"

namespace ms_ce_test {
namespace {

constexpr int64_t kBatch = 4096;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// The distance of two neighbouring floats at |exact|; that of the subnormals below them.
double Ulp(double exact) {
  int exponent;
  std::frexp(std::fabs(exact), &exponent);
  return std::ldexp(1.0, std::max(exponent - 24, -149));
}

using FloatFunction = void (*)(const float*, float*, int64_t);
using Reference = double (*)(double);

struct Range {
  const char* name;
  FloatFunction function;
  Reference reference;
  float from, to;  // of one sign, |from| <= |to|
  double bound;    // units in the last place
};

// The largest error over every stride-th float from `from` to `to`, both ends included.
void TestRange(const char* isa, const Range& range, unsigned stride) {
  std::vector<float> x(kBatch), y(kBatch);
  double worst = 0.0;
  float worst_at = 0.0f;
  const uint64_t last = ToBits(range.to);
  for (uint64_t bits = ToBits(range.from); bits <= last;) {
    int64_t count = 0;
    for (; count < kBatch && bits <= last; ++count) {
      x[static_cast<size_t>(count)] = FromBits(static_cast<uint32_t>(bits));
      bits = bits == last ? last + 1 : std::min<uint64_t>(bits + stride, last);
    }
    range.function(x.data(), y.data(), count);
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      const double exact = range.reference(x[at]);
      const double error = std::fabs(y[at] - exact) / Ulp(exact);
      if (!(error <= worst)) {
        worst = error;
        worst_at = x[at];
      }
    }
  }
  std::printf("%-10s %-5s [%g, %g]: largest error %.3f ulp at %.9g\n", isa, range.name, range.from,
              range.to, worst, worst_at);
  Check(worst <= range.bound, "%s %s: %.3f ulp at %.9g exceeds %.2f", isa, range.name, worst, worst_at,
        range.bound);
}

void ExpectValue(const char* isa, const char* name, FloatFunction function, float x, float expected) {
  std::vector<float> in(19, x), out(19);  // a whole vector and a tail on every instruction set
  function(in.data(), out.data(), 19);
  for (float y : out) {
    Check(y == expected || (std::isnan(y) && std::isnan(expected)), "%s %s(%g) = %g, expected %g", isa,
          name, x, y, expected);
  }
}

void TestExpDouble(const char* isa, void (*function)(const double*, double*, int64_t)) {
  std::vector<double> x, y;
  for (double value = 0.0; value > -708.0; value -= 0.00137) x.push_back(value);
  y.resize(x.size());
  function(x.data(), y.data(), static_cast<int64_t>(x.size()));
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const long double exact = std::exp(static_cast<long double>(x[i]));
    worst = std::max(worst, static_cast<double>(std::fabs(y[i] - exact) / exact));
  }
  const double bound = 2.0 * std::numeric_limits<double>::epsilon();
  Check(worst <= bound, "%s exp of doubles: relative error %g exceeds %g", isa, worst, bound);
  const double edge[] = {-INFINITY, -746.0, NAN, 0.0};
  double out[4];
  function(edge, out, 4);
  Check(out[0] == 0.0 && out[1] == 0.0 && std::isnan(out[2]) && out[3] == 1.0,
        "%s exp of doubles at its edges", isa);
}

}  // namespace

void TestMath(unsigned stride) {
  const ms_ce::Kernels& kernels = ms_ce::SelectKernels(false);
  const char* isa = kernels.name;
  const Reference exp = [](double x) { return std::exp(x); };
  const Reference log = [](double x) { return std::log(x); };
  const Reference tanh = [](double x) { return std::tanh(x); };
  // -103.97 is where exp rounds to 0 rather than to the smallest subnormal.
  TestRange(isa, {"exp", kernels.exp, exp, -0.0f, -104.0f, 1.0}, stride);
  TestRange(isa, {"exp", kernels.exp, exp, 0.0f, 20.0f, 1.0}, stride);
  // 2^-17.3 in units of the last of 24 bits.
  TestRange(isa, {"coarse exp", kernels.coarse_exp, exp, -0.0f, -104.0f, 100.0}, stride);
  TestRange(isa, {"coarse exp", kernels.coarse_exp, exp, 0.0f, 20.0f, 100.0}, stride);
  if (kernels.table_exp != nullptr) {  // 2^-17.6 far from 0
    TestRange(isa, {"table exp", kernels.table_exp, exp, -0.0f, -130.0f, 80.0}, stride);
    TestRange(isa, {"table exp", kernels.table_exp, exp, 0.0f, 20.5f, 80.0}, stride);
  }
  TestRange(isa, {"log", kernels.log, log, 0x1p-149f, std::numeric_limits<float>::max(), 1.0}, stride);
  TestRange(isa, {"tanh", kernels.tanh, tanh, 0.0f, 20.0f, 2.0}, stride);
  TestRange(isa, {"tanh", kernels.tanh, tanh, -0.0f, -20.0f, 2.0}, stride);
  for (const float x : {0.0f, -0.0f}) ExpectValue(isa, "exp", kernels.exp, x, 1.0f);
  for (const float x : {-kInfinity, -105.0f, -3e38f}) {
    ExpectValue(isa, "exp", kernels.exp, x, 0.0f);
    ExpectValue(isa, "coarse exp", kernels.coarse_exp, x, 0.0f);
  }
  // A nan whose payload reaches the exponent's arithmetic must stay one.
  for (const float x : {kNan, -kNan, FromBits(0x7fc00001u), FromBits(0xffc000ffu)}) {
    ExpectValue(isa, "exp", kernels.exp, x, kNan);
    ExpectValue(isa, "coarse exp", kernels.coarse_exp, x, kNan);
    ExpectValue(isa, "log", kernels.log, x, kNan);
    ExpectValue(isa, "tanh", kernels.tanh, x, kNan);
  }
  ExpectValue(isa, "log", kernels.log, 0.0f, -kInfinity);
  ExpectValue(isa, "log", kernels.log, 1.0f, 0.0f);
  ExpectValue(isa, "log", kernels.log, kInfinity, kInfinity);
  ExpectValue(isa, "tanh", kernels.tanh, kInfinity, 1.0f);
  ExpectValue(isa, "tanh", kernels.tanh, -kInfinity, -1.0f);
  TestExpDouble(isa, kernels.exp_double);
}

}  // namespace ms_ce_test
