// The floating-point environment that everything here computes in, whatever the calling thread has set.
#ifndef MS_CE_FLOAT_ENVIRONMENT_H_
#define MS_CE_FLOAT_ENVIRONMENT_H_

#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <cfenv>
#endif

namespace ms_ce {

// While it lives, its thread keeps denormals, rounds to nearest and masks exceptions; then it has its own
// environment again, sticky flags included. A register is written where it differs only: that waits for
// the arithmetic before it. x87's is left alone: nothing here is a long double. The clobbers keep the
// compiler from moving a load before the registers are set, and a store behind their return.
class FloatEnvironment {
 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

#if defined(__x86_64__)
  FloatEnvironment() : saved_(Read()) {
    if ((saved_ & ~kSticky) != kAllMasked) Write(kAllMasked);
  }
  ~FloatEnvironment() {
    if (Read() != saved_) Write(saved_);
  }

 private:
  static constexpr uint32_t kAllMasked = 0x1f80, kSticky = 0x3f;  // of MXCSR

  static uint32_t Read() {
    uint32_t value;
    asm volatile("stmxcsr %0" : "=m"(value) : : "memory");
    return value;
  }
  static void Write(uint32_t value) { asm volatile("ldmxcsr %0" : : "m"(value) : "memory"); }

  uint32_t saved_;
#elif defined(__aarch64__)
  FloatEnvironment() {
    asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control_), "=r"(sticky_) : : "memory");
    if (control_ != 0) WriteControl(0);
  }
  ~FloatEnvironment() {
    if (control_ != 0) WriteControl(control_);
    uint64_t sticky;
    asm volatile("mrs %0, fpsr" : "=r"(sticky) : : "memory");
    if (sticky != sticky_) asm volatile("msr fpsr, %0" : : "r"(sticky_) : "memory");
  }

 private:
  // Zero also turns off default nans and the other format of 16 bits.
  static void WriteControl(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }

  uint64_t control_, sticky_;
#else
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
};

}  // namespace ms_ce

#endif  // MS_CE_FLOAT_ENVIRONMENT_H_
