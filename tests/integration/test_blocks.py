"""Statistics of a block of classes: the blocks of a vocabulary put together give the whole loss and gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from mindspore import ops

from ms_ce import reference
from ms_ce.ops import composed, cpu
from ms_ce.ops.options import ClassBlock, Options
from tests.integration.conftest import to_numpy, to_tensor
from tests.support.cases import CASES
from tests.support.tolerances import check_close, tolerance

BACKENDS = {"cpu": cpu, "composed": composed}
NAMES = ("ignored", "sequence", "smoothing weight ignored", "probabilities", "everything")
BOUNDARIES = {13: (0, 4, 5, 13), 10: (0, 3, 10), 6: (0, 1, 4, 6), 11: (0, 5, 11)}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name
)
def test_blocks_make_the_whole(case, dtype, backend):
    module, data = BACKENDS[backend], case.inputs(dtype)
    keywords = {**case.options, "reduction": "none"}
    options = Options(**{**keywords, "softcap": keywords.get("softcap") or 0.0})
    options = options._replace(z_loss=0.0)
    keywords.pop("z_loss", None)
    classes = case.shape[1]
    cuts = BOUNDARIES[classes]
    weight = to_tensor(data["weight"], dtype)

    def parts(start, stop):
        local = data["logits"][:, start:stop]
        target = data["target"][:, start:stop] if case.probabilities else data["target"]
        return to_tensor(local, dtype), to_tensor(target, dtype), ClassBlock(start, classes)

    statistics = []
    for start, stop in itertools.pairwise(cuts):
        logits, target, block = parts(start, stop)
        statistics.append(to_numpy(module.partial(logits, target, weight, options, block)))
    statistics = np.stack(statistics).astype(np.float64)
    lse = np.log(np.exp(statistics[..., 0]).sum(0))
    dot, mass = statistics[..., 1].sum(0), statistics[..., 2].sum(0)
    arguments = (data["logits"], data["target"], data["weight"])
    expected = reference.cross_entropy(*arguments, **keywords)
    keep = expected.lse != 0
    bound = tolerance(backend, dtype, "softcap" in case.options)
    # mass·lse - dot cancels: its error is that of lse and dot, not of their difference.
    bound = bound._replace(absolute=bound.absolute * 10, ulps=0)
    check_close((mass * lse - dot) * keep, expected.loss, "float64", bound, case.name)

    upstream, by_lse = np.random.default_rng(3).normal(size=(2, *lse.shape))
    gradients = []
    for start, stop in itertools.pairwise(cuts):
        logits, target, block = parts(start, stop)
        gradients.append(
            module.partial_backward(
                to_tensor(upstream, "float64"),
                to_tensor(by_lse, "float64"),
                logits,
                target,
                weight,
                to_tensor(lse, "float64"),
                to_tensor(mass, "float64"),
                options,
                block,
            )
        )
    assert all(gradient.dtype == logits.dtype for gradient in gradients)
    whole = np.concatenate([to_numpy(gradient) for gradient in gradients], axis=1)
    # Not rounded to the logits' 16 bits on its way.
    reference_gradient = reference.cross_entropy_grad(
        *arguments, **keywords, grad_loss=upstream
    ).logits
    softmax = {name: keywords[name] for name in ("softcap", "logit_scale") if name in keywords}
    slope = reference.lse_grad(data["logits"], **softmax)
    reference_gradient = reference_gradient + np.expand_dims(by_lse * keep, 1) * slope
    bound = tolerance(backend, dtype, "softcap" in case.options)
    scale = max(np.abs(upstream).max() + np.abs(by_lse).max(), 1.0)
    bound = bound._replace(absolute=bound.absolute * scale)
    check_close(whole, reference_gradient, dtype, bound, case.name)


def test_a_block_without_finite_logits(backend):
    """A padded vocabulary: a block of -inf only has lse -inf, which adds nothing."""
    logits = to_tensor(np.full((2, 3), -np.inf), "float32")
    target = to_tensor(np.array([0, 5], np.int32))
    statistics = BACKENDS[backend].partial(
        logits, target, None, Options(reduction="none"), ClassBlock(6, 9)
    )
    np.testing.assert_array_equal(to_numpy(statistics), [[-np.inf, 0, 0]] * 2)
    assert not bool(ops.isnan(statistics).any())
