"""Compile a Cell for one rank of a device mesh, front end only, in a CPU process.

The stock wheel refuses semi_auto_parallel on a CPU target, although its partitioner is complete.  Here a target named
"Ascend" is registered whose start-up does nothing, and MindSpore is told to stop after the front end.  Importing this
module changes the process for good: use a process of its own.
"""

import gc
import os
from collections.abc import Callable, Sequence

os.environ["MS_DEV_PRECOMPILE_ONLY"] = "1"
os.environ.setdefault("GLOG_v", "4")

import mindspore
import mindspore.graph.api as graph_interface
import mindspore.ops.operations.comm_ops as communication_operators
import mindspore.parallel._tensor as parallel_tensor
import mindspore.parallel.auto_parallel as auto_parallel_interface
import mindspore.train.mind_ir_pb2 as mindir_protocol
from mindspore import Tensor, context, nn
from mindspore.graph.api import _cell_graph_executor
from mindspore.parallel._auto_parallel_context import auto_parallel_context
from mindspore.parallel._utils import _init_auto_parallel_context, _reset_op_id
from rig.mindir import RankGraph
from rig.target import pretend_ascend


def register_pretended_ascend() -> None:
    """Register the target and make the two helpers that ask the communication library for sizes answer from context."""
    pretend_ascend()
    context.set_context(mode=mindspore.GRAPH_MODE)
    gc.freeze()  # every compilation collects garbage, and would look through all of MindSpore each time
    communication_operators.get_group_size = _group_size
    parallel_tensor.get_rank = lambda *_: context.get_auto_parallel_context("global_rank")
    graph_interface._init_auto_parallel_context = _init_from_wrapper


def _group_size(group: str | None = None) -> int:
    """The partitioner names its groups "<size>-<hash>"; any other name is the whole world."""
    size = str(group).split("-")[0]
    return int(size) if size.isdigit() else context.get_auto_parallel_context("device_num")


def _init_from_wrapper(network: nn.Cell) -> None:
    """MindSpore's own, by which `AutoParallel` sets the context while it is compiled."""
    _init_auto_parallel_context(network)
    auto_parallel_context()._context_handle.set_hccl_test_avaible(True)


def use_mesh(device_count: int, rank: int, **settings: object) -> None:
    """Set the parallel context of one rank; semi_auto_parallel with the whole batch on every rank by default."""
    context.reset_auto_parallel_context()
    chosen = {"parallel_mode": "semi_auto_parallel", "dataset_strategy": "full_batch"} | settings
    context.set_auto_parallel_context(device_num=device_count, global_rank=rank, **chosen)
    # Without this flag the partitioner would ask the absent collective library to create the groups.
    auto_parallel_context()._context_handle.set_hccl_test_avaible(True)
    _reset_op_id()


def compile_rank(
    make_cell: Callable[[], nn.Cell],
    inputs: Sequence[Tensor],
    device_count: int,
    rank: int,
    **settings: object,
) -> RankGraph:
    """The partitioned graph of `rank`.  `make_cell` runs after the context is set, as in a training script."""
    use_mesh(device_count, rank, **settings)
    return _partitioned_graph(make_cell(), inputs)


def compile_wrapped_rank(
    make_cell: Callable[[], nn.Cell],
    inputs: Sequence[Tensor],
    device_count: int,
    rank: int,
    parallel_mode: str,
) -> RankGraph:
    """As compile_rank, by the wrapper `AutoParallel`, which asks the communication library for rank and size."""
    context.reset_auto_parallel_context()
    auto_parallel_interface.get_rank = lambda: rank
    auto_parallel_interface.get_group_size = lambda: device_count
    network = auto_parallel_interface.AutoParallel(make_cell(), parallel_mode=parallel_mode)
    network.dataset_strategy("full_batch")
    _reset_op_id()
    return _partitioned_graph(network, inputs)


def _partitioned_graph(network: nn.Cell, inputs: Sequence[Tensor]) -> RankGraph:
    phase, _ = _cell_graph_executor.compile(network, *inputs)
    model = mindir_protocol.ModelProto()
    model.ParseFromString(
        _cell_graph_executor._graph_executor.get_func_graph_proto(phase, "mind_ir", False)
    )
    return RankGraph.from_model(model)


def compile_all_ranks(
    make_cell: Callable[[], nn.Cell],
    inputs: Sequence[Tensor],
    device_count: int,
    wrapper: str | None = None,
    **settings: object,
) -> list[RankGraph]:
    """The partitioned graphs of every rank, rank 0 first; `wrapper` is a parallel_mode of `AutoParallel`."""
    if wrapper is not None:
        return [
            compile_wrapped_rank(make_cell, inputs, device_count, rank, wrapper)
            for rank in range(device_count)
        ]
    return [
        compile_rank(make_cell, inputs, device_count, rank, **settings)
        for rank in range(device_count)
    ]
