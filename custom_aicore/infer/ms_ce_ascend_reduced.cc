// Output shapes of the operators for MindSpore's ops.Custom, static and dynamic. MindSpore compiles this file where the
// operators are used and calls <operator>InferShape; -1 stands for an unknown dimension, a single -2 for an unknown rank.
// ms_ce_ascend_rows.cc gives the same operators a loss per row.
#include <cstdint>
#include <vector>

#ifndef MS_CE_LOSS_PER_ROW
#define MS_CE_LOSS_PER_ROW 0
#endif

namespace mindspore {
class AotExtra;
}

namespace {

using Shape = std::vector<int64_t>;
using Shapes = std::vector<Shape>;

constexpr int64_t kUnknown = -1;
constexpr int64_t kErrorLength = 8;

Shape ShapeOf(int rank, const int64_t* dims) {
    const Shape shape(dims, dims + rank);
    return shape.size() == 2 ? shape : Shape{kUnknown, kUnknown};
}

// One gradient of the logits' shape; the logits are the second input.
Shape Gradient(const int* ndims, int64_t** shapes) { return ShapeOf(ndims[1], shapes[1]); }

}  // namespace

extern "C" Shapes aclnnMsCeForwardInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    const int64_t rows = ShapeOf(ndims[0], shapes[0])[0];
    return {{MS_CE_LOSS_PER_ROW ? rows : 1}, {1}, {rows}, {kErrorLength}};
}

extern "C" Shapes aclnnMsCeForwardGradInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    const Shape logits = ShapeOf(ndims[0], shapes[0]);
    return {{1}, {1}, {logits[0]}, logits, {kErrorLength}};
}

extern "C" Shapes aclnnMsCeProbForwardInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    const int64_t rows = ShapeOf(ndims[0], shapes[0])[0];
    return {{MS_CE_LOSS_PER_ROW ? rows : 1}, {1}, {rows}, {rows}};
}

extern "C" Shapes aclnnMsCePartialInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    const int64_t rows = ShapeOf(ndims[0], shapes[0])[0];
    return {{rows}, {rows}, {rows}, {kErrorLength}};
}

extern "C" Shapes aclnnMsCeNllForwardInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    const int64_t rows = ShapeOf(ndims[0], shapes[0])[0];
    return {{MS_CE_LOSS_PER_ROW ? rows : 1}, {1}, {kErrorLength}};
}

extern "C" Shape aclnnMsCeBackwardInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    return Gradient(ndims, shapes);
}

extern "C" Shape aclnnMsCeProbBackwardInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    return Gradient(ndims, shapes);
}

extern "C" Shape aclnnMsCeNllBackwardInferShape(int* ndims, int64_t** shapes, mindspore::AotExtra*) {
    return Gradient(ndims, shapes);
}
