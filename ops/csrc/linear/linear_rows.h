// The rows of the linear loss that count, and their targets.
#ifndef MS_CE_LINEAR_ROWS_H_
#define MS_CE_LINEAR_ROWS_H_

#include <vector>

#include "linear/linear_loss.h"

namespace ms_ce {

// Of every row, where targets are class indices; one that starts a shifted sequence has ignore_index.
std::vector<int64_t> ReadTargets(const LinearProblem& problem);

// Those whose target is not ignored, in order; of probabilities all but the starts of shifted sequences.
std::vector<int64_t> RowsThatCount(const LinearProblem& problem, const std::vector<int64_t>& targets);

// Of rows in ascending order.
bool AreConsecutive(const int64_t* rows, int64_t count);

// Where a row's hidden states lie.
int64_t HiddenRow(const LinearProblem& problem, int64_t row);

}  // namespace ms_ce

#endif  // MS_CE_LINEAR_ROWS_H_
