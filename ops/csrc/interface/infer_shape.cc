// Shape inference: the inputs' shapes in, the outputs' shapes out.
#include "interface/extents.h"
#include "interface/operations.h"

namespace ms_ce {
namespace {

const Shape kScalarShape{};
const Shape kOptionsShape{static_cast<int64_t>(std::size(kOptionSlots))};
const Shape kPlanShape{static_cast<int64_t>(std::size(kPlanSlots))};

bool IsUnknown(const Shape& shape) { return shape == Shape{kUnknownRank}; }

Shape RowsOf(const Shape* hidden, const Shape& logits) {
  Shape rows = hidden != nullptr ? *hidden : logits;
  if (IsUnknown(rows)) return rows;
  if (hidden == nullptr) return RowsShape(rows);
  if (!rows.empty()) rows.pop_back();
  return rows;
}

}  // namespace

void Extents::Add(Extent extent, const Shape& shape) {
  if (Slot(extent) == nullptr) Slot(extent) = &shape;
}

void Extents::Derive(const Operation& operation) {
  Set(Extent::kScalar, kScalarShape);
  Set(Extent::kOptions, kOptionsShape);
  Set(Extent::kPlan, kPlanShape);
  const Shape* hidden = Find(Extent::kHidden);
  const Shape* logits = Find(Extent::kLogits);
  if (hidden == nullptr && logits == nullptr) return;
  rows_ = RowsOf(hidden, hidden == nullptr ? *logits : kScalarShape);
  Set(Extent::kRows, rows_);
  if (operation.form != Form::kEither) {
    Set(Extent::kLoss, operation.form == Form::kPerRow ? rows_ : kScalarShape);
  }
  if (operation.outputs.items[0]->extent == Extent::kPartial) {
    partial_ = rows_;
    if (!IsUnknown(rows_)) partial_.push_back(3);
    Set(Extent::kPartial, partial_);
  }
}

std::vector<Shape> Infer(const Operation& operation, const int* ndims, int64_t** shapes) {
  std::vector<Shape> inputs;
  for (size_t i = 0; i < operation.inputs.count; ++i) inputs.emplace_back(shapes[i], shapes[i] + ndims[i]);
  Extents extents;
  for (size_t i = 0; i < inputs.size(); ++i) extents.Add(operation.inputs.items[i]->extent, inputs[i]);
  extents.Derive(operation);
  std::vector<Shape> outputs;
  for (const Argument* output : operation.outputs) outputs.push_back(extents[output->extent]);
  return outputs;
}

}  // namespace ms_ce
