// The gradient of probability targets in lines of 64 bytes, where logits, targets and gradient lie alike.
#ifndef MS_CE_TARGET_GRADIENT_H_
#define MS_CE_TARGET_GRADIENT_H_

#include "loss/line_gradients.h"

namespace ms_ce {
namespace MS_CE_ISA {

// d loss / d target_c = upstream (1 - label_smoothing) w_c (lse - x_c), with lse = high + low. Where w_c is
// 0 it is 0, and also where the coefficient a_c is 0 beside a logit of -inf: that class is left out of the
// loss altogether, unless the row has no softmax. `moving` is x, or what takes its place in a derivative
// along a direction.
template <class V, class A>
MS_CE_INLINE V TargetGradient(V x, V moving, V a, A scale, A high, A low) {
  const auto excluded = (a == V{}) & (x == V{} - static_cast<A>(INFINITY));
  const A left_out = high == high ? A(0) : high;
  return excluded ? V{} + left_out : scale * ((high - moving) + low);
}

// Whether a row's gradient can be made in lines: no class has a weight or a share of the smoothing.
static inline bool HasPlainTargets(const Problem& problem) {
  return problem.inner == 1 && problem.weight.data == nullptr && problem.smooth == 0.0 &&
         !TransformsLogits(problem) && problem.direction.data == nullptr &&
         problem.logits.dtype == problem.target.dtype && problem.logits.dtype == problem.grad_target.dtype;
}

template <class T>
static void TargetGradInLines(const Problem& problem, const Row& row, WorkType<T> scale, WorkType<T> high,
                              WorkType<T> low) {
  using A = WorkType<T>;
  const T* x = At<T>(problem.logits, row.offset);
  const T* q = At<T>(problem.target, row.offset);
  T* out = AtOut<T>(problem.grad_target, row.offset);
  const auto single = [&](int64_t i) {
    const A logit = static_cast<A>(ToFloat(x[i])), share = static_cast<A>(ToFloat(q[i]));
    Convert(TargetGradient(logit, logit, share, scale, high, low), out + i);
  };
  const bool stream = problem.stream_stores && IsAligned(out);
  const Lines<T> lines(stream ? out : nullptr, problem.classes);
  for (int64_t i = 0; i < lines.begin; ++i) single(i);
  const auto write_lines = [&](auto streamed) MS_CE_LAMBDA_INLINE {
    for (int64_t at = lines.begin; at < lines.end; at += Wide<T>::kCount) {
      Wide<T> wide = LoadWide(x + at);
      const Wide<T> shares = LoadWide(q + at);
#pragma GCC unroll 2
      for (int64_t p = 0; p < Wide<T>::kParts; ++p) {
        const Vector<A> logits = wide.part[p];
        wide.part[p] = TargetGradient(logits, logits, shares.part[p], scale, high, low);
      }
      StoreWide<decltype(streamed)::value>(wide, out + at);
    }
  };
  stream ? write_lines(std::true_type()) : write_lines(std::false_type());
  for (int64_t i = lines.end; i < problem.classes; ++i) single(i);
}

}  // namespace MS_CE_ISA
}  // namespace ms_ce

#endif  // MS_CE_TARGET_GRADIENT_H_
