// A block of CUDA threads on one CPU thread: each has a stack of its own and runs until it must wait for others. The
// order in which they run is drawn from a seed, and a warp runs as far ahead of the others as barriers let it, so that
// a missing barrier shows as a result that depends on the order.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "cuda/block.h"

namespace vr::twin {

struct Copy {
  void* shared;
  const void* global;
  int bytes;
};

// Where a stack was left, as __builtin_setjmp keeps it: without the system calls of swapcontext.
struct Place {
  void* registers[5];
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

// What the CUDA words in machine.h know of the thread that speaks them.
struct Thread {
  int index = 0;
  bool waits = false, finished = false;
  std::vector<Copy> open_copies;                    // since the last commit
  std::vector<std::vector<Copy>> committed_copies;  // in order
  Place place;
};

// An instruction that a warp's lanes execute together: combine(arguments of the 32 lanes).
using Combine = void (*)(void* const* lane_arguments);

class Block {
 public:
  explicit Block(int shared_bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Runs body() on every thread to its end.
  void run(const std::function<void()>& body, std::mt19937& order);

  void wait_for_block();
  void wait_for_warp(Combine combine, void* argument);

  Thread& thread() { return *current_; }
  unsigned char* shared() { return shared_; }

  int64_t row = 0, column = 0;  // of the grid

 private:
  struct Warp {
    int arrived = 0;
    Combine combine = nullptr;
    void* arguments[cuda::kWarpSize];
  };

  void suspend();

  unsigned char* shared_;
  std::vector<Warp> warps_{cuda::kWarps};
  int arrived_ = 0;
  Thread* current_ = nullptr;
};

// The block that is running.
Block& block();

// Ends the program: the kernel has done what a GPU leaves undefined.
[[noreturn]] void fail(const char* words);

}  // namespace vr::twin
