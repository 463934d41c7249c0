// What an operation is described by, and a call that is bound to its description. The descriptions
// themselves are in operations.h.
#ifndef MS_CE_OPERATION_H_
#define MS_CE_OPERATION_H_

#include <cstddef>
#include <string>
#include <vector>

#include "linear/linear_loss.h"
#include "loss/problem.h"
#include "platform/tensor.h"

namespace ms_ce {

// What an argument holds. F stands for the one dtype that all arguments of that type share in a call.
enum class Type : char {
  kFloat = 'F',          // float16, bfloat16, float32 or float64
  kTarget = 'T',         // class indices: int32, int64 or uint8; or probabilities: F or float32
  kClasses = 'C',        // class indices
  kProbabilities = 'P',  // probabilities
  kWeight = 'W',         // F or float32
  kRowWeight = 'R',      // F or float64
  // Upstream gradients are read one by one, as F, float32 or float64: with 16-bit logits they need not be
  // rounded to 16 bits. MindSpore knows an operator's dtypes by its name and is told one of them.
  kUpstream = 'U',      // F
  kWideUpstream = 'V',  // float64
  kInt64 = 'I',
  kInt32 = 'J',  // classes that are computed
  kDouble = 'D',
  kTeacher = 'M',  // any dtype that F may be, one for all of a teacher's arguments
};

// The shape of an argument. One that no input carries follows from the logits' or the hidden states'.
enum class Extent : char {
  kScalar,
  kOptions,  // a place for each row of kOptionSlots
  kPlan,     // a place for each row of kPlanSlots
  kLogits,   // (N, C, d1, ...), (N, C) or (C)
  kRows,     // the logits' without the classes; of the linear loss the hidden states' without the features
  kLoss,     // rows under reduction none, else a scalar
  kTarget,   // rows, or the logits' shape for probabilities
  kWeight,   // (classes in all,)
  kPartial,  // rows and (3,)
  kHidden,   // (..., features)
  kLinearWeight,   // (classes, features)
  kLinearBias,     // (classes,), or () where there is none
  kTeacherHidden,  // as of the student, with features of its own
  kTeacherWeight,
  kTeacherBias,
  kTopK,  // rows and (k,)
  kText,  // (characters,)
};
inline constexpr size_t kExtents = static_cast<size_t>(Extent::kText) + 1;

// Where a call's Problem takes an argument: its data, or what a scalar holds.
struct Place {
  Array Problem::*array = nullptr;
  Array LinearProblem::*linear = nullptr;
  double* Problem::*doubles = nullptr;
  double Problem::*value = nullptr;

  constexpr Place() = default;
  constexpr Place(Array Problem::*member) : array(member) {}
  constexpr Place(Array LinearProblem::*member) : linear(member) {}
  constexpr Place(double* Problem::*member) : doubles(member) {}
  constexpr Place(double Problem::*member) : value(member) {}
};

struct Argument {
  const char* name;
  Type type;
  Extent extent;
  Place place = {};
  bool Problem::*given =
      nullptr;  // an option that says whether it is; a placeholder is neither checked nor read
};

// Arguments are told apart by their address.
struct Arguments {
  const Argument* items[12] = {};
  size_t count = 0;

  template <class... Each>
  constexpr Arguments(const Argument& first, const Each&... others)
      : items{&first, &others...}, count(1 + sizeof...(others)) {}
  constexpr const Argument* const* begin() const { return items; }
  constexpr const Argument* const* end() const { return items + count; }
};

// What the loss is, of which an operation gives the value or a derivative.
enum class Form : char { kEither, kScalar, kPerRow };

class Call;

struct Operation {
  const char* name;
  Form form;
  Arguments inputs, outputs;
  void (*run)(Call* call);
};

// A place in `options` or `plan`, int64 tensors; a double travels as its bit pattern.
struct SlotPlace {
  int64_t Problem::*integer = nullptr;
  Reduction Problem::*reduction = nullptr;
  double Problem::*real = nullptr;
  bool Problem::*flag = nullptr;
  int64_t LinearProblem::*linear_integer = nullptr;
  bool LinearProblem::*linear_flag = nullptr;

  constexpr SlotPlace(int64_t Problem::*member) : integer(member) {}
  constexpr SlotPlace(Reduction Problem::*member) : reduction(member) {}
  constexpr SlotPlace(double Problem::*member) : real(member) {}
  constexpr SlotPlace(bool Problem::*member) : flag(member) {}
  constexpr SlotPlace(int64_t LinearProblem::*member) : linear_integer(member) {}
  constexpr SlotPlace(bool LinearProblem::*member) : linear_flag(member) {}
};

struct Slot {
  const char* name;
  SlotPlace place;
};

// A call whose arguments have been checked against its operation and against each other, and put in place.
class Call {
 public:
  const Operation& operation;
  LinearProblem linear;
  Problem& problem() { return linear.loss; }

  // Null where the operation has no such argument.
  const Tensor* Find(const Argument& argument) const;
  const Tensor& operator[](const Argument& argument) const { return *Find(argument); }
  // What F is the dtype of: logits, log_prob or input.
  const Tensor& subject() const { return tensors_[subject_]; }

 private:
  friend class Binder;
  explicit Call(const Operation& which) : operation(which) {}

  std::vector<Tensor> tensors_;  // inputs, then outputs
  size_t subject_ = 0;
};

// What MindSpore calls an operation with.
struct RawCall {
  int count;
  void** data;
  const int* ndims;
  int64_t** shapes;
  const char** dtypes;
};

// Throws std::runtime_error where an argument is not what the operation takes.
Call Bind(const Operation& operation, const RawCall& raw);

// The outputs' shapes from the inputs'; -1 is an unknown size, {-2} an unknown rank.
std::vector<Shape> Infer(const Operation& operation, const int* ndims, int64_t** shapes);

// All operations and slots as JSON, which lives as long as the library.
const char* Describe();

}  // namespace ms_ce

#endif  // MS_CE_OPERATION_H_
