// The shapes of ms_ce_ascend_reduced.cc with a loss per row.
#define MS_CE_LOSS_PER_ROW 1
#include "ms_ce_ascend_reduced.cc"
