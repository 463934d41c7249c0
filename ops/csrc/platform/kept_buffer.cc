#include "platform/kept_buffer.h"

#include <pthread.h>
#include <stdlib.h>

#include "platform/array.h"

namespace ms_ce {
namespace {

// A key of the system and no thread_local: a library's first touch of those ends the process where there is
// no memory.
struct Key {
  Key() : made(pthread_key_create(&key, free) == 0) {}
  pthread_key_t key;
  const bool made;
};

// Before the elements; a cache line, as they are to begin with one.
struct alignas(kCacheLine) Head {
  size_t bytes;
};

}  // namespace

void* KeptBuffer(size_t bytes) {
  static const Key key;
  if (!key.made) return nullptr;
  auto* head = static_cast<Head*>(pthread_getspecific(key.key));
  if (head != nullptr && head->bytes >= bytes) return head + 1;
  pthread_setspecific(key.key, nullptr);
  free(head);
  void* memory = nullptr;
  if (posix_memalign(&memory, kCacheLine, sizeof(Head) + bytes) != 0) return nullptr;
  head = static_cast<Head*>(memory);
  head->bytes = bytes;
  if (pthread_setspecific(key.key, head) == 0) return head + 1;
  free(head);
  return nullptr;
}

}  // namespace ms_ce
