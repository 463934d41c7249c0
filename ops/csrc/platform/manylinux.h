// Read before every file of a wheel's kernel (-DMS_CE_MANYLINUX=ON): functions of glibc and libstdc++ in
// the versions that were there before those of the machine that builds, so that the wheel runs on older
// systems.
#ifndef MS_CE_PLATFORM_MANYLINUX_H_
#define MS_CE_PLATFORM_MANYLINUX_H_

#include <cstdlib>

// Waiting by the steady clock is of glibc 2.30. Without it libstdc++ waits by the system's clock, and again
// where the steady one says that it was too short.
#undef _GLIBCXX_USE_PTHREAD_COND_CLOCKWAIT

#if defined(__x86_64__)
#define MS_CE_OLDEST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define MS_CE_OLDEST_GLIBC "GLIBC_2.17"
#endif

#define MS_CE_BIND(name, version) __asm__(".symver " name ", " name "@" version)
MS_CE_BIND("dlopen", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("dlsym", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("exp", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("log", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("pthread_getspecific", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("pthread_key_create", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("pthread_mutex_trylock", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("pthread_setspecific", MS_CE_OLDEST_GLIBC);
MS_CE_BIND("_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE", "GLIBCXX_3.4.11");
#undef MS_CE_BIND
#undef MS_CE_OLDEST_GLIBC

#endif  // MS_CE_PLATFORM_MANYLINUX_H_
