// Forward, backward and value-and-grad against the formula in double, on every dtype and layout, aligned
// or not, and bitwise for any number of threads.
#include <algorithm>
#include <random>

#include "tensor.h"

namespace ms_ce_test {
namespace {

struct Case {
  Shape shape;
  const char* dtype;
  const char* target_dtype;
  bool weighted, misaligned;
  Options options;
  double offset = 0.0;  // of all logits; far from 0, a sum that forgets the maximum underflows
};

struct Layout {
  int64_t outer = 1, classes, inner = 1;
  Shape rows;

  explicit Layout(const Shape& shape) {
    const size_t axis = shape.size() == 1 ? 0 : 1;
    classes = shape[axis];
    for (size_t i = 0; i < shape.size(); ++i) {
      if (i == axis) continue;
      (i < axis ? outer : inner) *= shape[i];
      rows.push_back(shape[i]);
    }
  }
  int64_t At(int64_t row, int64_t c) const { return (row / inner * classes + c) * inner + row % inner; }
};

struct Expected {
  std::vector<double> loss, lse, grad;
  double total_weight = 0.0, sum = 0.0;
};

bool IsProbability(const Case& test) { return test.target_dtype[0] == 'f' || test.target_dtype[0] == 'b'; }

// One row of the formula in ops/csrc/cross_entropy.h; grad for upstream 1.
void ReferenceRow(const Case& test, const Layout& layout, int64_t row, const Tensor& logits,
                  const Tensor& target, const Tensor& weight, Expected* out) {
  const Options& o = test.options;
  const bool probability = IsProbability(test);
  const auto classes = static_cast<size_t>(layout.classes);
  std::vector<double> x(classes), factor(classes), slope(classes);
  const double y = probability ? -1.0 : target.Get(row);
  if (!probability && y == static_cast<double>(o.ignore_index)) return;
  double top = -INFINITY, sum = 0.0, mass = 0.0, loss = 0.0;
  for (size_t c = 0; c < classes; ++c) {
    const int64_t at = layout.At(row, static_cast<int64_t>(c));
    const double t = o.softcap != 0.0 ? std::tanh(o.logit_scale * logits.Get(at) / o.softcap) : 0.0;
    x[c] = o.softcap != 0.0 ? o.softcap * t : o.logit_scale * logits.Get(at);
    slope[c] = o.logit_scale * (1.0 - t * t);
    const double q = probability ? target.Get(at) : (static_cast<double>(c) == y ? 1.0 : 0.0);
    const double w = test.weighted ? weight.Get(static_cast<int64_t>(c)) : 1.0;
    factor[c] = w * ((1.0 - o.label_smoothing) * q + o.label_smoothing / static_cast<double>(classes));
    mass += factor[c];
    top = std::max(top, x[c]);
  }
  for (double value : x) sum += std::exp(value - top);
  const double lse = top + std::log(sum);
  for (size_t c = 0; c < classes; ++c) loss += factor[c] == 0.0 ? 0.0 : factor[c] * (lse - x[c]);
  for (size_t c = 0; c < classes; ++c) {
    const double p = std::exp(x[c] - lse);
    const auto at = static_cast<size_t>(layout.At(row, static_cast<int64_t>(c)));
    out->grad[at] = ((mass + 2.0 * o.z_loss * lse) * p - factor[c]) * slope[c];
  }
  out->loss[static_cast<size_t>(row)] = loss + o.z_loss * lse * lse;
  out->lse[static_cast<size_t>(row)] = lse;
  out->total_weight += probability || !test.weighted ? 1.0 : weight.Get(static_cast<int64_t>(y));
}

Expected Reference(const Case& test, const Tensor& logits, const Tensor& target, const Tensor& weight) {
  const Layout layout(test.shape);
  const auto rows = static_cast<size_t>(Count(layout.rows));
  Expected out{std::vector<double>(rows, 0.0), std::vector<double>(rows, 0.0),
               std::vector<double>(static_cast<size_t>(logits.size()), 0.0)};
  for (size_t row = 0; row < rows; ++row) {
    ReferenceRow(test, layout, static_cast<int64_t>(row), logits, target, weight, &out);
    out.sum += out.loss[row];
  }
  return out;
}

// Results are computed in fp32 (fp64) and rounded once: a few units of the computation, one of the dtype.
bool Near(double actual, double expected, const std::string& dtype) {
  if (dtype == "float16" && std::fabs(expected) >= 65520.0) return std::isinf(actual);
  if (std::isnan(expected) || std::isinf(expected)) {
    return std::isnan(expected) ? std::isnan(actual) : actual == expected;
  }
  const double computed = dtype == "float64" ? 1e-13 : 2e-6;
  const double unit = dtype == "float16" ? 0x1p-11 : dtype == "bfloat16" ? 0x1p-8 : 0.0;
  const double size = std::fabs(expected);
  return std::fabs(actual - expected) <= computed * std::max(size, 1.0) + unit * std::max(size, 0x1p-14);
}

void ExpectNear(const Case& test, const char* what, const Tensor& actual,
                const std::vector<double>& expected, double factor = 1.0) {
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double wanted = expected[static_cast<size_t>(i)] * factor;
    if (!Check(Near(actual.Get(i), wanted, what[0] == 'l' && what[1] == 's' ? test.dtype : actual.dtype()),
               "%s %s of %s logits (%ld classes, %s target) at %ld: %.9g, expected %.9g", MsCeIsa(), what,
               test.dtype, static_cast<long>(Layout(test.shape).classes), test.target_dtype,
               static_cast<long>(i), actual.Get(i), wanted)) {
      return;
    }
  }
}

struct Inputs {
  Tensor logits, target, weight, options;
};

Inputs MakeInputs(const Case& test, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, 3.0);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  const Layout layout(test.shape);
  Inputs in{Tensor(test.dtype, test.shape, test.misaligned),
            Tensor(test.target_dtype, IsProbability(test) ? test.shape : layout.rows, test.misaligned),
            Tensor(test.weighted ? "float32" : test.dtype, {test.weighted ? layout.classes : 1}),
            test.options.Pack()};
  for (int64_t i = 0; i < in.logits.size(); ++i) in.logits.Set(i, test.offset + normal(random));
  for (int64_t i = 0; i < in.target.size(); ++i) {
    const double drawn = uniform(random);
    const double index = std::floor(drawn * static_cast<double>(layout.classes));
    const bool ignored = uniform(random) < 0.2;
    in.target.Set(i, IsProbability(test) ? drawn / static_cast<double>(layout.classes)
                     : ignored           ? static_cast<double>(test.options.ignore_index)
                                         : index);
  }
  for (int64_t i = 0; i < in.weight.size(); ++i)
    in.weight.Set(i, uniform(random) < 0.2 ? 0.0 : uniform(random));
  return in;
}

struct Outputs {
  Tensor loss, total_weight, lse, grad, fused_loss, fused_total_weight, fused_lse, fused_grad;
};

Outputs RunAll(const Case& test, Inputs* in) {
  const Layout layout(test.shape);
  const bool rows = test.options.reduction == 0;
  const Shape reduced = rows ? layout.rows : Shape{};
  Outputs out{Tensor(test.dtype, reduced),    Tensor("float64", {}),
              Tensor("float64", layout.rows), Tensor(test.dtype, test.shape, test.misaligned),
              Tensor(test.dtype, {}),         Tensor("float64", {}),
              Tensor("float64", layout.rows), Tensor(test.dtype, test.shape, test.misaligned)};
  std::string error =
      Run(rows ? "CrossEntropyForwardRows" : "CrossEntropyForward",
          {&in->logits, &in->target, &in->weight, &in->options, &out.loss, &out.total_weight, &out.lse});
  Check(error.empty(), "forward threw: %s", error.c_str());
  Tensor upstream(test.dtype, reduced), placeholder(test.dtype, {1});
  for (int64_t i = 0; i < upstream.size(); ++i) upstream.Set(i, 1.0);
  error = Run("CrossEntropyBackward", {&upstream, &placeholder, &in->logits, &in->target, &in->weight,
                                       &out.lse, &out.total_weight, &in->options, &out.grad});
  Check(error.empty(), "backward threw: %s", error.c_str());
  if (rows) return out;
  error =
      Run("CrossEntropyValueAndGrad", {&in->logits, &in->target, &in->weight, &in->options, &out.fused_loss,
                                       &out.fused_total_weight, &out.fused_lse, &out.fused_grad});
  Check(error.empty(), "value and grad threw: %s", error.c_str());
  return out;
}

void TestCase(const Case& test, unsigned seed) {
  Inputs in = MakeInputs(test, seed);
  const Expected expected = Reference(test, in.logits, in.target, in.weight);
  MsCeSetThreads(1);
  const Outputs one = RunAll(test, &in);
  const bool rows = test.options.reduction == 0;
  const double divisor = test.options.reduction == 1 ? expected.total_weight : 1.0;
  const double factor = divisor == 0.0 ? 0.0 : 1.0 / divisor;
  ExpectNear(test, "lse", one.lse, expected.lse);
  ExpectNear(test, "gradient", one.grad, expected.grad, factor);
  if (rows) {
    ExpectNear(test, "row loss", one.loss, expected.loss);
  } else {
    ExpectNear(test, "mean or sum", one.loss, {expected.sum / divisor});
    ExpectNear(test, "fused gradient", one.fused_grad, expected.grad, factor);
    Check(one.loss.SameBytes(one.fused_loss), "value and grad's loss differs from the forward's");
    Check(one.lse.SameBytes(one.fused_lse), "value and grad's lse differs from the forward's");
  }
  for (int threads : {2, 3, 8}) {
    MsCeSetThreads(threads);
    const Outputs many = RunAll(test, &in);
    Check(one.loss.SameBytes(many.loss) && one.lse.SameBytes(many.lse) && one.grad.SameBytes(many.grad) &&
              one.total_weight.SameBytes(many.total_weight),
          "%d threads change the result", threads);
    Check(rows || (one.fused_grad.SameBytes(many.fused_grad) && one.fused_loss.SameBytes(many.fused_loss)),
          "%d threads change value and grad", threads);
  }
  MsCeSetThreads(0);
}

}  // namespace

void TestOperations() {
  // Around the widths of vectors (4, 8, 16), of a chunk (64), of a tile (1024); rows around a block (64);
  // the last two are large enough for several threads and for streaming stores.
  const Shape shapes[] = {{1, 1},    {9},       {3, 2},       {65, 3},       {130, 10},
                          {7, 63},   {66, 64},  {5, 65},      {3, 127},      {2, 1023},
                          {2, 1025}, {1, 5000}, {2, 5, 3},    {2, 21, 9, 9}, {3, 70, 67},
                          {0, 4},    {2, 3, 0}, {2, 1100, 5}, {40000, 10},   {130, 17000}};
  const char* dtypes[] = {"float32", "float16", "bfloat16", "float64"};
  const char* targets[] = {"int64", "int32", "uint8", "float32", "same"};
  unsigned seed = 1;
  for (const Shape& shape : shapes) {
    const bool large = Count(shape) > 100000;
    for (const char* dtype : dtypes) {
      for (const char* target : targets) {
        const bool narrow = std::strcmp(target, "uint8") == 0;
        if (narrow && Layout(shape).classes > 255) continue;
        if (large && (seed % 4 != 0 || std::strcmp(dtype, "float64") == 0) && ++seed) continue;
        Case test{
            shape, dtype, std::strcmp(target, "same") == 0 ? dtype : target, seed % 2 == 0, seed % 3 == 0,
            {},    0.0};
        test.options.reduction = seed % 5 % 3;
        test.options.has_weight = test.weighted;
        test.options.ignore_index = narrow ? 255 : -100;
        // Not under a scale, whose product rounds a logit of that size by more than the tolerance.
        if (seed % 8 == 3 && seed % 6 != 5) test.offset = -300.0;
        if (seed % 4 == 1) test.options.label_smoothing = 0.1;
        if (seed % 7 == 1) test.options.z_loss = 0.01;
        if (seed % 6 == 2) test.options.softcap = 5.0;
        if (seed % 6 == 5) test.options.logit_scale = 0.7;
        TestCase(test, seed++);
      }
    }
  }
}

}  // namespace ms_ce_test
