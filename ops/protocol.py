"""What a backend offers. It is a module, whose functions tests/unit/test_backend.py holds to these signatures.

Shapes: logits (N, C, d1…dK), (N, C) or (C); target class indices of that shape without the class axis, or probabilities
of that shape; weight (C) or None; row_weight of the rows' shape, float, a constant, or None.
"""

from __future__ import annotations

from typing import Any, Protocol

from ms_ce.ops.options import ClassBlock, Gradients, Options, Plan


class Kernels(Protocol):
    """The losses of logits, whole or a block of their classes (`ops/table.py` lists who offers them)."""

    # Whether `partial` takes probabilities, and whether it may stand in a graph that MindSpore's partitioner splits.
    BLOCKS_OF_PROBABILITIES: bool
    BLOCKS_IN_PARTITIONED_GRAPHS: bool

    def probe(self) -> str | None:
        """Why the backend cannot be used here, or None."""

    def cross_entropy(
        self,
        logits,
        target,
        weight,
        row_weight,
        options: Options,
        gradient_in_forward: bool = False,
    ) -> Any:
        """(loss, total_weight, lse): loss in logits' dtype, the others float32 or float64. `gradient_in_forward` allows
        the gradient of logits to be made with the loss; a backend for which that saves nothing does not."""

    def cross_entropy_with_stats(self, logits, target, weight, row_weight, options: Options) -> Any:
        """(loss, total_weight, lse, z_loss, num_correct, entropy, predicted), as `ms_ce.LossStats` says; the entropy
        float32 at least."""

    def cross_entropy_value_and_grad(
        self, logits, target, weight, row_weight, options: Options
    ) -> Any:
        """(loss, total_weight, lse, grad_logits) for reduction 'mean' or 'sum'."""

    def nll_loss(self, log_prob, target, weight, row_weight, options: Options) -> Any:
        """(loss, total_weight): total_weight in the weight's dtype, or log_prob's without one."""

    def token_log_probs(self, logits, target, options: Options, entropy: bool) -> Any:
        """(log-probabilities of class indices, entropies or 0) of rows (N, C), float32 at least; 0 in ignored rows."""

    def partial(self, logits, target, weight, options: Options, block: ClassBlock) -> Any:
        """(rows, 3) over the classes of `block`: lse, Σ w·q'·x and Σ w·q'; the row loss is mass·lse - dot. Here and
        below, weight is that of all classes."""

    def partial_backward(
        self,
        grad_rows,
        grad_lse,
        logits,
        target,
        weight,
        lse,
        mass,
        options: Options,
        block: ClassBlock,
    ) -> Any:
        """Gradient of this block's logits: grad_rows·(mass·p - w·q') + grad_lse·p, from whole rows' lse and mass."""

    def partial_target_grad(
        self, grad_rows, logits, target, weight, lse, options: Options, block: ClassBlock
    ) -> Any:
        """Gradient of this block's probabilities, from the whole rows' lse."""

    def partial_weight_grad(
        self, grad_rows, logits, target, weight, lse, options: Options, block: ClassBlock
    ) -> Any:
        """Gradient of the weights of all classes, 0 for those of other blocks, from the whole rows' lse."""

    def partial_entropy(self, logits, lse, options: Options) -> Any:
        """Entropies of the softmax of this block's classes alone, (rows,), from their lse; nan in a block of -inf."""

    def partial_entropy_backward(self, grad_entropy, logits, lse, entropy, options: Options) -> Any:
        """Gradient of this block's logits (N, C), from the whole rows' lse and entropy, in the dtype computed in."""

    def refuse_targets(self, target, classes: int, ignore_index: int, shift: bool = False) -> None:
        """Raises for a class index out of range, where Python runs and `partial` would raise too: it knows less of the
        position. Does nothing where `partial` itself leaves that to others."""


class LinearForm(Protocol):
    """One way to compute the linear loss (`ms_ce/backend.py` lists who takes which)."""

    def may_scale_later(self, dtype) -> bool:
        """Whether gradients of inputs of this dtype, made for an upstream 1, can be multiplied by the true one."""

    def linear_cross_entropy(
        self,
        plan: Plan,
        gradients: Gradients,
        with_stats: bool,
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        row_weight,
    ) -> Any:
        """(loss,), or with_stats the results of `Kernels.cross_entropy_with_stats`. What is per row has input's leading
        shape, less one of each sequence under shift. row_weight has that of class indices. Probability targets and
        weight have a gradient, whatever `gradients` says. plan.backend is the name of one that serves."""

    def several(
        self,
        plan: Plan,
        gradients: Gradients,
        factors,
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        row_weight,
    ) -> Any:
        """(Σ_d factors[d]·s[d], s) with s[d] the sum of row losses of input[d], by a plan of reduction 'sum'; s has
        factors' dtype, is a constant and nan where the factor is 0, of which the rows are left out. row_weight is
        given, the factors (D,) have a gradient only where a weight is."""

    def token_log_probs(
        self,
        plan: Plan,
        gradients: Gradients,
        entropy: bool,
        input,
        linear_weight,
        target,
        linear_bias,
    ) -> Any:
        """(log-probabilities of class indices, entropies or 0), in float32 at least, of the shape that row losses
        have."""


class DistillationForm(Protocol):
    """One way to compute distillation from hidden states (`ms_ce/backend.py` lists who takes which)."""

    def may_scale_later(self, dtype) -> bool:
        """As of a LinearForm."""

    def distillation(
        self, plan: Plan, gradients: Gradients, beta: float, student, teacher, row_weight
    ) -> Any:
        """Divergences times row_weight, of student's hidden states' leading shape, or their sum, as
        plan.options.reduction says: 'none' or 'sum'. student and teacher are (hidden (…, H), weight (C, H), bias (C,)
        or None); the teacher and row_weight, of the leading shape or None, are constants."""


class TopKForm(Protocol):
    """One way to compute distillation from stored log-probabilities (`ms_ce/backend.py` lists who takes which)."""

    def may_scale_later(self, dtype) -> bool:
        """As of a LinearForm."""

    def top_k_distillation(
        self,
        plan: Plan,
        gradients: Gradients,
        beta: float,
        tail: bool,
        student,
        teacher,
        row_weight,
    ) -> Any:
        """As DistillationForm.distillation. teacher is (log-probabilities (…, k), classes (…, k)), constants; `tail` is
        whether all other classes count, as one."""
