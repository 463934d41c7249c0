#include "platform/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "platform/float_environment.h"
#include "platform/per_process.h"

namespace ms_ce {
namespace {

// Elements below which waking a worker costs more than it saves (docs/kernel.md has the measurement).
constexpr int64_t kMinElementsPerThread = 131072;

constexpr int kMaxThreads = 256;

// OMP_NUM_THREADS as the process was started with; `import mindspore` sets it to 1 where it is not set.
int StartedWithThreads() {
  constexpr char kName[] = "OMP_NUM_THREADS=";
  std::ifstream environment("/proc/self/environ", std::ios::binary);
  for (std::string entry; std::getline(environment, entry, '\0');) {
    if (entry.compare(0, sizeof(kName) - 1, kName) == 0)
      return std::atoi(entry.c_str() + sizeof(kName) - 1);
  }
  return 0;
}

// What the program itself has set counts too, but for that 1.
int AskedThreads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const int now = text == nullptr ? 0 : std::atoi(text);
  return now == 1 ? StartedWithThreads() : now;
}

int DefaultThreads() {
  const int asked = AskedThreads();
  if (asked > 0) return std::min(asked, kMaxThreads);
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::clamp(CPU_COUNT(&set), 1, kMaxThreads);
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

std::atomic<int> forced_threads{0};

int ThreadsInForce() {
  static const int default_threads = DefaultThreads();
  const int forced = forced_threads.load(std::memory_order_relaxed);
  return forced > 0 ? forced : default_threads;
}

class ThreadPool {
 public:
  // False when another caller has the pool.
  bool TryRun(int64_t units, int threads, const std::function<void(int64_t)>& work) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Grow(threads - 1);
      work_ = &work;
      units_ = units;
      next_.store(0, std::memory_order_relaxed);
      seats_ = threads - 1;
      ++generation_;
    }
    for (int i = 1; i < threads; ++i) wake_.notify_one();
    TakeUnits(work, units);
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;  // a worker that wakes up from here on goes back to sleep
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void Grow(int workers) {
    while (workers_ < workers) {
      try {
        std::thread([this] { Serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // the caller and the workers there are do the work
      } catch (const std::bad_alloc&) {
        return;
      }
      ++workers_;
    }
  }

  void TakeUnits(const std::function<void(int64_t)>& work, int64_t units) {
    for (int64_t unit; (unit = next_.fetch_add(1, std::memory_order_relaxed)) < units;) work(unit);
  }

  void Serve() {
    const FloatEnvironment environment;
    uint64_t served = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return seats_ > 0 && generation_ != served; });
      served = generation_;
      --seats_;
      ++active_;
      const std::function<void(int64_t)>* work = work_;
      const int64_t units = units_;
      lock.unlock();
      TakeUnits(*work, units);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex owner_;  // held by the caller whose job this is
  std::mutex mutex_;  // guards what follows, but for next_
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t units_ = 0;
  std::atomic<int64_t> next_{0};
  uint64_t generation_ = 0;
  int seats_ = 0, active_ = 0, workers_ = 0;
};

}  // namespace

void ParallelFor(int64_t units, int64_t elements, const std::function<void(int64_t)>& work) {
  const int64_t worthwhile = std::min<int64_t>(units, elements / kMinElementsPerThread);
  const int threads = static_cast<int>(std::min<int64_t>(ThreadsInForce(), worthwhile));
  if (threads > 1) {
    PerProcess<ThreadPool>::MakeForksSafe();
    if (PerProcess<ThreadPool>::Get().TryRun(units, threads, work)) return;
  }
  for (int64_t unit = 0; unit < units; ++unit) work(unit);
}

int Threads() { return ThreadsInForce(); }

int SetThreads(int threads) {
  forced_threads.store(std::clamp(threads, 0, kMaxThreads));
  return ThreadsInForce();
}

}  // namespace ms_ce
