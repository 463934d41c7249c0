#include "interface/checks.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

#include "interface/operations.h"

namespace ms_ce {
namespace {

// More than MindSpore's own, which is 8.
constexpr int kMaxRank = 16;

void CheckFinite(const char* name, double value) {
  if (!std::isfinite(value)) Fail(std::string(name) + " must be finite, got " + std::to_string(value));
}

}  // namespace

Shape CheckedShape(const char* name, int rank, const int64_t* sizes, Dtype dtype) {
  if (rank < 0 || rank > kMaxRank) {
    Fail(std::string(name) + " must have at most " + std::to_string(kMaxRank) + " dimensions, got " +
         std::to_string(rank));
  }
  if (rank > 0 && sizes == nullptr) Fail(std::string(name) + " must have a shape, got a null pointer");
  Shape shape(sizes, sizes + rank);
  int64_t bytes = static_cast<int64_t>(ElementSize(dtype));
  for (const int64_t size : shape) {
    if (size < 0) Fail(std::string(name) + " must have no negative size, got shape " + ShapeText(shape));
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes)) {
      Fail(std::string(name) + " must have less than 2^63 bytes, got shape " + ShapeText(shape));
    }
  }
  return shape;
}

void CheckData(const Tensor& tensor) {
  if (tensor.data == nullptr && ElementCount(tensor.shape) > 0) {
    Fail(std::string(tensor.name) + " must have data, got a null pointer for shape " +
         ShapeText(tensor.shape));
  }
  const size_t size = ElementSize(tensor.dtype);
  if (reinterpret_cast<uintptr_t>(tensor.data) % size != 0) {
    Fail(std::string(tensor.name) + " must be aligned to its element's " + std::to_string(size) +
         " bytes, got an address that is not");
  }
}

void CheckOptions(const Problem& problem) {
  const auto reduction = static_cast<int64_t>(problem.reduction);
  if (reduction < 0 || reduction >= static_cast<int64_t>(std::size(kReductions))) {
    Fail("reduction must be 0 (none), 1 (mean) or 2 (sum), got " + std::to_string(reduction));
  }
  if (!(problem.label_smoothing >= 0.0 && problem.label_smoothing <= 1.0)) {
    Fail("label_smoothing must be in [0, 1], got " + std::to_string(problem.label_smoothing));
  }
  if (!(problem.softcap >= 0.0)) {
    Fail("softcap must not be negative, got " + std::to_string(problem.softcap));
  }
  if (!(problem.beta >= 0.0 && problem.beta <= 1.0)) {
    Fail("beta must be in [0, 1], got " + std::to_string(problem.beta));
  }
  CheckFinite("softcap", problem.softcap);
  CheckFinite("z_loss", problem.z_loss);
  CheckFinite("logit_scale", problem.logit_scale);
  if (problem.total_classes < 0) {
    Fail("total_classes must not be negative, got " + std::to_string(problem.total_classes));
  }
}

void CheckForm(Form form, const Problem& problem, const Shape& rows) {
  const bool none = problem.reduction == Reduction::kNone;
  if (form == Form::kEither || none == (form == Form::kPerRow) || (none && rows.empty())) return;
  Fail(form == Form::kPerRow ? "reduction must be 0 (none) for a loss per row, got another"
                             : "reduction must be 1 (mean) or 2 (sum) for a scalar loss, got 0 (none)");
}

void CheckFloating(const Tensor& tensor) {
  if (IsFloating(tensor.dtype)) return;
  Fail(std::string(tensor.name) + " must have dtype float16, bfloat16, float32 or float64, got " +
       DtypeName(tensor.dtype));
}

}  // namespace ms_ce
