// Many rows at a time, one per vector lane: for layouts whose classes lie apart (inner > 1), and for so
// few classes that a row of its own would cost more than its terms.
#ifndef MS_CE_COLUMN_KERNEL_H_
#define MS_CE_COLUMN_KERNEL_H_

#include "column_block.h"

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

// The chunk at hand, class c of lane l at [c * stride + l]: logits after scale and softcap, and
// coefficients. Both lie in the buffers, or in memory where that already holds them as they are wanted.
template <class A>
struct Chunk {
  alignas(64) A x_buffer[kChunk * kLanes];
  alignas(64) A a_buffer[kChunk * kLanes];
  const A *x, *a;
  int64_t x_stride, a_stride;
  int64_t begin, classes;

  void Select(const Problem& problem, int64_t first_class) {
    begin = first_class;
    classes = problem.classes - begin < kChunk ? problem.classes - begin : kChunk;
  }

  void ReadLogits(const Problem& problem, const Block& block) {
    x = TransformsLogits(problem) ? nullptr : ChunkInPlace<A>(problem, problem.logits, block, begin);
    x_stride = problem.inner;
    if (x != nullptr) return;
    x = x_buffer;
    x_stride = kLanes;
    LoadChunk(problem, problem.logits, block, begin, classes, x_buffer);
    for (int64_t c = 0; c < classes && TransformsLogits(problem); ++c) {
      ApplyLogitTransform(problem, x_buffer + c * kLanes, block.lanes, x_buffer + c * kLanes);
    }
  }

  void ReadCoefficients(const Problem& problem, const Block& block) {
    a = a_buffer;
    a_stride = kLanes;
    if (!problem.probability) return FillWeights(problem, block);
    const bool plain = problem.smooth == 0.0 && problem.weight.data == nullptr;
    const A* q = plain ? ChunkInPlace<A>(problem, problem.target, block, begin) : nullptr;
    if (q != nullptr) {
      a = q;
      a_stride = problem.inner;
      return;
    }
    LoadChunk(problem, problem.target, block, begin, classes, a_buffer);
    if (!plain) SmoothAndWeigh(problem, block);
  }

 private:
  A Weight(const Problem& problem, int64_t c) const {
    if (problem.weight.data == nullptr) return A(1);
    return static_cast<A>(LoadScalar(problem.weight, problem.class_offset + begin + c));
  }

  void FillWeights(const Problem& problem, const Block& block) {
    for (int64_t c = 0; c < classes; ++c) {
      const A w = Weight(problem, c);
      for (int64_t l = 0; l < block.lanes; ++l) a_buffer[c * kLanes + l] = w;
    }
  }

  void SmoothAndWeigh(const Problem& problem, const Block& block) {
    const A keep = static_cast<A>(1.0 - problem.label_smoothing);
    const A spread = static_cast<A>(problem.smooth);
    for (int64_t c = 0; c < classes; ++c) {
      const A w = Weight(problem, c);
      A* q = a_buffer + c * kLanes;
#pragma omp simd
      for (int64_t l = 0; l < block.lanes; ++l) q[l] = w * (keep * q[l] + spread);
    }
  }
};

// Raises the reference to the maximum over the chunk and moves the sums to it.
template <class A>
static inline void RaiseReference(const Chunk<A>& chunk, int64_t lanes, bool first, ColumnSums<A>* sums) {
  const A lowest = -static_cast<A>(INFINITY);
  alignas(64) A maximum[kLanes];
  for (int64_t l = 0; l < lanes; ++l) maximum[l] = lowest;
  // Class by class, for long runs from memory. A nan gives way: it reaches the sum through exp.
  for (int64_t c = 0; c < chunk.classes; ++c) {
    const A* x = chunk.x + c * chunk.x_stride;
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
  for (int64_t c = 0; c < chunk.classes; ++c) {
    const A* x = chunk.x + c * chunk.x_stride;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) sum[l] += ExpScaled(x[l] - reference[l]);
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) sums->exp_sum[l] += Unscale(sum[l]);
}

template <class A>
static inline void AddDistances(const Chunk<A>& chunk, int64_t lanes, ColumnSums<A>* sums) {
  alignas(64) A distance[kLanes], mass[kLanes];
  for (int64_t l = 0; l < lanes; ++l) distance[l] = mass[l] = A(0);
  const A* reference = sums->reference;
  for (int64_t c = 0; c < chunk.classes; ++c) {
    const A* x = chunk.x + c * chunk.x_stride;
    const A* a = chunk.a + c * chunk.a_stride;
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
    const int64_t hit = block.target[l] - chunk.begin;
    if (block.target[l] < 0 || hit < 0 || hit >= chunk.classes) continue;
    sums->target_logit[l] = chunk.x[hit * chunk.x_stride + l];
  }
}

// Reads the block once. Afterwards `chunk` holds its last classes.
template <class A>
static inline void ScanColumns(const Problem& problem, const Block& block, Chunk<A>* chunk,
                               ColumnSums<A>* sums) {
  for (int64_t l = 0; l < block.lanes; ++l) sums->target_logit[l] = A(0);
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    chunk->Select(problem, begin);
    chunk->ReadLogits(problem, block);
    RaiseReference(*chunk, block.lanes, begin == 0, sums);
    AddExpSums(*chunk, block.lanes, sums);
    PickTargets(*chunk, block, sums);
    if (!UsesCoefficients(problem)) continue;
    chunk->ReadCoefficients(problem, block);
    AddDistances(*chunk, block.lanes, sums);
  }
}

// Writes lse and row losses, and adds the losses up. Terms as in RowLoss of row_kernel.h.
template <class A>
static inline void FinishForward(const Problem& problem, const Block& block, const ColumnSums<A>& sums,
                                 double* lse, UnitSums* totals) {
  alignas(64) A log_sum[kLanes];
  alignas(64) double loss[kLanes];
  for (int64_t l = 0; l < block.lanes; ++l) log_sum[l] = static_cast<A>(sums.exp_sum[l]);
#pragma omp simd
  for (int64_t l = 0; l < block.lanes; ++l) log_sum[l] = Log(log_sum[l]);
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  double total = 0.0;
#pragma omp simd reduction(+ : total)
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
    total += loss[l];
  }
  totals->loss += total;
  for (int64_t l = 0; problem.lse_out != nullptr && l < block.count; ++l) {
    problem.lse_out[block.first + l] = lse[l];
  }
  if (problem.loss_rows.data != nullptr) Store(loss, problem.loss_rows, block.first, 1, block.count, false);
}

// Per lane, as RowGradient of row_kernel.h.
template <class A>
struct ColumnGradient {
  alignas(64) A lse_high[kLanes], lse_low[kLanes], slope[kLanes], scale[kLanes], hot[kLanes];

  void SetLse(int64_t l, double lse) {
    lse_high[l] = static_cast<A>(lse);
    lse_low[l] = static_cast<A>(lse - static_cast<double>(lse_high[l]));
  }
};

template <class A>
static inline void GradientChunk(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                 const ColumnGradient<A>& gradient, bool coefficients) {
  alignas(64) A out[kChunk * kLanes];
  for (int64_t c = 0; c < chunk->classes; ++c) {
    const A* x = chunk->x + c * chunk->x_stride;
    A* row = out + c * kLanes;
    if (coefficients) {
      const A* a = chunk->a + c * chunk->a_stride;
#pragma omp simd
      for (int64_t l = 0; l < block.lanes; ++l) {
        const A p = Exp((x[l] - gradient.lse_high[l]) - gradient.lse_low[l]);
        row[l] = gradient.slope[l] * p - gradient.scale[l] * a[l];
      }
    } else {
#pragma omp simd
      for (int64_t l = 0; l < block.lanes; ++l) {
        row[l] = gradient.slope[l] * Exp((x[l] - gradient.lse_high[l]) - gradient.lse_low[l]);
      }
    }
  }
  for (int64_t l = 0; l < block.count; ++l) {
    const int64_t hit = block.target[l] - chunk->begin;
    if (block.target[l] < 0 || hit < 0 || hit >= chunk->classes) continue;
    out[hit * kLanes + l] -= gradient.hot[l];
  }
  for (int64_t c = 0; c < chunk->classes; ++c) {
    ChainLogitTransform(problem, chunk->x + c * chunk->x_stride, out + c * kLanes, block.lanes);
  }
  for (int64_t l = 0; l < block.count; ++l) {
    if (block.target[l] != kIgnored) continue;
    for (int64_t c = 0; c < chunk->classes; ++c) out[c * kLanes + l] = A(0);
  }
  StoreChunk(problem, problem.grad_logits, block, chunk->begin, chunk->classes, out);
}

// `loaded`: the chunk already holds the whole of the block.
template <class A>
static inline void GradientColumns(const Problem& problem, const Block& block, Chunk<A>* chunk,
                                   const ColumnGradient<A>& gradient, bool loaded) {
  const bool coefficients = UsesCoefficients(problem);
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    if (!loaded) {
      chunk->Select(problem, begin);
      chunk->ReadLogits(problem, block);
      if (coefficients) chunk->ReadCoefficients(problem, block);
    }
    GradientChunk(problem, block, chunk, gradient, coefficients);
  }
}

// As LossGradient of row_kernel.h; grad and grad_z hold each lane's upstream.
template <class A>
static inline void MakeGradient(const Problem& problem, const Block& block, const double* lse,
                                const double* mass, const double* grad, const double* grad_z,
                                ColumnGradient<A>* gradient) {
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  const double twice_z = 2.0 * problem.z_loss;
  for (int64_t l = 0; l < block.lanes; ++l) {
    double slope = grad[l] * (block.hot[l] + scale * mass[l]);
    if (twice_z != 0.0) slope += twice_z * lse[l] * (grad[l] + grad_z[l]);
    gradient->SetLse(l, lse[l]);
    gradient->slope[l] = static_cast<A>(slope);
    gradient->scale[l] = static_cast<A>(grad[l] * scale);
    gradient->hot[l] = static_cast<A>(grad[l] * block.hot[l]);
  }
}

// sum_c a_c of every lane, for the backward pass.
template <class A>
static inline void ColumnMass(const Problem& problem, const Block& block, Chunk<A>* chunk, double* mass) {
  for (int64_t l = 0; l < block.lanes; ++l) mass[l] = problem.weight_sum;
  if (!problem.probability) return;
  for (int64_t begin = 0; begin < problem.classes; begin += kChunk) {
    chunk->Select(problem, begin);
    chunk->ReadCoefficients(problem, block);
    for (int64_t c = 0; c < chunk->classes; ++c) {
      for (int64_t l = 0; l < block.lanes; ++l) mass[l] += chunk->a[c * chunk->a_stride + l];
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
static inline void ForwardBlock(const Problem& problem, const Block& block, UnitSums* totals) {
  Chunk<A> chunk;
  ColumnSums<A> sums;
  double lse[kLanes];
  ScanColumns(problem, block, &chunk, &sums);
  FinishForward(problem, block, sums, lse, totals);
}

template <class A>
static inline void BackwardBlock(const Problem& problem, const Block& block, UnitSums*) {
  Chunk<A> chunk;
  ColumnGradient<A> gradient;
  double lse[kLanes], mass[kLanes], grad[kLanes], grad_z[kLanes];
  LoadLanes(problem.lse, block, lse);
  ColumnMass(problem, block, &chunk, mass);
  LaneUpstream(problem, problem.grad_loss, block, grad);
  LaneUpstream(problem, problem.grad_z_loss, block, grad_z);
  MakeGradient(problem, block, lse, mass, grad, grad_z, &gradient);
  GradientColumns(problem, block, &chunk, gradient, false);
}

template <class A>
static inline void ValueAndGradBlock(const Problem& problem, const Block& block, UnitSums* totals) {
  Chunk<A> chunk;
  ColumnSums<A> sums;
  ColumnGradient<A> gradient;
  double lse[kLanes], grad[kLanes], grad_z[kLanes];
  ScanColumns(problem, block, &chunk, &sums);
  FinishForward(problem, block, sums, lse, totals);
  const double upstream = problem.reduction == Reduction::kMean ? 1.0 / problem.total_weight : 1.0;
  for (int64_t l = 0; l < block.lanes; ++l) {
    grad[l] = upstream;
    grad_z[l] = 0.0;
  }
  MakeGradient(problem, block, lse, sums.mass, grad, grad_z, &gradient);
  GradientColumns(problem, block, &chunk, gradient, problem.classes <= kChunk);
}

template <class A>
static inline void PartialBackwardBlock(const Problem& problem, const Block& block, UnitSums*) {
  Chunk<A> chunk;
  ColumnGradient<A> gradient;
  double grad[kLanes], grad_lse[kLanes], lse[kLanes], mass[kLanes];
  LoadLanes(problem.grad_loss, block, grad);
  LoadLanes(problem.grad_lse, block, grad_lse);
  LoadLanes(problem.lse, block, lse);
  LoadLanes(problem.mass, block, mass);
  const double scale = UsesCoefficients(problem) ? CoefficientScale(problem) : 0.0;
  for (int64_t l = 0; l < block.lanes; ++l) {
    gradient.SetLse(l, lse[l]);
    gradient.slope[l] = static_cast<A>(grad[l] * mass[l] + grad_lse[l]);
    gradient.scale[l] = static_cast<A>(grad[l] * scale);
    gradient.hot[l] = static_cast<A>(grad[l] * block.hot[l]);
  }
  GradientColumns(problem, block, &chunk, gradient, false);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_COLUMN_KERNEL_H_
