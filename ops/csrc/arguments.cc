#include "arguments.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "cross_entropy.h"
#include "dispatch.h"

namespace ms_ce {
namespace {

struct DtypeRow {
  const char* name;
  Dtype dtype;
  size_t size;
};

constexpr DtypeRow kDtypes[] = {
    {"float16", Dtype::kFloat16, 2}, {"bfloat16", Dtype::kBfloat16, 2}, {"float32", Dtype::kFloat32, 4},
    {"float64", Dtype::kFloat64, 8}, {"int32", Dtype::kInt32, 4},       {"int64", Dtype::kInt64, 8},
    {"uint8", Dtype::kUint8, 1},
};

const char* DtypeName(Dtype dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "unknown";
}

Dtype ParseDtype(const char* argument, const char* name) {
  for (const DtypeRow& row : kDtypes) {
    if (std::strcmp(row.name, name) == 0) return row.dtype;
  }
  Fail(std::string(argument) +
       " must have dtype float16, bfloat16, float32, float64, int32, int64 or uint8, got " + name);
}

double AsDouble(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void ExpectCompanionDtype(const Tensor& tensor, Dtype logits) {
  if (tensor.dtype == logits || tensor.dtype == Dtype::kFloat32) return;
  Fail(std::string(tensor.name) + " must have the logits' dtype " + DtypeName(logits) +
       " or float32, got " + DtypeName(tensor.dtype));
}

void ReadOptions(const Tensor& options, Problem* problem) {
  ExpectDtype(options, Dtype::kInt64, "int64");
  ExpectShape(options, {MS_CE_OPTION_COUNT});
  const auto* slot = static_cast<const int64_t*>(options.data);
  problem->ignore_index = slot[MS_CE_IGNORE_INDEX];
  problem->reduction = static_cast<Reduction>(slot[MS_CE_REDUCTION]);
  problem->has_grad_z_loss = (slot[MS_CE_FLAGS] & MS_CE_HAS_GRAD_Z_LOSS) != 0;
  problem->label_smoothing = AsDouble(slot[MS_CE_LABEL_SMOOTHING]);
  problem->z_loss = AsDouble(slot[MS_CE_Z_LOSS]);
  problem->softcap = AsDouble(slot[MS_CE_SOFTCAP]);
  problem->logit_scale = AsDouble(slot[MS_CE_LOGIT_SCALE]);
  problem->class_offset = slot[MS_CE_CLASS_OFFSET];
  problem->total_classes = slot[MS_CE_TOTAL_CLASSES];
  if (slot[MS_CE_REDUCTION] < 0 || slot[MS_CE_REDUCTION] > 2) {
    Fail("reduction must be 0 (none), 1 (mean) or 2 (sum), got " + std::to_string(slot[MS_CE_REDUCTION]));
  }
  if (!(problem->label_smoothing >= 0.0 && problem->label_smoothing <= 1.0)) {
    Fail("label_smoothing must be in [0, 1], got " + std::to_string(problem->label_smoothing));
  }
  if (!(problem->softcap >= 0.0)) {
    Fail("softcap must not be negative, got " + std::to_string(problem->softcap));
  }
}

void CheckClasses(const Shape& logits, Problem* problem) {
  if (logits.empty()) Fail("logits must have shape (C), (N, C) or (N, C, d1, ...), got ()");
  const size_t axis = logits.size() == 1 ? 0 : 1;
  problem->classes = logits[axis];
  if (problem->classes == 0) Fail("logits must have at least one class, got shape " + ShapeText(logits));
  problem->outer = axis == 0 ? 1 : logits[0];
  problem->inner =
      ElementCount(Shape(logits.begin() + static_cast<std::ptrdiff_t>(axis) + 1, logits.end()));
  problem->rows = problem->outer * problem->inner;
  if (problem->total_classes == 0) problem->total_classes = problem->classes;
  if (problem->class_offset < 0 || problem->class_offset > problem->total_classes - problem->classes) {
    Fail("class_offset must be in [0, total_classes - C], got " + std::to_string(problem->class_offset));
  }
}

void CheckTarget(const Tensor& target, const Tensor& logits, Problem* problem) {
  problem->probability = IsFloating(target.dtype);
  problem->target = target.array();
  if (problem->probability) ExpectCompanionDtype(target, logits.dtype);
  const Shape expected = problem->probability ? logits.shape : RowsShape(logits.shape);
  if (target.shape == expected) return;
  Fail("target must have shape " + ShapeText(expected) + " to match logits " + ShapeText(logits.shape) +
       (problem->probability ? " (probabilities, as its dtype is floating)" : "") + ", got " +
       ShapeText(target.shape));
}

}  // namespace

void Fail(const std::string& text) { throw std::runtime_error("ms_ce: " + text); }

Tensor Call::Next(const char* name) {
  if (next_ >= nparam_) {
    Fail(std::string(name) + " must be argument " + std::to_string(next_) + ", got " +
         std::to_string(nparam_) + " arguments in all");
  }
  const int i = next_++;
  return {name, params_[i], ParseDtype(name, dtypes_[i]), Shape(shapes_[i], shapes_[i] + ndims_[i])};
}

void Call::ExpectEnd() const {
  if (next_ != nparam_) {
    Fail("the call must have " + std::to_string(next_) + " arguments, got " + std::to_string(nparam_));
  }
}

std::string ShapeText(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

int64_t ElementCount(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

size_t ElementSize(Dtype dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.size;
  }
  return 0;
}

bool IsFloating(Dtype dtype) {
  return dtype == Dtype::kFloat16 || dtype == Dtype::kBfloat16 || dtype == Dtype::kFloat32 ||
         dtype == Dtype::kFloat64;
}

Shape RowsShape(const Shape& logits) {
  Shape rows = logits;
  if (!rows.empty()) rows.erase(rows.begin() + (rows.size() == 1 ? 0 : 1));
  return rows;
}

void ExpectShape(const Tensor& tensor, const Shape& shape) {
  if (tensor.shape == shape) return;
  Fail(std::string(tensor.name) + " must have shape " + ShapeText(shape) + ", got " +
       ShapeText(tensor.shape));
}

void ExpectDtype(const Tensor& tensor, Dtype dtype, const char* name) {
  if (tensor.dtype == dtype) return;
  Fail(std::string(tensor.name) + " must have dtype " + name + ", got " + DtypeName(tensor.dtype));
}

Tensor NextAs(Call* call, const char* name, Dtype dtype, const char* dtype_name, const Shape& shape) {
  const Tensor tensor = call->Next(name);
  ExpectDtype(tensor, dtype, dtype_name);
  ExpectShape(tensor, shape);
  return tensor;
}

Tensor NextDouble(Call* call, const char* name, const Shape& shape) {
  return NextAs(call, name, Dtype::kFloat64, "float64", shape);
}

bool ApplyUpstream(double upstream, double* applied) {
  if (upstream == *applied) return false;
  if (!std::isnan(*applied)) {
    Fail(
        "linear_cross_entropy, LinearCrossEntropyLoss: gradient_in_forward must be False where one forward "
        "pass is differentiated more than once, got another gradient of the loss after the first");
  }
  *applied = upstream;
  return upstream != 1.0;
}

Problem CheckLossInputs(const LossInputs& inputs) {
  Problem problem;
  const Tensor& logits = inputs.logits;
  if (!IsFloating(logits.dtype)) {
    Fail(std::string(logits.name) + " must have dtype float16, bfloat16, float32 or float64, got " +
         DtypeName(logits.dtype));
  }
  ReadOptions(inputs.options, &problem);
  CheckClasses(logits.shape, &problem);
  problem.logits = logits.array();
  CheckTarget(inputs.target, logits, &problem);
  const auto* slot = static_cast<const int64_t*>(inputs.options.data);
  if ((slot[MS_CE_FLAGS] & MS_CE_HAS_WEIGHT) != 0) {
    ExpectCompanionDtype(inputs.weight, logits.dtype);
    ExpectShape(inputs.weight, {problem.total_classes});
    problem.weight = inputs.weight.array();
  }
  problem.smooth = problem.label_smoothing / static_cast<double>(problem.total_classes);
  if (problem.smooth != 0.0 && !problem.probability) {
    problem.weight_sum = problem.weight.data == nullptr
                             ? static_cast<double>(problem.total_classes)
                             : SelectKernels(false).sum(problem.weight, problem.total_classes);
  }
  return problem;
}

void FailOnTarget(const Problem& problem, const Tensor& logits, int64_t row) {
  const Shape shape = RowsShape(logits.shape);
  Shape position(shape.size());
  int64_t rest = row;
  for (size_t axis = shape.size(); axis-- > 0;) {
    position[axis] = rest % shape[axis];
    rest /= shape[axis];
  }
  int64_t value;
  switch (problem.target.dtype) {
    case Dtype::kInt32:
      value = static_cast<const int32_t*>(problem.target.data)[row];
      break;
    case Dtype::kUint8:
      value = static_cast<const uint8_t*>(problem.target.data)[row];
      break;
    default:
      value = static_cast<const int64_t*>(problem.target.data)[row];
  }
  Fail("target " + std::to_string(value) + " at position " + ShapeText(position) + " is outside [0, " +
       std::to_string(problem.total_classes) + ") and is not ignore_index (" +
       std::to_string(problem.ignore_index) + ")");
}

}  // namespace ms_ce
