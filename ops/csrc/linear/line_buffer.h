// Memory for matrices that vectors walk over.
#ifndef MS_CE_LINE_BUFFER_H_
#define MS_CE_LINE_BUFFER_H_

#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "platform/array.h"

namespace ms_ce {

// It begins with a cache line, so that no vector lies across two; where it is large, it asks for huge
// pages, since the products walk over many rows at once.
template <class A>
class LineBuffer {
 public:
  // Drops what was there.
  void Allocate(int64_t count) {
    constexpr size_t kLine = kCacheLine, kHugePage = size_t{2} << 20;
    const size_t bytes = static_cast<size_t>(count) * sizeof(A), huge = bytes / kHugePage * kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, huge == 0 ? kLine : kHugePage, std::max(bytes, kLine)) != 0) {
      throw std::bad_alloc();
    }
    data_.reset(static_cast<A*>(data));
    if (huge != 0) madvise(data, huge, MADV_HUGEPAGE);  // a wish: without it the memory serves as well
  }
  A* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(A* data) const { free(data); }
  };
  std::unique_ptr<A, Free> data_;
};

}  // namespace ms_ce

#endif  // MS_CE_LINE_BUFFER_H_
