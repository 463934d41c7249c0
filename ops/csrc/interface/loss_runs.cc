// What the operations on logits do with a bound call: run the kernels, reduce, store the scalars.
#include "interface/operations.h"
#include "loss/run.h"
#include "platform/dispatch.h"
#include "platform/thread_pool.h"

namespace ms_ce {
namespace {

// A mean over a total weight of zero is nan, and its gradient zero.
bool GradientVanishes(const Problem& problem) {
  return problem.reduction == Reduction::kMean && problem.total_weight == 0.0;
}

void ZeroTensor(const Tensor& tensor) {
  FillZeros(tensor.data, static_cast<size_t>(ElementCount(tensor.shape)) * ElementSize(tensor.dtype));
}

}  // namespace

void RunForward(Call* call) {
  Problem& problem = call->problem();
  const Tensor* num_correct = call->Find(kNumCorrect);
  problem.statistics = num_correct != nullptr;
  const UnitSums sums = RunRows(problem, KernelsFor(problem).forward, call->subject());
  StoreDouble(sums.weight, (*call)[kTotalWeight]);
  if (problem.statistics) *static_cast<int64_t*>(num_correct->data) = sums.correct;
  if (call->operation.form == Form::kPerRow) return;
  StoreDouble(Reduced(problem, sums.loss, sums.weight), (*call)[kLoss]);
  if (!problem.statistics) return;
  StoreDouble(Reduced(problem, sums.z_loss, sums.weight), (*call)[kZLoss]);
  StoreDouble(Reduced(problem, sums.entropy, static_cast<double>(sums.counted)), (*call)[kEntropy]);
}

void RunBackward(Call* call) {
  const Problem& problem = call->problem();
  const Tensor& grad_logits = (*call)[kGradLogits];
  const Kernels& kernels = KernelsFor(problem);
  if (GradientVanishes(problem)) {
    RunRows(problem, kernels.count_weight, call->subject());
    return ZeroTensor(grad_logits);
  }
  call->problem().stream_stores = StreamPays(grad_logits);
  RunRows(problem, kernels.backward, call->subject());
}

void RunDoubleBackward(Call* call) {
  const Problem& problem = call->problem();
  const Kernels& kernels = KernelsFor(problem);
  const Tensor &by_loss = (*call)[kGradGradLoss], &by_z_loss = (*call)[kGradGradZLoss];
  if (GradientVanishes(problem)) {
    RunRows(problem, kernels.count_weight, call->subject());
    for (const Tensor* out : {&by_loss, &by_z_loss, &(*call)[kGradLogits], &(*call)[kDirectionMean]}) {
      ZeroTensor(*out);
    }
    return;
  }
  const UnitSums sums = RunRows(problem, kernels.double_backward, call->subject());
  if (problem.reduction == Reduction::kNone) return;
  StoreDouble(sums.grad_grad_loss, by_loss);
  StoreDouble(sums.grad_grad_z_loss, by_z_loss);
}

void RunTargetGrad(Call* call) {
  Problem& problem = call->problem();
  const Tensor& grad_target = (*call)[kGradTarget];
  if (GradientVanishes(problem)) return ZeroTensor(grad_target);
  problem.stream_stores = StreamPays(grad_target);
  RunRows(problem, KernelsFor(problem).target_grad, call->subject());
}

void RunWeightGradient(Call* call) {
  const Problem& problem = call->problem();
  Tensor own = (*call)[kGradWeight];
  // Of a block of classes: the weights of all others have none here.
  if (problem.classes != problem.total_classes) {
    ZeroTensor(own);
    own.data =
        static_cast<char*>(own.data) + static_cast<size_t>(problem.class_offset) * ElementSize(own.dtype);
  }
  RunRows(problem, KernelsFor(problem).count_weight, call->subject());
  WeightGradient gradient(problem);
  gradient.Add(problem);
  gradient.Store(own);
}

void RunValueAndGrad(Call* call) {
  Problem& problem = call->problem();
  const Tensor& logits = call->subject();
  const Tensor& grad_logits = (*call)[kGradLogits];
  const Tensor* grad_target = call->Find(kGradTarget);
  const Kernels& kernels = KernelsFor(problem);
  problem.total_weight = RunRows(problem, kernels.count_weight, logits).weight;
  StoreDouble(problem.total_weight, (*call)[kTotalWeight]);
  UnitSums sums;
  if (GradientVanishes(problem)) {
    problem.grad_logits = {};
    sums = RunRows(problem, kernels.forward, logits);
    ZeroTensor(grad_logits);
    if (grad_target != nullptr) ZeroTensor(*grad_target);
  } else {
    problem.stream_stores = StreamPays(grad_logits);
    sums = RunRows(problem, kernels.value_and_grad, logits);
  }
  StoreDouble(Reduced(problem, sums.loss, problem.total_weight), (*call)[kLoss]);
}

void RunPartial(Call* call) {
  RunRows(call->problem(), KernelsFor(call->problem()).partial, call->subject());
}

void RunPartialBackward(Call* call) {
  Problem& problem = call->problem();
  problem.stream_stores = StreamPays((*call)[kGradLogits]);
  RunRows(problem, KernelsFor(problem).partial_backward, call->subject());
}

void RunTokenLogProbs(Call* call) {
  Problem& problem = call->problem();
  problem.statistics = problem.has_entropy;
  if (!problem.has_entropy) ZeroTensor((*call)[kRowEntropy]);
  RunRows(problem, KernelsFor(problem).forward, call->subject());
  Negate((*call)[kLogProbs]);
}

void RunNllForward(Call* call) {
  const Problem& problem = call->problem();
  const UnitSums sums = RunRows(problem, KernelsFor(problem).nll_forward, call->subject());
  StoreDouble(sums.weight, (*call)[kWeightOfNll]);
  if (call->operation.form == Form::kPerRow) return;
  StoreDouble(Reduced(problem, sums.loss, sums.weight), (*call)[kLoss]);
}

void RunNllBackward(Call* call) {
  Problem& problem = call->problem();
  const Kernels& kernels = KernelsFor(problem);
  problem.total_weight = RunRows(problem, kernels.count_weight, call->subject()).weight;
  ZeroTensor((*call)[kGradLogProb]);
  if (GradientVanishes(problem)) return;
  RunRows(problem, kernels.nll_backward, call->subject());
}

void RunRefuseDerivative(Call* call) {
  StoreDouble(0.0, (*call)[kDone]);
  if (*static_cast<const double*>((*call)[kArriving].data) == 0.0) return;
  const Tensor& reason = (*call)[kReason];
  const auto* characters = static_cast<const int64_t*>(reason.data);
  Fail(std::string(characters, characters + ElementCount(reason.shape)));
}

}  // namespace ms_ce
