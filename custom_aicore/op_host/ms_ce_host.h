// What the operators share on the host: where each keeps its inputs and attributes, output shapes and dtypes, and tiling.
// C++11, which is what CANN's project template compiles op_host as.
#ifndef MS_CE_HOST_H
#define MS_CE_HOST_H

#include "ms_ce_plan.h"
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace ms_ce {

constexpr int32_t ABSENT = -1;
constexpr int64_t UNKNOWN = -1;      // a dimension that is not known yet
constexpr int64_t ERROR_LENGTH = 8;  // int32 words of the error output

// Positions of an operator's logits (its target follows), weight and attributes.
struct Layout {
    int32_t logits;
    int32_t reduction;
    int32_t ignoreIndex;
    int32_t labelSmoothing;
    int32_t zLoss;
    int32_t hasWeight;
    int32_t classOffset;
    int32_t totalClasses;
};

inline Layout LayoutOf(int32_t kind) {
    switch (kind) {
        case MS_CE_BACKWARD:
            return {1, 0, 1, 2, 3, 4, 5, 6};
        case MS_CE_PROB_FORWARD:
            return {0, 0, ABSENT, 1, 2, 3, ABSENT, ABSENT};
        case MS_CE_PROB_BACKWARD:
            return {1, 0, ABSENT, 1, 2, 3, ABSENT, ABSENT};
        case MS_CE_NLL_FORWARD:
            return {0, 0, 1, ABSENT, ABSENT, 2, ABSENT, ABSENT};
        case MS_CE_NLL_BACKWARD:
            return {1, 0, 1, ABSENT, ABSENT, 2, ABSENT, ABSENT};
        case MS_CE_PARTIAL:
            return {0, ABSENT, 0, 1, ABSENT, 2, 3, 4};
        default:
            return {0, 0, 1, 2, 3, 4, ABSENT, ABSENT};
    }
}

template <typename T>
T AttributeOr(const gert::RuntimeAttrs* attributes, int32_t index, T otherwise) {
    if (index == ABSENT) return otherwise;
    const T* value = attributes->GetAttrPointer<T>(static_cast<size_t>(index));
    return value == nullptr ? otherwise : *value;
}

inline int64_t DimensionOf(const gert::Shape& shape, size_t axis) {
    return shape.GetDimNum() == 2 ? shape.GetDim(axis) : UNKNOWN;
}

inline void SetVector(gert::Shape* shape, int64_t length) {
    shape->SetDimNum(1);
    shape->SetDim(0, length);
}

inline int32_t BytesOf(ge::DataType type) {
    switch (type) {
        case ge::DT_FLOAT:
        case ge::DT_INT32:
            return 4;
        case ge::DT_INT64:
            return 8;
        default:
            return 2;
    }
}

// Shapes of the outputs. Forward operators: loss is (1,) or with reduction none (N,), total_weight (1,), lse and mass (N,),
// error (8,). Backward operators: the gradient has the logits' shape.
template <int32_t KIND>
ge::graphStatus InferShape(gert::InferShapeContext* context) {
    const Layout layout = LayoutOf(KIND);
    const gert::Shape* logits = context->GetInputShape(layout.logits);
    if (logits == nullptr) return ge::GRAPH_FAILED;
    if (KIND == MS_CE_BACKWARD || KIND == MS_CE_PROB_BACKWARD || KIND == MS_CE_NLL_BACKWARD) {
        *context->GetOutputShape(0) = *logits;
        return ge::GRAPH_SUCCESS;
    }
    const int64_t rows = DimensionOf(*logits, 0);
    if (KIND == MS_CE_PARTIAL) {
        for (size_t i = 0; i < 3; ++i) SetVector(context->GetOutputShape(i), rows);
        SetVector(context->GetOutputShape(3), ERROR_LENGTH);
        return ge::GRAPH_SUCCESS;
    }
    const int64_t reduction = AttributeOr<int64_t>(context->GetAttrs(), layout.reduction, MS_CE_MEAN);
    SetVector(context->GetOutputShape(0), reduction == MS_CE_NONE ? rows : 1);
    SetVector(context->GetOutputShape(1), 1);
    if (KIND == MS_CE_NLL_FORWARD) {
        SetVector(context->GetOutputShape(2), ERROR_LENGTH);
        return ge::GRAPH_SUCCESS;
    }
    SetVector(context->GetOutputShape(2), rows);
    if (KIND == MS_CE_FORWARD_GRAD) *context->GetOutputShape(3) = *logits;
    if (KIND == MS_CE_PROB_FORWARD) SetVector(context->GetOutputShape(3), rows);
    if (KIND == MS_CE_FORWARD) SetVector(context->GetOutputShape(3), ERROR_LENGTH);
    if (KIND == MS_CE_FORWARD_GRAD) SetVector(context->GetOutputShape(4), ERROR_LENGTH);
    return ge::GRAPH_SUCCESS;
}

// Gradients have the logits' dtype, errors are int32, everything else is fp32.
template <int32_t KIND>
ge::graphStatus InferDataType(gert::InferDataTypeContext* context) {
    constexpr bool backward = KIND == MS_CE_BACKWARD || KIND == MS_CE_PROB_BACKWARD || KIND == MS_CE_NLL_BACKWARD;
    const ge::DataType logits = context->GetInputDataType(LayoutOf(KIND).logits);
    if (backward) {
        context->SetOutputDataType(0, logits);
        return ge::GRAPH_SUCCESS;
    }
    constexpr size_t outputs = KIND == MS_CE_NLL_FORWARD ? 3 : (KIND == MS_CE_FORWARD_GRAD ? 5 : 4);
    for (size_t i = 0; i < outputs; ++i) context->SetOutputDataType(i, ge::DT_FLOAT);
    if (KIND == MS_CE_FORWARD_GRAD) context->SetOutputDataType(3, logits);
    if (KIND != MS_CE_PROB_FORWARD) context->SetOutputDataType(outputs - 1, ge::DT_INT32);
    return ge::GRAPH_SUCCESS;
}

// The problem as the shapes, dtypes, attributes and the chip describe it; false where they do not fit together.
template <int32_t KIND>
bool Describe(gert::TilingContext* context, MsCeProblem& problem) {
    const Layout layout = LayoutOf(KIND);
    const gert::Shape& logits = context->GetInputShape(layout.logits)->GetStorageShape();
    const gert::Shape& target = context->GetInputShape(layout.logits + 1)->GetStorageShape();
    const gert::Shape& weight = context->GetInputShape(layout.logits + 2)->GetStorageShape();
    const gert::RuntimeAttrs* attributes = context->GetAttrs();
    auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    uint64_t unifiedBuffer = 0;
    platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, unifiedBuffer);
    if (logits.GetDimNum() != 2 || logits.GetDim(1) < 1) return false;
    problem.rows = logits.GetDim(0);
    problem.cols = logits.GetDim(1);
    problem.ubBytes = static_cast<int64_t>(unifiedBuffer);
    problem.cores = static_cast<int32_t>(platform.GetCoreNumAiv());
    problem.kind = KIND;
    problem.reduction = static_cast<int32_t>(AttributeOr<int64_t>(attributes, layout.reduction, MS_CE_NONE));
    problem.ignoreIndex = AttributeOr<int64_t>(attributes, layout.ignoreIndex, -100);
    problem.labelSmoothing = AttributeOr<float>(attributes, layout.labelSmoothing, 0.0f);
    problem.zLoss = AttributeOr<float>(attributes, layout.zLoss, 0.0f);
    problem.hasWeight = AttributeOr<bool>(attributes, layout.hasWeight, false);
    problem.classOffset = AttributeOr<int64_t>(attributes, layout.classOffset, 0);
    problem.totalClasses = AttributeOr<int64_t>(attributes, layout.totalClasses, 0);
    if (KIND == MS_CE_FORWARD_GRAD && problem.reduction == MS_CE_NONE) return false;
    if (problem.totalClasses == 0) problem.totalClasses = problem.cols;
    problem.logitsBytes = BytesOf(context->GetInputDesc(layout.logits)->GetDataType());
    problem.targetBytes = BytesOf(context->GetInputDesc(layout.logits + 1)->GetDataType());
    const int64_t targets = ms_ce::HasProbabilities(KIND) ? problem.rows * problem.cols : problem.rows;
    return target.GetShapeSize() == targets && (!problem.hasWeight || weight.GetShapeSize() == problem.totalClasses) &&
           problem.classOffset >= 0 && problem.classOffset + problem.cols <= problem.totalClasses;
}

template <int32_t KIND>
ge::graphStatus Tiling(gert::TilingContext* context) {
    MsCeProblem problem{};
    if (!Describe<KIND>(context, problem)) return ge::GRAPH_FAILED;
    MsCeTiling* tiling = context->GetTilingData<MsCeTiling>();
    if (tiling == nullptr) return ge::GRAPH_FAILED;
    *tiling = ComputeTiling(problem);
    auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    context->SetBlockDim(static_cast<uint32_t>(tiling->usedCores));
    context->GetWorkspaceSizes(1)[0] = static_cast<size_t>(tiling->workspaceBytes) + platform.GetLibApiWorkSpaceSize();
    // SyncAll needs every core of the launch to start together.
    return context->SetScheduleMode(1);
}

}  // namespace ms_ce

#endif
