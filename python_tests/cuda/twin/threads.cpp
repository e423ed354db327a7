#include "threads.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace vr::twin {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

Block* running = nullptr;
const std::function<void()>* kernel = nullptr;
Place scheduler;

[[noreturn, gnu::noinline, gnu::no_sanitize("address")]] void jump(Place& place) {
  __builtin_longjmp(place.registers, 1);
}

// Leaves `from` and goes on at `to`; the address sanitizer must know on which stack that is.
[[gnu::noinline, gnu::no_sanitize("address")]] void change(Place& from, Place& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_bytes);
#endif
  if (__builtin_setjmp(from.registers) == 0) jump(to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// What a thread does: one kernel after another.
void live() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
#endif
  for (Thread* self = &running->thread();;) {
    change(self->place, scheduler);
    (*kernel)();
    self->finished = true;
  }
}

// Goes to a new stack for the first time, and comes back once the thread there is ready for its first kernel.
void begin(Thread& thread) {
  static ucontext_t here, there;
  auto* stack = new std::vector<char>(kStackBytes);  // for good
  thread.place.stack = stack->data();
  thread.place.stack_bytes = stack->size();
  getcontext(&there);
  there.uc_stack.ss_sp = stack->data();
  there.uc_stack.ss_size = stack->size();
  makecontext(&there, live, 0);
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread.place.stack, thread.place.stack_bytes);
#endif
  if (__builtin_setjmp(scheduler.registers) == 0) swapcontext(&here, &there);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

std::vector<Thread>& all_threads() {
  static std::vector<Thread> threads(cuda::kThreads);
  return threads;
}

}  // namespace

Block& block() { return *running; }

void fail(const char* words) {
  std::fprintf(stderr, "CUDA twin: %s\n", words);
  std::abort();
}

// Every byte of shared memory begins as NaN in every format.
Block::Block(int shared_bytes) : shared_(new (std::align_val_t{16}) unsigned char[shared_bytes]) {
  std::memset(shared_, 0xff, shared_bytes);
}

Block::~Block() { operator delete[](shared_, std::align_val_t{16}); }

void Block::run(const std::function<void()>& body, std::mt19937& order) {
  kernel = &body;
  running = this;
  std::vector<Thread>& threads = all_threads();
  for (Thread& thread : threads) {
    current_ = &thread;
    thread.index = static_cast<int>(&thread - threads.data());
    thread.waits = thread.finished = false;
    if (thread.place.stack == nullptr) begin(thread);
  }
  std::vector<int> warps(cuda::kWarps), lanes(cuda::kWarpSize);
  for (std::vector<int>* turns : {&warps, &lanes}) {
    std::iota(turns->begin(), turns->end(), 0);
    std::shuffle(turns->begin(), turns->end(), order);
  }
  for (size_t finished = 0; finished < threads.size();) {
    bool progress = false;
    for (int warp : warps) {
      for (bool went = true; went; progress |= went) {
        went = false;
        for (int lane : lanes) {
          Thread& thread = threads[warp * cuda::kWarpSize + lane];
          if (thread.waits || thread.finished) continue;
          current_ = &thread;
          change(scheduler, thread.place);
          went = true;
          finished += thread.finished;
        }
      }
    }
    if (!progress) fail("threads wait for others that have ended, or that wait elsewhere");
  }
  for (Thread& thread : threads) {
    const bool waited =
        thread.open_copies.empty() && std::all_of(thread.committed_copies.begin(), thread.committed_copies.end(),
                                                  [](const std::vector<Copy>& group) { return group.empty(); });
    if (!waited) fail("a thread ended before its copies");
    thread.committed_copies.clear();
  }
}

void Block::suspend() { change(current_->place, scheduler); }

void Block::wait_for_block() {
  if (++arrived_ < cuda::kThreads) {
    current_->waits = true;
    return suspend();
  }
  arrived_ = 0;
  for (const Warp& warp : warps_) {
    if (warp.arrived != 0) fail("some threads are at a block's barrier, others at a warp's instruction");
  }
  for (Thread& thread : all_threads()) thread.waits = false;
}

void Block::wait_for_warp(Combine combine, void* argument) {
  const int first = current_->index / cuda::kWarpSize * cuda::kWarpSize;
  Warp& warp = warps_[current_->index / cuda::kWarpSize];
  if (warp.arrived > 0 && warp.combine != combine) fail("the lanes of a warp are at different instructions");
  warp.combine = combine;
  warp.arguments[current_->index - first] = argument;
  if (++warp.arrived < cuda::kWarpSize) {
    current_->waits = true;
    return suspend();
  }
  warp.arrived = 0;
  combine(warp.arguments);
  for (int lane = 0; lane < cuda::kWarpSize; ++lane) all_threads()[first + lane].waits = false;
}

}  // namespace vr::twin
