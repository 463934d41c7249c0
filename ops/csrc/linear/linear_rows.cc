#include "linear/linear_rows.h"

#include "loss/run.h"

namespace ms_ce {
namespace {

double RowWeight(const LinearProblem& problem, int64_t row) {
  const Problem& loss = problem.loss;
  return loss.row_weight.data == nullptr ? 1.0 : KernelsFor(loss).load(loss.row_weight, row);
}

// Whatever its target: it starts a sequence under shift, or weighs nothing.
bool IsLeftOut(const LinearProblem& problem, int64_t row) {
  return (problem.sequence != 0 && row % problem.sequence == 0) || RowWeight(problem, row) == 0.0;
}

}  // namespace

std::vector<int64_t> ReadTargets(const LinearProblem& problem) {
  const Kernels& kernels = KernelsFor(problem.loss);
  std::vector<int64_t> targets(static_cast<size_t>(problem.loss.rows));
  for (int64_t row = 0; row < problem.loss.rows; ++row) {
    targets[static_cast<size_t>(row)] =
        IsLeftOut(problem, row) ? problem.loss.ignore_index : kernels.load_index(problem.loss.target, row);
  }
  return targets;
}

std::vector<int64_t> RowsThatCount(const LinearProblem& problem, const std::vector<int64_t>& targets) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < problem.loss.rows; ++row) {
    const bool counts = problem.loss.probability
                            ? !IsLeftOut(problem, row)
                            : targets[static_cast<size_t>(row)] != problem.loss.ignore_index;
    if (counts) rows.push_back(row);
  }
  return rows;
}

bool AreConsecutive(const int64_t* rows, int64_t count) { return rows[count - 1] - rows[0] == count - 1; }

int64_t HiddenRow(const LinearProblem& problem, int64_t row) {
  return problem.sequence != 0 ? row - 1 : row;
}

double LinearTotalWeight(const LinearProblem& problem) {
  const Problem& loss = problem.loss;
  if (loss.probability) {
    double total = 0.0;
    for (const int64_t row : RowsThatCount(problem, {})) total += RowWeight(problem, row);
    return total;
  }
  std::vector<int64_t> targets = ReadTargets(problem);
  Problem count = loss;
  count.target = {targets.data(), Dtype::kInt64};
  return RunRows(count, KernelsFor(count).count_weight, problem.position_shape).weight;
}

}  // namespace ms_ce
