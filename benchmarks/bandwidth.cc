// What the memory gives: reads a buffer, or copies it into another, with two threads.
//
// Answers one line "read|copy BYTES CALLS" on standard input with the seconds of each call. The
// copy writes with stores that do not read the destination first: BYTES in, BYTES out. Buffers ask
// for huge pages, as allocators of large tensors do, so that address translation is no part of it.
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include <sys/mman.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

namespace {

constexpr size_t kChunk = 256;  // four cache lines: independent sums hide the latency of adding

uint64_t ReadAll(const uint64_t* data, size_t count) {
  uint64_t sums[32] = {};
  for (size_t i = 0; i + 32 <= count; i += 32)
    for (size_t k = 0; k < 32; ++k) sums[k] ^= data[i + k];
  uint64_t total = 0;
  for (uint64_t sum : sums) total ^= sum;
  return total;
}

void CopyAll(const char* from, char* to, size_t bytes) {
#if defined(__AVX512F__)
  for (size_t i = 0; i + 64 <= bytes; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
  _mm_sfence();
#elif defined(__x86_64__)
  for (size_t i = 0; i + 16 <= bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);  // the C library's, which streams large blocks where that pays
#endif
}

// A second thread that sleeps between tasks, so that no call pays for starting one.
class Helper {
 public:
  Helper() : thread_([this] { Loop(); }) { thread_.detach(); }

  void Start(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = std::move(task);
    wake_.notify_all();
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [this] { return !task_; });
  }

 private:
  void Loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return static_cast<bool>(task_); });
      std::function<void()> task = task_;
      lock.unlock();
      task();
      lock.lock();
      task_ = nullptr;
      wake_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::function<void()> task_;
  std::thread thread_;
};

char* Allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  char* data = static_cast<char*>(std::aligned_alloc(kHugePage, rounded));
  if (!data) return nullptr;
  madvise(data, rounded, MADV_HUGEPAGE);
  std::memset(data, 1, rounded);
  return data;
}

volatile uint64_t sink;

double Seconds(Helper& helper, bool copy, char* from, char* to, size_t bytes) {
  size_t half = bytes / 2 / kChunk * kChunk;
  auto work = [=](size_t begin, size_t end) {
    if (copy) {
      CopyAll(from + begin, to + begin, end - begin);
    } else {
      sink = ReadAll(reinterpret_cast<const uint64_t*>(from + begin), (end - begin) / 8);
    }
  };
  auto start = std::chrono::steady_clock::now();
  helper.Start([=] { work(half, bytes / kChunk * kChunk); });
  work(0, half);
  helper.Wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main() {
  static Helper* helper = new Helper;
  char what[8];
  size_t bytes;
  int calls;
  while (std::scanf("%7s %zu %d", what, &bytes, &calls) == 3) {
    bool copy = std::strcmp(what, "copy") == 0;
    char* from = Allocate(bytes);
    char* to = copy ? Allocate(bytes) : nullptr;
    if (!from || (copy && !to)) return 1;
    Seconds(*helper, copy, from, to, bytes);
    for (int i = 0; i < calls; ++i) std::printf("%.9f ", Seconds(*helper, copy, from, to, bytes));
    std::printf("\n");
    std::fflush(stdout);
    std::free(from);
    std::free(to);
  }
  std::_Exit(0);
}
