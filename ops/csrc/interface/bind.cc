// Binds a call to its operation: every check of a dtype, a shape and an option, and each argument in its
// place.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "interface/checks.h"
#include "interface/extents.h"
#include "interface/operations.h"
#include "platform/dispatch.h"

namespace ms_ce {
namespace {

double AsDouble(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <size_t count>
void ReadSlots(const Slot (&slots)[count], const Tensor& tensor, LinearProblem* linear) {
  const auto* values = static_cast<const int64_t*>(tensor.data);
  Problem& problem = linear->loss;
  for (size_t i = 0; i < count; ++i) {
    const SlotPlace& place = slots[i].place;
    if (place.integer != nullptr) problem.*place.integer = values[i];
    if (place.reduction != nullptr) problem.*place.reduction = static_cast<Reduction>(values[i]);
    if (place.real != nullptr) problem.*place.real = AsDouble(values[i]);
    if (place.flag != nullptr) problem.*place.flag = values[i] != 0;
    if (place.linear_integer != nullptr) linear->*place.linear_integer = values[i];
    if (place.linear_flag != nullptr) linear->*place.linear_flag = values[i] != 0;
  }
}

bool IsSubject(const Argument& argument) {
  return argument.place.array == &Problem::logits || argument.place.linear == &LinearProblem::hidden;
}

}  // namespace

const Tensor* Call::Find(const Argument& argument) const {
  const Tensor* tensor = tensors_.data();
  for (const Arguments* list : {&operation.inputs, &operation.outputs}) {
    for (const Argument* each : *list) {
      if (each == &argument) return tensor;
      ++tensor;
    }
  }
  return nullptr;
}

class Binder {
 public:
  static Call Bound(const Operation& operation, const RawCall& raw) {
    Call call(operation);
    Binder(&call).Bind(raw);
    return call;
  }

 private:
  explicit Binder(Call* call) : call_(*call), operation_(call->operation), problem_(call->problem()) {}

  void Bind(const RawCall& raw) {
    ReadTensors(raw);
    FindShapes();
    if (const Tensor* options = call_.Find(kOptions)) {
      CheckArgument(kOptions, *options);
      CheckData(*options);
      ReadSlots(kOptionSlots, *options, &call_.linear);
      CheckOptions(problem_);
      CheckFloating(call_.subject());
      extents_.linear() ? CheckLinear() : CheckLogits();
      CheckForm(operation_.form, problem_, extents_[Extent::kRows]);
    }
    const Tensor* tensor = call_.tensors_.data();
    for (const Argument* input : operation_.inputs) {
      if (!IsGiven(*input)) {
        ++tensor;
        continue;
      }
      CheckArgument(*input, *tensor);
      CheckData(*tensor);
      Put(*input, *tensor++);
    }
    for (const Argument* output : operation_.outputs) {
      CheckOutput(*output, *tensor);
      CheckData(*tensor);
      const bool scalar = output->extent == Extent::kLoss && problem_.reduction != Reduction::kNone;
      if (!scalar) Put(*output, *tensor);
      ++tensor;
    }
    Derive();
  }

  void ReadTensors(const RawCall& raw) {
    if (raw.count > 0 &&
        (raw.data == nullptr || raw.ndims == nullptr || raw.shapes == nullptr || raw.dtypes == nullptr)) {
      Fail("the call must have pointers to data, ranks, shapes and dtypes, got a null pointer");
    }
    int i = 0;
    call_.tensors_.reserve(operation_.inputs.count + operation_.outputs.count);
    for (const Arguments* list : {&operation_.inputs, &operation_.outputs}) {
      for (const Argument* argument : *list) {
        if (i >= raw.count) {
          Fail(std::string(argument->name) + " must be argument " + std::to_string(i) + ", got " +
               std::to_string(raw.count) + " arguments in all");
        }
        const Dtype dtype = ParseDtype(argument->name, raw.dtypes[i]);
        Shape shape = CheckedShape(argument->name, raw.ndims[i], raw.shapes[i], dtype);
        call_.tensors_.push_back({argument->name, raw.data[i], dtype, std::move(shape)});
        ++i;
      }
    }
    if (i != raw.count) {
      Fail("the call must have " + std::to_string(i) + " arguments, got " + std::to_string(raw.count));
    }
  }

  // Shapes by the inputs' extents, and which of them is the subject.
  void FindShapes() {
    bool found = false;
    for (size_t i = 0; i < operation_.inputs.count; ++i) {
      const Argument& input = *operation_.inputs.items[i];
      const Tensor& tensor = call_.tensors_[i];
      if (IsSubject(input)) {
        call_.subject_ = i;
        found = true;
        extents_.Set(input.extent, tensor.shape);
      }
      extents_.Add(input.extent, tensor.shape);
      if (input.extent == Extent::kTarget) target_ = &tensor;
    }
    for (size_t i = 0; i < operation_.inputs.count && !found; ++i) {
      found = operation_.inputs.items[i]->type == Type::kFloat;
      call_.subject_ = i;
    }
    extents_.Derive(operation_);
  }

  void CheckLogits() {
    const Shape& logits = call_.subject().shape;
    SetDimensions(logits);
    problem_.probability = IsFloating(target_->dtype);
    const Shape& expected = problem_.probability ? logits : extents_[Extent::kRows];
    if (target_->shape == expected) return;
    Fail("target must have shape " + ShapeText(expected) + " to match logits " + ShapeText(logits) +
         (problem_.probability ? " (probabilities, as its dtype is floating)" : "") + ", got " +
         ShapeText(target_->shape));
  }

  void CheckLinear() {
    LinearProblem& linear = call_.linear;
    const Tensor& hidden = call_.subject();
    if (hidden.shape.empty()) Fail("input must have shape (..., in_features), got ()");
    linear.features = hidden.shape.back();
    if (linear.features == 0) {
      Fail("input must have at least one feature, got shape " + ShapeText(hidden.shape));
    }
    const Shape& rows = extents_[Extent::kRows];
    const Tensor& linear_weight = call_[kLinearWeight];
    if (linear_weight.shape.size() != 2 || linear_weight.shape[1] != linear.features) {
      Fail("linear_weight must have shape (num_classes, " + std::to_string(linear.features) +
           ") to match input " + ShapeText(hidden.shape) + ", got " + ShapeText(linear_weight.shape));
    }
    SetDimensions({ElementCount(rows), linear_weight.shape[0]});
    CheckBias(call_[kLinearBias]);
    if (call_.Find(kTeacherHidden) != nullptr) {
      CheckTeacher();
    } else if (call_.Find(kTeacherLogProbs) != nullptr) {
      CheckTopK();
    } else {
      CheckLinearTarget();
    }
    // (lead[0], classes, lead[1], ...): a row's position in the caller's terms.
    linear.position_shape = {hidden.name, nullptr, hidden.dtype, rows};
    Shape& position = linear.position_shape.shape;
    position.insert(position.begin() + (rows.empty() ? 0 : 1), problem_.classes);
    problem_.logits = hidden.array();
    const Tensor& plan = call_[kPlan];
    CheckArgument(kPlan, plan);
    CheckData(plan);
    ReadSlots(kPlanSlots, plan, &linear);
    if (!linear.shift) return;
    if (rows.empty()) Fail("input must have shape (..., sequence, in_features) under shift, got one row");
    linear.sequence = rows.back();
  }

  // Of shape () it stands for none.
  void CheckBias(const Tensor& bias) const {
    if (!bias.shape.empty()) ExpectShape(bias, {problem_.classes});
  }

  void CheckLinearTarget() {
    problem_.probability = IsFloating(target_->dtype);
    Shape target = extents_[Extent::kRows];
    if (problem_.probability) target.push_back(problem_.classes);
    ExpectShape(*target_, target);
  }

  void CheckTeacher() {
    const Tensor& hidden = call_[kTeacherHidden];
    CheckFloating(hidden);
    Shape expected = extents_[Extent::kRows];
    const int64_t features = hidden.shape.empty() ? 0 : hidden.shape.back();
    expected.push_back(features);
    ExpectShape(hidden, expected);
    if (features == 0) {
      Fail("teacher_hidden must have at least one feature, got shape " + ShapeText(hidden.shape));
    }
    ExpectShape(call_[kTeacherWeight], {problem_.classes, features});
    CheckBias(call_[kTeacherBias]);
    call_.linear.teacher_features = features;
    BeginDistillation();
  }

  void CheckTopK() {
    const Tensor& log_probs = call_[kTeacherLogProbs];
    CheckFloating(log_probs);
    Shape expected = extents_[Extent::kRows];
    problem_.top = log_probs.shape.empty() ? 0 : log_probs.shape.back();
    expected.push_back(problem_.top);
    ExpectShape(log_probs, expected);
    if (problem_.top < 1 || problem_.top > problem_.classes) {
      Fail("teacher_log_probs must have from 1 to " + std::to_string(problem_.classes) +
           " classes on its last axis, got shape " + ShapeText(log_probs.shape));
    }
    BeginDistillation();
  }

  void BeginDistillation() {
    if (problem_.reduction == Reduction::kMean) {
      Fail("reduction must be 0 (none) or 2 (sum) beside a teacher, got 1 (mean)");
    }
    problem_.probability = true;
  }

  void SetDimensions(const Shape& logits) {
    Problem& problem = problem_;
    if (logits.empty()) Fail("logits must have shape (C), (N, C) or (N, C, d1, ...), got ()");
    const size_t axis = logits.size() == 1 ? 0 : 1;
    problem.classes = logits[axis];
    if (problem.classes == 0) Fail("logits must have at least one class, got shape " + ShapeText(logits));
    problem.outer = axis == 0 ? 1 : logits[0];
    problem.inner = 1;
    for (size_t i = axis + 1; i < logits.size(); ++i) problem.inner *= logits[i];
    problem.rows = problem.outer * problem.inner;
    if (problem.total_classes == 0) problem.total_classes = problem.classes;
    if (problem.class_offset < 0 || problem.class_offset > problem.total_classes - problem.classes) {
      Fail("class_offset must be in [0, total_classes - C], got " + std::to_string(problem.class_offset));
    }
    weight_shape_ = {problem.total_classes};
    if (problem.has_weight) extents_.Set(Extent::kWeight, weight_shape_);
    const bool per_row = problem.reduction == Reduction::kNone;
    extents_.Set(Extent::kLoss, extents_[per_row ? Extent::kRows : Extent::kScalar]);
  }

  bool IsGiven(const Argument& argument) const {
    return argument.given == nullptr || problem_.*argument.given;
  }

  void CheckOutput(const Argument& output, const Tensor& tensor) const {
    if (output.extent == Extent::kWeight && !problem_.has_weight) {
      Fail("weight must be given to have a gradient, got none");
    }
    if (output.type == Type::kProbabilities) {
      ExpectDtype(tensor, target_->dtype, "target's");
      ExpectShape(tensor, extents_[output.extent]);
    } else if (output.type == Type::kWeight && problem_.has_weight) {
      ExpectDtype(tensor, call_[kWeight].dtype, "weight's");
      ExpectShape(tensor, extents_[output.extent]);
    } else if (output.type == Type::kWeight) {
      ExpectFloat(tensor);
      ExpectShape(tensor, extents_[output.extent]);
    } else {
      CheckArgument(output, tensor);
    }
  }

  void CheckArgument(const Argument& argument, const Tensor& tensor) const {
    switch (argument.type) {
      case Type::kFloat:
        ExpectFloat(tensor);
        break;
      case Type::kTarget:
        if (IsFloating(tensor.dtype)) ExpectCompanion(tensor);
        break;
      case Type::kClasses:
        if (IsFloating(tensor.dtype)) {
          Fail(std::string(tensor.name) + " must have dtype int32, int64 or uint8, got " +
               (&argument == &kTeacherIndices ? DtypeName(tensor.dtype) : "probabilities"));
        }
        break;
      case Type::kProbabilities:
        if (!IsFloating(tensor.dtype)) {
          Fail("target must hold probabilities to have a gradient, got class indices");
        }
        ExpectCompanion(tensor);
        break;
      case Type::kWeight:
        ExpectCompanion(tensor);
        break;
      case Type::kRowWeight:
        if (tensor.dtype == Dtype::kFloat64) break;
        ExpectDtype(tensor, call_.subject().dtype, (SubjectsText() + " or float64").c_str());
        break;
      case Type::kUpstream:
      case Type::kWideUpstream:
        if (tensor.dtype == Dtype::kFloat32 || tensor.dtype == Dtype::kFloat64) break;
        ExpectDtype(tensor, call_.subject().dtype, (SubjectsText() + ", float32 or float64").c_str());
        break;
      case Type::kInt64:
        ExpectDtype(tensor, Dtype::kInt64, "int64");
        break;
      case Type::kInt32:
        ExpectDtype(tensor, Dtype::kInt32, "int32");
        if (problem_.classes > INT32_MAX) {
          Fail("logits must have at most 2147483647 classes where one is predicted, got " +
               std::to_string(problem_.classes));
        }
        break;
      case Type::kDouble:
        ExpectDtype(tensor, Dtype::kFloat64, "float64");
        break;
      case Type::kTeacher:
        if (&argument == &kTeacherLogProbs) break;
        ExpectDtype(tensor, call_[kTeacherHidden].dtype, "teacher_hidden's");
        break;
    }
    ExpectShape(tensor, extents_[argument.extent]);
  }

  std::string SubjectsText() const {
    const std::string name = call_.subject().name;
    return name == "logits" ? "the logits'" : name + "'s";
  }

  void ExpectFloat(const Tensor& tensor) const {
    if (tensor.dtype == call_.subject().dtype) return;
    ExpectDtype(tensor, call_.subject().dtype, SubjectsText().c_str());
  }

  void ExpectCompanion(const Tensor& tensor) const {
    const Dtype dtype = call_.subject().dtype;
    if (tensor.dtype == dtype || tensor.dtype == Dtype::kFloat32) return;
    Fail(std::string(tensor.name) + " must have the logits' dtype " + DtypeName(dtype) +
         " or float32, got " + DtypeName(tensor.dtype));
  }

  void Put(const Argument& argument, const Tensor& tensor) {
    const Place& place = argument.place;
    const bool bias = argument.extent == Extent::kLinearBias || argument.extent == Extent::kTeacherBias;
    if (bias && extents_[argument.extent].empty()) return;
    if (place.array != nullptr) problem_.*place.array = tensor.array();
    if (place.linear != nullptr) call_.linear.*place.linear = tensor.array();
    if (place.doubles != nullptr) problem_.*place.doubles = static_cast<double*>(tensor.data);
    if (place.value != nullptr) problem_.*place.value = *static_cast<const double*>(tensor.data);
  }

  void Derive() {
    if (problem_.label_smoothing == 0.0) return;
    problem_.smooth = problem_.label_smoothing / static_cast<double>(problem_.total_classes);
    if (problem_.probability) return;
    problem_.weight_sum = problem_.weight.data == nullptr
                              ? static_cast<double>(problem_.total_classes)
                              : SelectKernels(false).sum(problem_.weight, problem_.total_classes);
  }

  Call& call_;
  const Operation& operation_;
  Problem& problem_;
  Extents extents_;
  Shape weight_shape_;
  const Tensor* target_ = nullptr;
};

Call Bind(const Operation& operation, const RawCall& raw) { return Binder::Bound(operation, raw); }

}  // namespace ms_ce
