#include "interface/progress.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "interface/cross_entropy.h"
#include "platform/per_process.h"

namespace ms_ce {
namespace {

struct Progress {
  std::mutex mutex;
  std::condition_variable finished_one;
  int64_t running = 0, finished = 0;
};

Progress& TheProgress() { return PerProcess<Progress>::Get(); }

}  // namespace

RunningOperation::RunningOperation() {
  PerProcess<Progress>::MakeForksSafe();
  Progress& progress = TheProgress();
  const std::lock_guard<std::mutex> lock(progress.mutex);
  ++progress.running;
}

RunningOperation::~RunningOperation() {
  Progress& progress = TheProgress();
  {
    const std::lock_guard<std::mutex> lock(progress.mutex);
    --progress.running;
    ++progress.finished;
  }
  progress.finished_one.notify_all();
}

}  // namespace ms_ce

int64_t MsCeFinished() {
  ms_ce::Progress& progress = ms_ce::TheProgress();
  const std::lock_guard<std::mutex> lock(progress.mutex);
  return progress.finished;
}

void MsCeWait(int64_t finished, int64_t idle_milliseconds) {
  ms_ce::Progress& progress = ms_ce::TheProgress();
  const auto idle = std::chrono::milliseconds(idle_milliseconds);
  std::unique_lock<std::mutex> lock(progress.mutex);
  const auto done = [&] { return progress.finished > finished; };
  while (!progress.finished_one.wait_for(lock, idle, done) && progress.running > 0) {
  }
}
