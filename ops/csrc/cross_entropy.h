// The C interface of libms_ce: cross-entropy on the CPU, forward and backward in one call each.
//
// Every operation is an AOT custom operator of MindSpore, and needs none of its headers:
//   int Name(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes,
//            void* stream, void* extra)
// with the inputs first and the outputs after them. It returns 0, or throws std::runtime_error with a
// text "ms_ce: <argument> must ..., got ...". NameInferShape gives the outputs' shapes; -1 is an
// unknown size, {-2} an unknown rank.
//
// Views. logits (N, C, d1..dK), (N, C) or (C) are read in place as (outer, C, inner); row n is
// (outer, inner); "rows" below is the logits' shape without the class axis.
//
// Types. F is the logits' dtype: float16, bfloat16, float32 or float64. Class targets are int32, int64
// or uint8 of shape rows; probability targets have the logits' shape and dtype F or float32; weight has
// shape (total classes,) and dtype F or float32.
//
// Precision. Terms of one class are computed in fp32 (fp64 for float64 logits), summed over at most
// 1024 classes in that type, and from there on in fp64. lse is fp64 for every F. A result is rounded to
// F once. Results do not depend on the number of threads, bit for bit.
//
// Memory. A row whose target is ignore_index is not read. Pointers need the alignment of their element
// only. Inputs and outputs must not overlap.
#ifndef MS_CE_CROSS_ENTROPY_H_
#define MS_CE_CROSS_ENTROPY_H_

#include <cstdint>
#include <vector>

namespace mindspore {
class AotExtra;
}

// Slots of `options`, int64 of shape (MS_CE_OPTION_COUNT,); a double travels as its bit pattern.
enum MsCeOption {
  MS_CE_IGNORE_INDEX = 0,
  MS_CE_REDUCTION = 1,  // 0 none, 1 mean, 2 sum
  MS_CE_FLAGS = 2,
  MS_CE_LABEL_SMOOTHING = 3,
  MS_CE_Z_LOSS = 4,
  MS_CE_SOFTCAP = 5,  // 0 is off
  MS_CE_LOGIT_SCALE = 6,
  MS_CE_CLASS_OFFSET = 7,   // logits hold classes [offset, offset + C) of the total
  MS_CE_TOTAL_CLASSES = 8,  // 0 means C
  MS_CE_OPTION_COUNT = 16,
};

enum MsCeFlag {
  MS_CE_HAS_WEIGHT = 1,       // clear: weight is a placeholder
  MS_CE_HAS_GRAD_Z_LOSS = 2,  // clear: grad_z_loss is a placeholder
};

#define MS_CE_EXPORT __attribute__((visibility("default")))

// One output: its shape alone. Several: a vector of shapes. MindSpore tells them apart by the number of
// outputs.
#define MS_CE_OPERATION_INFERRING(name, inferred)                                           \
  extern "C" MS_CE_EXPORT int name(int nparam, void** params, int* ndims, int64_t** shapes, \
                                   const char** dtypes, void* stream, void* extra);         \
  extern "C" MS_CE_EXPORT inferred name##InferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*)
#define MS_CE_OPERATION(name) MS_CE_OPERATION_INFERRING(name, std::vector<std::vector<int64_t>>)
#define MS_CE_OPERATION_ONE_OUTPUT(name) MS_CE_OPERATION_INFERRING(name, std::vector<int64_t>)

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wreturn-type-c-linkage"
#endif

// (logits, target, weight, options) -> loss F, total_weight f64 (), lse f64 rows
MS_CE_OPERATION(CrossEntropyForward);      // loss ()
MS_CE_OPERATION(CrossEntropyForwardRows);  // loss rows: reduction none

// As the forward, then: z_loss F as loss, num_correct int64 (), entropy F as loss
MS_CE_OPERATION(CrossEntropyStats);
MS_CE_OPERATION(CrossEntropyStatsRows);

// Upstream gradients are F, float32 or float64 in all operations from here to the Partial ones.
// (grad_loss, grad_z_loss, logits, target, weight, lse, total_weight, options) -> grad_logits
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyBackward);

// (direction, grad_loss, grad_z_loss, logits, target, weight, lse, total_weight, options)
//   -> grad_grad_loss, grad_grad_z_loss, grad_logits, direction_mean f64 rows
// The total derivative of sum(direction * CrossEntropyBackward(...)), lse a function of the logits.
MS_CE_OPERATION(CrossEntropyDoubleBackward);

// (grad_loss, logits, target, weight, lse, total_weight, options) -> grad_target / grad_weight
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyTargetGrad);
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyWeightGrad);

// (logits, target, weight, options) -> loss F (), total_weight f64 (), lse f64 rows, grad_logits F
// The gradient for upstream 1; each row is read from memory once and written once.
MS_CE_OPERATION(CrossEntropyValueAndGrad);

// One shard of the classes. (logits, target, weight, options) -> f64 rows + (3,): lse, dot, mass, with
// row loss = mass * (lse of all shards) - dot once dot and mass are summed over the shards.
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyPartial);

// (grad_rows, grad_lse, logits, target, weight, lse f64, mass f64, options) -> grad_logits F
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyPartialBackward);

// As the two without "Partial", for reduction none; grad_weight is 0 for the classes of other shards.
// MindSpore knows an operator's dtypes by its name, and these take a float64 upstream.
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyPartialTargetGrad);
MS_CE_OPERATION_ONE_OUTPUT(CrossEntropyPartialWeightGrad);

// (log_prob, target, weight, options) -> loss F, total_weight of weight's dtype (F without weight)
MS_CE_OPERATION(NLLForward);
MS_CE_OPERATION(NLLForwardRows);

// (grad_loss, target, weight, log_prob, options) -> grad_log_prob; log_prob's values are not read
MS_CE_OPERATION_ONE_OUTPUT(NLLBackward);

// The loss of input W^T + linear_bias without its logits (linear_loss.h). L stands for
//   input F rows + (H,), linear_weight F (V, H), target, linear_bias F (V,) or () for none, weight
// and the inputs end with options and plan, int64 {chunk_bytes or 0, shift}.
// (L, options, plan) -> as CrossEntropyForward and CrossEntropyStats
MS_CE_OPERATION(LinearCrossEntropyForward);
MS_CE_OPERATION(LinearCrossEntropyForwardRows);
MS_CE_OPERATION(LinearCrossEntropyStats);
MS_CE_OPERATION(LinearCrossEntropyStatsRows);

// (grad_loss, grad_z_loss, L, lse, total_weight, options, plan)
//   -> grad_input, grad_linear_weight, grad_linear_bias
MS_CE_OPERATION(LinearCrossEntropyBackward);

// (L, options, plan) -> loss, total_weight, lse, the three gradients for upstream 1, applied f64 ()
MS_CE_OPERATION(LinearCrossEntropyValueAndGrad);

// (grad_loss, the three gradients, applied) -> done f64 (): multiplies the gradients in place, once.
MS_CE_OPERATION_ONE_OUTPUT(LinearCrossEntropyRescale);

extern "C" {
MS_CE_EXPORT const char* MsCeVersion();
MS_CE_EXPORT const char* MsCeBfloat16Products();  // of the linear loss: "oneDNN" or "ms_ce"
MS_CE_EXPORT const char* MsCeIsa();
MS_CE_EXPORT const char* MsCeIsaList();         // those this CPU runs, best first, comma separated
MS_CE_EXPORT int MsCeSetIsa(const char* name);  // "auto" restores the default; 0, or -1 if not usable
MS_CE_EXPORT int MsCeSetThreads(int threads);   // 0 restores the default; returns the number in force

// Runs an operation for callers that cannot catch C++ exceptions: null, or the exception's text, which
// lives until this thread's next call.
using MsCeOperation = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);
MS_CE_EXPORT const char* MsCeTry(MsCeOperation operation, int nparam, void** params, int* ndims,
                                 int64_t** shapes, const char** dtypes);
}

#endif  // MS_CE_CROSS_ENTROPY_H_
