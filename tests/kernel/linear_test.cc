// The linear loss with its gradients against the formula in double: sizes around the tiles of its products,
// every dtype, in several chunks, aligned or not, and bitwise for any number of threads.
#include <algorithm>
#include <random>

#include "tensor.h"

namespace ms_ce_test {
namespace {

struct Case {
  int64_t rows, features, classes, chunk_rows;
  const char* dtype;
  bool biased;
  size_t past;  // elements behind a cache line
};

struct Inputs {
  Tensor hidden, linear_weight, target, bias, weight, options, plan;
};

struct Outputs {
  Tensor loss, total_weight, lse, grad_hidden, grad_weight, grad_bias, applied;
};

double Smoothing(unsigned seed) { return seed % 3 == 0 ? 0.1 : 0.0; }

// Which gradients of matrices an operation makes.
struct Form {
  const char* suffix;
  bool of_input, of_weight;
};

const Form kForms[] = {
    {"", true, true}, {"Input", true, false}, {"Weight", false, true}, {"Bias", false, false}};

Inputs MakeInputs(const Case& test, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, 1.0);
  Options options;
  options.label_smoothing = Smoothing(seed);
  Inputs in{Tensor(test.dtype, {test.rows, test.features}, test.past),
            Tensor(test.dtype, {test.classes, test.features}, test.past),
            Tensor("int64", {test.rows}),
            Tensor(test.dtype, test.biased ? Shape{test.classes} : Shape{}),
            Tensor(test.dtype, {}),
            options.Pack(),
            Tensor("int64", {3})};
  const double scale = 2.0 / std::sqrt(static_cast<double>(test.features));
  for (int64_t i = 0; i < in.hidden.size(); ++i) in.hidden.Set(i, normal(random));
  for (int64_t i = 0; i < in.linear_weight.size(); ++i) in.linear_weight.Set(i, scale * normal(random));
  for (int64_t i = 0; i < in.bias.size(); ++i) in.bias.Set(i, normal(random));
  for (int64_t i = 0; i < test.rows; ++i) {
    const auto drawn = static_cast<int64_t>(random() % 1000000);
    in.target.Set(
        i, static_cast<double>(i > 0 && drawn % 5 == 0 ? options.ignore_index : drawn % test.classes));
  }
  const int64_t logit_bytes = std::strcmp(test.dtype, "float64") == 0 ? 8 : 4;
  in.plan.Set(0, static_cast<double>(test.chunk_rows * test.classes * logit_bytes));
  in.plan.Set(1, 0.0);
  in.plan.Set(2, 0.0);
  return in;
}

Outputs RunOnce(const Case& test, Inputs* in, const Form& form = kForms[0]) {
  const Shape none{};
  Outputs out{Tensor(test.dtype, {}),
              Tensor("float64", {}),
              Tensor("float64", {test.rows}),
              Tensor(test.dtype, form.of_input ? in->hidden.shape() : none, test.past),
              Tensor(test.dtype, form.of_weight ? in->linear_weight.shape() : none, test.past),
              Tensor(test.dtype, in->bias.shape()),
              Tensor("float64", {})};
  const std::string error = Run(("LinearCrossEntropyValueAndGrad" + std::string(form.suffix)).c_str(),
                                {&in->hidden, &in->linear_weight, &in->target, &in->bias, &in->weight,
                                 &in->options, &in->plan, &out.loss, &out.total_weight, &out.lse,
                                 &out.grad_hidden, &out.grad_weight, &out.grad_bias, &out.applied});
  Check(error.empty(), "the linear loss threw: %s", error.c_str());
  return out;
}

// Backward from what the forward of RunOnce saved, for upstream 1.
Outputs RunBackward(const Case& test, Inputs* in, const Form& form, Outputs* forward) {
  const Shape none{};
  Outputs out{forward->loss,
              forward->total_weight,
              forward->lse,
              Tensor(test.dtype, form.of_input ? in->hidden.shape() : none, test.past),
              Tensor(test.dtype, form.of_weight ? in->linear_weight.shape() : none, test.past),
              Tensor(test.dtype, in->bias.shape()),
              Tensor("float64", {})};
  Tensor one(test.dtype, {});
  one.Set(0, 1.0);
  const std::string error = Run(("LinearCrossEntropyBackward" + std::string(form.suffix)).c_str(),
                                {&one, &one, &in->hidden, &in->linear_weight, &in->target, &in->bias,
                                 &in->weight, &forward->lse, &forward->total_weight, &in->options,
                                 &in->plan, &out.grad_hidden, &out.grad_weight, &out.grad_bias});
  Check(error.empty(), "the linear loss's backward threw: %s", error.c_str());
  return out;
}

struct Expected {
  double loss = 0.0;
  std::vector<double> grad_hidden, grad_weight, grad_bias;
};

Expected Reference(const Case& test, const Inputs& in, double smoothing) {
  const auto features = static_cast<size_t>(test.features), classes = static_cast<size_t>(test.classes);
  Expected out;
  out.grad_hidden.assign(static_cast<size_t>(test.rows) * features, 0.0);
  out.grad_weight.assign(classes * features, 0.0);
  out.grad_bias.assign(test.biased ? classes : 1, 0.0);
  std::vector<double> w(classes * features), h(features), x(classes);
  for (size_t i = 0; i < w.size(); ++i) w[i] = in.linear_weight.Get(static_cast<int64_t>(i));
  double counted = 0.0;
  for (int64_t row = 0; row < test.rows; ++row) counted += in.target.Get(row) >= 0.0;
  for (int64_t row = 0; row < test.rows; ++row) {
    const double target = in.target.Get(row);
    if (target < 0.0) continue;
    for (size_t f = 0; f < features; ++f)
      h[f] = in.hidden.Get(row * test.features + static_cast<int64_t>(f));
    double sum = 0.0;
    for (size_t c = 0; c < classes; ++c) {
      x[c] = test.biased ? in.bias.Get(static_cast<int64_t>(c)) : 0.0;
      for (size_t f = 0; f < features; ++f) x[c] += h[f] * w[c * features + f];
      sum += std::exp(x[c]);
    }
    for (size_t c = 0; c < classes; ++c) {
      const double hot = static_cast<double>(c) == target ? 1.0 : 0.0;
      const double q = (1.0 - smoothing) * hot + smoothing / static_cast<double>(classes);
      out.loss += q * (std::log(sum) - x[c]) / counted;
      const double gradient = (std::exp(x[c]) / sum - q) / counted;
      if (test.biased) out.grad_bias[c] += gradient;
      for (size_t f = 0; f < features; ++f) {
        out.grad_hidden[static_cast<size_t>(row) * features + f] += gradient * w[c * features + f];
        out.grad_weight[c * features + f] += gradient * h[f];
      }
    }
  }
  return out;
}

void ExpectNear(const Case& test, const char* what, const Tensor& actual,
                const std::vector<double>& expected) {
  double largest = 0.0;
  for (double value : expected) largest = std::max(largest, std::fabs(value));
  // Of the largest: rounding to the dtype, and of products and their sums.
  const std::string dtype = test.dtype;
  const double bound = dtype == "float64"   ? 1e-12
                       : dtype == "float32" ? 4e-6
                       : dtype == "float16" ? 6e-4
                                            : 5e-3;
  const double least = dtype == "float16" ? 0x1p-25 : 1e-15;  // of a loss that is 0
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double wanted = expected[static_cast<size_t>(i)], got = actual.Get(i);
    if (!Check(std::fabs(got - wanted) <= bound * largest + least,
               "%s linear %s, %ld x %ld x %ld %s at %ld: %.9g, expected %.9g", MsCeIsa(), what,
               static_cast<long>(test.rows), static_cast<long>(test.features),
               static_cast<long>(test.classes), test.dtype, static_cast<long>(i), got, wanted)) {
      return;
    }
  }
}

bool Same(const Outputs& a, const Outputs& b) {
  return a.loss.SameBytes(b.loss) && a.lse.SameBytes(b.lse) && a.grad_hidden.SameBytes(b.grad_hidden) &&
         a.grad_weight.SameBytes(b.grad_weight) && a.grad_bias.SameBytes(b.grad_bias);
}

bool IsZero(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    if (tensor.Get(i) != 0.0) return false;
  }
  return true;
}

// What a form makes has the bits of the whole operation's, and the rest is 0.
void ExpectPart(const Form& form, const Outputs& whole, const Outputs& part, bool bias_frozen,
                const char* what) {
  Check(form.of_input ? part.grad_hidden.SameBytes(whole.grad_hidden) : IsZero(part.grad_hidden),
        "%s: gradient of input", what);
  Check(form.of_weight ? part.grad_weight.SameBytes(whole.grad_weight) : IsZero(part.grad_weight),
        "%s: gradient of weight", what);
  Check(bias_frozen ? IsZero(part.grad_bias) : part.grad_bias.SameBytes(whole.grad_bias),
        "%s: gradient of bias", what);
}

void TestForms(const Case& test, Inputs* in, Outputs* whole) {
  const Outputs backward = RunBackward(test, in, kForms[0], whole);
  for (const Form& form : kForms) {
    for (const bool bias_frozen : {false, true}) {
      in->plan.Set(2, bias_frozen);
      const Outputs part = RunOnce(test, in, form);
      Check(part.loss.SameBytes(whole->loss), "the loss depends on the gradients wanted");
      ExpectPart(form, *whole, part, bias_frozen, "value and grad");
      ExpectPart(form, backward, RunBackward(test, in, form, whole), bias_frozen, "backward");
    }
  }
  in->plan.Set(2, 0.0);
}

void TestCase(const Case& test, unsigned seed) {
  Inputs in = MakeInputs(test, seed);
  const Expected expected = Reference(test, in, Smoothing(seed));
  MsCeSetThreads(1);
  Outputs one = RunOnce(test, &in);
  TestForms(test, &in, &one);
  ExpectNear(test, "loss", one.loss, {expected.loss});
  ExpectNear(test, "gradient of input", one.grad_hidden, expected.grad_hidden);
  ExpectNear(test, "gradient of weight", one.grad_weight, expected.grad_weight);
  ExpectNear(test, "gradient of bias", one.grad_bias, expected.grad_bias);
  for (int threads : {2, 3, 8}) {
    MsCeSetThreads(threads);
    Check(Same(one, RunOnce(test, &in)), "%d threads change the linear loss", threads);
  }
  MsCeSetThreads(0);
}

}  // namespace

void TestLinear() {
  // rows, features, classes, rows of a chunk: tiles are 6 by 8 to 64, panels 16 to 96 rows; sums are cut at
  // 128 classes and at 1024 features.
  const int64_t sizes[][4] = {{1, 1, 1, 1},     {2, 3, 5, 1},       {7, 16, 13, 7},      {17, 65, 31, 5},
                              {33, 64, 97, 33}, {97, 130, 129, 97}, {130, 20, 300, 101}, {200, 7, 70, 200},
                              {3, 1030, 50, 2}, {40, 259, 131, 16}, {96, 128, 1000, 48}, {12, 2050, 9, 12}};
  unsigned seed = 1;
  for (const auto& size : sizes) {
    for (const char* dtype : {"float32", "float16", "bfloat16", "float64"}) {
      TestCase({size[0], size[1], size[2], size[3], dtype, seed % 2 == 0, seed % 5 < 2 ? 1u : 0u}, seed);
      ++seed;
    }
  }
  // Rows of the weight's gradient are whole cache lines, and begin anywhere behind one.
  for (size_t past = 2; past < 16; ++past) {
    for (const char* dtype : {"float32", "float64"}) TestCase({7, 16, 13, 3, dtype, true, past}, seed++);
  }
}

}  // namespace ms_ce_test
