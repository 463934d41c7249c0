// What the compiler for the chip brings by itself and no public header declares: qualifiers, types and the
// pipes' names. The intrinsics, of which there are hundreds, are declared by check_toolchain.py as they are
// asked for.
#pragma once

#include <cstddef>
#include <cstdint>

#define __aicore__
#define __global__
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __fbuf__
#define __inout_pipe__(...)
#define __in_pipe__(...)
#define __out_pipe__(...)
#define __sync_alias__
#define __sync_noalias__
#define __check_sync_alias__
#define __simd_callee__
#define __simt_callee__
#define __ssbuf__
#define __biasbuf__
#define __vector__
#define __cube__

using half = _Float16;
struct bfloat16_t {
  bfloat16_t() = default;
  bfloat16_t(float);
  uint16_t bits;
};

enum pipe_t {
  PIPE_S,
  PIPE_V,
  PIPE_M,
  PIPE_MTE1,
  PIPE_MTE2,
  PIPE_MTE3,
  PIPE_ALL,
  PIPE_MTE4,
  PIPE_MTE5,
  PIPE_V2,
  PIPE_FIX
};
enum event_t { EVENT_ID0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };
enum Order_t { ONLY_VALUE, ONLY_INDEX, VALUE_INDEX, INDEX_VALUE };
enum mem_dsb_t { DSB_ALL, DSB_DDR, DSB_UB };
enum class cache_line_t { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class dcci_dst_t { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };
enum QuantMode_t { NoQuant };
enum pad_t { PAD_NONE };
enum ub_addr8_t { VA0, VA1, VA2, VA3, VA4, VA5, VA6, VA7 };

#include "intrinsics.h"

// The kernels' compiler writes this macro for each operator.
#define GET_TILING_DATA_WITH_STRUCT(tiling_struct, tiling_data, tiling_arg) \
  tiling_struct tiling_data;                                                \
  (void)tiling_arg
