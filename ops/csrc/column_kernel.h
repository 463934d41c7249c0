// Many rows at a time, one per vector lane: for layouts whose classes lie apart (inner > 1), and for so
// few classes that a row of its own would cost more than its terms.
#ifndef MS_CE_COLUMN_KERNEL_H_
#define MS_CE_COLUMN_KERNEL_H_

#include "column_block.h"
#include "row_sums.h"

namespace ms_ce {
namespace MS_CE_ISA {

// Up to here, rows are cheaper in lanes than one by one (docs/kernel.md).
constexpr int64_t kFewClasses = 64;

static inline bool UsesColumns(const Problem& problem) {
  return problem.inner > 1 || problem.classes <= kFewClasses;
}

// Per lane, as RowSums of row_kernel.h; the reference is the maximum, or 0 while that is -inf.
template <class A>
struct ColumnSums {
  alignas(64) A reference[kLanes];
  alignas(64) A target_logit[kLanes];
  alignas(64) double exp_sum[kLanes];
  alignas(64) double distance[kLanes];
  alignas(64) double mass[kLanes];
};

// The chunk at hand, class c of lane l at [c * kLanes + l]: logits after scale and softcap, and
// coefficients.
template <class A>
class Chunk {
 public:
  const A* x() const { return x_; }
  A* x() { return x_; }
  const A* a() const { return a_; }
  int64_t begin() const { return begin_; }
  int64_t classes() const { return classes_; }

  void Select(const Problem& problem, int64_t begin) {
    begin_ = begin;
    classes_ = CountFrom(problem, begin);
  }

  void ReadLogits(const Problem& problem, const Block& block) {
    LoadChunk(problem, problem.logits, block, begin_, classes_, x_);
    for (int64_t c = 0; c < classes_ && TransformsLogits(problem); ++c) {
      ApplyLogitTransform(problem, x_ + c * kLanes, block.lanes, x_ + c * kLanes);
    }
  }

  // Into the buffer, unless they can be read where they lie.
  ClassRuns<A> FindLogits(const Problem& problem, const Block& block) {
    const ClassRuns<A> runs = RunsInMemory<A>(problem, block, begin_, classes_);
    if (runs.first != nullptr) return runs;
    ReadLogits(problem, block);
    return {x_, kLanes, classes_};
  }

  void ReadCoefficients(const Problem& problem, const Block& block) {
    if (!problem.probability) return FillWeights(problem, block);
    LoadChunk(problem, problem.target, block, begin_, classes_, a_);
    if (problem.smooth != 0.0 || problem.weight.data != nullptr) SmoothAndWeigh(problem, block);
  }

 private:
  static int64_t CountFrom(const Problem& problem, int64_t begin) {
    return problem.classes - begin < kChunk ? problem.classes - begin : kChunk;
  }

  A Weight(const Problem& problem, int64_t c) const {
    if (problem.weight.data == nullptr) return A(1);
    return static_cast<A>(LoadScalar(problem.weight, problem.class_offset + begin_ + c));
  }

  void FillWeights(const Problem& problem, const Block& block) {
    for (int64_t c = 0; c < classes_; ++c) {
      const A w = Weight(problem, c);
      for (int64_t l = 0; l < block.lanes; ++l) a_[c * kLanes + l] = w;
    }
  }

  void SmoothAndWeigh(const Problem& problem, const Block& block) {
    const A keep = static_cast<A>(1.0 - problem.label_smoothing);
    const A spread = static_cast<A>(problem.smooth);
    for (int64_t c = 0; c < classes_; ++c) {
      const A w = Weight(problem, c);
      A* q = a_ + c * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < block.lanes; ++l) q[l] = w * (keep * q[l] + spread);
    }
  }

  alignas(64) A x_[kChunk * kLanes];
  alignas(64) A a_[kChunk * kLanes];
  int64_t begin_ = 0, classes_ = 0;
};

// Raises the reference to the maximum over the chunk and moves the sums to it.
template <class A>
static inline void RaiseReference(const Chunk<A>& chunk, int64_t lanes, bool first, ColumnSums<A>* sums) {
  const A lowest = -static_cast<A>(INFINITY);
  alignas(64) A maximum[kLanes];
  for (int64_t l = 0; l < lanes; ++l) maximum[l] = lowest;
  // Class by class, for long runs from memory. A nan gives way: it reaches the sum through exp.
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    const A* x = chunk.x() + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) maximum[l] = x[l] > maximum[l] ? x[l] : maximum[l];
  }
  if (first) {
    for (int64_t l = 0; l < lanes; ++l) {
      sums->reference[l] = maximum[l] > lowest ? maximum[l] : A(0);
      sums->exp_sum[l] = sums->distance[l] = sums->mass[l] = 0.0;
    }
    return;
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const A old = sums->reference[l];
    // exp_sum 0: all of the row so far was -inf, and the reference only a stand-in.
    const A floor = sums->exp_sum[l] == 0.0 ? lowest : old;
    const A raised = maximum[l] > floor ? maximum[l] : old;
    const A shift = raised > old ? raised - old : A(0);
    sums->reference[l] = raised;
    sums->exp_sum[l] *= static_cast<double>(Exp(-shift));
    sums->distance[l] += (static_cast<double>(raised) - old) * sums->mass[l];
  }
}

// The lanes' sums stay in L1; the compiler vectorises loops over lanes better inside than outside.
template <class A>
static inline void AddExpSums(const Chunk<A>& chunk, int64_t lanes, ColumnSums<A>* sums) {
  alignas(64) A sum[kLanes];
  for (int64_t l = 0; l < lanes; ++l) sum[l] = A(0);
  const A* reference = sums->reference;
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    const A* x = chunk.x() + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) sum[l] += ExpScaled(x[l] - reference[l]);
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) sums->exp_sum[l] += Unscale(sum[l]);
}

// Both of the above for a block's first classes in one loop over memory, which is copied into the chunk.
// The reference is the maximum of a few classes until all are known; lanes where that lies too far below
// the whole maximum are summed again.
template <class A>
static inline void ScanFirst(const ClassRuns<A>& runs, int64_t lanes, Chunk<A>* chunk,
                             ColumnSums<A>* sums) {
  constexpr int64_t kFirst = 4;
  const A lowest = -static_cast<A>(INFINITY), slack = static_cast<A>(kReferenceSlack);
  alignas(64) A maximum[kLanes], sum[kLanes], reference[kLanes];
  for (int64_t l = 0; l < lanes; ++l) {
    maximum[l] = lowest;
    sum[l] = A(0);
  }
  for (int64_t c = 0; c < kFirst && c < runs.classes; ++c) {
    const A* from = runs.Class(c);
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) maximum[l] = from[l] > maximum[l] ? from[l] : maximum[l];
  }
  for (int64_t l = 0; l < lanes; ++l) reference[l] = maximum[l] > lowest ? maximum[l] : A(0);
  for (int64_t c = 0; c < runs.classes; ++c) {
    const A *from = runs.Class(c), *later = runs.Later(c);
    A* to = chunk->x() + c * kLanes;
    for (int64_t group = 0; group < lanes; group += kLaneGroup) {
      __builtin_prefetch(later + group);
#pragma omp simd
      for (int64_t l = group; l < group + kLaneGroup; ++l) {
        const A value = from[l];
        to[l] = value;
        maximum[l] = value > maximum[l] ? value : maximum[l];
        sum[l] += ExpScaled(value - reference[l]);
      }
    }
  }
  int64_t far = 0;
#pragma omp simd reduction(+ : far)
  for (int64_t l = 0; l < lanes; ++l) far += maximum[l] - reference[l] > slack ? 1 : 0;
  if (far != 0) {
    RaiseReference(*chunk, lanes, true, sums);
    AddExpSums(*chunk, lanes, sums);
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const bool is_far = maximum[l] - reference[l] > slack;
    const A raised = maximum[l] > lowest ? maximum[l] : A(0);
    const double moved = Unscale(sum[l]) * static_cast<double>(Exp(reference[l] - raised));
    sums->reference[l] = is_far ? sums->reference[l] : raised;
    sums->exp_sum[l] = is_far ? sums->exp_sum[l] : moved;
    sums->distance[l] = sums->mass[l] = 0.0;
  }
}

template <class A>
static inline void AddDistances(const Chunk<A>& chunk, int64_t lanes, ColumnSums<A>* sums) {
  alignas(64) A distance[kLanes], mass[kLanes];
  for (int64_t l = 0; l < lanes; ++l) distance[l] = mass[l] = A(0);
  const A* reference = sums->reference;
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    const A* x = chunk.x() + c * kLanes;
    const A* a = chunk.a() + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      distance[l] += a[l] == A(0) ? A(0) : a[l] * (reference[l] - x[l]);
      mass[l] += a[l];
    }
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    sums->distance[l] += distance[l];
    sums->mass[l] += mass[l];
  }
}

template <class A>
static inline void PickTargets(const Chunk<A>& chunk, const Block& block, ColumnSums<A>* sums) {
  for (int64_t l = 0; l < block.count; ++l) {
    const int64_t hit = block.target[l] - chunk.begin();
    if (block.target[l] < 0 || hit < 0 || hit >= chunk.classes()) continue;
    sums->target_logit[l] = chunk.x()[hit * kLanes + l];
  }
}

// Reads the block once. Afterwards `chunk` holds its last classes.
template <class A>
static inline void ScanColumns(const Problem& problem, const Block& block, Chunk<A>* chunk,
                               ColumnSums<A>* sums) {
  for (int64_t l = 0; l < block.lanes; ++l) sums->target_logit[l] = A(0);
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    chunk->Select(problem, begin);
    if (begin == 0) {
      ScanFirst(chunk->FindLogits(problem, block), block.lanes, chunk, sums);
    } else {
      chunk->ReadLogits(problem, block);
      RaiseReference(*chunk, block.lanes, false, sums);
      AddExpSums(*chunk, block.lanes, sums);
    }
    PickTargets(*chunk, block, sums);
    if (!UsesCoefficients(problem)) continue;
    chunk->ReadCoefficients(problem, block);
    AddDistances(*chunk, block.lanes, sums);
  }
}

// Writes lse and row losses, and adds the losses up. Terms as in RowLoss of row_kernel.h.
template <class A>
static inline void FinishForward(const Problem& problem, const Block& block, const ColumnSums<A>& sums,
                                 double* lse, PlaceSums* losses) {
  alignas(64) A log_sum[kLanes];
  alignas(64) double loss[kLanes];
  for (int64_t l = 0; l < block.lanes; ++l) log_sum[l] = static_cast<A>(sums.exp_sum[l]);
#pragma omp simd
  for (int64_t l = 0; l < block.lanes; ++l) log_sum[l] = Log(log_sum[l]);
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
#pragma omp simd
  for (int64_t l = 0; l < block.lanes; ++l) {
    const double log_of_sum = log_sum[l];
    const double whole = static_cast<double>(sums.reference[l]) + log_of_sum;
    const double row_lse = sums.exp_sum[l] == 0.0 ? static_cast<double>(NAN) : whole;
    const double distance = static_cast<double>(sums.reference[l] - sums.target_logit[l]) + log_of_sum;
    double value = block.hot[l] == 0.0 ? 0.0 : block.hot[l] * distance;
    const double shared = sums.mass[l] == 0.0 ? 0.0 : sums.mass[l] * log_of_sum;
    value += scale == 0.0 ? 0.0 : scale * (sums.distance[l] + shared);
    value += problem.z_loss == 0.0 ? 0.0 : problem.z_loss * row_lse * row_lse;
    const bool kept = block.target[l] != kIgnored;
    lse[l] = kept ? row_lse : 0.0;
    loss[l] = kept ? value : 0.0;
  }
  losses->AddRun(block.first, loss, block.count);
  for (int64_t l = 0; problem.lse_out != nullptr && l < block.count; ++l) {
    problem.lse_out[block.first + l] = lse[l];
  }
  if (problem.loss_rows.data != nullptr) Store(loss, problem.loss_rows, block.first, 1, block.count, false);
}

// Per lane, as RowGradient of row_sums.h, the softmax's share as SoftmaxFactor there.
template <class A>
struct ColumnGradient {
  alignas(64) A high[kLanes], factor[kLanes], scale[kLanes], hot[kLanes];
  bool scaled = true;  // in every lane

  void SetSoftmax(int64_t lanes, const double* lse, const double* slope) {
    int64_t small = 0;
#pragma omp simd reduction(+ : small)
    for (int64_t l = 0; l < lanes; ++l) {
      const double size = slope[l] < 0.0 ? -slope[l] : slope[l];
      small += (size != 0.0) & (size < kSmallSlope) ? 1 : 0;
    }
    scaled = small == 0;
    const double unit = scaled ? Unscale(A(1)) : 1.0;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      high[l] = static_cast<A>(lse[l]);
      const A low = static_cast<A>(lse[l] - static_cast<double>(high[l]));
      factor[l] = static_cast<A>(slope[l] * unit) * Exp(-low);
    }
  }
};

template <class A, bool kScaled>
static inline void SoftmaxChunk(int64_t lanes, const ClassRuns<A>& runs, const A* coefficients,
                                const ColumnGradient<A>& gradient, A* out) {
  for (int64_t c = 0; c < runs.classes; ++c) {
    const A *x = runs.Class(c), *later = runs.Later(c);
    A* row = out + c * kLanes;
    for (int64_t group = 0; group < lanes; group += kLaneGroup) {
      __builtin_prefetch(later + group);
#pragma omp simd
      for (int64_t l = group; l < group + kLaneGroup; ++l) {
        row[l] = gradient.factor[l] * Term<kScaled>(x[l] - gradient.high[l]);
      }
    }
    if (coefficients == nullptr) continue;
    const A* a = coefficients + c * kLanes;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) row[l] -= gradient.scale[l] * a[l];
  }
}

// The chunk holds its logits unless `runs` are in memory, and coefficients where there are any.
template <class A>
static inline void GradientChunk(const Problem& problem, const Block& block, const Chunk<A>& chunk,
                                 const ClassRuns<A>& runs, const ColumnGradient<A>& gradient) {
  alignas(64) A out[kChunk * kLanes];
  const A* coefficients = UsesCoefficients(problem) ? chunk.a() : nullptr;
  if (gradient.scaled) {
    SoftmaxChunk<A, true>(block.lanes, runs, coefficients, gradient, out);
  } else {
    SoftmaxChunk<A, false>(block.lanes, runs, coefficients, gradient, out);
  }
  for (int64_t l = 0; l < block.count; ++l) {
    const int64_t hit = block.target[l] - chunk.begin();
    if (block.target[l] < 0 || hit < 0 || hit >= chunk.classes()) continue;
    out[hit * kLanes + l] -= gradient.hot[l];
  }
  for (int64_t c = 0; c < chunk.classes(); ++c) {
    ChainLogitTransform(problem, chunk.x() + c * kLanes, out + c * kLanes, block.lanes);
  }
  for (int64_t l = 0; l < block.count; ++l) {
    if (block.target[l] != kIgnored) continue;
    for (int64_t c = 0; c < chunk.classes(); ++c) out[c * kLanes + l] = A(0);
  }
  StoreChunk(problem, problem.grad_logits, block, chunk.begin(), chunk.classes(), out);
}

// `loaded`: the chunk already holds the whole of the block.
template <class A>
static inline void GradientColumns(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                   const ColumnGradient<A>& gradient, bool loaded) {
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    if (loaded) {
      GradientChunk(problem, block, *chunk, {chunk->x(), kLanes, chunk->classes()}, gradient);
      continue;
    }
    chunk->Select(problem, begin);
    const ClassRuns<A> runs = chunk->FindLogits(problem, block);
    if (UsesCoefficients(problem)) chunk->ReadCoefficients(problem, block);
    GradientChunk(problem, block, *chunk, runs, gradient);
  }
}

// As LossGradient of row_kernel.h; grad and grad_z hold each lane's upstream.
template <class A>
static inline void MakeGradient(const Problem& problem, const Block& block, const double* lse,
                                const double* mass, const double* grad, const double* grad_z,
                                ColumnGradient<A>* gradient) {
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  const double twice_z = 2.0 * problem.z_loss;
  alignas(64) double slope[kLanes] = {};
  for (int64_t l = 0; l < block.lanes; ++l) {
    slope[l] = grad[l] * (block.hot[l] + scale * mass[l]);
    if (twice_z != 0.0) slope[l] += twice_z * lse[l] * (grad[l] + grad_z[l]);
    gradient->scale[l] = static_cast<A>(grad[l] * scale);
    gradient->hot[l] = static_cast<A>(grad[l] * block.hot[l]);
  }
  gradient->SetSoftmax(block.lanes, lse, slope);
}

// sum_c a_c of every lane, for the backward pass.
template <class A>
static inline void ColumnMass(const Problem& problem, const Block& block, Chunk<A>* chunk, double* mass) {
  for (int64_t l = 0; l < block.lanes; ++l) mass[l] = problem.weight_sum;
  if (!problem.probability) return;
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    chunk->Select(problem, begin);
    chunk->ReadCoefficients(problem, block);
    for (int64_t c = 0; c < chunk->classes(); ++c) {
      for (int64_t l = 0; l < block.lanes; ++l) mass[l] += chunk->a()[c * kLanes + l];
    }
  }
}

static inline void LoadLanes(const Array& rows, const Block& block, double* out) {
  Load(rows, block.first, 1, block.count, out);
  for (int64_t l = block.count; l < block.lanes; ++l) out[l] = 0.0;
}

// As RowUpstream of row_terms.h.
static inline void LaneUpstream(const Problem& problem, const Array& upstream, const Block& block,
                                double* out) {
  if (upstream.data == nullptr || problem.reduction != Reduction::kNone) {
    const double value = RowUpstream(problem, upstream, 0);
    for (int64_t l = 0; l < block.lanes; ++l) out[l] = value;
    return;
  }
  LoadLanes(upstream, block, out);
}

template <class A>
static inline void ForwardBlock(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                PlaceSums* losses) {
  ColumnSums<A> sums;
  double lse[kLanes];
  ScanColumns(problem, block, chunk, &sums);
  FinishForward(problem, block, sums, lse, losses);
}

template <class A>
static inline void BackwardBlock(const Problem& problem, const Block& block, Chunk<A>* chunk, PlaceSums*) {
  ColumnGradient<A> gradient;
  double lse[kLanes], mass[kLanes], grad[kLanes], grad_z[kLanes];
  LoadLanes(problem.lse, block, lse);
  ColumnMass(problem, block, chunk, mass);
  LaneUpstream(problem, problem.grad_loss, block, grad);
  LaneUpstream(problem, problem.grad_z_loss, block, grad_z);
  MakeGradient(problem, block, lse, mass, grad, grad_z, &gradient);
  GradientColumns(problem, block, chunk, gradient, false);
}

template <class A>
static inline void ValueAndGradBlock(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                     PlaceSums* losses) {
  ColumnSums<A> sums;
  ColumnGradient<A> gradient;
  double lse[kLanes], grad[kLanes], grad_z[kLanes];
  const bool loaded = problem.classes <= kChunk;
  ScanColumns(problem, block, chunk, &sums);
  FinishForward(problem, block, sums, lse, losses);
  const double upstream = problem.reduction == Reduction::kMean ? 1.0 / problem.total_weight : 1.0;
  for (int64_t l = 0; l < block.lanes; ++l) {
    grad[l] = upstream;
    grad_z[l] = 0.0;
  }
  MakeGradient(problem, block, lse, sums.mass, grad, grad_z, &gradient);
  GradientColumns(problem, block, chunk, gradient, loaded);
}

template <class A>
static inline void PartialBackwardBlock(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                        PlaceSums*) {
  ColumnGradient<A> gradient;
  double grad[kLanes], grad_lse[kLanes], lse[kLanes], mass[kLanes], slope[kLanes] = {};
  LoadLanes(problem.grad_loss, block, grad);
  LoadLanes(problem.grad_lse, block, grad_lse);
  LoadLanes(problem.lse, block, lse);
  LoadLanes(problem.mass, block, mass);
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  for (int64_t l = 0; l < block.lanes; ++l) {
    slope[l] = grad[l] * mass[l] + grad_lse[l];
    gradient.scale[l] = static_cast<A>(grad[l] * scale);
    gradient.hot[l] = static_cast<A>(grad[l] * block.hot[l]);
  }
  gradient.SetSoftmax(block.lanes, lse, slope);
  GradientColumns(problem, block, chunk, gradient, false);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_KERNEL_H_
