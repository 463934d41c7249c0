// Cross-entropy of hidden W^T + bias without the logits: rows in chunks, each chunk's logits made, turned
// into their gradient in place, and multiplied back while they are in the cache.
#ifndef MS_CE_LINEAR_LOSS_H_
#define MS_CE_LINEAR_LOSS_H_

#include <cstdint>
#include <vector>

#include "loss/problem.h"
#include "loss/run.h"
#include "platform/tensor.h"

namespace ms_ce {

// Rows are the target's positions in order. Under `shift`, position n takes its hidden state from
// n - 1, and the first position of every sequence counts for nothing.
struct LinearProblem {
  Problem loss;           // rows and classes; its logits only carry F, the dtype of the tensors below
  Tensor position_shape;  // shape (lead[0], classes, lead[1], ...), for messages about a row
  Array hidden, linear_weight, linear_bias;  // linear_bias.data is null without one
  int64_t features = 0;
  int64_t chunk_bytes = 0;  // for a chunk's logits; 0 leaves the choice to the loss
  bool shift = false;
  bool bias_frozen = false;
  // Of distillation, without a target: what the teacher's logits are made of, for the same rows. 0 features
  // without one.
  Array teacher_hidden, teacher_weight, teacher_bias;
  int64_t teacher_features = 0;
  int64_t sequence = 0;  // under shift the length of the last leading axis, otherwise 0

  // Outputs, null where not wanted. The loss's own outputs per row are in `loss`.
  Array grad_hidden, grad_linear_weight, grad_linear_bias;
  WeightGradient* weight_gradient = nullptr;
};

// By default a chunk, the copies of its hidden states and what a call needs besides stay within a twentieth
// of the logits. ops/chunks.py computes the same where MindSpore's products make the chunks.
constexpr int64_t kSmallestDefaultChunk = int64_t{4} << 20, kLargestDefaultChunk = int64_t{128} << 20;
constexpr int64_t kDefaultShare = 20, kBesideChunk = int64_t{3} << 19, kHiddenCopies = 2;
constexpr int64_t kBytesStored = 16;  // of a class of a stored teacher, whose tensors MindSpore copies

// kBackward makes the gradients of input, weight and bias; kDataGrad those of target and class weights.
enum class LinearTask { kForward, kBackward, kValueAndGrad, kDataGrad };

// Checks every target and sums the weights of those that count.
double LinearTotalWeight(const LinearProblem& problem);

// loss.total_weight must hold LinearTotalWeight(); kBackward and kDataGrad also read loss.lse and
// loss.grad_loss.
UnitSums RunLinear(const LinearProblem& problem, LinearTask task);

}  // namespace ms_ce

#endif  // MS_CE_LINEAR_LOSS_H_
