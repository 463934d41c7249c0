// What the operations of the linear loss do with a bound call: run the chunks, reduce, store the scalars.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "interface/operations.h"
#include "loss/run.h"
#include "platform/dispatch.h"
#include "platform/thread_pool.h"

namespace ms_ce {
namespace {

// What a mean divides by, where the operation returns it.
void CountWeight(Call* call) {
  if (call->Find(kTotalWeight) == nullptr) return;
  Problem& problem = call->problem();
  problem.total_weight = LinearTotalWeight(call->linear);
  StoreDouble(problem.total_weight, (*call)[kTotalWeight]);
}

void ZeroUnwanted(Call* call) {
  LinearProblem& linear = call->linear;
  for (const Argument* none : {&kNoGradHidden, &kNoGradLinearWeight}) {
    if (const Tensor* gradient = call->Find(*none)) StoreDouble(0.0, *gradient);
  }
  if (linear.linear_bias.data != nullptr && !linear.bias_frozen) return;
  const Tensor& bias = (*call)[kGradLinearBias];
  std::memset(bias.data, 0, static_cast<size_t>(ElementCount(bias.shape)) * ElementSize(bias.dtype));
  linear.grad_linear_bias = {};
}

// Gradients made in the forward pass, for upstream 1, become those of an upstream where they lie. `applied`
// is nan until one has come. Returns whether they have to change, and fails where they already follow
// another.
bool ApplyUpstream(double upstream, double* applied) {
  if (upstream == *applied) return false;
  if (!std::isnan(*applied)) {
    Fail(
        "linear_cross_entropy, LinearCrossEntropyLoss, linear_distillation_loss: gradient_in_forward must "
        "be "
        "False where one forward pass is differentiated more than once, got another gradient of the loss "
        "after the first");
  }
  *applied = upstream;
  return upstream != 1.0;
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

}  // namespace

void RunLinearForward(Call* call) {
  Problem& problem = call->problem();
  CountWeight(call);
  const Tensor* num_correct = call->Find(kNumCorrect);
  problem.statistics = num_correct != nullptr;
  const UnitSums sums = RunLinear(call->linear, LinearTask::kForward);
  if (problem.statistics) *static_cast<int64_t*>(num_correct->data) = sums.correct;
  if (call->operation.form == Form::kPerRow) return;
  StoreDouble(Reduced(problem, sums.loss, problem.total_weight), (*call)[kLoss]);
  if (!problem.statistics) return;
  StoreDouble(Reduced(problem, sums.z_loss, problem.total_weight), (*call)[kZLoss]);
  StoreDouble(Reduced(problem, sums.entropy, static_cast<double>(sums.counted)), (*call)[kEntropy]);
}

void RunLinearTokenLogProbs(Call* call) {
  LinearTotalWeight(call->linear);
  call->problem().statistics = call->problem().has_entropy;
  RunLinear(call->linear, LinearTask::kForward);
  Negate((*call)[kLogProbs]);
}

void RunLinearValueAndGrad(Call* call) {
  const Problem& problem = call->problem();
  CountWeight(call);
  ZeroUnwanted(call);
  StoreDouble(NAN, (*call)[kApplied]);
  const UnitSums sums = RunLinear(call->linear, LinearTask::kValueAndGrad);
  StoreDouble(Reduced(problem, sums.loss, problem.total_weight), (*call)[kLoss]);
}

void RunLinearBackward(Call* call) {
  ZeroUnwanted(call);
  RunLinear(call->linear, LinearTask::kBackward);
}

void RunLinearTargetGrad(Call* call) { RunLinear(call->linear, LinearTask::kDataGrad); }

void RunLinearWeightGradient(Call* call) {
  LinearTotalWeight(call->linear);  // checks the target
  WeightGradient gradient(call->problem());
  call->linear.weight_gradient = &gradient;
  RunLinear(call->linear, LinearTask::kDataGrad);
  gradient.Store((*call)[kGradWeight]);
}

// In place: a copy would double the largest of the gradients.
void RunLinearRescale(Call* call) {
  const double upstream = SelectKernels(true).load(call->problem().grad_loss, 0);
  StoreDouble(upstream, (*call)[kDone]);
  if (!ApplyUpstream(upstream, static_cast<double*>((*call)[kApplied].data))) return;
  for (const Argument* grad : {&kGradHidden, &kGradLinearWeight, &kGradLinearBias}) {
    Scale((*call)[*grad], upstream);
  }
}

}  // namespace ms_ce
