// The C interface of libms_ce: cross-entropy on the CPU, forward and backward in one call each.
//
// Every operation of operations.h is an AOT custom operator of MindSpore, and needs none of its headers:
//   int Name(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes,
//            void* stream, void* extra)
// with the inputs first and the outputs after them. It returns 0, or throws std::runtime_error with a
// text "ms_ce: <argument> must ..., got ...". NameInferShape gives the outputs' shapes; -1 is an
// unknown size, {-2} an unknown rank.
//
// Views. logits (N, C, d1..dK), (N, C) or (C) are read in place as (outer, C, inner); row n is
// (outer, inner).
//
// Types. F is the logits' dtype: float16, bfloat16, float32 or float64. Class targets are int32, int64
// or uint8; probability targets and weights have dtype F or float32. A teacher's tensors share a dtype of
// their own.
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

#define MS_CE_EXPORT __attribute__((visibility("default")))

extern "C" {
// A null text, or -1 for a number: there was no memory for it, or no instruction set that this CPU runs.
MS_CE_EXPORT const char* MsCeVersion();
MS_CE_EXPORT const char* MsCeDescribe();          // JSON: operations with their arguments, types, options
MS_CE_EXPORT const char* MsCeBfloat16Products();  // of the linear loss: "oneDNN" or "ms_ce"
MS_CE_EXPORT const char* MsCeIsa();
MS_CE_EXPORT const char* MsCeIsaList();         // those this CPU runs, best first, comma separated
MS_CE_EXPORT int MsCeSetIsa(const char* name);  // "auto" restores the default; 0, or -1 if not usable
MS_CE_EXPORT int MsCeSetThreads(int threads);   // 0 restores the default; returns the number in force

// For a caller that has handed an operation to other threads: how many have finished, and waiting, asleep,
// until more have. Gives up after `idle_milliseconds` in which none runs.
MS_CE_EXPORT int64_t MsCeFinished();
MS_CE_EXPORT void MsCeWait(int64_t finished, int64_t idle_milliseconds);

// Runs an operation for callers that cannot catch C++ exceptions: null, or the exception's text of at
// most 1023 bytes, which lives until this thread's next call.
MS_CE_EXPORT const char* MsCeTry(const char* operation, int nparam, void** params, int* ndims,
                                 int64_t** shapes, const char** dtypes);
}

#endif  // MS_CE_CROSS_ENTROPY_H_
