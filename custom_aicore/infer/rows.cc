// The shapes of reduced.cc with a loss per row.
#define MS_CE_LOSS_PER_ROW 1
#include "reduced.cc"
