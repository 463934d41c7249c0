#include "linear/linear_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "linear/linear_matrices.h"
#include "linear/linear_rows.h"
#include "loss/run.h"

namespace ms_ce {
namespace {

size_t Bytes(const Array& array, int64_t count) {
  return static_cast<size_t>(count) * ElementSize(array.dtype);
}

void ZeroRows(const Array& array, int64_t rows) {
  if (array.data != nullptr) std::memset(array.data, 0, Bytes(array, rows));
}

void ZeroTarget(const LinearProblem& problem) {
  const Problem& loss = problem.loss;
  if (loss.grad_target.data == nullptr) return;
  FillZeros(loss.grad_target.data, Bytes(loss.grad_target, loss.rows * loss.classes));
}

void ZeroGradients(const LinearProblem& problem) {
  const int64_t classes = problem.loss.classes;
  if (problem.grad_linear_weight.data != nullptr) {
    FillZeros(problem.grad_linear_weight.data,
              Bytes(problem.grad_linear_weight, classes * problem.features));
  }
  ZeroRows(problem.grad_linear_bias, classes);
  ZeroTarget(problem);
}

template <class T>
int64_t Count(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size());
}

int64_t DefaultChunkBytes(const LinearProblem& problem, int64_t element) {
  const int64_t features = std::max(problem.features, problem.teacher_features);
  const int64_t row_bytes = problem.loss.classes * element, copies = kHiddenCopies * features * element;
  const int64_t stored = problem.loss.rows * problem.loss.top * kBytesStored;
  const int64_t share = problem.loss.rows * row_bytes / kDefaultShare - kBesideChunk - stored;
  const double rows = static_cast<double>(share) / static_cast<double>(row_bytes + copies);
  return std::clamp(static_cast<int64_t>(rows * static_cast<double>(row_bytes)), kSmallestDefaultChunk,
                    kLargestDefaultChunk);
}

// The teacher's products, of which there are no gradients.
LinearProblem OfTeacher(const LinearProblem& problem) {
  LinearProblem teacher = problem;
  teacher.hidden = problem.teacher_hidden;
  teacher.linear_weight = problem.teacher_weight;
  teacher.linear_bias = problem.teacher_bias;
  teacher.features = problem.teacher_features;
  teacher.grad_hidden = teacher.grad_linear_weight = teacher.grad_linear_bias = {};
  return teacher;
}

// Of `rows` that count.
int64_t ChunkRows(const LinearProblem& problem, int64_t rows, int64_t element) {
  const int64_t bytes = problem.chunk_bytes > 0 ? problem.chunk_bytes : DefaultChunkBytes(problem, element);
  const int64_t most = std::max<int64_t>(1, bytes / (problem.loss.classes * element));
  if (most >= rows) return rows;
  // A vector of rows of which less than half counts is not worth its time.
  const int64_t spare = most % kPanelStep;
  return most > kPanelStep && spare < kPanelStep / 2 ? most - spare : most;
}

template <class A>
class ChunkLoop {
 public:
  ChunkLoop(const LinearProblem& problem, LinearTask task)
      : problem_(problem),
        of_teacher_(OfTeacher(problem)),
        task_(task),
        kernels_(KernelsFor(problem.loss)) {
    if (!problem.loss.probability) targets_ = ReadTargets(problem);
    rows_ = RowsThatCount(problem, targets_);
  }

  UnitSums Run() {
    const bool gradients = task_ == LinearTask::kBackward || task_ == LinearTask::kValueAndGrad;
    if (rows_.empty()) {
      if (task_ != LinearTask::kForward) ZeroGradients(problem_);
      return {};
    }
    if (Count(rows_) < problem_.loss.rows) ZeroTarget(problem_);
    const int64_t most = ChunkRows(problem_, Count(rows_), static_cast<int64_t>(sizeof(A)));
    matrices_.emplace(problem_, most, gradients);
    if (of_teacher_.features != 0) teacher_.emplace(of_teacher_, most, false);
    for (auto* values : {&lse_, &row_weight_, &loss_rows_, &z_loss_rows_, &entropy_rows_, &grad_loss_,
                         &grad_z_loss_, &grad_entropy_}) {
      values->resize(static_cast<size_t>(most));
    }
    predicted_.resize(static_cast<size_t>(most));
    UnitSums totals;
    for (first_ = 0; first_ < Count(rows_); first_ += count_) {
      count_ = std::min(most, Count(rows_) - first_);
      MakeLogits(&*matrices_);
      if (teacher_) MakeLogits(&*teacher_);
      if (task_ == LinearTask::kDataGrad) {
        DataGradientsOfChunk();
      } else {
        Add(LossOfChunk(), &totals);
      }
      if (gradients) matrices_->AddGradients();
    }
    if (gradients) matrices_->Finish();
    return totals;
  }

 private:
  void MakeLogits(LinearMatrices<A>* matrices) {
    matrices->Select(&rows_[static_cast<size_t>(first_)], count_);
    matrices->MakeLogits();
  }

  int64_t Row(int64_t i) const { return rows_[static_cast<size_t>(first_ + i)]; }

  void Gather(const Array& from, std::vector<double>* to) const {
    for (int64_t i = 0; i < count_; ++i) {
      (*to)[static_cast<size_t>(i)] = kernels_.load(from, Row(i));
    }
  }

  void Scatter(const std::vector<double>& from, const Array& to) const {
    for (int64_t i = 0; i < count_ && to.data != nullptr; ++i) {
      kernels_.store(from[static_cast<size_t>(i)], to, Row(i));
    }
  }

  void ScatterPredicted() const {
    auto* predicted = static_cast<int32_t*>(problem_.loss.predicted.data);
    for (int64_t i = 0; i < count_ && predicted != nullptr; ++i) {
      predicted[Row(i)] = predicted_[static_cast<size_t>(i)];
    }
  }

  // Its logits, target or teacher, and row weights.
  Problem ChunkInputs() {
    Problem chunk = problem_.loss;
    chunk.outer = chunk.rows = count_;
    chunk.logits = {matrices_->logits(), kComputeDtype<A>};
    if (teacher_) {
      chunk.probability = false;
      chunk.teacher_logits = {teacher_->logits(), kComputeDtype<A>};
    } else if (chunk.top != 0) {
      TopOfChunk(&chunk);
    } else {
      ChunkTarget(&chunk);
    }
    if (chunk.row_weight.data != nullptr) {
      Gather(problem_.loss.row_weight, &row_weight_);
      chunk.row_weight = Rows(&row_weight_);
    }
    return chunk;
  }

  // The loss of the chunk's rows, and their gradient in place of their logits where one is wanted.
  UnitSums LossOfChunk() {
    const Problem& whole = problem_.loss;
    Problem chunk = ChunkInputs();
    chunk.lse_out = lse_.data();
    if (whole.loss_rows.data != nullptr) chunk.loss_rows = Rows(&loss_rows_);
    if (whole.z_loss_rows.data != nullptr) chunk.z_loss_rows = Rows(&z_loss_rows_);
    if (whole.entropy_rows.data != nullptr) chunk.entropy_rows = Rows(&entropy_rows_);
    if (whole.predicted.data != nullptr) chunk.predicted = {predicted_.data(), Dtype::kInt32};
    if (task_ != LinearTask::kForward) chunk.grad_logits = chunk.logits;
    if (task_ == LinearTask::kBackward) UpstreamOfChunk(&chunk);
    const UnitSums sums = RunRows(chunk, LossKernel(), problem_.position_shape);
    if (task_ == LinearTask::kBackward) return sums;
    Scatter(lse_, {whole.lse_out, Dtype::kFloat64});
    Scatter(loss_rows_, whole.loss_rows);
    Scatter(z_loss_rows_, whole.z_loss_rows);
    Scatter(entropy_rows_, whole.entropy_rows);
    ScatterPredicted();
    return sums;
  }

  Kernels::RowRange LossKernel() const {
    if (teacher_) return kernels_.divergence;
    if (problem_.loss.top != 0) return kernels_.top_k;
    return task_ == LinearTask::kForward    ? kernels_.forward
           : task_ == LinearTask::kBackward ? kernels_.backward
                                            : kernels_.value_and_grad;
  }

  static Array Rows(std::vector<double>* values) { return {values->data(), Dtype::kFloat64}; }

  void ChunkTarget(Problem* chunk) {
    if (!chunk->probability) {
      chunk_targets_.clear();
      for (int64_t i = 0; i < count_; ++i) chunk_targets_.push_back(targets_[static_cast<size_t>(Row(i))]);
      chunk->target = {chunk_targets_.data(), Dtype::kInt64};
      return;
    }
    const Array& whole = problem_.loss.target;
    if (IsConsecutive()) {
      chunk->target.data = Probabilities(whole, 0);
      return;
    }
    const size_t row_bytes = Bytes(whole, chunk->classes);
    probabilities_.resize(static_cast<size_t>(count_) * row_bytes);
    chunk->target.data = probabilities_.data();
    for (int64_t i = 0; i < count_; ++i) {
      std::memcpy(&probabilities_[static_cast<size_t>(i) * row_bytes], Probabilities(whole, i), row_bytes);
    }
  }

  // In the order of the classes. A row with one that there is not, or that is there twice, has nan for all
  // its log p: beside a class that was picked before, and so has no probability left, nan would not count.
  void TopOfChunk(Problem* chunk) {
    const int64_t top = chunk->top;
    std::vector<std::pair<int64_t, double>> row(static_cast<size_t>(top));
    top_classes_.clear();
    top_log_probs_.clear();
    for (int64_t i = 0; i < count_; ++i) {
      int64_t at = Row(i) * top;
      bool valid = true;
      for (auto& [index, log_prob] : row) {
        index = kernels_.load_index(problem_.loss.top_classes, at);
        log_prob = kernels_.load(problem_.loss.top_log_probs, at++);
        if (index >= 0 && index < chunk->classes) continue;
        index = 0;
        valid = false;
      }
      std::sort(row.begin(), row.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      for (size_t k = 1; k < row.size(); ++k) valid = valid && row[k].first != row[k - 1].first;
      for (const auto& [index, log_prob] : row) {
        top_classes_.push_back(index);
        top_log_probs_.push_back(valid ? log_prob : NAN);
      }
    }
    top_logits_.resize(top_classes_.size());
    chunk->top_classes = {top_classes_.data(), Dtype::kInt64};
    chunk->top_log_probs = Rows(&top_log_probs_);
    chunk->top_logits = top_logits_.data();
  }

  bool IsConsecutive() const { return AreConsecutive(&rows_[static_cast<size_t>(first_)], count_); }

  // Where the chunk's row i lies in an array like the target.
  char* Probabilities(const Array& array, int64_t i) const {
    return static_cast<char*>(array.data) + Bytes(array, Row(i) * problem_.loss.classes);
  }

  // Of the target and the class weights, as far as they are wanted.
  void DataGradientsOfChunk() {
    Problem chunk = ChunkInputs();
    UpstreamOfChunk(&chunk);
    if (problem_.weight_gradient != nullptr) problem_.weight_gradient->Add(chunk);
    const Array& whole = problem_.loss.grad_target;
    if (whole.data == nullptr) return;
    // Where rows are copied, the gradient takes the place of the copy: each part of a row is read before it
    // is written.
    chunk.grad_target.data = IsConsecutive() ? Probabilities(whole, 0) : chunk.target.data;
    RunRows(chunk, kernels_.target_grad, problem_.position_shape);
    if (IsConsecutive()) return;
    const size_t row_bytes = Bytes(whole, chunk.classes);
    for (int64_t i = 0; i < count_; ++i) {
      std::memcpy(Probabilities(whole, i), &probabilities_[static_cast<size_t>(i) * row_bytes], row_bytes);
    }
  }

  void UpstreamOfChunk(Problem* chunk) {
    if (problem_.loss.lse.data != nullptr) Gather(problem_.loss.lse, &lse_);
    chunk->lse = Rows(&lse_);
    chunk->lse_out = nullptr;
    if (chunk->reduction != Reduction::kNone) return;
    Gather(problem_.loss.grad_loss, &grad_loss_);
    chunk->grad_loss = Rows(&grad_loss_);
    if (chunk->grad_z_loss.data != nullptr) {
      Gather(problem_.loss.grad_z_loss, &grad_z_loss_);
      chunk->grad_z_loss = Rows(&grad_z_loss_);
    }
    if (chunk->grad_entropy.data == nullptr) return;
    Gather(problem_.loss.grad_entropy, &grad_entropy_);
    Gather(problem_.loss.entropy, &entropy_rows_);
    chunk->grad_entropy = Rows(&grad_entropy_);
    chunk->entropy = Rows(&entropy_rows_);
  }

  const LinearProblem& problem_;
  const LinearProblem of_teacher_;
  const LinearTask task_;
  const Kernels& kernels_;

  std::vector<int64_t> targets_;   // of every row, where they are class indices
  std::vector<int64_t> rows_;      // that count
  int64_t first_ = 0, count_ = 0;  // the chunk at hand: rows_[first_ .. first_ + count_)
  std::optional<LinearMatrices<A>> matrices_, teacher_;

  std::vector<int64_t> chunk_targets_;
  std::vector<char> probabilities_;
  std::vector<double> lse_, row_weight_, loss_rows_, z_loss_rows_, entropy_rows_;
  std::vector<double> grad_loss_, grad_z_loss_, grad_entropy_;
  std::vector<int32_t> predicted_;
  std::vector<int64_t> top_classes_;
  std::vector<double> top_log_probs_, top_logits_;
};

}  // namespace

UnitSums RunLinear(const LinearProblem& problem, LinearTask task) {
  const Problem& loss = problem.loss;
  for (const Array& rows :
       {loss.loss_rows, loss.z_loss_rows, loss.entropy_rows, Array{loss.lse_out, Dtype::kFloat64}}) {
    ZeroRows(rows, loss.rows);
  }
  if (loss.predicted.data != nullptr) {
    std::fill_n(static_cast<int32_t*>(loss.predicted.data), loss.rows, kNoClass);
  }
  const bool vanishes = loss.reduction == Reduction::kMean && loss.total_weight == 0.0;
  if (task != LinearTask::kForward) {
    if (problem.grad_hidden.data != nullptr) {
      FillZeros(problem.grad_hidden.data, Bytes(problem.grad_hidden, loss.rows * problem.features));
    }
    if (vanishes) ZeroGradients(problem);
    if (vanishes && task != LinearTask::kValueAndGrad) return {};
    if (vanishes) task = LinearTask::kForward;
  }
  if (loss.logits.dtype == Dtype::kFloat64) return ChunkLoop<double>(problem, task).Run();
  return ChunkLoop<float>(problem, task).Run();
}

}  // namespace ms_ce
