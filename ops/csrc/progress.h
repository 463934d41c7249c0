// Operations that run, for a thread that waits for them.
#pragma once

namespace ms_ce {

// While it lives, an operation runs.
class RunningOperation {
 public:
  RunningOperation();
  ~RunningOperation();
  RunningOperation(const RunningOperation&) = delete;
  RunningOperation& operator=(const RunningOperation&) = delete;
};

}  // namespace ms_ce
