"""The drop-in for mindformers' loss."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr
from mindspore.train.callback import Callback

from ms_ce import _checks
from ms_ce._cell import LossCell
from ms_ce.ops.options import make_options
from ms_ce.parallel.config import (
    ParallelConfig,
    check_divisible,
    check_positive,
    is_partitioned_at_compile,
    mesh_of,
)
from ms_ce.parallel.finite import (
    FiniteGradient,
    FiniteValue,
    RaiseAfterStep,
    RecordedGradient,
    RecordedValue,
    this_rank,
)
from ms_ce.parallel.local import LocalSums, holds_class_indices
from ms_ce.parallel.semi_auto import ClassIndexSums, ProbabilitySums

_OP = "parallel.CrossEntropyLoss"
# mindformers adds it to Σ mask, so that a batch without a token has loss 0.
_DENOMINATOR_FLOOR = 1e-8
_REFUSED = {
    "monitor_device_local_loss": "it needs a global parameter of mindformers' trainer; use "
    "check_for_nan_in_loss_and_grad=True, which reports the local loss of each rank",
}


def _checked_weight(weight) -> tuple[float, ...] | None:
    if weight is None:
        return None
    values = np.asarray(weight.asnumpy() if isinstance(weight, Tensor) else weight, np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"{_OP}: weight must hold one finite number a class, got shape {values.shape}"
        )
    return tuple(values.tolist())


def _refuse(keywords: dict) -> None:
    for name, value in keywords.items():
        if name not in _REFUSED:
            raise TypeError(f"{_OP}: unknown keyword argument {name!r}")
        if value:
            raise ValueError(f"{_OP}: {name} must stay False, got {value!r}: {_REFUSED[name]}")


@constexpr
def _check_inputs(logits, label, mask, label_dtype, mask_dtype, weights: int | None) -> None:
    """Shapes (None where unknown at compile time) and dtypes."""
    if logits is not None and len(logits) != 2:
        raise ValueError(
            f"{_OP}: logits must have shape (N, C), got {tuple(logits)}; flatten it with "
            "logits.reshape(-1, logits.shape[-1])"
        )
    if mask_dtype not in (ms.bool_, *_checks.LABELS, *_checks.FLOATS):
        raise TypeError(
            f"{_OP}: input_mask must be bool, an integer or a float, got {str(mask_dtype).lower()}"
        )
    if logits is None:
        return
    if weights is not None and weights != logits[1]:
        raise ValueError(
            f"{_OP}: weight must have {logits[1]} elements, one a class, got {weights}"
        )
    rows = (logits[0],)
    expected = rows if label_dtype in _checks.LABELS else tuple(logits)
    if label is not None and tuple(label) != expected:
        raise ValueError(
            f"{_OP}: label of dtype {str(label_dtype).lower()} must have shape {expected} to match "
            f"logits {tuple(logits)}, got {tuple(label)}"
            + (_checks.as_class_indices(label_dtype) if tuple(label) == rows else "")
        )
    if mask is not None and int(np.prod(mask)) != rows[0]:
        raise ValueError(
            f"{_OP}: input_mask must have {rows[0]} elements, one a row of logits "
            f"{tuple(logits)}, got shape {tuple(mask)}"
        )


class CrossEntropyLoss(LossCell):
    r"""Masked mean cross entropy over a device mesh; a drop-in for `mindformers.core.CrossEntropyLoss`.

    With l_n the loss of row n as in `ms_ce.cross_entropy` and m the mask,

        numerator = Σ_n m_n·l_n,    denominator = Σ_n m_n·w[y_n] + 1e-8,    loss = numerator / denominator

    where rows whose label is `ignore_index` are in neither sum, and w[y_n] is 1 without class weights and for
    probability labels. A row whose mask is 0 is never looked at, whatever its logits and label.

    Under semi_auto_parallel, auto_parallel or `AutoParallel` the sums run over the whole mesh, with logits split
    (data_parallel, model_parallel) and never gathered; elsewhere over this device's rows, through the backends of
    `ms_ce.available_backends()`, and parallel_config is not used, as in mindformers.

    Args:
        parallel_config: `ParallelConfig`, or any object with data_parallel and model_parallel such as mindformers'
            OpParallelConfig. Default: one device.
        check_for_nan_in_loss_and_grad (bool): raise ValueError naming the rank when the loss or the gradient of
            the logits is not finite. A partitioned graph cannot raise: there each rank prints its local loss, and
            `check()` raises after the step; `Model.train(…, callbacks=[loss.callback()])` calls it.
        calculate_per_token_loss (bool): return (numerator, denominator) instead of the loss.
        seq_split_num (int): above 1, return (numerator, denominator) too, as mindformers does for its sequence
            pipeline.

    Keyword Args:
        weight: a factor for each class, (C,). Default: 1 each.
        ignore_index (int): class index that does not count. Default -100, also for None.
        label_smoothing (float): ε in [0, 1]. Default 0.
        z_loss (float): factor of lse². Default 0.
        backend (str): 'auto', or a name of `available_backends()`; for graphs that are not partitioned.

    Inputs:
        - **logits** - (N, C), float16, bfloat16 or float32.
        - **label** - (N,) class indices, int32, int64 or uint8, or (N, C) probabilities.
        - **input_mask** - N elements, bool, integer or float.

    Outputs:
        float32 of shape (1,), or (numerator (), denominator (1,)).

    Raises:
        TypeError, ValueError: for arguments and inputs that do not fit. A class index outside [0, C) in a row that
            counts raises when the result is read; in a partitioned graph, which cannot raise, the loss is nan.

    Example:
        >>> import mindspore, ms_ce.parallel
        >>> loss = ms_ce.parallel.CrossEntropyLoss()
        >>> logits = mindspore.Tensor([[3.0, 5.0, 6.0, 9.0]])
        >>> output = loss(logits, mindspore.Tensor([3]), mindspore.Tensor([1.0]))
        >>> output.shape
        (1,)
    """

    def __init__(
        self,
        parallel_config: Any = ParallelConfig(),  # noqa: B008 (frozen)
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: bool = False,
        seq_split_num: int = 1,
        *,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        backend: str = "auto",
        **keywords: Any,
    ) -> None:
        super().__init__()
        _refuse(keywords)
        options = make_options(_OP, ignore_index, "sum", label_smoothing, z_loss)
        mesh = mesh_of(_OP, parallel_config)
        class_weight = _checked_weight(weight)
        self.rows, self.classes, self.ignore_index = mesh.rows, mesh.classes, options.ignore_index
        self.weights = None if class_weight is None else len(class_weight)
        split_sequence = check_positive(f"{_OP}: seq_split_num", seq_split_num) > 1
        self.returns_sums = bool(calculate_per_token_loss) or split_sequence
        self.local_sums = LocalSums(_OP, options, class_weight, backend)
        self.class_index_sums = ClassIndexSums(
            _OP, mesh, options, class_weight, self.local_sums.plan.backend
        )
        self.probability_sums = ProbabilitySums(mesh, options, class_weight)
        self.cast_block = ops.Cast().shard(((mesh.rows, mesh.classes),))
        self.denominator_floor = Tensor([_DENOMINATOR_FLOOR], ms.float32)
        self.checks = bool(check_for_nan_in_loss_and_grad)
        self.check_logits = FiniteGradient(_OP, "logits")
        self.check_loss = FiniteValue(_OP, "the local loss")
        self.recorded_gradient: Any = None
        self.recorded_loss: Any = None
        if self.checks:  # they are parameters of the network
            self.recorded_gradient = RecordedGradient(_OP, "the gradient of logits")
            self.recorded_loss = RecordedValue(_OP, "the local loss")
        self.local_loss_label = f"rank {this_rank()}: local loss"

    def construct(
        self, logits: Tensor, label: Tensor, input_mask: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.in_precision(logits, self.cast_block)
        numerator, denominator = self.sums(logits, label, input_mask)
        denominator = denominator + self.denominator_floor
        if self.returns_sums:
            return numerator, denominator
        return numerator / denominator

    def check(self) -> None:
        """Raises ValueError naming the rank if this rank's loss or gradient of the logits was not finite in the latest
        step. Only for partitioned graphs, after the step; waits for the device."""
        if self.checks:
            self.recorded_loss.check()
            self.recorded_gradient.check()

    def callback(self) -> Callback:
        """A callback of Model.train that calls `check` after every step."""
        return RaiseAfterStep(self)

    def sums(self, logits: Tensor, label: Tensor, input_mask: Tensor) -> tuple[Tensor, Tensor]:
        _check_inputs(
            _checks.known_shape(logits),
            _checks.known_shape(label),
            _checks.known_shape(input_mask),
            label.dtype,
            input_mask.dtype,
            self.weights,
        )
        _checks.check_dtypes(_OP, "logits", logits.dtype, label.dtype, None, True)
        _checks.check_ignore_index(_OP, label.dtype, self.ignore_index)
        if is_partitioned_at_compile():
            check_divisible(_OP, _checks.known_shape(logits), self.rows, self.classes)
            if self.checks:
                logits = self.recorded_gradient(logits)
            if holds_class_indices(label.dtype):
                sums = self.class_index_sums(logits, label, input_mask)
            else:
                sums = self.probability_sums(logits, label, input_mask)
            if not self.checks:
                return sums[0], sums[1]
            local_loss = sums[2] / (sums[3] + _DENOMINATOR_FLOOR)
            print(self.local_loss_label, local_loss)
            return self.recorded_loss(sums[0], local_loss), sums[1]
        if self.checks:
            logits = self.check_logits(logits)
            numerator, denominator = self.local_sums(logits, label, input_mask)
            return self.check_loss(numerator), denominator
        return self.local_sums(logits, label, input_mask)
