// Small kernels, each with one fault that the host model must catch, and sound ones that it must not. Every
// kernel adds 1 to `elements` floats per block, from x to y.
#include "launch.h"

namespace {

using namespace AscendC;
constexpr uint32_t kElements = 512;
constexpr uint32_t kBytes = kElements * sizeof(float);

GlobalTensor<float> Of(GM_ADDR address) {
  GlobalTensor<float> tensor;
  tensor.SetGlobalBuffer(reinterpret_cast<float*>(address));
  return tensor[GetBlockIdx() * kElements];
}

void Load(const LocalTensor<float>& to, const GlobalTensor<float>& from, uint32_t elements = kElements) {
  DataCopyPad(to, from, DataCopyExtParams(1, elements * sizeof(float), 0, 0, 0),
              DataCopyPadExtParams<float>());
}

void Store(const GlobalTensor<float>& to, const LocalTensor<float>& from, uint32_t elements = kElements) {
  DataCopyPad(to, from, DataCopyExtParams(1, elements * sizeof(float), 0, 0, 0));
}

template <HardEvent event>
void Wait() {
  const auto id = GetTPipePtr()->FetchEventID(event);
  SetFlag<event>(id);
  WaitFlag<event>(id);
}

struct Queued {
  TPipe pipe;
  TQue<TPosition::VECIN, 2> in;
  TQue<TPosition::VECOUT, 2> out;
  Queued() {
    pipe.InitBuffer(in, 2, kBytes);
    pipe.InitBuffer(out, 2, kBytes);
  }
  void Fill(GM_ADDR x) {
    auto t = in.AllocTensor<float>();
    Load(t, Of(x));
    in.EnQue(t);
  }
};

struct Plain {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  LocalTensor<float> a, b;
  Plain() {
    pipe.InitBuffer(buffer, 2 * kBytes);
    a = buffer.Get<float>();
    b = a[kElements];
  }
};

void sound_queues(GM_ADDR x, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Queued k;
  k.Fill(x);
  auto from = k.in.DeQue<float>();
  auto to = k.out.AllocTensor<float>();
  Adds(to, from, 1.0f, kElements);
  k.in.FreeTensor(from);
  k.out.EnQue(to);
  to = k.out.DeQue<float>();
  Store(Of(y), to);
  k.out.FreeTensor(to);
}

// The same with flags; `FAULT` leaves one of them out.
template <int FAULT>
void flags(GM_ADDR x, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Plain k;
  Load(k.a, Of(x));
  if (FAULT != 1) Wait<HardEvent::MTE2_V>();
  Adds(k.b, k.a, 1.0f, kElements);
  if (FAULT != 2) Wait<HardEvent::V_MTE3>();
  Store(Of(y), k.b);
  if (FAULT != 3) Wait<HardEvent::V_MTE2>();
  Load(k.a, Of(x));  // the buffer is used again
  Wait<HardEvent::MTE2_V>();
  if (FAULT != 4) Wait<HardEvent::MTE3_V>();
  Adds(k.b, k.a, 1.0f, kElements);
  if (FAULT != 5) Wait<HardEvent::V_S>();
  const float first = k.b.GetValue(0);
  k.b.SetValue(0, first);
  if (FAULT != 6) Wait<HardEvent::S_MTE3>();
  Wait<HardEvent::V_MTE3>();
  Store(Of(y), k.b);
}

void over_capacity(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  pipe.InitBuffer(buffer, 192 * 1024 - 256 + 32);  // 192 KB less what CANN reserves
}

void unaligned_vector(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a[1], 1.0f, 8);
}

void unaligned_copy(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Load(k.a[4], Of(x), 8);
}

void past_local_buffer(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.b, 1.0f, kElements + 1);
}

void past_input(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Load(k.a, Of(x)[GetBlockIdx() == GetBlockNum() - 1 ? 1 : 0]);
}

void past_output(GM_ADDR, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, 2 * kElements);
  Wait<HardEvent::V_MTE3>();
  Store(Of(y), k.a, kElements + (GetBlockIdx() == GetBlockNum() - 1 ? 1 : 0));
}

void writes_input(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements);
  Wait<HardEvent::V_MTE3>();
  Store(Of(x), k.a);
}

void reads_unwritten(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements - 1);
  Adds(k.b, k.a, 1.0f, kElements);
}

void reads_padding(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Load(k.a, Of(x), 3);  // three elements land, the other five of the block are unknown
  Wait<HardEvent::MTE2_V>();
  Adds(k.b, k.a, 1.0f, 8);
}

void leaks(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Queued k;
  k.Fill(x);
  k.in.DeQue<float>();
}

void frees_twice(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Queued k;
  k.Fill(x);
  auto t = k.in.DeQue<float>();
  k.in.FreeTensor(t);
  k.in.FreeTensor(t);
}

void takes_too_many(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Queued k;
  for (int i = 0; i < 3; ++i) k.Fill(x);
}

void uses_after_free(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Queued k;
  k.Fill(x);
  auto t = k.in.DeQue<float>();
  k.in.FreeTensor(t);
  Adds(t, t, 1.0f, kElements);
}

void dequeues_nothing(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Queued k;
  k.in.DeQue<float>();
}

void runs_out_of_events(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  TPipe pipe;
  TQue<TPosition::VECIN, 9> in;
  pipe.InitBuffer(in, 9, kBytes);
  for (int i = 0; i < 9; ++i) {
    auto t = in.AllocTensor<float>();
    Load(t, Of(x));
    in.EnQue(t);
  }
}

void uses_before_dequeue(GM_ADDR x, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Queued k;
  auto t = k.in.AllocTensor<float>();
  Load(t, Of(x));
  auto to = k.out.AllocTensor<float>();
  Adds(to, t, 1.0f, kElements);
  k.in.EnQue(t);
  t = k.in.DeQue<float>();
  k.in.FreeTensor(t);
  k.out.EnQue(to);
  to = k.out.DeQue<float>();
  Store(Of(y), to);
  k.out.FreeTensor(to);
}

void blocks_overlap(GM_ADDR, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements + 8);
  Wait<HardEvent::V_MTE3>();
  Store(Of(y), k.a, kElements + (GetBlockIdx() == 0 ? 1 : 0));
}

void repeats_256(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  pipe.InitBuffer(buffer, 256 * 256);
  auto t = buffer.Get<float>();
  Duplicate(t, 1.0f, 256 * 64);
  const int repeats = 256;  // does not fit uint8_t: the hardware would run 0 repeats
  Adds(t, t, 1.0f, static_cast<uint64_t>(64), repeats, UnaryRepeatParams(1, 1, 8, 8));
}

void mask_65(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements);
  Adds(k.a, k.a, 1.0f, static_cast<uint64_t>(65), 1, UnaryRepeatParams(1, 1, 8, 8));
}

void stride_256(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements);
  const int stride = 256;
  Adds(k.a, k.a, 1.0f, static_cast<uint64_t>(64), 1, UnaryRepeatParams(1, 1, stride, stride));
}

void copies_4096_rows(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  pipe.InitBuffer(buffer, 4096 * 32);
  const int rows = 4096;
  DataCopyPad(buffer.Get<float>(), Of(x), DataCopyExtParams(rows, 4, 0, 0, 0),
              DataCopyPadExtParams<float>());
}

void operands_overlap(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements);
  Adds(k.a[8], k.a, 1.0f, 64);
}

// A workspace record of each block, read by the next one; `FAULT` leaves a synchronisation out, or the
// kernel's type.
template <int FAULT>
void exchange(GM_ADDR, GM_ADDR y, GM_ADDR workspace, GM_ADDR) {
  KERNEL_TASK_TYPE_DEFAULT(FAULT == 4 ? KERNEL_TYPE_AIV_ONLY : KERNEL_TYPE_MIX_AIV_1_0);
  Plain k;
  GlobalTensor<float> records;
  records.SetGlobalBuffer(reinterpret_cast<float*>(workspace));
  const int64_t block = GetBlockIdx(), next = (block + 1) % GetBlockNum();
  Duplicate(k.a, static_cast<float>(block), kElements);
  Wait<HardEvent::V_MTE3>();
  Store(records[block * 8], k.a, 8);
  if (FAULT == 1 && block == 0) return;  // the others wait for this block for ever
  if (FAULT != 2) SyncAll();
  Load(k.b, records[(FAULT == 3 ? block + GetBlockNum() : next) * 8], 8);
  Wait<HardEvent::MTE2_MTE3>();
  Store(Of(y), k.b, 8);
}

// Two exchanges, whose records lie behind each other; nobody waits for the second.
void exchanges_twice(GM_ADDR, GM_ADDR y, GM_ADDR workspace, GM_ADDR) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);
  Plain k;
  GlobalTensor<float> records;
  records.SetGlobalBuffer(reinterpret_cast<float*>(workspace));
  const uint32_t all = static_cast<uint32_t>(GetBlockNum()) * 8;
  Duplicate(k.a, static_cast<float>(GetBlockIdx()), 8);
  Wait<HardEvent::V_MTE3>();
  Store(records[GetBlockIdx() * 8], k.a, 8);
  SyncAll();
  Store(records[all + GetBlockIdx() * 8], k.a, 8);
  Load(k.b, records, all);
  Wait<HardEvent::MTE2_MTE3>();
  Store(Of(y), k.b, all);
}

void flag_nobody_sets(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  WaitFlag<HardEvent::MTE2_V>(0);
}

void flag_left_set(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  SetFlag<HardEvent::MTE2_V>(0);
}

void casts_with_the_wrong_rounding(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, 64);
  Cast(k.b.ReinterpretCast<half>(), k.a, RoundMode::CAST_NONE, 64);
}

void starts_at_the_end(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  const auto behind = k.b[kElements];  // nobody reads it
  (void)behind;
}

void leaves_the_control_register(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) { set_ctrl(get_ctrl() ^ 1ll << 48); }

// The first read says that it is the last.
void reads_past_the_cache_twice(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  auto from = Of(x);
  from.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
  Load(k.a, from);
  from.SetL2CacheHint(CacheMode::CACHE_MODE_NORMAL);
  Load(k.b, from, 8);
}

// NaN, inf and -inf as T, in the words of y; `KEEPS` makes them survive, as a kernel has to.
template <typename T, bool KEEPS>
void converts(GM_ADDR, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Plain k;
  const int64_t control = get_ctrl();
  if (KEEPS) set_ctrl(control | 1ll << 48);
  Duplicate(k.a, 0.0f, 64);
  Wait<HardEvent::V_S>();
  k.a.SetValue(0, __builtin_nanf(""));
  k.a.SetValue(1, __builtin_inff());
  k.a.SetValue(2, -__builtin_inff());
  Wait<HardEvent::S_V>();
  Cast(k.b.ReinterpretCast<T>(), k.a, RoundMode::CAST_RINT, 64);
  Wait<HardEvent::V_MTE3>();
  Store(Of(y), k.b, 32);
  set_ctrl(control);
}

// The maximum of NaN and 1, either way round.
void maximum_of_nan(GM_ADDR, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, __builtin_nanf(""), 64);
  Maxs(k.b, k.a, 1.0f, 8);
  Duplicate(k.b[8], 1.0f, 8);
  Max(k.b[8], k.b[8], k.a, 8);
  Wait<HardEvent::V_MTE3>();
  Store(Of(y), k.b, 16);
}

void reads_past_the_cache(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  auto from = Of(x);
  from.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
  Load(k.a, from);
}

#include "counted_kernels.h"
#include "selecting_kernels.h"

void stale_cache(GM_ADDR, GM_ADDR y, GM_ADDR, GM_ADDR) { Of(y).GetValue(0); }

}  // namespace

extern "C" int broken_launch(const char* kernel, host_model::LaunchRequest* request) {
  const std::string name = kernel;
#define KERNEL(NAME) \
  if (name == #NAME) return host_model::Launch(&NAME, *request)
#define NUMBERED(NAME, NUMBER) \
  if (name == #NAME "_" #NUMBER) return host_model::Launch(&NAME<NUMBER>, *request)
#define CONVERTS(TYPE, KEEPS) \
  if (name == "converts<" #TYPE ", " #KEEPS ">") return host_model::Launch(&converts<TYPE, KEEPS>, *request)
  KERNEL(sound_queues);
  KERNEL(over_capacity);
  KERNEL(unaligned_vector);
  KERNEL(unaligned_copy);
  KERNEL(past_local_buffer);
  KERNEL(past_input);
  KERNEL(past_output);
  KERNEL(writes_input);
  KERNEL(reads_unwritten);
  KERNEL(reads_padding);
  KERNEL(leaks);
  KERNEL(frees_twice);
  KERNEL(takes_too_many);
  KERNEL(uses_after_free);
  KERNEL(dequeues_nothing);
  KERNEL(runs_out_of_events);
  KERNEL(uses_before_dequeue);
  KERNEL(blocks_overlap);
  KERNEL(repeats_256);
  KERNEL(mask_65);
  KERNEL(stride_256);
  KERNEL(copies_4096_rows);
  KERNEL(operands_overlap);
  KERNEL(flag_nobody_sets);
  KERNEL(flag_left_set);
  KERNEL(casts_with_the_wrong_rounding);
  KERNEL(stale_cache);
  KERNEL(starts_at_the_end);
  KERNEL(leaves_the_control_register);
  KERNEL(reads_past_the_cache_twice);
  KERNEL(reads_past_the_cache);
  KERNEL(maximum_of_nan);
  KERNEL(sums_on_the_scalar_pipe);
  KERNEL(adds_in_pairs);
  KERNEL(overwrites);
  KERNEL(returns_from_the_scalar_pipe);
  KERNEL(copies_blocks);
  KERNEL(adds_four_times<true>);
  KERNEL(adds_four_times<false>);
  KERNEL(adds_two_sources<4>);
  KERNEL(adds_two_sources<8>);
  KERNEL(adds_two_sources<16>);
  KERNEL(adds_one_block<4>);
  KERNEL(adds_one_block<8>);
  CONVERTS(half, false);
  CONVERTS(half, true);
  CONVERTS(bfloat16_t, false);
  CONVERTS(bfloat16_t, true);
  NUMBERED(flags, 0);
  NUMBERED(flags, 1);
  NUMBERED(flags, 2);
  NUMBERED(flags, 3);
  NUMBERED(flags, 4);
  NUMBERED(flags, 5);
  NUMBERED(flags, 6);
  NUMBERED(selects, 0);
  NUMBERED(selects, 1);
  NUMBERED(selects, 2);
  NUMBERED(selects, 3);
  NUMBERED(selects, 4);
  NUMBERED(selects, 5);
  NUMBERED(selects, 6);
  NUMBERED(selects, 7);
  NUMBERED(selects, 8);
  NUMBERED(selects, 9);
  NUMBERED(selects, 10);
  KERNEL(exchanges_twice);
  NUMBERED(exchange, 0);
  NUMBERED(exchange, 1);
  NUMBERED(exchange, 2);
  NUMBERED(exchange, 3);
  NUMBERED(exchange, 4);
  std::strcpy(request->message, "no such kernel");
  return 2;
}
