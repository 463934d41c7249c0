// Operations that run, for a thread that waits for them.
#ifndef MS_CE_PROGRESS_H_
#define MS_CE_PROGRESS_H_

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

#endif  // MS_CE_PROGRESS_H_
