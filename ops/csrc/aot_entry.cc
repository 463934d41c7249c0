// The exported operations: read the arguments, run the kernels, reduce, write the outputs.
#include <cmath>
#include <stdexcept>

#include "cross_entropy.h"
#include "dispatch.h"
#include "run.h"
#include "thread_pool.h"

#define MS_CE_ENTRY(name) \
  int name(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*)

namespace ms_ce {
namespace {

Tensor NextLike(Call* call, const char* name, const Tensor& model, const Shape& shape) {
  const Tensor tensor = call->Next(name);
  ExpectDtype(tensor, model.dtype, (std::string(model.name) + "'s").c_str());
  ExpectShape(tensor, shape);
  return tensor;
}

// Upstream gradients are read one by one, so that with 16-bit logits they need not be rounded to 16 bits.
void ExpectUpstream(const Tensor& upstream, const Tensor& logits, const Shape& shape) {
  if (upstream.dtype != Dtype::kFloat32 && upstream.dtype != Dtype::kFloat64) {
    ExpectDtype(upstream, logits.dtype, "the logits', float32 or float64");
  }
  ExpectShape(upstream, shape);
}

Shape UpstreamShape(const Problem& problem, const Tensor& logits) {
  return problem.reduction == Reduction::kNone ? RowsShape(logits.shape) : Shape{};
}

double Reduced(const Problem& problem, double sum, double divisor) {
  return problem.reduction == Reduction::kMean ? sum / divisor : sum;
}

void ExpectReduction(const Problem& problem, bool rows) {
  if ((problem.reduction == Reduction::kNone) == rows) return;
  Fail(rows ? "reduction must be 0 (none) for a loss per row, got another"
            : "reduction must be 1 (mean) or 2 (sum) for a scalar loss, got 0 (none)");
}

LossInputs NextLossInputs(Call* call) {
  LossInputs inputs;
  inputs.logits = call->Next("logits");
  inputs.target = call->Next("target");
  inputs.weight = call->Next("weight");
  inputs.options = call->Next("options");
  return inputs;
}

int RunForward(Call call, bool rows, bool statistics) {
  const LossInputs inputs = NextLossInputs(&call);
  const Tensor& logits = inputs.logits;
  Problem problem = CheckLossInputs(inputs);
  ExpectReduction(problem, rows);
  const Shape shape = UpstreamShape(problem, logits);
  const Tensor loss = NextLike(&call, "loss", logits, shape);
  const Tensor total_weight = NextDouble(&call, "total_weight", {});
  problem.lse_out = static_cast<double*>(NextDouble(&call, "lse", RowsShape(logits.shape)).data);
  problem.statistics = statistics;
  Tensor z_loss{}, num_correct{}, entropy{};
  if (statistics) {
    z_loss = NextLike(&call, "z_loss", logits, shape);
    num_correct = NextAs(&call, "num_correct", Dtype::kInt64, "int64", {});
    entropy = NextLike(&call, "entropy", logits, shape);
  }
  call.ExpectEnd();
  if (rows) {
    problem.loss_rows = loss.array();
    problem.z_loss_rows = z_loss.array();
    problem.entropy_rows = entropy.array();
  }
  const UnitSums sums = RunRows(problem, KernelsFor(problem).forward, logits);
  *static_cast<double*>(total_weight.data) = sums.weight;
  if (statistics) *static_cast<int64_t*>(num_correct.data) = sums.correct;
  if (rows) return 0;
  StoreDouble(Reduced(problem, sums.loss, sums.weight), loss, 0);
  if (statistics) {
    StoreDouble(Reduced(problem, sums.z_loss, sums.weight), z_loss, 0);
    StoreDouble(Reduced(problem, sums.entropy, static_cast<double>(sums.counted)), entropy, 0);
  }
  return 0;
}

// What the backward operations share: upstream gradients, the loss's inputs, lse and total_weight.
struct BackwardInputs {
  Tensor logits, target, weight;
  Problem problem;
};

BackwardInputs NextBackwardInputs(Call* call, bool with_grad_z_loss) {
  BackwardInputs inputs;
  const Tensor grad_loss = call->Next("grad_loss");
  Tensor grad_z_loss{};
  if (with_grad_z_loss) grad_z_loss = call->Next("grad_z_loss");
  inputs.logits = call->Next("logits");
  inputs.target = call->Next("target");
  inputs.weight = call->Next("weight");
  const Tensor lse = call->Next("lse");
  const Tensor total_weight = NextDouble(call, "total_weight", {});
  inputs.problem = CheckLossInputs({inputs.logits, inputs.target, inputs.weight, call->Next("options")});
  Problem& problem = inputs.problem;
  ExpectUpstream(grad_loss, inputs.logits, UpstreamShape(problem, inputs.logits));
  ExpectDtype(lse, Dtype::kFloat64, "float64");
  ExpectShape(lse, RowsShape(inputs.logits.shape));
  problem.grad_loss = grad_loss.array();
  problem.lse = lse.array();
  problem.total_weight = *static_cast<const double*>(total_weight.data);
  if (with_grad_z_loss && problem.has_grad_z_loss) {
    ExpectUpstream(grad_z_loss, inputs.logits, UpstreamShape(problem, inputs.logits));
    problem.grad_z_loss = grad_z_loss.array();
  }
  return inputs;
}

// A mean over a total weight of zero is nan, and its gradient zero.
bool GradientVanishes(const Problem& problem) {
  return problem.reduction == Reduction::kMean && problem.total_weight == 0.0;
}

void ZeroTensor(const Tensor& tensor) {
  FillZeros(tensor.data, static_cast<size_t>(ElementCount(tensor.shape)) * ElementSize(tensor.dtype));
}

void MakeGradient(BackwardInputs* inputs, const Tensor& grad_logits) {
  Problem& problem = inputs->problem;
  const Kernels& kernels = KernelsFor(problem);
  if (GradientVanishes(problem)) {
    RunRows(problem, kernels.count_weight, inputs->logits);
    return ZeroTensor(grad_logits);
  }
  problem.grad_logits = grad_logits.array();
  problem.stream_stores = StreamPays(grad_logits);
  RunRows(problem, kernels.backward, inputs->logits);
}

int RunBackward(Call call) {
  BackwardInputs inputs = NextBackwardInputs(&call, true);
  const Tensor grad_logits = NextLike(&call, "grad_logits", inputs.logits, inputs.logits.shape);
  call.ExpectEnd();
  MakeGradient(&inputs, grad_logits);
  return 0;
}

int RunDoubleBackward(Call call) {
  const Tensor direction = call.Next("direction");
  BackwardInputs inputs = NextBackwardInputs(&call, true);
  Problem& problem = inputs.problem;
  const Tensor& logits = inputs.logits;
  ExpectDtype(direction, logits.dtype, "the logits'");
  ExpectShape(direction, logits.shape);
  const Shape shape = UpstreamShape(problem, logits);
  const Tensor grad_grad_loss = NextLike(&call, "grad_grad_loss", logits, shape);
  const Tensor grad_grad_z_loss = NextLike(&call, "grad_grad_z_loss", logits, shape);
  const Tensor grad_logits = NextLike(&call, "grad_logits", logits, logits.shape);
  const Tensor direction_mean = NextDouble(&call, "direction_mean", RowsShape(logits.shape));
  call.ExpectEnd();
  const Kernels& kernels = KernelsFor(problem);
  if (GradientVanishes(problem)) {
    RunRows(problem, kernels.count_weight, logits);
    for (const Tensor& out : {grad_grad_loss, grad_grad_z_loss, grad_logits, direction_mean})
      ZeroTensor(out);
    return 0;
  }
  problem.direction = direction.array();
  problem.grad_grad_loss = grad_grad_loss.array();
  problem.grad_grad_z_loss = grad_grad_z_loss.array();
  problem.grad_logits = grad_logits.array();
  problem.direction_mean = static_cast<double*>(direction_mean.data);
  const UnitSums sums = RunRows(problem, kernels.double_backward, logits);
  if (problem.reduction != Reduction::kNone) {
    StoreDouble(sums.grad_grad_loss, grad_grad_loss, 0);
    StoreDouble(sums.grad_grad_z_loss, grad_grad_z_loss, 0);
  }
  return 0;
}

int RunTargetGrad(Call call) {
  BackwardInputs inputs = NextBackwardInputs(&call, false);
  Problem& problem = inputs.problem;
  if (!problem.probability) Fail("target must hold probabilities to have a gradient, got class indices");
  const Tensor grad_target = NextLike(&call, "grad_target", inputs.target, inputs.target.shape);
  call.ExpectEnd();
  if (GradientVanishes(problem)) {
    ZeroTensor(grad_target);
    return 0;
  }
  problem.grad_target = grad_target.array();
  RunRows(problem, KernelsFor(problem).target_grad, inputs.logits);
  return 0;
}

int RunWeightGradient(Call call) {
  BackwardInputs inputs = NextBackwardInputs(&call, false);
  Problem& problem = inputs.problem;
  if (problem.weight.data == nullptr) Fail("weight must be given to have a gradient, got none");
  const Tensor grad_weight = NextLike(&call, "grad_weight", inputs.weight, inputs.weight.shape);
  call.ExpectEnd();
  // Of a block of classes: the weights of all others have none here.
  Tensor own = grad_weight;
  if (problem.classes != problem.total_classes) {
    ZeroTensor(grad_weight);
    own.data = static_cast<char*>(own.data) +
               static_cast<size_t>(problem.class_offset) * ElementSize(grad_weight.dtype);
  }
  RunWeightGrad(problem, inputs.logits, own);
  return 0;
}

int RunValueAndGrad(Call call) {
  const LossInputs inputs = NextLossInputs(&call);
  const Tensor& logits = inputs.logits;
  Problem problem = CheckLossInputs(inputs);
  ExpectReduction(problem, false);
  const Tensor loss = NextLike(&call, "loss", logits, {});
  const Tensor total_weight = NextDouble(&call, "total_weight", {});
  problem.lse_out = static_cast<double*>(NextDouble(&call, "lse", RowsShape(logits.shape)).data);
  const Tensor grad_logits = NextLike(&call, "grad_logits", logits, logits.shape);
  call.ExpectEnd();
  const Kernels& kernels = KernelsFor(problem);
  problem.total_weight = RunRows(problem, kernels.count_weight, logits).weight;
  *static_cast<double*>(total_weight.data) = problem.total_weight;
  const bool vanishes = GradientVanishes(problem);
  if (!vanishes) {
    problem.grad_logits = grad_logits.array();
    problem.stream_stores = StreamPays(grad_logits);
  }
  const UnitSums sums = RunRows(problem, vanishes ? kernels.forward : kernels.value_and_grad, logits);
  if (vanishes) ZeroTensor(grad_logits);
  StoreDouble(Reduced(problem, sums.loss, problem.total_weight), loss, 0);
  return 0;
}

int RunPartial(Call call) {
  const LossInputs inputs = NextLossInputs(&call);
  Problem problem = CheckLossInputs(inputs);
  Shape shape = RowsShape(inputs.logits.shape);
  shape.push_back(3);
  problem.partial = static_cast<double*>(NextDouble(&call, "partial", shape).data);
  call.ExpectEnd();
  RunRows(problem, KernelsFor(problem).partial, inputs.logits);
  return 0;
}

int RunPartialBackward(Call call) {
  const Tensor grad_rows = call.Next("grad_rows");
  const Tensor grad_lse = call.Next("grad_lse");
  LossInputs inputs;
  inputs.logits = call.Next("logits");
  inputs.target = call.Next("target");
  inputs.weight = call.Next("weight");
  const Tensor lse = call.Next("lse");
  const Tensor mass = call.Next("mass");
  inputs.options = call.Next("options");
  const Tensor& logits = inputs.logits;
  Problem problem = CheckLossInputs(inputs);
  const Shape rows = RowsShape(logits.shape);
  for (const Tensor& tensor : {grad_rows, grad_lse}) ExpectUpstream(tensor, logits, rows);
  for (const Tensor& tensor : {lse, mass}) {
    ExpectDtype(tensor, Dtype::kFloat64, "float64");
    ExpectShape(tensor, rows);
  }
  const Tensor grad_logits = NextLike(&call, "grad_logits", logits, logits.shape);
  call.ExpectEnd();
  problem.grad_loss = grad_rows.array();
  problem.grad_lse = grad_lse.array();
  problem.lse = lse.array();
  problem.mass = mass.array();
  problem.grad_logits = grad_logits.array();
  problem.stream_stores = StreamPays(grad_logits);
  RunRows(problem, KernelsFor(problem).partial_backward, logits);
  return 0;
}

LossInputs NextNllInputs(Call* call) {
  LossInputs inputs = NextLossInputs(call);
  inputs.logits.name = "log_prob";
  return inputs;
}

void ExpectClassTarget(const Problem& problem) {
  if (problem.probability) Fail("target must have dtype int32, int64 or uint8, got probabilities");
}

int RunNllForward(Call call, bool rows) {
  const LossInputs inputs = NextNllInputs(&call);
  Problem problem = CheckLossInputs(inputs);
  ExpectClassTarget(problem);
  ExpectReduction(problem, rows);
  const Tensor loss = NextLike(&call, "loss", inputs.logits, UpstreamShape(problem, inputs.logits));
  const Tensor& weight = problem.weight.data == nullptr ? inputs.logits : inputs.weight;
  const Tensor total_weight = NextLike(&call, "total_weight", weight, {});
  call.ExpectEnd();
  if (rows) problem.loss_rows = loss.array();
  const UnitSums sums = RunRows(problem, KernelsFor(problem).nll_forward, inputs.logits);
  StoreDouble(sums.weight, total_weight, 0);
  if (!rows) StoreDouble(Reduced(problem, sums.loss, sums.weight), loss, 0);
  return 0;
}

int RunNllBackward(Call call) {
  const Tensor grad_loss = call.Next("grad_loss");
  LossInputs inputs;
  inputs.target = call.Next("target");
  inputs.weight = call.Next("weight");
  inputs.logits = call.Next("log_prob");
  inputs.options = call.Next("options");
  Problem problem = CheckLossInputs(inputs);
  ExpectClassTarget(problem);
  ExpectDtype(grad_loss, inputs.logits.dtype, "log_prob's");
  ExpectShape(grad_loss, UpstreamShape(problem, inputs.logits));
  const Tensor grad_log_prob = NextLike(&call, "grad_log_prob", inputs.logits, inputs.logits.shape);
  call.ExpectEnd();
  const Kernels& kernels = KernelsFor(problem);
  problem.total_weight = RunRows(problem, kernels.count_weight, inputs.logits).weight;
  ZeroTensor(grad_log_prob);
  if (GradientVanishes(problem)) return 0;
  problem.grad_loss = grad_loss.array();
  problem.grad_logits = grad_log_prob.array();
  RunRows(problem, kernels.nll_backward, inputs.logits);
  return 0;
}

}  // namespace
}  // namespace ms_ce

#define MS_CE_CALL ms_ce::Call(nparam, params, ndims, shapes, dtypes)

MS_CE_ENTRY(CrossEntropyForward) { return ms_ce::RunForward(MS_CE_CALL, false, false); }
MS_CE_ENTRY(CrossEntropyForwardRows) { return ms_ce::RunForward(MS_CE_CALL, true, false); }
MS_CE_ENTRY(CrossEntropyStats) { return ms_ce::RunForward(MS_CE_CALL, false, true); }
MS_CE_ENTRY(CrossEntropyStatsRows) { return ms_ce::RunForward(MS_CE_CALL, true, true); }
MS_CE_ENTRY(CrossEntropyBackward) { return ms_ce::RunBackward(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyDoubleBackward) { return ms_ce::RunDoubleBackward(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyTargetGrad) { return ms_ce::RunTargetGrad(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyWeightGrad) { return ms_ce::RunWeightGradient(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyValueAndGrad) { return ms_ce::RunValueAndGrad(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyPartial) { return ms_ce::RunPartial(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyPartialBackward) { return ms_ce::RunPartialBackward(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyPartialTargetGrad) { return ms_ce::RunTargetGrad(MS_CE_CALL); }
MS_CE_ENTRY(CrossEntropyPartialWeightGrad) { return ms_ce::RunWeightGradient(MS_CE_CALL); }
MS_CE_ENTRY(NLLForward) { return ms_ce::RunNllForward(MS_CE_CALL, false); }
MS_CE_ENTRY(NLLForwardRows) { return ms_ce::RunNllForward(MS_CE_CALL, true); }
MS_CE_ENTRY(NLLBackward) { return ms_ce::RunNllBackward(MS_CE_CALL); }

const char* MsCeVersion() { return MS_CE_VERSION; }

const char* MsCeIsa() { return ms_ce::SelectKernels(false).name; }

const char* MsCeIsaList() { return ms_ce::IsaList(); }

int MsCeSetIsa(const char* name) {
  try {
    ms_ce::SetIsa(name);
  } catch (const std::runtime_error&) {
    return -1;
  }
  return 0;
}

int MsCeSetThreads(int threads) { return ms_ce::SetThreads(threads); }

const char* MsCeTry(MsCeOperation operation, int nparam, void** params, int* ndims, int64_t** shapes,
                    const char** dtypes) {
  static thread_local std::string text;
  try {
    operation(nparam, params, ndims, shapes, dtypes, nullptr, nullptr);
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
  return nullptr;
}
