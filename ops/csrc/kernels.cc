// The portable kernels. CMake compiles this file once per instruction set, with MS_CE_ISA naming the
// namespace; only KernelTable() is visible outside it.
//
// The life of a row, forward and backward in one call (ValueAndGrad below):
//   1. interface/exports.cc    MindSpore calls the operation by its name
//   2. interface/bind.cc       checks its arguments by operations.h and puts them in a Problem
//   3. interface/loss_runs.cc  RunValueAndGrad picks kernels and reduces what they return
//   4. loss/run.cc             RunRows cuts the rows into units for the pool's threads
//   5. here                    ForRows walks over a unit; ForBlocks where UsesColumns
//   6. loss/row_terms.h        MakeRow reads the target: an ignored row ends here, its logits unread
//   7. loss/row_sums.h         ScanTiles reads the logits once: the sum of exponentials, lse
//      loss/plain_rows.h       a tile of most rows; row_tiles.h has that of all others
//   8. loss/row_kernel.h       FinishForwardRow makes the loss, LossGradient the gradient's factors
//   9. loss/line_gradients.h   writes the gradient while the next row is read; row_tiles.h again
//  10. loss/run.cc             adds the units' sums in order
// Rows in lanes: column_block.h (6), column_memory.h and column_chunk.h (reading), column_scan.h (7, 8),
// column_gradient.h (9), column_kernel.h. Formulas of all: formulas.h.
#include "platform/kernels.h"

#include "linear/linear_products.h"
#include "loss/column_kernel.h"
#include "loss/divergence.h"
#include "loss/double_backward.h"
#include "loss/row_kernel.h"
#include "loss/top_k.h"
#include "platform/kept_buffer.h"

namespace ms_ce {
namespace MS_CE_ISA {

template <class Work, class Skip>
static inline void ForRows(const Problem& problem, int64_t first, int64_t count, UnitSums* totals,
                           Work work, Skip skip) {
  PlaceSums weights;
  for (int64_t index = first; index < first + count; ++index) {
    const Row row = MakeRow(problem, index, totals);
    if (row.target == kIgnored) {
      skip(row);
      continue;
    }
    weights.Add(index, CountedWeight(problem, row));
    ++totals->counted;
    work(row);
  }
  totals->weight += weights.Total();
}

// Rows up to the first whose gradients begin a cache line, where that is so of every class: blocks from
// there on write whole lines.
static inline int64_t RowsToLine(const Problem& problem, int64_t first) {
  if (!problem.stream_stores || problem.inner == 1) return 0;
  const int64_t bytes = FloatBytes(problem.grad_logits.dtype), line = kCacheLine / bytes;
  if (problem.inner % line != 0) return 0;
  const auto start =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(problem.grad_logits.data) % kCacheLine);
  return (line - (start / bytes + first) % line) % line;
}

template <class A>
using BlockWork = void (*)(const Problem&, const Block&, Chunk<A>*, PlaceSums* losses);

// Blocks none of whose rows counts are not read.
template <class A>
static inline void ForBlocks(const Problem& problem, int64_t first, int64_t count, UnitSums* totals,
                             BlockWork<A> work) {
  Block block;
  Chunk<A> chunk;
  PlaceSums weights, losses;
  int64_t step = RowsToLine(problem, first);
  if (step == 0) step = kLanes;
  for (int64_t done = 0; done < count; done += block.count, step = kLanes) {
    MakeBlock(problem, first + done, count - done < step ? count - done : step, &block, &weights, totals);
    if (block.any_kept) {
      work(problem, block, &chunk, &losses);
      continue;
    }
    for (int64_t l = 0; l < block.count; ++l) IgnoredForward(problem, block.first + l);
    if (problem.grad_logits.data != nullptr) StoreBlockZeros(problem, block);
  }
  totals->weight += weights.Total();
  totals->loss += losses.Total();
  FinishStreaming();
}

static inline void ZeroGradLogits(const Problem& problem, const Row& row) {
  StoreZeros(problem.grad_logits, row.offset, row.stride, problem.classes, problem.stream_stores);
}

static inline void ZeroGradTarget(const Problem& problem, const Row& row) {
  StoreZeros(problem.grad_target, row.offset, row.stride, problem.classes, problem.stream_stores);
}

template <class A>
static void Forward(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  if (UsesColumns(problem) && !problem.statistics) {
    return ForBlocks<A>(problem, first, count, totals, ForwardBlock<A>);
  }
  ForRows(
      problem, first, count, totals,
      [&](const Row& row) { FinishForwardRow<A>(problem, row, ScanRow<A>(problem, row, nullptr), totals); },
      [&](const Row& row) { IgnoredForward(problem, row.index); });
}

template <class A>
static void Backward(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  if (UsesColumns(problem) && !HasGradEntropy(problem)) {
    return ForBlocks<A>(problem, first, count, totals, BackwardBlock<A>);
  }
  ForRows(
      problem, first, count, totals, [&](const Row& row) { BackwardRow<A>(problem, row); },
      [&](const Row& row) { ZeroGradLogits(problem, row); });
  FinishStreaming();
}

// Keeping a row's exponentials saves computing them twice; without memory for them that is what happens.
constexpr int64_t kMostKeptTerms = int64_t{1} << 18;

template <class RowFunction>
static void ValueAndGradRows(const Problem& problem, int64_t first, int64_t count, UnitSums* totals,
                             RowFunction row_function) {
  ForRows(problem, first, count, totals, row_function, [&](const Row& row) {
    IgnoredForward(problem, row.index);
    ZeroGradLogits(problem, row);
    if (problem.grad_target.data != nullptr) ZeroGradTarget(problem, row);
  });
}

// For an upstream gradient of 1, from the rows' lse, where that gradient is wanted.
template <class A>
static void OwnTargetGrad(const Problem& problem, int64_t first, int64_t count) {
  if (problem.grad_target.data == nullptr) return;
  UnitSums counted_before;
  ForRows(
      problem, first, count, &counted_before,
      [&](const Row& row) {
        const double upstream = row.weight * UnitUpstream(problem);
        TargetGradRow<A>(problem, row, problem.lse_out[row.index], upstream);
      },
      [&](const Row& row) { ZeroGradTarget(problem, row); });
  FinishStreaming();
}

// Of plain rows a gradient is written while the next row is read, whose exponentials take its place.
template <class A>
static void ValueAndGrad(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  if (UsesColumns(problem)) {
    ForBlocks<A>(problem, first, count, totals, ValueAndGradBlock<A>);
    return OwnTargetGrad<A>(problem, first, count);
  }
  // Of the thread: handing memory back and forth for each unit of rows costs as much as a row.
  A* terms = nullptr;
  // A gradient in the logits' place finds them in the cache.
  const bool in_place = problem.grad_logits.data == problem.logits.data;
  if (!in_place && problem.classes <= kMostKeptTerms && problem.softcap == 0.0) {
    terms = static_cast<A*>(KeptBuffer(static_cast<size_t>(problem.classes) * sizeof(A)));
  }
  if (terms != nullptr && IsPlain(problem)) {
    ForStored<A>(problem, [&](auto stored) {
      WaitingGradient<decltype(stored)> waiting;
      ValueAndGradRows(problem, first, count, totals, [&](const Row& row) {
        ValueAndGradPlainRow(problem, row, totals, terms, &waiting);
      });
      waiting.Finish();
    });
  } else {
    ValueAndGradRows(problem, first, count, totals, [&](const Row& row) {
      const double lse = ValueAndGradRow<A>(problem, row, totals, terms);
      if (problem.grad_target.data != nullptr) {
        TargetGradRow<A>(problem, row, lse, row.weight * UnitUpstream(problem));
      }
    });
  }
  FinishStreaming();
}

template <class A>
static void Partial(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  ForRows(
      problem, first, count, totals, [&](const Row& row) { PartialRow<A>(problem, row); },
      [&](const Row& row) {
        for (int i = 0; i < 3; ++i) problem.partial[row.index * 3 + i] = 0.0;
      });
}

template <class A>
static void PartialBackward(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  if (UsesColumns(problem)) {
    return ForBlocks<A>(problem, first, count, totals, PartialBackwardBlock<A>);
  }
  ForRows(
      problem, first, count, totals, [&](const Row& row) { PartialBackwardRow<A>(problem, row); },
      [&](const Row& row) { ZeroGradLogits(problem, row); });
  FinishStreaming();
}

template <class A>
static void DoubleBackward(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  ForRows(
      problem, first, count, totals, [&](const Row& row) { DoubleBackwardRow<A>(problem, row, totals); },
      [&](const Row& row) { IgnoredDoubleBackward(problem, row); });
}

template <class A>
static void TargetGrad(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  ForRows(
      problem, first, count, totals,
      [&](const Row& row) {
        const double upstream = RowUpstream(problem, problem.grad_loss, row);
        TargetGradRow<A>(problem, row, Centre(problem, row.index), upstream);
      },
      [&](const Row& row) { ZeroGradTarget(problem, row); });
  FinishStreaming();
}

// Only checks the targets and sums their weights.
static void CountWeight(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  ForRows(
      problem, first, count, totals, [](const Row&) {}, [](const Row&) {});
}

// Every row counts: those of weight 0 are left out of a chunk.
template <class A>
static void Divergences(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  Problem teacher = problem;
  teacher.logits = problem.teacher_logits;
  const auto work = problem.beta == 0.0   ? DivergenceRow<Divergence::kForward, A>
                    : problem.beta == 1.0 ? DivergenceRow<Divergence::kReverse, A>
                                          : DivergenceRow<Divergence::kMixed, A>;
  for (int64_t index = first; index < first + count; ++index) {
    const double weight = RowWeight(problem, index);
    work(problem, teacher, {index, index * problem.classes, 1, kNoTarget, weight, 1.0, 0.0}, totals);
  }
}

template <class A>
static void TopK(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  for (int64_t index = first; index < first + count; ++index) {
    const double weight = RowWeight(problem, index);
    TopKRow<A>(problem, {index, index * problem.classes, 1, kNoTarget, weight, 1.0, 0.0}, totals);
  }
}

static void NllForward(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  ForRows(
      problem, first, count, totals,
      [&](const Row& row) {
        const double log_prob = LoadScalar(problem.logits, row.offset + row.target * row.stride);
        const bool excluded = row.hot == 0.0 && log_prob == -INFINITY;
        const double loss = row.weight * (excluded ? 0.0 : -row.hot * log_prob);
        totals->loss += loss;
        if (problem.loss_rows.data != nullptr) StoreScalar(loss, problem.loss_rows, row.index);
      },
      [&](const Row& row) { IgnoredForward(problem, row.index); });
}

// Expects grad_logits filled with zeros.
static void NllBackward(const Problem& problem, int64_t first, int64_t count, UnitSums* totals) {
  ForRows(
      problem, first, count, totals,
      [&](const Row& row) {
        const double grad = RowUpstream(problem, problem.grad_loss, row) * -row.hot;
        StoreScalar(grad, problem.grad_logits, row.offset + row.target * row.stride);
      },
      [](const Row&) {});
}

static double Sum(const Array& array, int64_t count) {
  double scratch[kTile];
  double total = 0.0;
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t step = count - first < kTile ? count - first : kTile;
    const double* values = View(array, first, 1, step, scratch);
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < step; ++i) sum += values[i];
    total += sum;
  }
  return total;
}

template <class T, T (*Function)(T)>
static void Map(const T* x, T* out, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = Function(x[i]);
}

template <class A>
static void ReadRun(const Array& from, int64_t first, int64_t count, void* out) {
  Load(from, first, 1, count, static_cast<A*>(out));
}

template <class A>
static void WriteRun(const void* from, int64_t count, const Array& to, int64_t first) {
  Store(static_cast<const A*>(from), to, first, 1, count, false);
}

#if defined(MS_CE_HAS_TABLE_EXP)
static void TableExps(const float* x, float* y, int64_t count) {
  const TableExp exp(0.0f);
  for (int64_t first = 0; first < count; first += kVectorLanes<float>) {
    const int64_t left = count - first;
    const size_t bytes = (left < kVectorLanes<float> ? left : kVectorLanes<float>)*sizeof(float);
    Vector<float> lanes = {};
    memcpy(&lanes, x + first, bytes);
    const TableExp::Factors term = exp(lanes);
    lanes = term.polynomial * term.power * Unscaling(lanes);
    memcpy(y + first, &lanes, bytes);
  }
}
#endif

template <class A>
static constexpr Kernels MakeKernels() {
  Kernels table{};
  table.name = MS_CE_ISA_NAME;
  table.forward = Forward<A>;
  table.backward = Backward<A>;
  table.value_and_grad = ValueAndGrad<A>;
  table.partial = Partial<A>;
  table.partial_backward = PartialBackward<A>;
  table.double_backward = DoubleBackward<A>;
  table.target_grad = TargetGrad<A>;
  table.divergence = Divergences<A>;
  table.top_k = TopK<A>;
  table.count_weight = CountWeight;
  table.nll_forward = NllForward;
  table.nll_backward = NllBackward;
  table.weight_grad = WeightGradClasses<A>;
  table.pack_hidden = PackHidden<A>;
  table.logits_of_classes = LogitsOfClasses<A>;
  table.gradient_of_features = GradientOfFeatures<A>;
  table.add_gradient_of_classes = AddGradientOfClasses<A>;
  table.read = ReadRun<A>;
  table.write = WriteRun<A>;
  table.store = StoreScalar;
  table.load = LoadScalar;
  table.load_index = LoadInteger;
  table.sum = Sum;
  table.exp = Map<float, Exp>;
  table.coarse_exp = Map<float, CoarseExp>;
#if defined(MS_CE_HAS_TABLE_EXP)
  table.table_exp = TableExps;
#endif
  table.log = Map<float, Log>;
  table.tanh = Map<float, Tanh>;
  table.exp_double = Map<double, Exp>;
  return table;
}

// One table per accumulation type: float serves float16, bfloat16 and float32 logits.
const Kernels* KernelTable(bool double_precision) {
  static constexpr Kernels kFloat = MakeKernels<float>();
  static constexpr Kernels kDouble = MakeKernels<double>();
  return double_precision ? &kDouble : &kFloat;
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce
