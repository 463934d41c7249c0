// The products of linear_products.h by oneDNN: of bfloat16 as its bits, with logits and sums in float.
#ifndef MS_CE_LIBRARY_PRODUCTS_H_
#define MS_CE_LIBRARY_PRODUCTS_H_

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "linear/linear_chunk.h"
#include "linear/linear_rows.h"
#include "linear/onednn.h"
#include "platform/thread_pool.h"

namespace ms_ce {

class LibraryProducts {
 public:
  static constexpr int64_t kBlockElements = int64_t{1} << 18;  // of the weight, at a time
  // oneDNN multiplies a single row by other instructions, with other last bits: a row that is alone has
  // another beside it, for which logits and the gradient of the hidden states must have memory.
  static constexpr int64_t kFewestRows = 2;

  // `block` is the number of classes of a product. The chunk must outlive this.
  LibraryProducts(const LinearChunk& chunk, int64_t most_rows, int64_t block)
      : chunk_(chunk),
        block_(block),
        hidden_(static_cast<size_t>(std::max(most_rows, kFewestRows) * chunk.features)) {}

  void CopyHidden(const LinearProblem& problem, const int64_t* rows) {
    const auto* hidden = static_cast<const uint16_t*>(problem.hidden.data);
    for (int64_t i = 0; i < chunk_.rows; ++i) {
      std::memcpy(hidden_.data() + i * chunk_.features,
                  hidden + HiddenRow(problem, rows[i]) * chunk_.features,
                  static_cast<size_t>(chunk_.features) * sizeof(uint16_t));
    }
  }

  void LogitsOfClasses(int64_t first, int64_t count) const {
    float* out = logits() + first;
    Product(Rows(), count, chunk_.features, Hidden(), Weight(first, 0, true), false, out, chunk_.classes);
    if (chunk_.bias == nullptr) return;
    const float* bias = static_cast<const float*>(chunk_.bias) + first;
    for (int64_t row = 0; row < chunk_.rows; ++row) {
      for (int64_t i = 0; i < count; ++i) out[row * chunk_.classes + i] += bias[i];
    }
  }

  // After products, which threads make that must not throw.
  void ExpectMade() const {
    if (failed_.load()) throw std::bad_alloc();
  }

  // The gradient of the chunk's logits becomes bfloat16, each row at the start of its own.
  void NarrowGradient() const {
    ParallelFor(chunk_.rows, chunk_.rows * chunk_.classes, [this](int64_t row) {
      float* gradient = logits() + row * chunk_.classes;
      NarrowToBfloat16(gradient, chunk_.classes, reinterpret_cast<uint16_t*>(gradient));
    });
  }

  void HiddenGradient(int64_t work) const {
    constexpr int64_t kFeatures = 256;  // at a time
    auto* out = static_cast<float*>(chunk_.grad_hidden);
    ParallelFor((chunk_.features + kFeatures - 1) / kFeatures, work, [&](int64_t unit) {
      const int64_t begin = unit * kFeatures, width = std::min(kFeatures, chunk_.features - begin);
      for (int64_t first = 0; first < chunk_.classes; first += block_) {
        Product(Rows(), width, std::min(block_, chunk_.classes - first), Gradient(first, false),
                Weight(first, begin, false), first != 0, out + begin, chunk_.features);
      }
    });
  }

  void AddGradientOfClasses(int64_t first, int64_t count) const {
    float* out = static_cast<float*>(chunk_.grad_weight.data) + first * chunk_.features;
    Product(count, chunk_.features, chunk_.rows, Gradient(first, true), Hidden(), chunk_.accumulate, out,
            chunk_.features);
  }

 private:
  float* logits() const { return static_cast<float*>(chunk_.logits); }
  int64_t Rows() const { return std::max(chunk_.rows, kFewestRows); }
  template <class... Arguments>
  void Product(Arguments... arguments) const {
    if (!Multiply(arguments...)) failed_.store(true);
  }

  Operand Hidden() const { return {hidden_.data(), chunk_.features, false}; }

  Operand Weight(int64_t first, int64_t begin, bool transposed) const {
    return {static_cast<const uint16_t*>(chunk_.weight.data) + first * chunk_.features + begin,
            chunk_.features, transposed};
  }

  Operand Gradient(int64_t first, bool transposed) const {
    return {reinterpret_cast<const uint16_t*>(logits()) + first,
            chunk_.classes * static_cast<int64_t>(sizeof(float) / sizeof(uint16_t)), transposed};
  }

  const LinearChunk& chunk_;
  const int64_t block_;
  std::vector<uint16_t> hidden_;
  mutable std::atomic<bool> failed_{false};
};

}  // namespace ms_ce

#endif  // MS_CE_LIBRARY_PRODUCTS_H_
