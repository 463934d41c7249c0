#include "platform/tensor.h"

#include <cstring>
#include <stdexcept>

namespace ms_ce {
namespace {

struct DtypeRow {
  const char* name;
  Dtype dtype;
  size_t size;
};

constexpr DtypeRow kDtypes[] = {
    {"float16", Dtype::kFloat16, 2}, {"bfloat16", Dtype::kBfloat16, 2}, {"float32", Dtype::kFloat32, 4},
    {"float64", Dtype::kFloat64, 8}, {"int32", Dtype::kInt32, 4},       {"int64", Dtype::kInt64, 8},
    {"uint8", Dtype::kUint8, 1},
};

}  // namespace

const char* DtypeName(Dtype dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "unknown";
}

Dtype ParseDtype(const char* argument, const char* name) {
  const char* given = name == nullptr ? "a null pointer" : name;
  for (const DtypeRow& row : kDtypes) {
    if (std::strcmp(row.name, given) == 0) return row.dtype;
  }
  Fail(std::string(argument) +
       " must have dtype float16, bfloat16, float32, float64, int32, int64 or uint8, got " + given);
}

void Fail(const std::string& text) { throw std::runtime_error("ms_ce: " + text); }

std::string ShapeText(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

int64_t ElementCount(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

size_t ElementSize(Dtype dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.size;
  }
  return 0;
}

bool IsFloating(Dtype dtype) {
  return dtype == Dtype::kFloat16 || dtype == Dtype::kBfloat16 || dtype == Dtype::kFloat32 ||
         dtype == Dtype::kFloat64;
}

Shape RowsShape(const Shape& logits) {
  Shape rows = logits;
  if (!rows.empty()) rows.erase(rows.begin() + (rows.size() == 1 ? 0 : 1));
  return rows;
}

void ExpectShape(const Tensor& tensor, const Shape& shape) {
  if (tensor.shape == shape) return;
  Fail(std::string(tensor.name) + " must have shape " + ShapeText(shape) + ", got " +
       ShapeText(tensor.shape));
}

void ExpectDtype(const Tensor& tensor, Dtype dtype, const char* name) {
  if (tensor.dtype == dtype) return;
  Fail(std::string(tensor.name) + " must have dtype " + name + ", got " + DtypeName(tensor.dtype));
}

}  // namespace ms_ce
