// Forward, backward and value-and-grad against the formula in double, on every dtype and layout, aligned
// or not, with every pair of options, and bitwise for any number of threads.
#include <algorithm>
#include <initializer_list>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "tensor.h"

namespace ms_ce_test {
namespace {

// Of the options of the cases: one under which every pair of their values occurs.
constexpr unsigned kSeed = 1;

struct Case {
  Shape shape;
  const char* dtype;
  const char* target_dtype;
  const char* weight_dtype = nullptr;  // null: no weight
  size_t past = 0;                     // elements behind a cache line
  Options options{};
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
    const double w = test.weight_dtype != nullptr ? weight.Get(static_cast<int64_t>(c)) : 1.0;
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
  out->total_weight +=
      probability || test.weight_dtype == nullptr ? 1.0 : weight.Get(static_cast<int64_t>(y));
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
  Inputs in{
      Tensor(test.dtype, test.shape, test.past),
      Tensor(test.target_dtype, IsProbability(test) ? test.shape : layout.rows, test.past),
      test.weight_dtype != nullptr ? Tensor(test.weight_dtype, {layout.classes}) : Tensor(test.dtype, {1}),
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
              Tensor("float64", layout.rows), Tensor(test.dtype, test.shape, test.past),
              Tensor(test.dtype, {}),         Tensor("float64", {}),
              Tensor("float64", layout.rows), Tensor(test.dtype, test.shape, test.past)};
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
  const bool large = Count(test.shape) > 1000000;
  for (int threads : large ? std::vector<int>{3} : std::vector<int>{2, 3, 8}) {
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

// The values of one case that a kernel may treat in its own way, by name; those of all cases are counted in
// pairs.
using Levels = std::vector<std::pair<const char*, std::string>>;

const char* YesNo(bool value) { return value ? "yes" : "no"; }

Levels LevelsOf(const Case& test) {
  const Layout layout(test.shape);
  const Options& o = test.options;
  const bool streams = Count(test.shape) * static_cast<int64_t>(SizeOf(test.dtype)) >= int64_t{8} << 20;
  const std::string weight = test.weight_dtype == nullptr ? "no" : test.weight_dtype;
  return {{"dtype", test.dtype},
          {"layout", layout.inner > 1      ? "columns"
                     : layout.classes > 64 ? "long rows"
                                           : "short rows"},
          {"target", test.target_dtype},
          {"weight", weight == "no" || weight == "float32" ? weight : "logits'"},
          {"misaligned", YesNo(test.past != 0)},
          {"reduction", std::to_string(o.reduction)},
          {"smoothing", YesNo(o.label_smoothing != 0.0)},
          {"z_loss", YesNo(o.z_loss != 0.0)},
          {"softcap", YesNo(o.softcap != 0.0)},
          {"scale", YesNo(o.logit_scale != 1.0)},
          {"offset", YesNo(test.offset != 0.0)},
          {"streams", YesNo(streams)}};
}

// What no case can hold: the kernel takes no such target, or the tolerance no such offset; a gradient that
// streams is not worth its time in rows of few classes.
bool Impossible(const std::string& one, const std::string& other) {
  const auto is = [&](const char* a, const char* b) {
    return (one == a && other == b) || (one == b && other == a);
  };
  if (is("offset yes", "scale yes") || is("layout short rows", "streams yes")) return true;
  for (const char* dtype : {"float16", "bfloat16", "float64"}) {
    const std::string target = std::string("target ") + dtype;
    for (const char* logits : {"float32", "float16", "bfloat16", "float64"}) {
      if (logits != std::string(dtype) && is((std::string("dtype ") + logits).c_str(), target.c_str()))
        return true;
    }
  }
  return is("dtype float32", "weight logits'");
}

class Pairs {
 public:
  void Add(const Case& test) {
    const Levels levels = LevelsOf(test);
    for (const auto& [factor, level] : levels) {
      levels_[factor].insert(std::string(factor) + " " + level);
      for (const auto& [other_factor, other_level] : levels) {
        seen_.insert({std::string(factor) + " " + level, std::string(other_factor) + " " + other_level});
      }
    }
  }

  void ExpectAll() const {
    for (const auto& [factor, own] : levels_) {
      for (const auto& [other_factor, others] : levels_) {
        if (factor >= other_factor) continue;
        for (const std::string& one : own) {
          for (const std::string& other : others) {
            Check(seen_.count({one, other}) != 0 || Impossible(one, other), "no case has %s with %s",
                  one.c_str(), other.c_str());
          }
        }
      }
    }
  }

 private:
  std::map<std::string, std::set<std::string>> levels_;
  std::set<std::pair<std::string, std::string>> seen_;
};

// A case with options drawn by `random`, each of them in about half of the cases.
Case Draw(std::mt19937* random, const Shape& shape, const char* dtype, const char* target) {
  const auto one_of = [&](unsigned count) { return (*random)() % count; };
  Case test{shape, dtype, std::strcmp(target, "same") == 0 ? dtype : target};
  const char* weights[] = {nullptr, "float32", dtype};
  test.weight_dtype = weights[one_of(3)];
  test.past = one_of(2);
  Options& options = test.options;
  options.reduction = one_of(3);
  options.has_weight = test.weight_dtype != nullptr;
  options.ignore_index = std::strcmp(target, "uint8") == 0 ? 255 : -100;
  if (one_of(2) != 0) options.label_smoothing = 0.1;
  if (one_of(2) != 0) options.z_loss = 0.01;
  if (one_of(2) != 0) options.softcap = 5.0;
  if (one_of(2) != 0) options.logit_scale = 0.7;
  // Not under a scale, whose product rounds a logit of that size by more than the tolerance.
  if (one_of(3) == 0 && options.logit_scale == 1.0) test.offset = -300.0;
  return test;
}

struct Sized {
  Shape shape;
  const char *dtype, *target;
};

std::vector<Sized> Sizes() {
  // Around the widths of vectors (4, 8, 16), of a chunk (64), of a tile (1024); rows around a block (64).
  const Shape shapes[] = {{1, 1},    {9},           {3, 2},      {65, 3},   {130, 10}, {7, 63},
                          {66, 64},  {5, 65},       {3, 127},    {2, 1023}, {2, 1025}, {1, 5000},
                          {2, 5, 3}, {2, 21, 9, 9}, {3, 70, 67}, {0, 4},    {2, 3, 0}, {2, 1100, 5}};
  std::vector<Sized> sizes;
  for (const Shape& shape : shapes) {
    for (const char* dtype : {"float32", "float16", "bfloat16", "float64"}) {
      for (const char* target : {"int64", "int32", "uint8", "float32", "same"}) {
        if (std::strcmp(target, "uint8") == 0 && Layout(shape).classes > 255) continue;
        sizes.push_back({shape, dtype, target});
      }
    }
  }
  // Large enough for several threads, and from 8 MB on for streaming stores.
  for (const Sized& large : std::initializer_list<Sized>{{{40000, 10}, "float32", "int64"},
                                                         {{40000, 10}, "float16", "uint8"},
                                                         {{40000, 10}, "bfloat16", "float32"},
                                                         {{40000, 10}, "float64", "same"},
                                                         {{130, 17000}, "float32", "int64"},
                                                         {{130, 17000}, "float32", "same"},
                                                         {{65, 17000}, "float64", "int32"},
                                                         {{65, 17000}, "float64", "same"},
                                                         {{2, 40, 28000}, "float32", "uint8"},
                                                         {{2, 40, 28000}, "float32", "int32"},
                                                         {{260, 17000}, "float16", "same"},
                                                         {{4, 40, 28000}, "float16", "int64"},
                                                         {{260, 17000}, "bfloat16", "int64"},
                                                         {{4, 40, 28000}, "bfloat16", "same"}}) {
    sizes.push_back(large);
  }
  return sizes;
}

}  // namespace

void TestOperations() {
  std::mt19937 random(kSeed);
  Pairs pairs;
  unsigned seed = 1;
  for (const Sized& size : Sizes()) {
    const Case test = Draw(&random, size.shape, size.dtype, size.target);
    pairs.Add(test);
    TestCase(test, seed++);
  }
  pairs.ExpectAll();
}

}  // namespace ms_ce_test
