// The C interface of the kernel that is tested: this program's own, or after Open that of a libms_ce.so,
// a wheel's say.
#ifndef MS_CE_TESTS_KERNEL_LIBRARY_H_
#define MS_CE_TESTS_KERNEL_LIBRARY_H_

#include <dlfcn.h>

#include <type_traits>

#include "check.h"
#include "interface/cross_entropy.h"

using MsCeOperation = int(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes,
                          void* stream, void* extra);
extern "C" MsCeOperation CrossEntropyForward;

namespace ms_ce_test {

struct Library {
  decltype(&MsCeIsa) isa = MsCeIsa;
  decltype(&MsCeIsaList) isa_list = MsCeIsaList;
  decltype(&MsCeSetIsa) set_isa = MsCeSetIsa;
  decltype(&MsCeSetThreads) set_threads = MsCeSetThreads;
  decltype(&MsCeTry) try_operation = MsCeTry;
  MsCeOperation* forward = CrossEntropyForward;
};
inline Library library;

inline bool Open(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!Check(handle != nullptr, "%s does not open: %s", path, handle == nullptr ? dlerror() : ""))
    return false;
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(handle, name));
    return Check(*function != nullptr, "%s has no %s", path, name);
  };
  return find("MsCeIsa", &library.isa) && find("MsCeIsaList", &library.isa_list) &&
         find("MsCeSetIsa", &library.set_isa) && find("MsCeSetThreads", &library.set_threads) &&
         find("MsCeTry", &library.try_operation) && find("CrossEntropyForward", &library.forward);
}

}  // namespace ms_ce_test

#endif  // MS_CE_TESTS_KERNEL_LIBRARY_H_
