// What there is one of in each process.
#ifndef MS_CE_PER_PROCESS_H_
#define MS_CE_PER_PROCESS_H_

#include <pthread.h>

#include <new>

namespace ms_ce {

// Needs no memory, and is never destroyed: threads may outlive every static object. A forked child has none
// of its parent's threads, so what they held there begins anew, in a process that has called MakeForksSafe.
template <class T>
class PerProcess {
 public:
  static T& Get() { return storage_.value; }

  // At the first use that may be interrupted by a fork. Throws std::bad_alloc where the system cannot note
  // it.
  static void MakeForksSafe() {
    static const bool registered = [] {
      if (pthread_atfork(nullptr, nullptr, [] { new (&storage_.value) T; }) != 0) throw std::bad_alloc();
      return true;
    }();
    (void)registered;
  }

 private:
  union Storage {
    Storage() : value() {}
    ~Storage() {}
    T value;
  };
  static inline Storage storage_;
};

}  // namespace ms_ce

#endif  // MS_CE_PER_PROCESS_H_
