"""What all losses are as Cells: they decide themselves in which dtype they compute, under mixed precision too."""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.rewrite.common import namespace

from ms_ce.ops import precision

_PRECISIONS = {"fp16": mstype.float16, "fp32": mstype.float32, "bf16": mstype.bfloat16}


class LossCell(nn.Cell):
    """A Cell whose operators MindSpore does not cast.

    Mixed precision casts what goes into each operator, one by one: statistics that must stay float32 or float64 too,
    and after our checks. A loss takes its inputs in the dtype that the layers before it return, or that `to_float`
    names, and accumulates in float32.
    """

    def __init__(self):
        super().__init__()
        self.input_dtype = None

    def add_flags(self, **flags):
        """`to_float`, and with it `auto_mixed_precision`, tells the dtype by flags."""
        for name, dtype in _PRECISIONS.items():
            if flags.pop(name, False):
                self.input_dtype = dtype
        return super().add_flags(**flags)

    def __call__(self, *args, **kwargs):
        precision.off()
        # Not super(), which bytecode capture does not follow.
        result = nn.Cell.__call__(self, *args, **kwargs)
        # Not after an exception: MindSpore leaves the precision of the Cells around switched on then, for the whole
        # process, and this entry keeps it off.
        precision.on_again()
        return result

    def in_precision(self, input):
        """The input as `to_float` wants it."""
        if self.input_dtype is None or not isinstance(input, Tensor):
            return input
        return ops.cast(input, self.input_dtype)


# Mixed precision of level O1 writes Cells anew; of ours it would lose the names of other modules.
namespace._subtree_black_list.append(LossCell)
