"""The losses of ms_ce over a device mesh: for MindSpore's partitioner, and for programs that split by themselves."""

from ms_ce._cell import keep_whole
from ms_ce.parallel.config import ParallelConfig
from ms_ce.parallel.distillation import VocabParallelLinearDistillationLoss
from ms_ce.parallel.exchange import SumGradient
from ms_ce.parallel.linear import VocabParallelLinearCrossEntropyLoss
from ms_ce.parallel.loss import CrossEntropyLoss
from ms_ce.parallel.mean import GlobalMean, global_mean, global_weight
from ms_ce.parallel.registration import register_where_imported, register_with_mindformers
from ms_ce.parallel.shard import shard
from ms_ce.parallel.spmd import VocabParallelCrossEntropyLoss
from ms_ce.parallel.tokens import VocabParallelLinearTokenLogProbs, VocabParallelTokenLogProbs
from ms_ce.parallel.top_k_distillation import VocabParallelLinearTopKDistillationLoss

__all__ = [
    "CrossEntropyLoss",
    "GlobalMean",
    "ParallelConfig",
    "SumGradient",
    "VocabParallelCrossEntropyLoss",
    "VocabParallelLinearCrossEntropyLoss",
    "VocabParallelLinearDistillationLoss",
    "VocabParallelLinearTokenLogProbs",
    "VocabParallelLinearTopKDistillationLoss",
    "VocabParallelTokenLogProbs",
    "global_mean",
    "global_weight",
    "register_with_mindformers",
    "shard",
]

keep_whole(globals()[name] for name in __all__)
register_where_imported()
