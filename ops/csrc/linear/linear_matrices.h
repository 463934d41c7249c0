// The matrices of the linear loss while a chunk of rows passes over them: their memory, and how their
// products are cut into units of work. The products are made by the kernels of linear_products.h, or by
// oneDNN (library_products.h) for bfloat16 where this processor multiplies it.
#ifndef MS_CE_LINEAR_MATRICES_H_
#define MS_CE_LINEAR_MATRICES_H_

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "linear/library_products.h"
#include "linear/line_buffer.h"
#include "linear/linear_chunk.h"
#include "linear/linear_rows.h"
#include "loss/run.h"
#include "platform/thread_pool.h"

namespace ms_ce {

template <class A>
constexpr Dtype kComputeDtype = std::is_same<A, double>::value ? Dtype::kFloat64 : Dtype::kFloat32;

inline int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A is the type of the logits and of all sums.
template <class A>
class LinearMatrices {
 public:
  LinearMatrices(const LinearProblem& problem, int64_t most_rows, bool gradients)
      : problem_(problem),
        kernels_(KernelsFor(problem.loss)),
        most_rows_(most_rows),
        kept_rows_(std::max(most_rows, LibraryProducts::kFewestRows)),
        direct_(problem.hidden.dtype == kComputeDtype<A>) {
    const bool by_library =
        problem.hidden.dtype == Dtype::kBfloat16 && sizeof(A) == sizeof(float) && MultipliesBfloat16();
    chunk_.features = problem.features;
    chunk_.classes = problem.loss.classes;
    chunk_.weight = problem.linear_weight;
    if (gradients) AllocateGradients();
    const int64_t elements = by_library ? LibraryProducts::kBlockElements : kBlockElements;
    const int64_t share = (chunk_.classes + kFewestUnits - 1) / kFewestUnits;
    block_ = RoundUp(std::min(std::max(elements / chunk_.features, kTileRows), share), kTileRows);
    logits_.Allocate(kept_rows_ * chunk_.classes);
    chunk_.logits = logits_.get();
    if (by_library) {
      library_.emplace(chunk_, most_rows, block_);
    } else {
      AllocatePanels();
    }
    if (problem.linear_bias.data != nullptr) {
      bias_.resize(static_cast<size_t>(chunk_.classes));
      kernels_.read(problem.linear_bias, 0, chunk_.classes, bias_.data());
      chunk_.bias = bias_.data();
    }
  }

  A* logits() const { return logits_.get(); }

  // `rows` of the loss, `count` of them, are the chunk from here on.
  void Select(const int64_t* rows, int64_t count) {
    rows_ = rows;
    chunk_.rows = count;
    consecutive_ = AreConsecutive(rows, count);
    if (library_) return library_->CopyHidden(problem_, rows);
    chunk_.hidden = GatherHidden();
    ForRows([this](int64_t first, int64_t step) { kernels_.pack_hidden(chunk_, first, step); });
  }

  void MakeLogits() {
    ForClasses([this](int64_t first, int64_t count) {
      if (library_) return library_->LogitsOfClasses(first, count);
      kernels_.logits_of_classes(chunk_, first, count);
    });
    if (library_) library_->ExpectMade();
  }

  // The chunk's logits hold their gradient by now.
  void AddGradients() {
    if (!bias_gradient_.empty()) AddBiasGradient();
    const bool of_hidden = problem_.grad_hidden.data != nullptr, of_weight = WeightGradient() != nullptr;
    if (library_ && (of_hidden || of_weight)) library_->NarrowGradient();
    if (of_hidden) MakeHiddenGradient();
    if (of_weight) AddWeightGradient();
    if (library_) library_->ExpectMade();
  }

  // Sums over all chunks, rounded to the inputs' dtype once.
  void Finish() {
    if (!direct_ && WeightGradient() != nullptr) {
      ParallelFor(chunk_.classes, chunk_.classes * chunk_.features, [this](int64_t row) {
        const int64_t first = row * chunk_.features;
        kernels_.write(WeightGradient() + first, chunk_.features, problem_.grad_linear_weight, first);
      });
    }
    for (size_t i = 0; i < bias_gradient_.size(); ++i) {
      kernels_.store(bias_gradient_[i], problem_.grad_linear_bias, static_cast<int64_t>(i));
    }
  }

 private:
  // Classes whose weights stay in a core's cache while a chunk's rows pass over them.
  static constexpr int64_t kBlockElements = int64_t{1} << 16;
  static constexpr int64_t kFewestUnits = 16;  // work for that many threads, where there is enough of it

  A* WeightGradient() const { return static_cast<A*>(chunk_.grad_weight.data); }

  void AllocatePanels() {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(WeightGradient()) % kCacheLine);
    const bool same = chunk_.features * static_cast<int64_t>(sizeof(A)) % kCacheLine == 0;  // in every row
    chunk_.shift = same ? past / static_cast<int64_t>(sizeof(A)) : 0;
    chunk_.panel_rows = std::min(kMostPanelRows, RoundUp(most_rows_, kPanelStep));
    chunk_.tile_features = RoundUp(chunk_.features + chunk_.shift, kFeatureStep);
    const int64_t rows = RoundUp(most_rows_, chunk_.panel_rows);
    panels_.Allocate(rows * chunk_.features);
    chunk_.panels = panels_.get();
    if (WeightGradient() == nullptr) return;
    tiles_.Allocate(rows * chunk_.tile_features +
                    kFeatureStep);  // a shifted tile's vectors reach beyond it
    chunk_.tiles = tiles_.get();
  }

  void AllocateGradients() {
    if (problem_.grad_linear_bias.data != nullptr) {
      bias_gradient_.assign(static_cast<size_t>(chunk_.classes), 0.0);
    }
    chunk_.grad_weight = {problem_.grad_linear_weight.data, kComputeDtype<A>};
    if (direct_ || problem_.grad_linear_weight.data == nullptr) return;
    weight_sums_.Allocate(chunk_.classes * chunk_.features);
    chunk_.grad_weight.data = weight_sums_.get();
  }

  // The hidden states of the chunk's rows, side by side.
  const A* GatherHidden() {
    const int64_t first = HiddenRow(problem_, rows_[0]) * chunk_.features;
    if (direct_ && consecutive_) return static_cast<const A*>(problem_.hidden.data) + first;
    hidden_.resize(static_cast<size_t>(most_rows_ * chunk_.features));
    for (int64_t i = 0; i < chunk_.rows; ++i) {
      kernels_.read(problem_.hidden, HiddenRow(problem_, rows_[i]) * chunk_.features, chunk_.features,
                    hidden_.data() + i * chunk_.features);
    }
    return hidden_.data();
  }

  int64_t Work() const { return chunk_.rows * chunk_.classes * std::max<int64_t>(1, chunk_.features / 8); }

  // work(first, count) on blocks of rows, of classes.
  template <class Function>
  void ForRows(Function work) const {
    ParallelFor((chunk_.rows + kPanelStep - 1) / kPanelStep, chunk_.rows * chunk_.features,
                [&](int64_t unit) {
                  const int64_t first = unit * kPanelStep;
                  work(first, std::min(kPanelStep, chunk_.rows - first));
                });
  }

  template <class Function>
  void ForClasses(Function work) const {
    ParallelFor((chunk_.classes + block_ - 1) / block_, Work(), [&](int64_t unit) {
      const int64_t first = unit * block_;
      work(first, std::min(block_, chunk_.classes - first));
    });
  }

  void AddWeightGradient() {
    ForClasses([this](int64_t first, int64_t count) {
      if (library_) return library_->AddGradientOfClasses(first, count);
      kernels_.add_gradient_of_classes(chunk_, first, count);
    });
    chunk_.accumulate = true;
  }

  void AddBiasGradient() {
    ForClasses([this](int64_t first, int64_t count) {
      for (int64_t row = 0; row < chunk_.rows; ++row) {
        const A* gradient = logits() + row * chunk_.classes + first;
        for (int64_t i = 0; i < count; ++i) bias_gradient_[static_cast<size_t>(first + i)] += gradient[i];
      }
    });
  }

  void MakeHiddenGradient() {
    const bool in_place = direct_ && consecutive_;
    if (!in_place) hidden_gradient_.resize(static_cast<size_t>(kept_rows_ * chunk_.features));
    A* out = in_place ? static_cast<A*>(problem_.grad_hidden.data) +
                            HiddenRow(problem_, rows_[0]) * chunk_.features
                      : hidden_gradient_.data();
    chunk_.grad_hidden = out;
    if (library_) {
      library_->HiddenGradient(Work());
    } else {
      OwnHiddenGradient(out);
    }
    if (in_place) return;
    for (int64_t i = 0; i < chunk_.rows; ++i) {
      kernels_.write(out + i * chunk_.features, chunk_.features, problem_.grad_hidden,
                     HiddenRow(problem_, rows_[i]) * chunk_.features);
    }
  }

  // One block of features for a thread, since each walks over all pages of the weight; where there are more
  // threads, blocks of rows too. No sum depends on how they are cut.
  void OwnHiddenGradient(A* out) const {
    const int64_t threads = Threads();
    const int64_t width = RoundUp((chunk_.features + threads - 1) / threads, kFeatureStep);
    const int64_t across = (chunk_.features + width - 1) / width;
    const int64_t height = RoundUp((chunk_.rows * across + threads - 1) / threads, kTileRows);
    const int64_t down = (chunk_.rows + height - 1) / height;
    ParallelFor(across * down, Work(), [&](int64_t unit) {
      const int64_t row = unit / across * height, begin = unit % across * width;
      LinearChunk part = chunk_;
      part.rows = std::min(height, chunk_.rows - row);
      part.logits = logits() + row * chunk_.classes;
      part.grad_hidden = out + row * chunk_.features;
      kernels_.gradient_of_features(part, begin, std::min(width, chunk_.features - begin));
    });
  }

  const LinearProblem& problem_;
  const Kernels& kernels_;
  const int64_t most_rows_, kept_rows_;  // of a chunk; in memory
  const bool direct_;  // the inputs are of type A: they are read and written where they lie
  int64_t block_ = 0;  // classes

  LinearChunk chunk_;
  const int64_t* rows_ = nullptr;
  bool consecutive_ = false;
  LineBuffer<A> logits_, panels_, tiles_, weight_sums_;
  std::vector<A> hidden_, hidden_gradient_, bias_;
  std::optional<LibraryProducts> library_;  // null where the kernels make the products
  std::vector<double> bias_gradient_;
};

}  // namespace ms_ce

#endif  // MS_CE_LINEAR_MATRICES_H_
