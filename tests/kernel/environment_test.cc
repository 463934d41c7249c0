// The calling thread's floating-point environment changes no result and is left as it was, whatever it is;
// workers have their own. The inputs are partly denormal.
#include <atomic>
#include <random>
#include <thread>

#include "platform/thread_pool.h"
#include "tensor.h"

namespace ms_ce_test {
namespace {

struct Setting {
  const char* name;
  uint64_t bits;  // of the control register, not set by default
};

struct Registers {
  uint64_t control = 0, sticky = 0;
  bool operator==(const Registers& other) const {
    return control == other.control && sticky == other.sticky;
  }
};

#if defined(__x86_64__)
constexpr Setting kSettings[] = {{"denormals flushed", 0x8040},
                                 {"rounding down", 0x2000},
                                 {"rounding up", 0x4000},
                                 {"rounding to zero", 0x6000}};

Registers Read() {
  uint32_t value;
  asm volatile("stmxcsr %0" : "=m"(value) : : "memory");
  return {value & ~0x3fu, value & 0x3fu};
}

void Write(const Registers& registers) {
  const auto value = static_cast<uint32_t>(registers.control | registers.sticky);
  asm volatile("ldmxcsr %0" : : "m"(value) : "memory");
}
#elif defined(__aarch64__)
constexpr Setting kSettings[] = {{"denormals flushed", 1 << 24}, {"rounding up", 1 << 22},
                                 {"rounding down", 2 << 22},     {"rounding to zero", 3 << 22},
                                 {"default nans", 1 << 25},      {"the other 16-bit format", 1 << 26}};

Registers Read() {
  Registers now;
  asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(now.control), "=r"(now.sticky) : : "memory");
  return now;
}

void Write(const Registers& registers) {
  asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(registers.control), "r"(registers.sticky) : "memory");
}
#else
constexpr Setting kSettings[] = {{"the default", 0}};
Registers Read() { return {}; }
void Write(const Registers&) {}
#endif

// While it lives, the thread has the bits the other way round; then its own registers again.
class Changed {
 public:
  explicit Changed(uint64_t bits) : before_(Read()) { Write({before_.control ^ bits, before_.sticky}); }
  ~Changed() { Write(before_); }

 private:
  Registers before_;
};

// Runs under a setting, and checks that the thread has it still.
std::string RunUnder(const Setting& setting, const char* operation, const std::vector<Tensor*>& tensors) {
  std::string error;
  bool kept;
  {
    const Changed changed(setting.bits);
    const Registers before = Read();
    error = Run(operation, tensors);
    kept = Read() == before;
  }
  Check(kept, "an operation changed the caller's environment under %s", setting.name);
  return error;
}

struct Loss {
  Tensor logits, target, weight, row_weight, options, upstream;
  Tensor loss, total_weight, lse, grad;

  void Compute(const Setting& setting) {
    std::string error =
        RunUnder(setting, "CrossEntropyForwardRows",
                 {&logits, &target, &weight, &row_weight, &options, &loss, &total_weight, &lse});
    Check(error.empty(), "forward threw: %s", error.c_str());
    error = RunUnder(setting, "CrossEntropyBackward",
                     {&upstream, &upstream, &logits, &target, &weight, &row_weight, &lse, &total_weight,
                      &options, &grad});
    Check(error.empty(), "backward threw: %s", error.c_str());
  }
  bool SameBytes(const Loss& other) const {
    return loss.SameBytes(other.loss) && total_weight.SameBytes(other.total_weight) &&
           lse.SameBytes(other.lse) && grad.SameBytes(other.grad);
  }
};

Loss MakeLoss(const char* dtype, double tiny) {
  const int64_t rows = 280, classes = 950;  // enough for two threads
  Options options;
  options.reduction = 0;
  options.has_weight = true;
  options.label_smoothing = 0.1;
  Loss out{Tensor(dtype, {rows, classes}), Tensor("int64", {rows}), Tensor(dtype, {classes}),
           Tensor("float64", {}),          options.Pack(),          Tensor(dtype, {rows}),
           Tensor(dtype, {rows}),          Tensor("float64", {}),   Tensor("float64", {rows}),
           Tensor(dtype, {rows, classes})};
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  const auto draw = [&](Tensor* tensor) {
    for (int64_t i = 0; i < tensor->size(); ++i) {
      const double value = normal(random);
      tensor->Set(i, random() % 3 == 0 ? value * tiny : value);
    }
  };
  for (Tensor* tensor : {&out.logits, &out.weight, &out.upstream}) draw(tensor);
  for (int64_t i = 0; i < rows; ++i) out.target.Set(i, static_cast<double>(i * 7 % classes));
  return out;
}

void TestResults(const char* dtype, double tiny) {
  const Setting none = {"the default", 0};
  Loss loss = MakeLoss(dtype, tiny);
  MsCeSetThreads(1);
  loss.Compute(none);
  const Loss expected = loss;
  for (const Setting& setting : kSettings) {
    for (int threads : {1, 2}) {
      MsCeSetThreads(threads);
      loss.Compute(setting);
      Check(loss.SameBytes(expected), "%s: %s changes a %s result on %d threads", MsCeIsa(), setting.name,
            dtype, threads);
    }
  }
  MsCeSetThreads(0);
}

void TestRefusal() {
  for (const Setting& setting : kSettings) {
    Tensor one("float32", {});
    Check(!RunUnder(setting, "CrossEntropyForward", {&one}).empty(), "a call of one tensor did not throw");
  }
}

// More workers than any test had before: some of them are made here, by a thread that flushes and rounds
// up, which a new thread inherits.
void TestWorkers() {
  constexpr int kThreads = 17;
  MsCeSetThreads(kThreads);
  const uint64_t own = Read().control;
  std::atomic<int> others{0}, wrong{0};
  {
    uint64_t bits = 0;
    for (const Setting& setting : kSettings) bits |= setting.bits;
    const Changed changed(bits);
    const std::thread::id caller = std::this_thread::get_id();
    // Every unit waits for all the others, so that each thread has one.
    ms_ce::ParallelFor(kThreads, int64_t{1} << 40, [&](int64_t) {
      ++others;
      while (others.load() < kThreads) std::this_thread::yield();
      if (std::this_thread::get_id() != caller && Read().control != own) ++wrong;
    });
  }
  MsCeSetThreads(0);
  Check(wrong.load() == 0, "%d workers have the environment of who made them", wrong.load());
}

}  // namespace

void TestEnvironment() {
  TestResults("float16", 2e-5);
  TestResults("bfloat16", 3e-39);
  TestResults("float32", 3e-40);
  TestResults("float64", 3e-310);
  TestRefusal();
  TestWorkers();
}

}  // namespace ms_ce_test
