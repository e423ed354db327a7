#include "validate.h"

#include <stdexcept>
#include <string>

namespace vr::cpu {
namespace {

void require(bool condition, const char* words) {
  if (!condition) throw std::invalid_argument(std::string("LocalAttention: ") + words);
}

void validate_levels(const LocalAttention& problem, const std::vector<Level>& levels) {
  require(levels.size() <= 1 || problem.kv_heads == 1, "several levels need kv_heads = 1");
  for (const Level& level : levels) {
    require(level.channels > 0, "a level needs at least one channel");
    require(level.data != nullptr || problem.feature_rows() == 0, "a level has no data");
  }
}

}  // namespace

void validate(const LocalAttention& problem) {
  require(problem.windows >= 0 && problem.first_window >= 0 && problem.slots >= 0, "a size is negative");
  require(problem.batch >= 0 && problem.height >= 0 && problem.width >= 0, "the feature grid has a negative size");
  require(problem.heads > 0 && problem.kv_heads > 0, "heads and kv_heads must be positive");
  require(problem.heads % problem.kv_heads == 0, "kv_heads must divide heads");
  require(problem.threads > 0, "threads must be positive");
  require(!problem.keys.empty(), "keys need at least one level");
  validate_levels(problem, problem.keys);
  validate_levels(problem, problem.values);
  require(problem.norm_bias == nullptr || problem.norm_weight != nullptr, "norm_bias needs norm_weight");
  require(problem.norm_groups == NormGroups::none || problem.kv_heads == 1, "normalisation needs kv_heads = 1");
  require(problem.window_height >= 0 && problem.window_width >= 0, "a window has a negative size");
  if (!problem.is_grid()) {
    require(problem.index != nullptr || problem.windows * problem.slots == 0, "the indexed form needs an index");
    return;
  }
  require(problem.slots == problem.window_height * problem.window_width, "slots must be those of the window");
  require(problem.height % problem.window_height == 0 && problem.width % problem.window_width == 0,
          "windows must divide the feature grid");
  const int64_t windows = problem.feature_rows() / problem.slots;
  require(problem.first_window + problem.windows <= windows, "there are more windows than the feature grid holds");
}

}  // namespace vr::cpu
