// A pool of workers that sleep between jobs: none of them spins, so MindSpore's own threads keep their
// cores.
#ifndef MS_CE_THREAD_POOL_H_
#define MS_CE_THREAD_POOL_H_

#include <cstdint>
#include <functional>

namespace ms_ce {

// Calls work(unit) for every unit in [0, units), on the caller and on workers. Work that is too small
// to repay waking a worker stays on the caller, and so does the work of a second caller while the pool
// is busy. Workers compute in a FloatEnvironment, the caller in what it has. `work` must not throw.
void ParallelFor(int64_t units, int64_t elements, const std::function<void(int64_t)>& work);

// Those that ParallelFor shares work among.
int Threads();

// 0 restores the default: OMP_NUM_THREADS, or the CPUs this process may run on. Returns the number in
// force.
int SetThreads(int threads);

}  // namespace ms_ce

#endif  // MS_CE_THREAD_POOL_H_
