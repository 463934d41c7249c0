// What the operations of operations.h do with a bound call.
#ifndef MS_CE_RUNS_H_
#define MS_CE_RUNS_H_

namespace ms_ce {

class Call;

void RunForward(Call* call);  // with statistics where the operation returns them
void RunBackward(Call* call);
void RunDoubleBackward(Call* call);
void RunTargetGrad(Call* call);
void RunWeightGradient(Call* call);
void RunValueAndGrad(Call* call);
void RunPartial(Call* call);
void RunPartialBackward(Call* call);
void RunTokenLogProbs(Call* call);
void RunNllForward(Call* call);
void RunNllBackward(Call* call);
void RunRefuseDerivative(Call* call);
void RunLinearForward(Call* call);  // with statistics where the operation returns them
void RunLinearBackward(Call* call);
void RunLinearValueAndGrad(Call* call);
void RunLinearTargetGrad(Call* call);
void RunLinearWeightGradient(Call* call);
void RunLinearRescale(Call* call);
void RunLinearTokenLogProbs(Call* call);

}  // namespace ms_ce

#endif  // MS_CE_RUNS_H_
