// Stand-in for the toolkit's kernel_operator.h: the part of the Ascend C API that op_kernel/ uses, on the host. Only tests
// include it; the toolkit's own header takes its place in a real build.
#ifndef MS_CE_HOST_MODEL_KERNEL_OPERATOR_H
#define MS_CE_HOST_MODEL_KERNEL_OPERATOR_H

#include "copy.h"
#include "select.h"
#include "synchronise.h"

#define REGISTER_TILING_DEFAULT(tiling_struct) static_assert(sizeof(tiling_struct) > 0, "tiling data")
#define KERNEL_TYPE_AIV_ONLY false
#define KERNEL_TYPE_MIX_AIV_1_0 true
#define KERNEL_TASK_TYPE_DEFAULT(is_mixed) host_model::Current()->isMixed = is_mixed
#define GET_TILING_DATA_WITH_STRUCT(tiling_struct, tiling_data, tiling_arg) \
    tiling_struct tiling_data;                                              \
    std::memcpy(&tiling_data, tiling_arg, sizeof(tiling_struct))

#endif
