// Shape inference of the exported operations: inputs' shapes in, outputs' shapes out.
#include "arguments.h"
#include "cross_entropy.h"

namespace ms_ce {
namespace {

using Shapes = std::vector<Shape>;

constexpr int64_t kUnknownRank = -2;

Shape InputShape(const int* ndims, int64_t** shapes, int index) {
  return Shape(shapes[index], shapes[index] + ndims[index]);
}

Shape InferRows(const Shape& logits) {
  if (logits == Shape{kUnknownRank}) return logits;
  return RowsShape(logits);
}

// Of the linear loss: the hidden states' shape without the features.
Shape WithoutLast(Shape shape) {
  if (shape != Shape{kUnknownRank} && !shape.empty()) shape.pop_back();
  return shape;
}

Shape WithLast(Shape shape, int64_t last) {
  if (shape != Shape{kUnknownRank}) shape.push_back(last);
  return shape;
}

}  // namespace
}  // namespace ms_ce

#define MS_CE_INFER_AS(inferred, name, ...)                                                \
  inferred name##InferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {          \
    const auto input = [&](int index) { return ms_ce::InputShape(ndims, shapes, index); }; \
    const auto rows = [&](int index) { return ms_ce::InferRows(input(index)); };           \
    (void)rows;                                                                            \
    return __VA_ARGS__;                                                                    \
  }
#define MS_CE_INFER(name, ...) \
  MS_CE_INFER_AS(std::vector<std::vector<int64_t>>, name, ms_ce::Shapes __VA_ARGS__)
#define MS_CE_INFER_ONE(name, shape) MS_CE_INFER_AS(std::vector<int64_t>, name, shape)

MS_CE_INFER(CrossEntropyForward, {{}, {}, rows(0)})
MS_CE_INFER(CrossEntropyForwardRows, {rows(0), {}, rows(0)})
MS_CE_INFER(CrossEntropyStats, {{}, {}, rows(0), {}, {}, {}})
MS_CE_INFER(CrossEntropyStatsRows, {rows(0), {}, rows(0), rows(0), {}, rows(0)})
MS_CE_INFER_ONE(CrossEntropyBackward, input(2))
MS_CE_INFER(CrossEntropyDoubleBackward, {input(1), input(1), input(3), rows(3)})
MS_CE_INFER_ONE(CrossEntropyTargetGrad, input(2))
MS_CE_INFER_ONE(CrossEntropyWeightGrad, input(3))
MS_CE_INFER(CrossEntropyValueAndGrad, {{}, {}, rows(0), input(0)})
MS_CE_INFER_ONE(CrossEntropyPartial, ms_ce::WithLast(rows(0), 3))
MS_CE_INFER_ONE(CrossEntropyPartialBackward, input(2))
MS_CE_INFER_ONE(CrossEntropyPartialTargetGrad, input(2))
MS_CE_INFER_ONE(CrossEntropyPartialWeightGrad, input(3))
MS_CE_INFER(NLLForward, {{}, {}})
MS_CE_INFER(NLLForwardRows, {rows(0), {}})
MS_CE_INFER_ONE(NLLBackward, input(3))
MS_CE_INFER(LinearCrossEntropyForward, {{}, {}, ms_ce::WithoutLast(input(0))})
MS_CE_INFER(LinearCrossEntropyForwardRows, {ms_ce::WithoutLast(input(0)), {}, ms_ce::WithoutLast(input(0))})
MS_CE_INFER(LinearCrossEntropyStats, {{}, {}, ms_ce::WithoutLast(input(0)), {}, {}, {}})
MS_CE_INFER(LinearCrossEntropyStatsRows, {ms_ce::WithoutLast(input(0)),
                                          {},
                                          ms_ce::WithoutLast(input(0)),
                                          ms_ce::WithoutLast(input(0)),
                                          {},
                                          ms_ce::WithoutLast(input(0))})
MS_CE_INFER(LinearCrossEntropyBackward, {input(2), input(3), input(5)})
MS_CE_INFER(LinearCrossEntropyValueAndGrad,
            {{}, {}, ms_ce::WithoutLast(input(0)), input(0), input(1), input(3), {}})
MS_CE_INFER_ONE(LinearCrossEntropyRescale, {})
