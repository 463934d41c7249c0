"""What all losses are as Cells: they decide themselves in which dtype they compute, under mixed precision too."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from mindspore import Tensor, ops
from mindspore._c_expression import MixedPrecisionType
from mindspore.rewrite.common import namespace
from mindspore.rewrite.parsers import assign_parser

from ms_ce.ops import precision


class LossCell(precision.UncastCell):
    """A Cell whose operators MindSpore does not cast.

    Mixed precision casts what goes into each operator, one by one: statistics that must stay float32 or float64 too,
    and after our checks. A loss takes its inputs in the dtype that the layers before it return, or that `to_float`
    names, and accumulates in float32.
    """

    def __init__(self):
        super().__init__()
        self.input_dtype = None
        # Cell.__call__ of PyNative switches to it and back. Where something raises, it stays: MindSpore would leave the
        # precision of the Cells around switched on, for the whole process.
        self.mixed_precision_type = MixedPrecisionType.NOTSET

    def add_flags(self, **flags):
        """`to_float`, and with it `auto_mixed_precision`, tells the dtype by flags."""
        for name, dtype in precision.DTYPES.items():
            if flags.get(name, False):
                self.input_dtype = dtype
        return super().add_flags(**flags)

    def in_precision(self, input, cast=ops.cast):
        """The input as `to_float` wants it."""
        if self.input_dtype is None or not isinstance(input, Tensor):
            return input
        return cast(input, self.input_dtype)


# Mixed precision of level O1 writes Cells and functions anew, those that lie below the working directory or outside of
# site-packages; of ours it would lose the names of other modules.
namespace._subtree_black_list.append(LossCell)


def keep_whole(public: Iterable[object]) -> None:
    """It leaves the functions among `public` as they are."""
    functions = [each for each in public if inspect.isfunction(each)]
    assign_parser.AssignParser._function_parse_black_list.extend(functions)
