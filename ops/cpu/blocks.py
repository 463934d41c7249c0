"""The `cpu` backend on a block of the classes: the statistics that ranks exchange, and the gradients from them."""

from __future__ import annotations

from mindspore import dtype as mstype

from ms_ce.ops.cpu.operators import factors, make_operator, no_weight


def _no_gradient_of_partial(logits, target, weight, options, out, dout):
    raise NotImplementedError(
        "statistics of a block of classes are differentiated by ms_ce.parallel"
    )


_partial = make_operator("CrossEntropyPartial", _no_gradient_of_partial)
_partial_backward = make_operator("CrossEntropyPartialBackward")
_partial_target_grad = make_operator("CrossEntropyPartialTargetGrad")
_partial_weight_grad = make_operator("CrossEntropyPartialWeightGrad")


def partial(logits, target, weight, options, block):
    """(rows, 3) float64 over the classes of `block`: lse, Σ w·q'·x and Σ w·q'; the row loss is mass·lse - dot."""
    weight, _, packed = factors(logits.dtype, weight, None, options, block)
    return _partial(logits, target, weight, packed)


def partial_backward(grad_rows, grad_lse, logits, target, weight, lse, mass, options, block):
    """Gradient of this block's logits: grad_rows·(mass·p - w·q') + grad_lse·p, with the whole row's lse and mass."""
    weight, _, packed = factors(logits.dtype, weight, None, options, block)
    upstream, of_lse = grad_rows.astype(mstype.float64), grad_lse.astype(mstype.float64)
    return _partial_backward(upstream, of_lse, logits, target, weight, lse, mass, packed)


def partial_target_grad(grad_rows, logits, target, weight, lse, options, block):
    """Gradient of this block's probabilities, from the whole rows' lse."""
    weight, _, packed = factors(logits.dtype, weight, None, options, block)
    upstream, no_mean = grad_rows.astype(mstype.float64), no_weight(mstype.float64)
    return _partial_target_grad(upstream, logits, target, weight, lse, no_mean, packed)


def partial_weight_grad(grad_rows, logits, target, weight, lse, options, block):
    """Gradient of the weights of all classes, 0 for those of other blocks, from the whole rows' lse."""
    weight, _, packed = factors(logits.dtype, weight, None, options, block)
    upstream, no_mean = grad_rows.astype(mstype.float64), no_weight(mstype.float64)
    return _partial_weight_grad(upstream, logits, target, weight, lse, no_mean, packed)
