// The tensors of a call and what they must be. Checks throw std::runtime_error with a text that names the
// argument, what it must be and what arrived.
#ifndef MS_CE_ARGUMENTS_H_
#define MS_CE_ARGUMENTS_H_

#include <string>
#include <vector>

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

std::string ShapeText(const Shape& shape);
int64_t ElementCount(const Shape& shape);
size_t ElementSize(Dtype dtype);
const char* DtypeName(Dtype dtype);
Dtype ParseDtype(const char* argument, const char* name);
bool IsFloating(Dtype dtype);
Shape RowsShape(const Shape& logits);

[[noreturn]] void Fail(const std::string& text);
void ExpectShape(const Tensor& tensor, const Shape& shape);
void ExpectDtype(const Tensor& tensor, Dtype dtype, const char* name);

// Gradients made in the forward pass, for upstream 1, become those of an upstream where they lie. `applied`
// is nan until one has come. Returns whether they have to change, and fails where they already follow
// another.
bool ApplyUpstream(double upstream, double* applied);

[[noreturn]] void FailOnTarget(const Problem& problem, const Tensor& logits, int64_t row);

}  // namespace ms_ce

#endif  // MS_CE_ARGUMENTS_H_
