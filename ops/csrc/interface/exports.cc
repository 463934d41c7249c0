// The library's exported functions: each operation and its shape inference, and what the C interface offers
// beside them.
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "interface/cross_entropy.h"
#include "interface/operations.h"
#include "interface/progress.h"
#include "linear/onednn.h"
#include "platform/dispatch.h"
#include "platform/float_environment.h"
#include "platform/thread_pool.h"

namespace mindspore {
class AotExtra;
}

namespace ms_ce {
namespace {

// Holds its sentence itself: a string of that length would need what there is none of.
class NoMemory : public std::runtime_error {
 public:
  explicit NoMemory(const char* operation) : std::runtime_error("") {
    std::snprintf(text_, sizeof(text_),
                  "ms_ce: there must be memory for what %s needs besides its arguments, got none",
                  operation);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[160];
};

// The boundary that every call of an operation passes, and computes behind in an environment of its own.
int Run(const Operation& operation, const RawCall& raw) {
  const FloatEnvironment environment;
  try {
    const RunningOperation running;
    Call call = Bind(operation, raw);
    operation.run(&call);
  } catch (const std::bad_alloc&) {
    throw NoMemory(operation.name);
  }
  return 0;
}

// For a caller that cannot catch exceptions: null in the place of one.
template <class Make>
const char* TextOrNull(Make make) {
  try {
    return make();
  } catch (const std::exception&) {
    return nullptr;
  }
}

constexpr size_t kNowhere = std::size(kOperations);

constexpr size_t IndexOf(std::string_view name) {
  for (size_t i = 0; i < std::size(kOperations); ++i) {
    if (name == kOperations[i].name) return i;
  }
  return kNowhere;
}

// One output: its shape alone. Several: a vector of shapes. MindSpore tells them apart by the number of
// outputs.
template <size_t index>
using Inferred = std::conditional_t<kOperations[index].outputs.count == 1, Shape, std::vector<Shape>>;

template <size_t index>
Inferred<index> InferAs(const int* ndims, int64_t** shapes) {
  try {
    std::vector<Shape> outputs = Infer(kOperations[index], ndims, shapes);
    if constexpr (kOperations[index].outputs.count == 1) {
      return outputs[0];
    } else {
      return outputs;
    }
  } catch (const std::bad_alloc&) {
    throw NoMemory(kOperations[index].name);
  }
}

}  // namespace
}  // namespace ms_ce

// MindSpore looks an operation up by its name, and its inference by the name and "InferShape".
#define MS_CE_FOR_EACH_OPERATION(X)           \
  X(CrossEntropyForward)                      \
  X(CrossEntropyForwardRows)                  \
  X(CrossEntropyStats)                        \
  X(CrossEntropyStatsRows)                    \
  X(CrossEntropyBackward)                     \
  X(CrossEntropyDoubleBackward)               \
  X(CrossEntropyTargetGrad)                   \
  X(CrossEntropyWeightGrad)                   \
  X(CrossEntropyTargetGradAlong)              \
  X(CrossEntropyWeightGradAlong)              \
  X(CrossEntropyValueAndGrad)                 \
  X(CrossEntropyValueAndGrads)                \
  X(CrossEntropyPartial)                      \
  X(CrossEntropyPartialBackward)              \
  X(CrossEntropyPartialTargetGrad)            \
  X(CrossEntropyPartialWeightGrad)            \
  X(TokenLogProbs)                            \
  X(TokenLogProbsBackward)                    \
  X(NLLForward)                               \
  X(NLLForwardRows)                           \
  X(NLLBackward)                              \
  X(LinearCrossEntropyForward)                \
  X(LinearCrossEntropyForwardRows)            \
  X(LinearCrossEntropyStats)                  \
  X(LinearCrossEntropyStatsRows)              \
  X(LinearCrossEntropyBackward)               \
  X(LinearCrossEntropyBackwardInput)          \
  X(LinearCrossEntropyBackwardWeight)         \
  X(LinearCrossEntropyBackwardBias)           \
  X(LinearCrossEntropyTargetGrad)             \
  X(LinearCrossEntropyWeightGrad)             \
  X(LinearTokenLogProbs)                      \
  X(LinearTokenLogProbsBackward)              \
  X(LinearTokenLogProbsBackwardInput)         \
  X(LinearTokenLogProbsBackwardWeight)        \
  X(LinearTokenLogProbsBackwardBias)          \
  X(LinearCrossEntropyValueAndGrad)           \
  X(LinearCrossEntropyValueAndGradInput)      \
  X(LinearCrossEntropyValueAndGradWeight)     \
  X(LinearCrossEntropyValueAndGradBias)       \
  X(LinearCrossEntropyRescale)                \
  X(LinearDistillationForward)                \
  X(LinearDistillationForwardRows)            \
  X(LinearDistillationBackward)               \
  X(LinearDistillationBackwardInput)          \
  X(LinearDistillationBackwardWeight)         \
  X(LinearDistillationBackwardBias)           \
  X(LinearDistillationValueAndGrad)           \
  X(LinearDistillationValueAndGradInput)      \
  X(LinearDistillationValueAndGradWeight)     \
  X(LinearDistillationValueAndGradBias)       \
  X(LinearTopKDistillationForward)            \
  X(LinearTopKDistillationForwardRows)        \
  X(LinearTopKDistillationBackward)           \
  X(LinearTopKDistillationBackwardInput)      \
  X(LinearTopKDistillationBackwardWeight)     \
  X(LinearTopKDistillationBackwardBias)       \
  X(LinearTopKDistillationValueAndGrad)       \
  X(LinearTopKDistillationValueAndGradInput)  \
  X(LinearTopKDistillationValueAndGradWeight) \
  X(LinearTopKDistillationValueAndGradBias)   \
  X(RefuseDerivative)

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wreturn-type-c-linkage"
#endif

#define MS_CE_EXPORT_OPERATION(name)                                                                       \
  static_assert(ms_ce::IndexOf(#name) != ms_ce::kNowhere, "operations.h describes no " #name);             \
  extern "C" MS_CE_EXPORT int name(int nparam, void** params, int* ndims, int64_t** shapes,                \
                                   const char** dtypes, void*, void*) {                                    \
    return ms_ce::Run(ms_ce::kOperations[ms_ce::IndexOf(#name)], {nparam, params, ndims, shapes, dtypes}); \
  }                                                                                                        \
  extern "C" MS_CE_EXPORT ms_ce::Inferred<ms_ce::IndexOf(#name)> name##InferShape(                         \
      int* ndims, int64_t** shapes, mindspore::AotExtra*) {                                                \
    return ms_ce::InferAs<ms_ce::IndexOf(#name)>(ndims, shapes);                                           \
  }
MS_CE_FOR_EACH_OPERATION(MS_CE_EXPORT_OPERATION)

#define MS_CE_COUNT_ONE(name) +1
static_assert(0 MS_CE_FOR_EACH_OPERATION(MS_CE_COUNT_ONE) == std::size(ms_ce::kOperations),
              "every operation is exported");

const char* MsCeVersion() { return MS_CE_VERSION; }

const char* MsCeDescribe() { return ms_ce::TextOrNull(ms_ce::Describe); }

const char* MsCeBfloat16Products() { return ms_ce::MultipliesBfloat16() ? "oneDNN" : "ms_ce"; }

const char* MsCeIsa() {
  return ms_ce::TextOrNull([] { return ms_ce::SelectKernels(false).name; });
}

const char* MsCeIsaList() { return ms_ce::TextOrNull(ms_ce::IsaList); }

int MsCeSetIsa(const char* name) {
  try {
    ms_ce::SetIsa(name);
  } catch (const std::exception&) {
    return -1;
  }
  return 0;
}

int MsCeSetThreads(int threads) {
  try {
    return ms_ce::SetThreads(threads);
  } catch (const std::exception&) {
    return -1;
  }
}

const char* MsCeTry(const char* operation, int nparam, void** params, int* ndims, int64_t** shapes,
                    const char** dtypes) {
  static thread_local char text[1024];
  try {
    const size_t index = operation == nullptr ? ms_ce::kNowhere : ms_ce::IndexOf(operation);
    if (index == ms_ce::kNowhere) {
      ms_ce::Fail("there is no operation " + std::string(operation == nullptr ? "(null)" : operation));
    }
    ms_ce::Run(ms_ce::kOperations[index], {nparam, params, ndims, shapes, dtypes});
  } catch (const std::exception& error) {
    std::snprintf(text, sizeof(text), "%s", error.what());
    return text;
  }
  return nullptr;
}
