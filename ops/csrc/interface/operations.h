// Every operation: what it takes, in order, what it returns, and what each of them means. Calls are bound,
// shapes inferred, functions exported and MindSpore's operators made from this table (MsCeDescribe).
#ifndef MS_CE_OPERATIONS_H_
#define MS_CE_OPERATIONS_H_

#include <iterator>

#include "interface/operation.h"
#include "interface/runs.h"

namespace ms_ce {

// The slots of `options`, in order. Reductions travel as their place in kReductions.
inline constexpr Slot kOptionSlots[] = {
    {"ignore_index", &Problem::ignore_index},
    {"reduction", &Problem::reduction},
    {"label_smoothing", &Problem::label_smoothing},
    {"z_loss", &Problem::z_loss},
    {"softcap", &Problem::softcap},  // 0 is off
    {"logit_scale", &Problem::logit_scale},
    {"class_offset", &Problem::class_offset},    // logits hold classes [offset, offset + C) of the total
    {"total_classes", &Problem::total_classes},  // 0 means C
    {"has_weight", &Problem::has_weight},
    {"has_row_weight", &Problem::has_row_weight},
    {"has_grad_z_loss", &Problem::has_grad_z_loss},
    {"has_entropy", &Problem::has_entropy},
    {"beta", &Problem::beta},
};
inline constexpr const char* kReductions[] = {"none", "mean", "sum"};

// The slots of `plan`, which the linear loss takes beside its options.
inline constexpr Slot kPlanSlots[] = {
    {"chunk_bytes", &LinearProblem::chunk_bytes},  // of a chunk's logits; 0 leaves it to the loss
    {"shift", &LinearProblem::shift},              // position s is paired with the target of position s + 1
    {"bias_frozen", &LinearProblem::bias_frozen},  // its gradient is 0
};

// The loss's own inputs.
inline constexpr Argument kLogits{"logits", Type::kFloat, Extent::kLogits, &Problem::logits};
inline constexpr Argument kTarget{"target", Type::kTarget, Extent::kTarget, &Problem::target};
inline constexpr Argument kWeight{"weight", Type::kWeight, Extent::kWeight, &Problem::weight,
                                  &Problem::has_weight};
inline constexpr Argument kRowWeight{"row_weight", Type::kRowWeight, Extent::kRows, &Problem::row_weight,
                                     &Problem::has_row_weight};
inline constexpr Argument kOptions{"options", Type::kInt64, Extent::kOptions};
inline constexpr Argument kClassTarget{"target", Type::kClasses, Extent::kTarget, &Problem::target};
inline constexpr Argument kProbabilityTarget{"target", Type::kProbabilities, Extent::kTarget,
                                             &Problem::target};
inline constexpr Argument kLogProb{"log_prob", Type::kFloat, Extent::kLogits, &Problem::logits};

// What a forward operation returns.
inline constexpr Argument kLoss{"loss", Type::kFloat, Extent::kLoss, &Problem::loss_rows};
inline constexpr Argument kTotalWeight{"total_weight", Type::kDouble, Extent::kScalar};
inline constexpr Argument kWeightOfNll{"total_weight", Type::kWeight, Extent::kScalar};
inline constexpr Argument kLse{"lse", Type::kDouble, Extent::kRows, &Problem::lse_out};
// Of the linear loss, whose rows may belong to several losses.
inline constexpr Argument kRowLosses{"row_losses", Type::kDouble, Extent::kRows, &Problem::loss_rows};
inline constexpr Argument kZLoss{"z_loss", Type::kFloat, Extent::kLoss, &Problem::z_loss_rows};
inline constexpr Argument kNumCorrect{"num_correct", Type::kInt64, Extent::kScalar};
inline constexpr Argument kEntropy{"entropy", Type::kDouble, Extent::kLoss, &Problem::entropy_rows};
inline constexpr Argument kPredicted{"predicted", Type::kInt32, Extent::kRows, &Problem::predicted};
inline constexpr Argument kLogProbs{"log_prob", Type::kDouble, Extent::kRows, &Problem::loss_rows};
inline constexpr Argument kRowEntropy{"entropy", Type::kDouble, Extent::kRows, &Problem::entropy_rows};
inline constexpr Argument kPartial{"partial", Type::kDouble, Extent::kPartial, &Problem::partial};

// What a backward operation takes: gradients from above, and what the forward operation returned.
inline constexpr Argument kGradLoss{"grad_loss", Type::kUpstream, Extent::kLoss, &Problem::grad_loss};
inline constexpr Argument kGradZLoss{"grad_z_loss", Type::kUpstream, Extent::kLoss, &Problem::grad_z_loss,
                                     &Problem::has_grad_z_loss};
inline constexpr Argument kGradOfNll{"grad_loss", Type::kFloat, Extent::kLoss, &Problem::grad_loss};
inline constexpr Argument kGradRows{"grad_rows", Type::kWideUpstream, Extent::kRows, &Problem::grad_loss};
inline constexpr Argument kGradLse{"grad_lse", Type::kWideUpstream, Extent::kRows, &Problem::grad_lse};
inline constexpr Argument kSavedLse{"lse", Type::kDouble, Extent::kRows, &Problem::lse};
inline constexpr Argument kSavedTotalWeight{"total_weight", Type::kDouble, Extent::kScalar,
                                            &Problem::total_weight};
inline constexpr Argument kMass{"mass", Type::kDouble, Extent::kRows, &Problem::mass};
inline constexpr Argument kDirection{"direction", Type::kFloat, Extent::kLogits, &Problem::direction};

inline constexpr Argument kGradEntropy{"grad_entropy", Type::kWideUpstream, Extent::kRows,
                                       &Problem::grad_entropy, &Problem::has_entropy};
inline constexpr Argument kSavedEntropy{"entropy", Type::kDouble, Extent::kRows, &Problem::entropy,
                                        &Problem::has_entropy};

// And returns.
inline constexpr Argument kGradLogits{"grad_logits", Type::kFloat, Extent::kLogits, &Problem::grad_logits};
inline constexpr Argument kGradTarget{"grad_target", Type::kProbabilities, Extent::kTarget,
                                      &Problem::grad_target};
inline constexpr Argument kGradWeight{"grad_weight", Type::kWeight, Extent::kWeight};
inline constexpr Argument kGradLogProb{"grad_log_prob", Type::kFloat, Extent::kLogits,
                                       &Problem::grad_logits};
inline constexpr Argument kGradGradLoss{"grad_grad_loss", Type::kFloat, Extent::kLoss,
                                        &Problem::grad_grad_loss};
inline constexpr Argument kGradGradZLoss{"grad_grad_z_loss", Type::kFloat, Extent::kLoss,
                                         &Problem::grad_grad_z_loss};
inline constexpr Argument kDirectionMean{"direction_mean", Type::kDouble, Extent::kRows,
                                         &Problem::direction_mean};

// Gradients that a forward operation makes for upstream 1: `applied` is the upstream that they follow since
// a backward operation changed them where they lie, nan before; `done` orders who reads them after it.
inline constexpr Argument kApplied{"applied", Type::kDouble, Extent::kScalar};
inline constexpr Argument kDone{"done", Type::kDouble, Extent::kScalar};

// The linear loss: of the logits input W^T + linear_bias, which are never held all at once (linear_loss.h).
inline constexpr Argument kHidden{"input", Type::kFloat, Extent::kHidden, &LinearProblem::hidden};
inline constexpr Argument kLinearWeight{"linear_weight", Type::kFloat, Extent::kLinearWeight,
                                        &LinearProblem::linear_weight};
inline constexpr Argument kLinearBias{"linear_bias", Type::kFloat, Extent::kLinearBias,
                                      &LinearProblem::linear_bias};
inline constexpr Argument kPlan{"plan", Type::kInt64, Extent::kPlan};
inline constexpr Argument kGradOfLinear{"grad_loss", Type::kFloat, Extent::kLoss, &Problem::grad_loss};
inline constexpr Argument kGradZOfLinear{"grad_z_loss", Type::kFloat, Extent::kLoss, &Problem::grad_z_loss,
                                         &Problem::has_grad_z_loss};
inline constexpr Argument kGradHidden{"grad_input", Type::kFloat, Extent::kHidden,
                                      &LinearProblem::grad_hidden};
inline constexpr Argument kGradLinearWeight{"grad_linear_weight", Type::kFloat, Extent::kLinearWeight,
                                            &LinearProblem::grad_linear_weight};
inline constexpr Argument kGradLinearBias{"grad_linear_bias", Type::kFloat, Extent::kLinearBias,
                                          &LinearProblem::grad_linear_bias};
// A matrix's gradient that nobody wants: 0, and neither its product nor its memory.
inline constexpr Argument kNoGradHidden{"grad_input", Type::kFloat, Extent::kScalar};
inline constexpr Argument kNoGradLinearWeight{"grad_linear_weight", Type::kFloat, Extent::kScalar};
inline constexpr Argument kUpstreamOfAll{"grad_loss", Type::kFloat, Extent::kScalar, &Problem::grad_loss};

// Distillation: the logits' target is the softmax of a teacher's logits, made of these likewise.
inline constexpr Argument kTeacherHidden{"teacher_hidden", Type::kTeacher, Extent::kTeacherHidden,
                                         &LinearProblem::teacher_hidden};
inline constexpr Argument kTeacherWeight{"teacher_weight", Type::kTeacher, Extent::kTeacherWeight,
                                         &LinearProblem::teacher_weight};
inline constexpr Argument kTeacherBias{"teacher_bias", Type::kTeacher, Extent::kTeacherBias,
                                       &LinearProblem::teacher_bias};

// Or what is stored of it: log-probabilities of k classes for each row; and whether all others count, as
// one.
inline constexpr Argument kTeacherLogProbs{"teacher_log_probs", Type::kTeacher, Extent::kTopK,
                                           &Problem::top_log_probs};
inline constexpr Argument kTeacherIndices{"teacher_indices", Type::kClasses, Extent::kTopK,
                                          &Problem::top_classes};
inline constexpr Argument kTail{"tail", Type::kDouble, Extent::kScalar, &Problem::tail};

// A derivative that there is none of.
inline constexpr Argument kArriving{"arriving", Type::kDouble, Extent::kScalar};
inline constexpr Argument kReason{"reason", Type::kInt64, Extent::kText};

// clang-format off
inline constexpr Operation kOperations[] = {
    // The loss, what a mean divides by, and the rows' log-sum-exp, which the backward operations start from.
    {"CrossEntropyForward", Form::kScalar,
     {kLogits, kTarget, kWeight, kRowWeight, kOptions}, {kLoss, kTotalWeight, kLse}, RunForward},
    {"CrossEntropyForwardRows", Form::kPerRow,
     {kLogits, kTarget, kWeight, kRowWeight, kOptions}, {kLoss, kTotalWeight, kLse}, RunForward},

    // The same, and what a trainer logs beside it.
    {"CrossEntropyStats", Form::kScalar,
     {kLogits, kTarget, kWeight, kRowWeight, kOptions},
     {kLoss, kTotalWeight, kLse, kZLoss, kNumCorrect, kEntropy, kPredicted}, RunForward},
    {"CrossEntropyStatsRows", Form::kPerRow,
     {kLogits, kTarget, kWeight, kRowWeight, kOptions},
     {kLoss, kTotalWeight, kLse, kZLoss, kNumCorrect, kEntropy, kPredicted}, RunForward},

    {"CrossEntropyBackward", Form::kEither,
     {kGradLoss, kGradZLoss, kLogits, kTarget, kWeight, kRowWeight, kSavedLse, kSavedTotalWeight, kOptions},
     {kGradLogits}, RunBackward},

    // The total derivative of sum(direction * CrossEntropyBackward(...)), lse a function of the logits.
    {"CrossEntropyDoubleBackward", Form::kEither,
     {kDirection, kGradLoss, kGradZLoss, kLogits, kTarget, kWeight, kRowWeight, kSavedLse, kSavedTotalWeight, kOptions},
     {kGradGradLoss, kGradGradZLoss, kGradLogits, kDirectionMean}, RunDoubleBackward},

    {"CrossEntropyTargetGrad", Form::kEither,
     {kGradLoss, kLogits, kProbabilityTarget, kWeight, kRowWeight, kSavedLse, kSavedTotalWeight, kOptions},
     {kGradTarget}, RunTargetGrad},
    {"CrossEntropyWeightGrad", Form::kEither,
     {kGradLoss, kGradZLoss, kLogits, kTarget, kWeight, kRowWeight, kSavedLse, kSavedTotalWeight, kOptions},
     {kGradWeight}, RunWeightGradient},

    // The derivatives of sum(direction * CrossEntropyBackward(...)) by target and weight, with the direction's mean
    // of CrossEntropyDoubleBackward.
    {"CrossEntropyTargetGradAlong", Form::kEither,
     {kDirection, kGradLoss, kLogits, kProbabilityTarget, kWeight, kRowWeight, kDirectionMean, kSavedTotalWeight,
      kOptions},
     {kGradTarget}, RunTargetGrad},
    {"CrossEntropyWeightGradAlong", Form::kEither,
     {kDirection, kGradLoss, kGradZLoss, kLogits, kTarget, kWeight, kRowWeight, kSavedLse, kDirectionMean,
      kSavedTotalWeight, kOptions},
     {kGradWeight}, RunWeightGradient},

    // The loss and its gradient for upstream 1; each row is read from memory once and written once.
    {"CrossEntropyValueAndGrad", Form::kScalar,
     {kLogits, kTarget, kWeight, kRowWeight, kOptions}, {kLoss, kTotalWeight, kLse, kGradLogits}, RunValueAndGrad},

    // And the gradient of probability targets, from the same reading.
    {"CrossEntropyValueAndGrads", Form::kScalar,
     {kLogits, kProbabilityTarget, kWeight, kRowWeight, kOptions},
     {kLoss, kTotalWeight, kLse, kGradLogits, kGradTarget}, RunValueAndGrad},

    // One block of the classes. partial is lse, dot and mass of each row, whose loss is mass * (lse of all
    // blocks) - dot once dot and mass are summed over the blocks.
    {"CrossEntropyPartial", Form::kEither,
     {kLogits, kTarget, kWeight, kOptions}, {kPartial}, RunPartial},

    // lse and mass are those of all blocks.
    {"CrossEntropyPartialBackward", Form::kEither,
     {kGradRows, kGradLse, kLogits, kTarget, kWeight, kSavedLse, kMass, kOptions},
     {kGradLogits}, RunPartialBackward},

    // As the two without "Partial", for reduction none; grad_weight is 0 for the classes of other blocks.
    {"CrossEntropyPartialTargetGrad", Form::kEither,
     {kGradRows, kLogits, kProbabilityTarget, kWeight, kSavedLse, kSavedTotalWeight, kOptions},
     {kGradTarget}, RunTargetGrad},
    {"CrossEntropyPartialWeightGrad", Form::kEither,
     {kGradRows, kLogits, kTarget, kWeight, kSavedLse, kSavedTotalWeight, kOptions},
     {kGradWeight}, RunWeightGradient},

    // log p of each row's class, and the entropy of its softmax, 0 unless has_entropy; under reduction none.
    // Backward, grad_rows is the gradient that arrives at -log p.
    {"TokenLogProbs", Form::kPerRow,
     {kLogits, kClassTarget, kOptions}, {kLogProbs, kLse, kRowEntropy}, RunTokenLogProbs},
    {"TokenLogProbsBackward", Form::kEither,
     {kGradRows, kGradEntropy, kLogits, kClassTarget, kSavedLse, kSavedEntropy, kOptions},
     {kGradLogits}, RunBackward},

    // total_weight has log_prob's dtype where there is no weight.
    {"NLLForward", Form::kScalar,
     {kLogProb, kClassTarget, kWeight, kRowWeight, kOptions}, {kLoss, kWeightOfNll}, RunNllForward},
    {"NLLForwardRows", Form::kPerRow,
     {kLogProb, kClassTarget, kWeight, kRowWeight, kOptions}, {kLoss, kWeightOfNll}, RunNllForward},

    // log_prob's values are not read.
    {"NLLBackward", Form::kEither,
     {kGradOfNll, kClassTarget, kWeight, kRowWeight, kLogProb, kOptions}, {kGradLogProb}, RunNllBackward},

    // As CrossEntropyForward and CrossEntropyStats, of the linear loss.
    {"LinearCrossEntropyForward", Form::kScalar,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kRowLosses}, RunLinearForward},
    {"LinearCrossEntropyForwardRows", Form::kPerRow,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse}, RunLinearForward},
    {"LinearCrossEntropyStats", Form::kScalar,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kZLoss, kNumCorrect, kEntropy, kPredicted}, RunLinearForward},
    {"LinearCrossEntropyStatsRows", Form::kPerRow,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kZLoss, kNumCorrect, kEntropy, kPredicted}, RunLinearForward},

    {"LinearCrossEntropyBackward", Form::kEither,
     {kGradOfLinear, kGradZOfLinear, kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kSavedLse,
      kSavedTotalWeight, kOptions, kPlan},
     {kGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},

    {"LinearCrossEntropyBackwardInput", Form::kEither,
     {kGradOfLinear, kGradZOfLinear, kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kSavedLse,
      kSavedTotalWeight, kOptions, kPlan},
     {kGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearCrossEntropyBackwardWeight", Form::kEither,
     {kGradOfLinear, kGradZOfLinear, kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kSavedLse,
      kSavedTotalWeight, kOptions, kPlan},
     {kNoGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearCrossEntropyBackwardBias", Form::kEither,
     {kGradOfLinear, kGradZOfLinear, kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kSavedLse,
      kSavedTotalWeight, kOptions, kPlan},
     {kNoGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},

    // As CrossEntropyTargetGrad and CrossEntropyWeightGrad; each makes the logits again.
    {"LinearCrossEntropyTargetGrad", Form::kEither,
     {kGradOfLinear, kGradZOfLinear, kHidden, kLinearWeight, kProbabilityTarget, kLinearBias, kWeight, kRowWeight,
      kSavedLse, kSavedTotalWeight, kOptions, kPlan},
     {kGradTarget}, RunLinearTargetGrad},
    {"LinearCrossEntropyWeightGrad", Form::kEither,
     {kGradOfLinear, kGradZOfLinear, kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kSavedLse,
      kSavedTotalWeight, kOptions, kPlan},
     {kGradWeight}, RunLinearWeightGradient},

    // As TokenLogProbs.
    {"LinearTokenLogProbs", Form::kPerRow,
     {kHidden, kLinearWeight, kClassTarget, kLinearBias, kOptions, kPlan},
     {kLogProbs, kLse, kRowEntropy}, RunLinearTokenLogProbs},
    {"LinearTokenLogProbsBackward", Form::kEither,
     {kGradRows, kGradEntropy, kHidden, kLinearWeight, kClassTarget, kLinearBias, kSavedLse, kSavedEntropy,
      kOptions, kPlan},
     {kGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTokenLogProbsBackwardInput", Form::kEither,
     {kGradRows, kGradEntropy, kHidden, kLinearWeight, kClassTarget, kLinearBias, kSavedLse, kSavedEntropy,
      kOptions, kPlan},
     {kGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTokenLogProbsBackwardWeight", Form::kEither,
     {kGradRows, kGradEntropy, kHidden, kLinearWeight, kClassTarget, kLinearBias, kSavedLse, kSavedEntropy,
      kOptions, kPlan},
     {kNoGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTokenLogProbsBackwardBias", Form::kEither,
     {kGradRows, kGradEntropy, kHidden, kLinearWeight, kClassTarget, kLinearBias, kSavedLse, kSavedEntropy,
      kOptions, kPlan},
     {kNoGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},

    // The loss and the gradients for upstream 1.
    {"LinearCrossEntropyValueAndGrad", Form::kScalar,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kRowLosses, kGradHidden, kGradLinearWeight, kGradLinearBias, kApplied},
     RunLinearValueAndGrad},

    {"LinearCrossEntropyValueAndGradInput", Form::kScalar,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kRowLosses, kGradHidden, kNoGradLinearWeight, kGradLinearBias, kApplied},
     RunLinearValueAndGrad},
    {"LinearCrossEntropyValueAndGradWeight", Form::kScalar,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kRowLosses, kNoGradHidden, kGradLinearWeight, kGradLinearBias, kApplied},
     RunLinearValueAndGrad},
    {"LinearCrossEntropyValueAndGradBias", Form::kScalar,
     {kHidden, kLinearWeight, kTarget, kLinearBias, kWeight, kRowWeight, kOptions, kPlan},
     {kLoss, kTotalWeight, kLse, kRowLosses, kNoGradHidden, kNoGradLinearWeight, kGradLinearBias, kApplied},
     RunLinearValueAndGrad},

    // Multiplies the gradients by grad_loss where they lie, once.
    {"LinearCrossEntropyRescale", Form::kEither,
     {kUpstreamOfAll, kGradHidden, kGradLinearWeight, kGradLinearBias, kApplied}, {kDone},
     RunLinearRescale},

    // The divergence that beta says (divergence.h) under reduction none or sum; and its gradients, for which the
    // logits of both models are made again, or with them for upstream 1. LinearCrossEntropyRescale serves too.
    {"LinearDistillationForward", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight, kOptions, kPlan},
     {kLoss}, RunLinearForward},
    {"LinearDistillationForwardRows", Form::kPerRow,
     {kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight, kOptions, kPlan},
     {kLoss}, RunLinearForward},
    {"LinearDistillationBackward", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight,
      kOptions, kPlan},
     {kGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearDistillationBackwardInput", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight,
      kOptions, kPlan},
     {kGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearDistillationBackwardWeight", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight,
      kOptions, kPlan},
     {kNoGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearDistillationBackwardBias", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight,
      kOptions, kPlan},
     {kNoGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearDistillationValueAndGrad", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight, kOptions, kPlan},
     {kLoss, kGradHidden, kGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},
    {"LinearDistillationValueAndGradInput", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight, kOptions, kPlan},
     {kLoss, kGradHidden, kNoGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},
    {"LinearDistillationValueAndGradWeight", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight, kOptions, kPlan},
     {kLoss, kNoGradHidden, kGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},
    {"LinearDistillationValueAndGradBias", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherHidden, kTeacherWeight, kTeacherBias, kRowWeight, kOptions, kPlan},
     {kLoss, kNoGradHidden, kNoGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},

    // The same beside what is stored of a teacher (top_k.h).
    {"LinearTopKDistillationForward", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight, kOptions, kPlan},
     {kLoss}, RunLinearForward},
    {"LinearTopKDistillationForwardRows", Form::kPerRow,
     {kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight, kOptions, kPlan},
     {kLoss}, RunLinearForward},
    {"LinearTopKDistillationBackward", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight,
      kOptions, kPlan},
     {kGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTopKDistillationBackwardInput", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight,
      kOptions, kPlan},
     {kGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTopKDistillationBackwardWeight", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight,
      kOptions, kPlan},
     {kNoGradHidden, kGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTopKDistillationBackwardBias", Form::kEither,
     {kGradOfLinear, kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight,
      kOptions, kPlan},
     {kNoGradHidden, kNoGradLinearWeight, kGradLinearBias}, RunLinearBackward},
    {"LinearTopKDistillationValueAndGrad", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight, kOptions, kPlan},
     {kLoss, kGradHidden, kGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},
    {"LinearTopKDistillationValueAndGradInput", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight, kOptions, kPlan},
     {kLoss, kGradHidden, kNoGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},
    {"LinearTopKDistillationValueAndGradWeight", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight, kOptions, kPlan},
     {kLoss, kNoGradHidden, kGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},
    {"LinearTopKDistillationValueAndGradBias", Form::kScalar,
     {kHidden, kLinearWeight, kLinearBias, kTeacherLogProbs, kTeacherIndices, kTail, kRowWeight, kOptions, kPlan},
     {kLoss, kNoGradHidden, kNoGradLinearWeight, kGradLinearBias, kApplied}, RunLinearValueAndGrad},

    // Fails for `reason`, given character by character, unless what arrives is 0: a graph may hold a derivative
    // that it does not use.
    {"RefuseDerivative", Form::kEither, {kArriving, kReason}, {kDone}, RunRefuseDerivative},
};
// clang-format on

}  // namespace ms_ce

#endif  // MS_CE_OPERATIONS_H_
