// Shape inference, and the texts of errors.
#include "tensor.h"

namespace ms_ce_test {
namespace {

using ms_ce::Extent;
using ms_ce::Form;
using Shapes = std::vector<Shape>;

Shapes Inferred(const ms_ce::Operation& operation, Shapes inputs) {
  std::vector<int> ndims;
  std::vector<int64_t*> shapes;
  for (Shape& input : inputs) {
    ndims.push_back(static_cast<int>(input.size()));
    shapes.push_back(input.data());
  }
  return ms_ce::Infer(operation, ndims.data(), shapes.data());
}

// The shapes of one problem: logits (8, 5, 3), hidden states of 7 features.
Shape ShapeOf(Extent extent, bool per_row) {
  const Shape rows{8, 3};
  switch (extent) {
    case Extent::kScalar:
      return {};
    case Extent::kOptions:
      return {static_cast<int64_t>(std::size(ms_ce::kOptionSlots))};
    case Extent::kPlan:
      return {static_cast<int64_t>(std::size(ms_ce::kPlanSlots))};
    case Extent::kLogits:
      return {8, 5, 3};
    case Extent::kRows:
    case Extent::kTarget:
      return rows;
    case Extent::kLoss:
      return per_row ? rows : Shape{};
    case Extent::kWeight:
    case Extent::kLinearBias:
      return {5};
    case Extent::kPartial:
      return {8, 3, 3};
    case Extent::kHidden:
      return {8, 3, 7};
    case Extent::kLinearWeight:
      return {5, 7};
    case Extent::kTeacherHidden:
      return {8, 3, 4};
    case Extent::kTeacherWeight:
      return {5, 4};
    case Extent::kTeacherBias:
      return {5};
    case Extent::kTopK:
      return {8, 3, 2};
    case Extent::kText:
      return {11};
  }
  return {};
}

void TestInference() {
  for (const ms_ce::Operation& operation : ms_ce::kOperations) {
    for (const bool per_row : {false, true}) {
      if (operation.form == (per_row ? Form::kScalar : Form::kPerRow)) continue;
      Shapes inputs, outputs;
      for (const auto* input : operation.inputs) inputs.push_back(ShapeOf(input->extent, per_row));
      for (const auto* output : operation.outputs) outputs.push_back(ShapeOf(output->extent, per_row));
      Check(Inferred(operation, inputs) == outputs, "%s infers other shapes", operation.name);
    }
  }
}

void Expect(const char* name, const Shapes& inputs, const Shapes& outputs) {
  for (const ms_ce::Operation& operation : ms_ce::kOperations) {
    if (std::strcmp(operation.name, name) != 0) continue;
    Check(Inferred(operation, inputs) == outputs, "%s infers other shapes", name);
    return;
  }
  Check(false, "there is no operation %s", name);
}

// -1 is an unknown size, {-2} an unknown rank.
void TestUnknownShapes() {
  const Shape scalar{}, one{1};
  const Shape slots = ShapeOf(Extent::kOptions, false), plan = ShapeOf(Extent::kPlan, false);
  Expect("CrossEntropyForward", {{5}, scalar, one, one, slots}, {scalar, scalar, scalar});
  Expect("CrossEntropyForwardRows", {{-1, 5}, {-1}, one, one, slots}, {{-1}, scalar, {-1}});
  Expect("CrossEntropyForwardRows", {{-2}, {-2}, one, one, slots}, {{-2}, scalar, {-2}});
  Expect("CrossEntropyPartial", {{-2}, {-2}, one, slots}, Shapes{{-2}});
  Expect("LinearCrossEntropyForwardRows", {{-1, 3, 7}, {5, 7}, {-1, 3}, scalar, one, one, slots, plan},
         {{-1, 3}, scalar, {-1, 3}});
  Expect("LinearCrossEntropyForwardRows", {{-2}, {5, 7}, {-2}, scalar, one, one, slots, plan},
         {{-2}, scalar, {-2}});
}

void ExpectError(Tensor logits, Tensor target, Options options, const char* text) {
  Tensor weight("float32", {1}), packed = options.Pack(), loss("float32", {}), total("float64", {});
  Tensor lse("float64", {3}), row_weight("float64", {});
  for (int64_t i = 0; i < logits.size(); ++i) logits.Set(i, 0.0);
  const std::string error =
      Run("CrossEntropyForward", {&logits, &target, &weight, &row_weight, &packed, &loss, &total, &lse});
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
  TestUnknownShapes();
  TestErrors();
}

}  // namespace ms_ce_test
