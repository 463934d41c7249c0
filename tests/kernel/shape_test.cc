// Shape inference, and the texts of errors.
#include <type_traits>

#include "tensor.h"

namespace ms_ce_test {
namespace {

using Shapes = std::vector<Shape>;
template <class Result>
using Inference = Result (*)(int*, int64_t**, mindspore::AotExtra*);

// Result: one Shape for operations with one output, Shapes for the others.
template <class Result>
void ExpectShapes(const char* name, Inference<Result> infer, Shapes inputs,
                  const std::common_type_t<Result>& expected) {
  std::vector<int> ndims;
  std::vector<int64_t*> shapes;
  for (Shape& input : inputs) {
    ndims.push_back(static_cast<int>(input.size()));
    shapes.push_back(input.data());
  }
  Check(infer(ndims.data(), shapes.data(), nullptr) == expected, "%sInferShape gives other shapes", name);
}

void TestInference() {
  const Shape x{8, 5, 3}, rows{8, 3}, scalar{}, one{1}, slots{16};
  ExpectShapes("CrossEntropyForward", CrossEntropyForwardInferShape, {x, rows, one, slots},
               {scalar, scalar, rows});
  ExpectShapes("CrossEntropyForward", CrossEntropyForwardInferShape, {{5}, scalar, one, slots},
               {scalar, scalar, scalar});
  ExpectShapes("CrossEntropyForwardRows", CrossEntropyForwardRowsInferShape, {{-1, 5}, {-1}, one, slots},
               {{-1}, scalar, {-1}});
  ExpectShapes("CrossEntropyForwardRows", CrossEntropyForwardRowsInferShape, {{-2}, {-2}, one, slots},
               {{-2}, scalar, {-2}});
  ExpectShapes("CrossEntropyStats", CrossEntropyStatsInferShape, {x, rows, one, slots},
               {scalar, scalar, rows, scalar, scalar, scalar});
  ExpectShapes("CrossEntropyStatsRows", CrossEntropyStatsRowsInferShape, {x, rows, one, slots},
               {rows, scalar, rows, rows, scalar, rows});
  ExpectShapes("CrossEntropyBackward", CrossEntropyBackwardInferShape,
               {scalar, one, x, rows, one, rows, scalar, slots}, x);
  ExpectShapes("CrossEntropyDoubleBackward", CrossEntropyDoubleBackwardInferShape,
               {x, rows, rows, x, rows, one, rows, scalar, slots}, {rows, rows, x, rows});
  ExpectShapes("CrossEntropyTargetGrad", CrossEntropyTargetGradInferShape,
               {scalar, x, x, one, rows, scalar, slots}, x);
  ExpectShapes("CrossEntropyWeightGrad", CrossEntropyWeightGradInferShape,
               {scalar, x, rows, {5}, rows, scalar, slots}, {5});
  ExpectShapes("CrossEntropyValueAndGrad", CrossEntropyValueAndGradInferShape, {x, rows, one, slots},
               {scalar, scalar, rows, x});
  ExpectShapes("CrossEntropyPartial", CrossEntropyPartialInferShape, {x, rows, one, slots}, {8, 3, 3});
  ExpectShapes("CrossEntropyPartialBackward", CrossEntropyPartialBackwardInferShape,
               {rows, rows, x, rows, one, rows, rows, slots}, x);
  ExpectShapes("NLLForward", NLLForwardInferShape, {x, rows, one, slots}, {scalar, scalar});
  ExpectShapes("NLLForwardRows", NLLForwardRowsInferShape, {x, rows, one, slots}, {rows, scalar});
  ExpectShapes("NLLBackward", NLLBackwardInferShape, {scalar, rows, one, x, slots}, x);
}

void ExpectError(Tensor logits, Tensor target, Options options, const char* text) {
  Tensor weight("float32", {1}), packed = options.Pack(), loss("float32", {}), total("float64", {});
  Tensor lse("float64", {3});
  for (int64_t i = 0; i < logits.size(); ++i) logits.Set(i, 0.0);
  const std::string error =
      Run(CrossEntropyForward, {&logits, &target, &weight, &packed, &loss, &total, &lse});
  Check(error.find(text) != std::string::npos, "expected the error \"%s\", got \"%s\"", text,
        error.c_str());
}

void TestErrors() {
  Tensor logits("float32", {3, 7}), target("int64", {3});
  for (int64_t i = 0; i < 3; ++i) target.Set(i, i == 2 ? 9 : 0);
  ExpectError(logits, target, {}, "ms_ce: target 9 at position (2,) is outside [0, 7)");
  target.Set(1, -1);
  ExpectError(logits, target, {}, "ms_ce: target -1 at position (1,) is outside [0, 7)");
  ExpectError(Tensor("float32", {3, 0}), target, {}, "at least one class");
  ExpectError(logits, Tensor("int64", {3, 1}), {}, "target must have shape (3,)");
  ExpectError(logits, Tensor("float64", {3, 7}), {}, "target must have the logits' dtype float32");
  ExpectError(Tensor("int32", {3, 7}), target, {}, "logits must have dtype float16");
  Options smooth;
  smooth.label_smoothing = 1.5;
  ExpectError(logits, target, smooth, "label_smoothing must be in [0, 1]");
  Options none;
  none.reduction = 0;
  ExpectError(logits, target, none, "reduction must be");
}

}  // namespace

void TestShapes() {
  TestInference();
  TestErrors();
}

}  // namespace ms_ce_test
