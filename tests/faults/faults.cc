// Preloaded before the C library (LD_PRELOAD): makes what the system does for a process fail.
//   allocations       in the calls that the functions below make, from the nth on
//   MS_CE_NO_PROC     files below /proc are not there
//   MS_CE_READ_ONLY   a path: nothing below it may be written
//   MS_CE_NO_THREADS  no thread is started after so many
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <atomic>
#include <exception>
#include <vector>

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {

std::atomic<bool> armed{false};
std::atomic<long> until{0}, failures{0};
bool lasting = false;

bool Fails() {
  if (!armed.load(std::memory_order_relaxed)) return false;
  const long left = until.fetch_sub(1);
  if (lasting ? left > 1 : left != 1) return false;
  ++failures;
  errno = ENOMEM;
  return true;
}

// The allocation `nth` of `call` fails, and all later ones too where `all_later`.
template <class Call>
auto WithFailure(long nth, int all_later, long* failed, Call call) {
  until = nth;
  failures = 0;
  lasting = all_later != 0;
  armed = true;
  auto result = call();
  armed = false;
  *failed = failures;
  return result;
}

bool IsBelow(const char* path, const char* folder) {
  const size_t length = strlen(folder);
  return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

// Whether a path may be opened; sets errno where it may not.
bool Allowed(const char* path, bool writes) {
  if (getenv("MS_CE_NO_PROC") != nullptr && IsBelow(path, "/proc")) {
    errno = ENOENT;
    return false;
  }
  const char* folder = getenv("MS_CE_READ_ONLY");
  if (folder != nullptr && writes && IsBelow(path, folder)) {
    errno = EROFS;
    return false;
  }
  return true;
}

template <class Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

constexpr int kWrites = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC;

}  // namespace

extern "C" {

void* malloc(size_t bytes) { return Fails() ? nullptr : __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return Fails() ? nullptr : __libc_calloc(count, bytes); }
void* realloc(void* memory, size_t bytes) { return Fails() ? nullptr : __libc_realloc(memory, bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) {
  return Fails() ? nullptr : __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  void* made = Fails() ? nullptr : __libc_memalign(alignment, bytes);
  if (made == nullptr) return ENOMEM;
  *memory = made;
  return 0;
}

#define OPEN(name)                                                                       \
  int name(const char* path, int flags, ...) {                                           \
    va_list rest;                                                                        \
    va_start(rest, flags);                                                               \
    const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                                        \
    if (!Allowed(path, (flags & kWrites) != 0)) return -1;                               \
    return Next<int(const char*, int, ...)>(#name)(path, flags, mode);                   \
  }
OPEN(open)
OPEN(open64)

#define FOPEN(name)                                                      \
  FILE* name(const char* path, const char* mode) {                       \
    if (!Allowed(path, strpbrk(mode, "wa+") != nullptr)) return nullptr; \
    return Next<FILE*(const char*, const char*)>(#name)(path, mode);     \
  }
FOPEN(fopen)
FOPEN(fopen64)

int mkdir(const char* path, mode_t mode) {
  return Allowed(path, true) ? Next<int(const char*, mode_t)>("mkdir")(path, mode) : -1;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) {
  static std::atomic<long> started{0};
  const char* most = getenv("MS_CE_NO_THREADS");
  if (most != nullptr && started++ >= atol(most)) return EAGAIN;
  using Create = int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  return Next<Create>("pthread_create")(thread, attributes, start, argument);
}

using Try = const char*(const char*, int, void**, int*, int64_t**, const char**);

const char* FaultTry(Try* run, long nth, int all_later, long* failed, const char* name, int count,
                     void** data, int* ranks, int64_t** shapes, const char** dtypes) {
  return WithFailure(nth, all_later, failed, [&] { return run(name, count, data, ranks, shapes, dtypes); });
}

const char* FaultText(const char* (*function)(), long nth, int all_later, long* failed) {
  return WithFailure(nth, all_later, failed, function);
}

int FaultNumber(int (*function)(int), int argument, long nth, int all_later, long* failed) {
  return WithFailure(nth, all_later, failed, [&] { return function(argument); });
}

// The sentence that the inference of a shape throws, or null: MindSpore's only way to ask.
const char* FaultInfer(void* function, int outputs, long nth, int all_later, long* failed, int* ranks,
                       int64_t** shapes) {
  static char text[1024];
  return WithFailure(nth, all_later, failed, [&]() -> const char* {
    using Shape = std::vector<int64_t>;
    try {
      if (outputs == 1) {
        reinterpret_cast<Shape (*)(int*, int64_t**, void*)>(function)(ranks, shapes, nullptr);
      } else {
        reinterpret_cast<std::vector<Shape> (*)(int*, int64_t**, void*)>(function)(ranks, shapes, nullptr);
      }
    } catch (const std::exception& error) {
      snprintf(text, sizeof(text), "%s", error.what());
      return text;
    }
    return nullptr;
  });
}
}
