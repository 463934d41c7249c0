"""The collectives of explicit SPMD losses: what every rank of a group knows, given to all of them."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.communication import GlobalComm, get_group_size, get_rank

from ms_ce.backend import device_target
from ms_ce.ops.precision import UncastCell


class Group:
    """A communication group: its name, its size, and the place of this process in it. None is a group of one."""

    def __init__(self, op: str, name: str | None):
        self.name = name
        self.size, self.rank = 1, 0
        if name is None:
            return
        if not isinstance(name, str):
            raise TypeError(
                f"{op}: a group must be the name of a communication group, got {name!r}"
            )
        try:
            self.size, self.rank = get_group_size(name), get_rank(name)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{op}: group {name!r} cannot be used: {error}; call mindspore.communication.init() first, "
                "and create_group() with the same ranks on every rank"
            ) from None


def world() -> str:
    """The group of all ranks."""
    return GlobalComm.WORLD_COMM_GROUP


class AllSum(UncastCell):
    """The sum over a group, without a gradient."""

    def __init__(self, group: Group):
        super().__init__()
        self.reduce: Any = ops.AllReduce(group=group.name) if group.size > 1 else None

    def construct(self, x):
        x = ops.stop_gradient(x)
        return x if self.reduce is None else self.reduce(x)


class AllStatistics(UncastCell):
    """Rows of statistics of every rank: (rows, width) float32 to (ranks, rows, width), in one collective.

    MindSpore's CPU engine gathers over the whole world only. There each rank adds its rows into a slot of its own,
    which is exact: a slot is summed with zeros.
    """

    def __init__(self, group: Group):
        super().__init__()
        self.size, self.rank = group.size, group.rank
        self.by_sum = device_target() == "CPU"
        self.collective: Any = None
        if self.size > 1:
            collective = ops.AllReduce if self.by_sum else ops.AllGather
            self.collective = collective(group=group.name)
        self.zeros_like, self.concatenate = ops.ZerosLike(), ops.Concat()

    def construct(self, values):
        own = ops.expand_dims(values, 0)
        if self.size == 1:
            return own
        if not self.by_sum:
            return ops.reshape(self.collective(values), (self.size, *values.shape))
        empty = self.zeros_like(own)
        slots = (empty,) * self.rank + (own,) + (empty,) * (self.size - 1 - self.rank)
        return self.collective(self.concatenate(slots))


class SumGradient(UncastCell):
    """The identity; its gradient is the sum of the gradients over a group.

    For values that all ranks of a vocabulary group hold alike and use with different classes, such as the hidden
    states before a projection whose columns are split: each rank's gradient is a part of the whole.

    Args:
        group (str): name of the communication group. Default: all ranks.

    Inputs:
        - **value** (Tensor): the same on every rank, of any float dtype; gradients are summed in float32.

    Outputs:
        Tensor, value itself.

    Raises:
        TypeError: group is not a name.
        ValueError: the group does not exist.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> from mindspore.communication import get_group_size, init
        >>> init()  # each rank of msrun runs this
        >>> shared = ms_ce.parallel.SumGradient()
        >>> hidden = mindspore.ops.ones((1, 3))
        >>> columns = mindspore.ops.ones((3, 12 // get_group_size()))  # this rank's of a projection to 12
        >>> print(mindspore.grad(lambda hidden: (shared(hidden) @ columns).sum())(hidden))
        [[12. 12. 12.]]

    Source: the "copy to tensor model parallel region" of Megatron-LM.
    """

    def __init__(self, group: str | None = None) -> None:
        super().__init__()
        chosen = Group("SumGradient", world() if group is None else group)
        self.reduce: Any = ops.AllReduce(group=chosen.name) if chosen.size > 1 else None

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x, out, dout):
        if self.reduce is None:
            return (dout,)
        # The CPU engine sums float32 and float16 only.
        return (ops.cast(self.reduce(ops.cast(dout, ms.float32)), x.dtype),)
