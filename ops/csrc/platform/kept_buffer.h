// Memory that a thread keeps from call to call.
#ifndef MS_CE_KEPT_BUFFER_H_
#define MS_CE_KEPT_BUFFER_H_

#include <cstddef>

namespace ms_ce {

// At least `bytes` from the beginning of a cache line, of the thread that calls and freed at its end; null
// where there is no memory. What it holds is lost where it grows.
void* KeptBuffer(size_t bytes);

}  // namespace ms_ce

#endif  // MS_CE_KEPT_BUFFER_H_
