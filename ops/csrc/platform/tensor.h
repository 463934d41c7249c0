// A tensor of a call with its name, dtype and shape, and checks of these, which throw std::runtime_error
// with a text that names the tensor, what it must be and what arrived.
#ifndef MS_CE_TENSOR_H_
#define MS_CE_TENSOR_H_

#include <string>
#include <vector>

#include "platform/array.h"

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

}  // namespace ms_ce

#endif  // MS_CE_TENSOR_H_
