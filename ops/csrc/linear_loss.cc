#include "linear_loss.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "linear_matmul.h"
#include "run.h"
#include "thread_pool.h"

namespace ms_ce {
namespace {

// A block of the weight that stays in a core's cache while a chunk's rows pass over it.
constexpr int64_t kWeightBlockElements = int64_t{1} << 18;
constexpr int64_t kFeatureBlock = 256;
constexpr int64_t kFewestUnits = 16;  // work for that many threads, where there is enough of it

// By default a chunk and what the products pack beside it stay within a twentieth of the logits. Smaller
// chunks read the weight more often than they use it (benchmarks/linear.py measures both).
constexpr int64_t kSmallestDefaultChunk = int64_t{4} << 20, kLargestDefaultChunk = int64_t{128} << 20;
constexpr int64_t kDefaultShare = 20, kPackingBytes = int64_t{10} << 20;

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t ReadIndex(const Array& array, int64_t index) {
  switch (array.dtype) {
    case Dtype::kInt32:
      return static_cast<const int32_t*>(array.data)[index];
    case Dtype::kUint8:
      return static_cast<const uint8_t*>(array.data)[index];
    default:
      return static_cast<const int64_t*>(array.data)[index];
  }
}

bool StartsSequence(const LinearProblem& problem, int64_t row) {
  return problem.sequence != 0 && row % problem.sequence == 0;
}

std::vector<int64_t> ReadTargets(const LinearProblem& problem) {
  std::vector<int64_t> targets(static_cast<size_t>(problem.loss.rows));
  for (int64_t row = 0; row < problem.loss.rows; ++row) {
    targets[static_cast<size_t>(row)] =
        StartsSequence(problem, row) ? problem.loss.ignore_index : ReadIndex(problem.loss.target, row);
  }
  return targets;
}

size_t Bytes(const Array& array, int64_t count) {
  return static_cast<size_t>(count) * ElementSize(array.dtype);
}

void ZeroRows(const Array& array, int64_t rows) {
  if (array.data != nullptr) std::memset(array.data, 0, Bytes(array, rows));
}

void ZeroGradients(const LinearProblem& problem) {
  const int64_t classes = problem.loss.classes;
  FillZeros(problem.grad_linear_weight.data, Bytes(problem.grad_linear_weight, classes * problem.features));
  ZeroRows(problem.grad_linear_bias, classes);
}

template <class A>
constexpr Dtype kComputeDtype = std::is_same<A, double>::value ? Dtype::kFloat64 : Dtype::kFloat32;

template <class A>
class ChunkLoop {
 public:
  ChunkLoop(const LinearProblem& problem, LinearTask task)
      : problem_(problem),
        task_(task),
        classes_(problem.loss.classes),
        features_(problem.features),
        direct_(problem.hidden.dtype == kComputeDtype<A>),
        bfloat16_(problem.hidden.dtype == Dtype::kBfloat16 && MultipliesBfloat16()),
        kernels_(KernelsFor(problem.loss)) {
    SelectRows();
    block_ = std::max<int64_t>(64, kWeightBlockElements / std::max<int64_t>(1, features_) / 16 * 16);
    block_ = std::min(block_, RoundUp((classes_ + kFewestUnits - 1) / kFewestUnits, 64));
    chunk_rows_ = ChunkRows();
  }

  UnitSums Run() {
    if (rows_.empty()) {
      if (task_ != LinearTask::kForward) ZeroGradients(problem_);
      return {};
    }
    Allocate();
    UnitSums totals;
    for (int64_t first = 0; first < Count(rows_); first += chunk_rows_) {
      Select(first);
      MakeLogits();
      AddSums(LossOfChunk(), &totals);
      if (task_ == LinearTask::kForward) continue;
      if (problem_.grad_linear_bias.data != nullptr) AddBiasGradient();
      if (bfloat16_) NarrowGradient();
      HiddenGradient();
      AddWeightGradient(first != 0);
    }
    if (task_ != LinearTask::kForward) FinishGradients();
    return totals;
  }

 private:
  template <class T>
  static int64_t Count(const std::vector<T>& values) {
    return static_cast<int64_t>(values.size());
  }

  void SelectRows() {
    if (!problem_.loss.probability) targets_ = ReadTargets(problem_);
    for (int64_t row = 0; row < problem_.loss.rows; ++row) {
      const bool counts = problem_.loss.probability
                              ? !StartsSequence(problem_, row)
                              : targets_[static_cast<size_t>(row)] != problem_.loss.ignore_index;
      if (counts) rows_.push_back(row);
    }
  }

  int64_t ChunkRows() const {
    const int64_t row_bytes = classes_ * static_cast<int64_t>(sizeof(A));
    int64_t bytes = problem_.chunk_bytes;
    if (bytes <= 0) {
      bytes = std::clamp(Count(rows_) * row_bytes / kDefaultShare - kPackingBytes, kSmallestDefaultChunk,
                         kLargestDefaultChunk);
    }
    const int64_t most = std::max<int64_t>(1, bytes / row_bytes);
    const int64_t chunks = std::max<int64_t>(1, (Count(rows_) + most - 1) / most);
    return std::max<int64_t>(1, (Count(rows_) + chunks - 1) / chunks);
  }

  void Allocate() {
    const auto rows = static_cast<size_t>(std::min(chunk_rows_, Count(rows_)));
    logits_.reset(new A[rows * static_cast<size_t>(classes_)]);
    if (!bfloat16_) hidden_.resize(rows * static_cast<size_t>(features_));
    if (bfloat16_) hidden_bits_.resize(rows * static_cast<size_t>(features_));
    for (auto* values : {&lse_, &loss_rows_, &z_loss_rows_, &entropy_rows_, &grad_loss_, &grad_z_loss_}) {
      values->resize(rows);
    }
    chunk_targets_.resize(rows);
    if (problem_.linear_bias.data != nullptr) {
      bias_.resize(static_cast<size_t>(classes_));
      Read(problem_.linear_bias, 0, classes_, bias_.data());
    }
    if (task_ == LinearTask::kForward) return;
    hidden_gradient_.resize(rows * static_cast<size_t>(features_));
    bias_gradient_.assign(problem_.grad_linear_bias.data == nullptr ? 0 : static_cast<size_t>(classes_),
                          0.0);
    if (direct_) {
      weight_gradient_ = static_cast<A*>(problem_.grad_linear_weight.data);
    } else {
      weight_sums_.reset(new A[static_cast<size_t>(classes_ * features_)]);
      weight_gradient_ = weight_sums_.get();
    }
  }

  // Elements of F as A.
  static void Read(const Array& array, int64_t first, int64_t count, A* out) {
    if constexpr (std::is_same<A, double>::value) {
      std::memcpy(out, static_cast<const double*>(array.data) + first,
                  static_cast<size_t>(count) * sizeof(A));
    } else {
      Widen(array.dtype, array.data, first, count, out);
    }
  }

  int64_t HiddenRow(int64_t row) const { return problem_.sequence != 0 ? row - 1 : row; }

  bool Contiguous() const {
    const int64_t first = rows_[static_cast<size_t>(first_)],
                  last = rows_[static_cast<size_t>(first_ + count_ - 1)];
    return last - first == count_ - 1;
  }

  // The hidden states of the chunk's rows, side by side.
  void Select(int64_t first) {
    first_ = first;
    count_ = std::min(chunk_rows_, Count(rows_) - first);
    const int64_t* rows = rows_.data() + first;
    if (direct_ && Contiguous()) {
      hidden_view_ = static_cast<const A*>(problem_.hidden.data) + HiddenRow(rows[0]) * features_;
      return;
    }
    hidden_view_ = hidden_.data();
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t offset = HiddenRow(rows[i]) * features_;
      if (bfloat16_) {
        std::memcpy(hidden_bits_.data() + i * features_,
                    static_cast<const uint16_t*>(problem_.hidden.data) + offset,
                    static_cast<size_t>(features_) * sizeof(uint16_t));
      } else {
        Read(problem_.hidden, offset, features_, hidden_.data() + i * features_);
      }
    }
  }

  int64_t Work() const { return count_ * classes_ * std::max<int64_t>(1, features_ / 8); }

  // Work(first class, classes) on every block of classes.
  template <class Function>
  void ForBlocks(Function work) const {
    ParallelFor((classes_ + block_ - 1) / block_, Work(), [&](int64_t unit) {
      const int64_t first = unit * block_;
      work(first, std::min(block_, classes_ - first));
    });
  }

  // Rows [first, first + count) of the weight, features [begin, begin + width), as A.
  Operand<A> Weight(int64_t first, int64_t count, int64_t begin, int64_t width,
                    std::vector<A>* scratch) const {
    if (direct_)
      return {static_cast<const A*>(problem_.linear_weight.data) + first * features_ + begin, features_,
              false};
    scratch->resize(static_cast<size_t>(count * width));
    for (int64_t i = 0; i < count; ++i) {
      Read(problem_.linear_weight, (first + i) * features_ + begin, width, scratch->data() + i * width);
    }
    return {scratch->data(), width, false};
  }

  Operand<uint16_t> WeightBits(int64_t first, int64_t begin) const {
    return {static_cast<const uint16_t*>(problem_.linear_weight.data) + first * features_ + begin,
            features_, false};
  }

  // The gradient of the chunk's logits as bfloat16, each row at the start of its logits.
  Operand<uint16_t> GradientBits(int64_t first, bool transposed) const {
    return {reinterpret_cast<const uint16_t*>(logits_.get()) + first,
            classes_ * static_cast<int64_t>(sizeof(A) / sizeof(uint16_t)), transposed};
  }

  void MakeLogits() {
    ForBlocks([&](int64_t first, int64_t count) {
      A* out = logits_.get() + first;
      if constexpr (std::is_same<A, float>::value) {
        if (bfloat16_) {
          Operand<uint16_t> weight = WeightBits(first, 0);
          weight.transposed = true;
          Multiply(count_, count, features_, {hidden_bits_.data(), features_, false}, weight, false, out,
                   classes_);
        }
      }
      if (!bfloat16_) {
        std::vector<A> scratch;
        Operand<A> weight = Weight(first, count, 0, features_, &scratch);
        weight.transposed = true;
        Multiply(count_, count, features_, {hidden_view_, features_, false}, weight, false, out, classes_);
      }
      for (int64_t row = 0; row < count_ && !bias_.empty(); ++row) {
        for (int64_t i = 0; i < count; ++i)
          out[row * classes_ + i] += bias_[static_cast<size_t>(first + i)];
      }
    });
  }

  void Gather(const Array& from, std::vector<double>* to) const {
    for (int64_t i = 0; i < count_; ++i) {
      (*to)[static_cast<size_t>(i)] = kernels_.load(from, rows_[static_cast<size_t>(first_ + i)]);
    }
  }

  void Scatter(const std::vector<double>& from, const Array& to) const {
    for (int64_t i = 0; i < count_ && to.data != nullptr; ++i) {
      kernels_.store(from[static_cast<size_t>(i)], to, rows_[static_cast<size_t>(first_ + i)]);
    }
  }

  // The loss of the chunk's rows, and their gradient in place of their logits where one is wanted.
  UnitSums LossOfChunk() {
    const Problem& whole = problem_.loss;
    Problem chunk = whole;
    chunk.outer = chunk.rows = count_;
    chunk.logits = {logits_.get(), kComputeDtype<A>};
    ChunkTarget(&chunk);
    chunk.lse_out = lse_.data();
    if (whole.loss_rows.data != nullptr) chunk.loss_rows = Rows(&loss_rows_);
    if (whole.z_loss_rows.data != nullptr) chunk.z_loss_rows = Rows(&z_loss_rows_);
    if (whole.entropy_rows.data != nullptr) chunk.entropy_rows = Rows(&entropy_rows_);
    if (task_ != LinearTask::kForward) chunk.grad_logits = chunk.logits;
    if (task_ == LinearTask::kBackward) UpstreamOfChunk(&chunk);
    const Kernels::RowRange kernel = task_ == LinearTask::kForward    ? kernels_.forward
                                     : task_ == LinearTask::kBackward ? kernels_.backward
                                                                      : kernels_.value_and_grad;
    const UnitSums sums = RunRows(chunk, kernel, problem_.position_shape);
    if (task_ == LinearTask::kBackward) return sums;
    Scatter(lse_, {whole.lse_out, Dtype::kFloat64});
    Scatter(loss_rows_, whole.loss_rows);
    Scatter(z_loss_rows_, whole.z_loss_rows);
    Scatter(entropy_rows_, whole.entropy_rows);
    return sums;
  }

  static Array Rows(std::vector<double>* values) { return {values->data(), Dtype::kFloat64}; }

  void ChunkTarget(Problem* chunk) {
    if (!chunk->probability) {
      for (int64_t i = 0; i < count_; ++i) {
        chunk_targets_[static_cast<size_t>(i)] =
            targets_[static_cast<size_t>(rows_[static_cast<size_t>(first_ + i)])];
      }
      chunk->target = {chunk_targets_.data(), Dtype::kInt64};
      return;
    }
    const auto row_bytes = static_cast<size_t>(classes_) * ElementSize(chunk->target.dtype);
    auto* base = static_cast<char*>(chunk->target.data);
    if (Contiguous()) {
      chunk->target.data = base + static_cast<size_t>(rows_[static_cast<size_t>(first_)]) * row_bytes;
      return;
    }
    probabilities_.resize(static_cast<size_t>(chunk_rows_) * row_bytes);
    for (int64_t i = 0; i < count_; ++i) {
      const auto row = static_cast<size_t>(rows_[static_cast<size_t>(first_ + i)]);
      std::memcpy(probabilities_.data() + static_cast<size_t>(i) * row_bytes, base + row * row_bytes,
                  row_bytes);
    }
    chunk->target.data = probabilities_.data();
  }

  void UpstreamOfChunk(Problem* chunk) {
    Gather(problem_.loss.lse, &lse_);
    chunk->lse = Rows(&lse_);
    chunk->lse_out = nullptr;
    if (chunk->reduction != Reduction::kNone) return;
    Gather(problem_.loss.grad_loss, &grad_loss_);
    chunk->grad_loss = Rows(&grad_loss_);
    if (chunk->grad_z_loss.data == nullptr) return;
    Gather(problem_.loss.grad_z_loss, &grad_z_loss_);
    chunk->grad_z_loss = Rows(&grad_z_loss_);
  }

  void AddBiasGradient() {
    ForBlocks([&](int64_t first, int64_t count) {
      for (int64_t row = 0; row < count_; ++row) {
        const A* gradient = logits_.get() + row * classes_ + first;
        for (int64_t i = 0; i < count; ++i) bias_gradient_[static_cast<size_t>(first + i)] += gradient[i];
      }
    });
  }

  void NarrowGradient() {
    if constexpr (std::is_same<A, float>::value) {
      ParallelFor(count_, count_ * classes_, [&](int64_t row) {
        float* gradient = logits_.get() + row * classes_;
        NarrowToBfloat16(gradient, classes_, reinterpret_cast<uint16_t*>(gradient));
      });
    }
  }

  // Each unit keeps its features' sums over all classes in the cache.
  void HiddenGradient() {
    const int64_t width = features_ >= 2 * kFeatureBlock ? kFeatureBlock : 64;
    const bool in_place = direct_ && Contiguous();
    const int64_t first_row = HiddenRow(rows_[static_cast<size_t>(first_)]);
    A* out = in_place ? static_cast<A*>(problem_.grad_hidden.data) + first_row * features_
                      : hidden_gradient_.data();
    ParallelFor((features_ + width - 1) / width, Work(), [&](int64_t unit) {
      const int64_t begin = unit * width, columns = std::min(width, features_ - begin);
      std::vector<A> scratch;
      for (int64_t first = 0; first < classes_; first += block_) {
        const int64_t count = std::min(block_, classes_ - first);
        if constexpr (std::is_same<A, float>::value) {
          if (bfloat16_) {
            Multiply(count_, columns, count, GradientBits(first, false), WeightBits(first, begin),
                     first != 0, out + begin, features_);
            continue;
          }
        }
        Multiply(count_, columns, count, {logits_.get() + first, classes_, false},
                 Weight(first, count, begin, columns, &scratch), first != 0, out + begin, features_);
      }
    });
    if (in_place) return;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t row = HiddenRow(rows_[static_cast<size_t>(first_ + i)]);
      WriteRow(out + i * features_, features_, problem_.grad_hidden, row * features_);
    }
  }

  void AddWeightGradient(bool accumulate) {
    ForBlocks([&](int64_t first, int64_t count) {
      A* out = weight_gradient_ + first * features_;
      if constexpr (std::is_same<A, float>::value) {
        if (bfloat16_) {
          Multiply(count, features_, count_, GradientBits(first, true),
                   {hidden_bits_.data(), features_, false}, accumulate, out, features_);
          return;
        }
      }
      Multiply(count, features_, count_, {logits_.get() + first, classes_, true},
               {hidden_view_, features_, false}, accumulate, out, features_);
    });
  }

  // Rounded to F once.
  void WriteRow(const A* from, int64_t count, const Array& to, int64_t first) const {
    if (direct_) {
      std::memcpy(static_cast<A*>(to.data) + first, from, static_cast<size_t>(count) * sizeof(A));
      return;
    }
    if constexpr (std::is_same<A, float>::value) {
      if (to.dtype == Dtype::kBfloat16) {
        NarrowToBfloat16(from, count, static_cast<uint16_t*>(to.data) + first);
        return;
      }
    }
    for (int64_t i = 0; i < count; ++i) kernels_.store(from[i], to, first + i);
  }

  void FinishGradients() {
    if (!direct_) {
      ParallelFor(classes_, classes_ * features_, [&](int64_t row) {
        WriteRow(weight_gradient_ + row * features_, features_, problem_.grad_linear_weight,
                 row * features_);
      });
    }
    for (int64_t i = 0; i < Count(bias_gradient_); ++i) {
      kernels_.store(bias_gradient_[static_cast<size_t>(i)], problem_.grad_linear_bias, i);
    }
  }

  static void AddSums(const UnitSums& chunk, UnitSums* totals) {
    totals->loss += chunk.loss;
    totals->weight += chunk.weight;
    totals->z_loss += chunk.z_loss;
    totals->entropy += chunk.entropy;
    totals->correct += chunk.correct;
    totals->counted += chunk.counted;
  }

  const LinearProblem& problem_;
  const LinearTask task_;
  const int64_t classes_, features_;
  const bool direct_;    // F is A: tensors are read and written where they lie
  const bool bfloat16_;  // the products take bfloat16 as it is
  const Kernels& kernels_;
  int64_t block_ = 0, chunk_rows_ = 0;

  std::vector<int64_t> targets_;   // of every row, where they are class indices
  std::vector<int64_t> rows_;      // that count
  int64_t first_ = 0, count_ = 0;  // the chunk at hand: rows_[first_ .. first_ + count_)

  std::unique_ptr<A[]> logits_, weight_sums_;
  A* weight_gradient_ = nullptr;
  const A* hidden_view_ = nullptr;
  std::vector<A> hidden_, hidden_gradient_, bias_;
  std::vector<uint16_t> hidden_bits_;
  std::vector<int64_t> chunk_targets_;
  std::vector<char> probabilities_;
  std::vector<double> lse_, loss_rows_, z_loss_rows_, entropy_rows_, grad_loss_, grad_z_loss_,
      bias_gradient_;
};

}  // namespace

double LinearTotalWeight(const LinearProblem& problem) {
  const Problem& loss = problem.loss;
  if (loss.probability) {
    return static_cast<double>(problem.sequence == 0 ? loss.rows
                                                     : loss.rows - loss.rows / problem.sequence);
  }
  std::vector<int64_t> targets = ReadTargets(problem);
  Problem count = loss;
  count.target = {targets.data(), Dtype::kInt64};
  return RunRows(count, KernelsFor(count).count_weight, problem.position_shape).weight;
}

UnitSums RunLinear(const LinearProblem& problem, LinearTask task) {
  const Problem& loss = problem.loss;
  for (const Array& rows :
       {loss.loss_rows, loss.z_loss_rows, loss.entropy_rows, Array{loss.lse_out, Dtype::kFloat64}}) {
    ZeroRows(rows, loss.rows);
  }
  const bool vanishes = loss.reduction == Reduction::kMean && loss.total_weight == 0.0;
  if (task != LinearTask::kForward) {
    FillZeros(problem.grad_hidden.data, Bytes(problem.grad_hidden, loss.rows * problem.features));
    if (vanishes) ZeroGradients(problem);
    if (vanishes && task == LinearTask::kBackward) return {};
    if (vanishes) task = LinearTask::kForward;
  }
  if (loss.logits.dtype == Dtype::kFloat64) return ChunkLoop<double>(problem, task).Run();
  return ChunkLoop<float>(problem, task).Run();
}

}  // namespace ms_ce
