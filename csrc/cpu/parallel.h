#pragma once

#include <exception>

#if defined(VR_KERNELS_STD_THREADS)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace vr::cpu {

// Calls body(thread, threads) on each of at most `threads` threads. The first exception is thrown again here, once all
// are done: none may leave a parallel region.
template <typename Body>
void parallel(int threads, const Body& body) {
#if defined(VR_KERNELS_STD_THREADS)
  std::vector<std::exception_ptr> failures(threads);
  std::vector<std::thread> others;
  const auto run = [&](int thread) {
    try {
      body(thread, threads);
    } catch (...) {
      failures[thread] = std::current_exception();
    }
  };
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
#elif defined(_OPENMP)
  std::exception_ptr failure;
#pragma omp parallel num_threads(threads)
  try {
    body(omp_get_thread_num(), omp_get_num_threads());
  } catch (...) {
#pragma omp critical(vr_cpu_parallel_failure)
    if (!failure) failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
#else
  static_cast<void>(threads);
  body(0, 1);
#endif
}

}  // namespace vr::cpu
