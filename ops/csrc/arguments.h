// Reads and checks the arguments of an AOT call. Everything here throws std::runtime_error with a text
// that names the argument, what it must be and what arrived.
#ifndef MS_CE_ARGUMENTS_H_
#define MS_CE_ARGUMENTS_H_

#include <string>
#include <vector>

#include "float_environment.h"
#include "problem.h"

namespace ms_ce {

using Shape = std::vector<int64_t>;

struct Tensor {
  const char* name;
  void* data;
  Dtype dtype;
  Shape shape;

  Array array() const { return {data, dtype}; }
};

// One AOT call, whose tensors are read in order. Every operation has one from its first line to its last,
// and computes in its environment.
class Call {
 public:
  Call(int nparam, void** params, const int* ndims, int64_t** shapes, const char** dtypes)
      : nparam_(nparam), params_(params), ndims_(ndims), shapes_(shapes), dtypes_(dtypes) {}
  Tensor Next(const char* name);
  void ExpectEnd() const;

 private:
  FloatEnvironment environment_;
  int nparam_;
  void** params_;
  const int* ndims_;
  int64_t** shapes_;
  const char** dtypes_;
  int next_ = 0;
};

std::string ShapeText(const Shape& shape);
int64_t ElementCount(const Shape& shape);
size_t ElementSize(Dtype dtype);
bool IsFloating(Dtype dtype);
Shape RowsShape(const Shape& logits);

[[noreturn]] void Fail(const std::string& text);
void ExpectShape(const Tensor& tensor, const Shape& shape);
void ExpectDtype(const Tensor& tensor, Dtype dtype, const char* name);

Tensor NextAs(Call* call, const char* name, Dtype dtype, const char* dtype_name, const Shape& shape);
Tensor NextDouble(Call* call, const char* name, const Shape& shape);

// Gradients made in the forward pass, for upstream 1, become those of an upstream where they lie. `applied`
// is nan until one has come. Returns whether they have to change, and fails where they already follow
// another.
bool ApplyUpstream(double upstream, double* applied);

// The loss's own inputs, checked against each other.
struct LossInputs {
  Tensor logits, target, weight, options;
};
Problem CheckLossInputs(const LossInputs& inputs);

[[noreturn]] void FailOnTarget(const Problem& problem, const Tensor& logits, int64_t row);

}  // namespace ms_ce

#endif  // MS_CE_ARGUMENTS_H_
