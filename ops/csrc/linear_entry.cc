// The exported operations of the linear loss: read the arguments, run the chunks, write the results.
#include <algorithm>
#include <cmath>
#include <string>

#include "cross_entropy.h"
#include "dispatch.h"
#include "linear_loss.h"
#include "onednn.h"
#include "run.h"
#include "thread_pool.h"

#define MS_CE_ENTRY(name) \
  int name(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*)

namespace ms_ce {
namespace {

// Slots of `plan`, int64 of shape (2,).
enum { kPlanChunkBytes = 0, kPlanShift = 1, kPlanCount = 2 };

struct Inputs {
  Tensor hidden, linear_weight, target, linear_bias, weight;
  Shape rows;  // hidden's shape without its last axis
  LinearProblem problem;

  Tensor Next(Call* call, const char* name, const Shape& shape) const {
    return NextAs(call, name, hidden.dtype, "input's", shape);
  }
  Shape LossShape() const { return problem.loss.reduction == Reduction::kNone ? rows : Shape{}; }
};

void NextTensors(Call* call, Inputs* inputs) {
  inputs->hidden = call->Next("input");
  inputs->linear_weight = call->Next("linear_weight");
  inputs->target = call->Next("target");
  inputs->linear_bias = call->Next("linear_bias");
  inputs->weight = call->Next("weight");
}

// Shapes against each other; a bias of shape () stands for none.
void CheckTensors(Inputs* inputs) {
  const Tensor& hidden = inputs->hidden;
  if (hidden.shape.empty()) Fail("input must have shape (..., in_features), got ()");
  const int64_t features = hidden.shape.back();
  if (features == 0) Fail("input must have at least one feature, got shape " + ShapeText(hidden.shape));
  inputs->rows = Shape(hidden.shape.begin(), hidden.shape.end() - 1);
  const Tensor& linear_weight = inputs->linear_weight;
  ExpectDtype(linear_weight, hidden.dtype, "input's");
  if (linear_weight.shape.size() != 2 || linear_weight.shape[1] != features) {
    Fail("linear_weight must have shape (num_classes, " + std::to_string(features) + ") to match input " +
         ShapeText(hidden.shape) + ", got " + ShapeText(linear_weight.shape));
  }
  const int64_t classes = linear_weight.shape[0];
  if (!inputs->linear_bias.shape.empty()) {
    ExpectDtype(inputs->linear_bias, hidden.dtype, "input's");
    ExpectShape(inputs->linear_bias, {classes});
  }
  Shape target = inputs->rows;
  if (IsFloating(inputs->target.dtype)) target.push_back(classes);
  ExpectShape(inputs->target, target);
}

// (lead[0], classes, lead[1], ...): a row's position in the caller's terms.
Tensor PositionShape(const Inputs& inputs, int64_t classes) {
  Tensor shape = inputs.hidden;
  shape.shape = inputs.rows;
  shape.shape.insert(shape.shape.begin() + (inputs.rows.empty() ? 0 : 1), classes);
  return shape;
}

void ReadProblem(const Tensor& options, const Tensor& plan, Inputs* inputs) {
  CheckTensors(inputs);
  const int64_t rows = ElementCount(inputs->rows), classes = inputs->linear_weight.shape[0];
  Tensor logits = inputs->hidden, target = inputs->target;
  logits.shape = {rows, classes};
  target.shape = IsFloating(target.dtype) ? Shape{rows, classes} : Shape{rows};
  LinearProblem& problem = inputs->problem;
  problem.loss = CheckLossInputs({logits, target, inputs->weight, options});
  problem.position_shape = PositionShape(*inputs, classes);
  problem.hidden = inputs->hidden.array();
  problem.linear_weight = inputs->linear_weight.array();
  if (!inputs->linear_bias.shape.empty()) problem.linear_bias = inputs->linear_bias.array();
  problem.features = inputs->hidden.shape.back();
  ExpectDtype(plan, Dtype::kInt64, "int64");
  ExpectShape(plan, {kPlanCount});
  const auto* slot = static_cast<const int64_t*>(plan.data);
  problem.chunk_bytes = slot[kPlanChunkBytes];
  if (slot[kPlanShift] == 0) return;
  if (inputs->rows.empty())
    Fail("input must have shape (..., sequence, in_features) under shift, got one row");
  problem.sequence = inputs->rows.back();
}

void ExpectReduction(const Problem& problem, bool rows) {
  if ((problem.reduction == Reduction::kNone) == rows) return;
  Fail(rows ? "reduction must be 0 (none) for a loss per row, got another"
            : "reduction must be 1 (mean) or 2 (sum) for a scalar loss, got 0 (none)");
}

Inputs NextInputs(Call* call, bool rows) {
  Inputs inputs;
  NextTensors(call, &inputs);
  const Tensor options = call->Next("options");
  ReadProblem(options, call->Next("plan"), &inputs);
  ExpectReduction(inputs.problem.loss, rows);
  return inputs;
}

void NextGradients(Call* call, Inputs* inputs) {
  LinearProblem& problem = inputs->problem;
  problem.grad_hidden = inputs->Next(call, "grad_input", inputs->hidden.shape).array();
  problem.grad_linear_weight =
      inputs->Next(call, "grad_linear_weight", inputs->linear_weight.shape).array();
  const Tensor bias = inputs->Next(call, "grad_linear_bias", inputs->linear_bias.shape);
  if (problem.linear_bias.data != nullptr) {
    problem.grad_linear_bias = bias.array();
  } else {
    StoreDouble(0.0, bias, 0);
  }
}

double Reduced(const Problem& problem, double sum, double divisor) {
  return problem.reduction == Reduction::kMean ? sum / divisor : sum;
}

// loss, total_weight and lse, common to all forward operations.
Tensor NextResults(Call* call, Inputs* inputs) {
  Problem& loss = inputs->problem.loss;
  const Tensor result = inputs->Next(call, "loss", inputs->LossShape());
  const Tensor total_weight = NextDouble(call, "total_weight", {});
  loss.lse_out = static_cast<double*>(NextDouble(call, "lse", inputs->rows).data);
  loss.total_weight = LinearTotalWeight(inputs->problem);
  *static_cast<double*>(total_weight.data) = loss.total_weight;
  return result;
}

int RunForward(Call call, bool rows, bool statistics) {
  Inputs inputs = NextInputs(&call, rows);
  Problem& problem = inputs.problem.loss;
  const Tensor loss = NextResults(&call, &inputs);
  Tensor z_loss{}, num_correct{}, entropy{};
  problem.statistics = statistics;
  if (statistics) {
    z_loss = inputs.Next(&call, "z_loss", inputs.LossShape());
    num_correct = NextAs(&call, "num_correct", Dtype::kInt64, "int64", {});
    entropy = inputs.Next(&call, "entropy", inputs.LossShape());
  }
  call.ExpectEnd();
  if (rows) {
    problem.loss_rows = loss.array();
    problem.z_loss_rows = z_loss.array();
    problem.entropy_rows = entropy.array();
  }
  const UnitSums sums = RunLinear(inputs.problem, LinearTask::kForward);
  if (statistics) *static_cast<int64_t*>(num_correct.data) = sums.correct;
  if (rows) return 0;
  StoreDouble(Reduced(problem, sums.loss, problem.total_weight), loss, 0);
  if (statistics) {
    StoreDouble(Reduced(problem, sums.z_loss, problem.total_weight), z_loss, 0);
    StoreDouble(Reduced(problem, sums.entropy, static_cast<double>(sums.counted)), entropy, 0);
  }
  return 0;
}

int RunValueAndGrad(Call call) {
  Inputs inputs = NextInputs(&call, false);
  const Tensor loss = NextResults(&call, &inputs);
  NextGradients(&call, &inputs);
  *static_cast<double*>(NextDouble(&call, "applied", {}).data) = NAN;
  call.ExpectEnd();
  const UnitSums sums = RunLinear(inputs.problem, LinearTask::kValueAndGrad);
  StoreDouble(Reduced(inputs.problem.loss, sums.loss, inputs.problem.loss.total_weight), loss, 0);
  return 0;
}

int RunBackward(Call call) {
  const Tensor grad_loss = call.Next("grad_loss");
  const Tensor grad_z_loss = call.Next("grad_z_loss");
  Inputs inputs;
  NextTensors(&call, &inputs);
  const Tensor lse = call.Next("lse");
  const Tensor total_weight = NextDouble(&call, "total_weight", {});
  const Tensor options = call.Next("options");
  ReadProblem(options, call.Next("plan"), &inputs);
  Problem& problem = inputs.problem.loss;
  ExpectDtype(grad_loss, inputs.hidden.dtype, "input's");
  ExpectShape(grad_loss, inputs.LossShape());
  ExpectDtype(lse, Dtype::kFloat64, "float64");
  ExpectShape(lse, inputs.rows);
  NextGradients(&call, &inputs);
  call.ExpectEnd();
  problem.grad_loss = grad_loss.array();
  problem.lse = lse.array();
  problem.total_weight = *static_cast<const double*>(total_weight.data);
  if (problem.has_grad_z_loss) {
    ExpectDtype(grad_z_loss, inputs.hidden.dtype, "input's");
    ExpectShape(grad_z_loss, inputs.LossShape());
    problem.grad_z_loss = grad_z_loss.array();
  }
  RunLinear(inputs.problem, LinearTask::kBackward);
  return 0;
}

void Scale(const Tensor& tensor, double factor) {
  constexpr int64_t kStep = int64_t{1} << 16;
  const int64_t count = ElementCount(tensor.shape);
  const Kernels& kernels = SelectKernels(true);
  ParallelFor((count + kStep - 1) / kStep, count, [&](int64_t unit) {
    const int64_t end = std::min(count, (unit + 1) * kStep);
    if (tensor.dtype == Dtype::kFloat32) {
      auto* values = static_cast<float*>(tensor.data);
      for (int64_t i = unit * kStep; i < end; ++i) values[i] = static_cast<float>(values[i] * factor);
      return;
    }
    for (int64_t i = unit * kStep; i < end; ++i) {
      kernels.store(kernels.load(tensor.array(), i) * factor, tensor.array(), i);
    }
  });
}

// In place: a copy would double the largest of the gradients.
int RunRescale(Call call) {
  const Tensor grad_loss = call.Next("grad_loss");
  const Tensor grads[] = {call.Next("grad_input"), call.Next("grad_linear_weight"),
                          call.Next("grad_linear_bias")};
  auto* applied = static_cast<double*>(NextDouble(&call, "applied", {}).data);
  auto* done = static_cast<double*>(NextDouble(&call, "done", {}).data);
  call.ExpectEnd();
  ExpectShape(grad_loss, {});
  const double upstream = SelectKernels(true).load(grad_loss.array(), 0);
  *done = upstream;
  if (!ApplyUpstream(upstream, applied)) return 0;
  for (const Tensor& grad : grads) Scale(grad, upstream);
  return 0;
}

}  // namespace
}  // namespace ms_ce

#define MS_CE_CALL ms_ce::Call(nparam, params, ndims, shapes, dtypes)

MS_CE_ENTRY(LinearCrossEntropyForward) { return ms_ce::RunForward(MS_CE_CALL, false, false); }
MS_CE_ENTRY(LinearCrossEntropyForwardRows) { return ms_ce::RunForward(MS_CE_CALL, true, false); }
MS_CE_ENTRY(LinearCrossEntropyStats) { return ms_ce::RunForward(MS_CE_CALL, false, true); }
MS_CE_ENTRY(LinearCrossEntropyStatsRows) { return ms_ce::RunForward(MS_CE_CALL, true, true); }
MS_CE_ENTRY(LinearCrossEntropyBackward) { return ms_ce::RunBackward(MS_CE_CALL); }
MS_CE_ENTRY(LinearCrossEntropyValueAndGrad) { return ms_ce::RunValueAndGrad(MS_CE_CALL); }
MS_CE_ENTRY(LinearCrossEntropyRescale) { return ms_ce::RunRescale(MS_CE_CALL); }

const char* MsCeBfloat16Products() { return ms_ce::MultipliesBfloat16() ? "oneDNN" : "ms_ce"; }
