"""The `cpu` backend: log-probabilities of chosen tokens, and the entropy of each row's softmax."""

from __future__ import annotations

from ms_ce._versions import zeros_like
from ms_ce.ops.cpu.operators import make_operator, packed_options
from ms_ce.ops.cpu.refusal import none_of, refused
from ms_ce.ops.eager import wanted
from ms_ce.ops.options import ClassBlock

_ONCE = "token_log_probs is differentiated once; for second derivatives take backend='composed'"


def _refused(grad_rows, grad_entropy, logits, target, lse, entropy, options, out, dout):
    grads = none_of(refused(_ONCE, dout), grad_rows, grad_entropy, logits)
    return *grads, zeros_like(target), lse, entropy, options


_backward = make_operator("TokenLogProbsBackward", _refused)


def _bprop(logits, target, options, out, dout):
    grad = logits
    if wanted(0):
        grad = _backward(-dout[0], dout[2], logits, target, out[1], out[2], options)
    return grad, zeros_like(target), options


_token_log_probs = make_operator("TokenLogProbs", _bprop)


def token_log_probs(logits, target, options, entropy):
    """(log-probabilities, entropies), in float64."""
    packed = packed_options(options, ClassBlock(), False, False, False, entropy)
    log_prob, _, entropies = _token_log_probs(logits, target, packed)
    return log_prob, entropies
