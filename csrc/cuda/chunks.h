// The levels cut into chunks of adjacent channels, which pass through shared memory one after another.
#pragma once

#include "cuda/problem.h"

namespace vr::cuda {

// Adjacent channels of one level; `column` is the first one's place in the concatenation of the levels.
struct Chunk {
  int level, channel, column, channels;
};

template <int kChannels>
VR_HOST_AND_DEVICE int chunks_of(const Level& level) {
  return (static_cast<int>(level.channels) + kChannels - 1) / kChannels;
}

template <int kChannels>
VR_HOST_AND_DEVICE int chunk_count(const Levels& levels) {
  int count = 0;
  for (int i = 0; i < levels.count; ++i) count += chunks_of<kChannels>(levels.level[i]);
  return count;
}

template <int kChannels>
VR_DEVICE Chunk chunk_at(const Levels& levels, int number) {
  int level = 0, column = 0;
  while (number >= chunks_of<kChannels>(levels.level[level])) {
    number -= chunks_of<kChannels>(levels.level[level]);
    column += static_cast<int>(levels.level[level].channels);
    ++level;
  }
  const int channel = number * kChannels, left = static_cast<int>(levels.level[level].channels) - channel;
  return {level, channel, column + channel, left < kChannels ? left : kChannels};
}

}  // namespace vr::cuda
