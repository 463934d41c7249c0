"""Every place of mindformers that is patched, with and without the patch; runs where mindformers is installed.

python -m tests.models.mindformers_seams RESULT.npz
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext

import mindspore as ms
import numpy as np
from mindspore import mint, nn

import ms_ce
from tests.models import cpu_operators, hyper_parallel_stand_in

VOCABULARY, LENGTH, WIDTH, SEQUENCES = 50, 12, 16, 2
RANDOM = np.random.default_rng(3)
TOKENS = RANDOM.integers(0, VOCABULARY, (SEQUENCES, LENGTH)).astype(np.int32)
LABELS = RANDOM.integers(0, VOCABULARY, (SEQUENCES, LENGTH)).astype(np.int32)
MASK = (RANDOM.random((SEQUENCES, LENGTH)) > 0.3).astype(np.float32)
LOGITS = RANDOM.normal(size=(SEQUENCES * LENGTH, VOCABULARY)).astype(np.float32)


def _arrays(value, gradients) -> list[np.ndarray]:
    outputs = value if isinstance(value, tuple) else (value,)
    return [each.asnumpy() for each in (*outputs, *gradients)]


class _Predictor(nn.Cell):
    """In place of the multi-token prediction's layers, whose attention has no CPU kernel."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = layers

    def construct(self, hidden_states, **keywords):
        more = [hidden_states * (2.0 + layer) for layer in range(self.layers)]
        return mint.cat([hidden_states, *more], dim=0)


def _gpt(**options) -> Callable:
    def run() -> list[np.ndarray]:
        from tests.models.gpt import tiny_gpt

        model = tiny_gpt(VOCABULARY, LENGTH, WIDTH, **options)
        if options.get("mtp_num_layers"):
            model.mtp = _Predictor(options["mtp_num_layers"])
        random = np.random.default_rng(1)
        parameters = list(model.trainable_params())
        for parameter in parameters:
            values = random.normal(size=parameter.shape).astype(np.float32)
            parameter.set_data(ms.Tensor(0.3 * values))
        model.set_train()
        tensors = [ms.Tensor(each) for each in (TOKENS, LABELS, MASK)]

        def forward():
            outputs = model(tensors[0], labels=tensors[1], loss_mask=tensors[2])
            return outputs if len(outputs) > 1 else outputs[0]

        gradient = ms.value_and_grad(forward, None, parameters)
        return _arrays(*gradient())

    return run


def _alone(make: Callable, mode=ms.PYNATIVE_MODE) -> Callable:
    """A loss by itself."""

    def run() -> list[np.ndarray]:
        ms.set_context(mode=mode)
        loss = make()
        logits, label = ms.Tensor(LOGITS), ms.Tensor(LABELS.reshape(-1))
        mask = ms.Tensor(MASK.reshape(-1))
        try:
            value, gradient = ms.value_and_grad(loss, 0)(logits, label, mask)
            return _arrays(value, (gradient,))
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)

    return run


def _static(**options):
    def make():
        from mindformers.parallel_core.training_graph import loss_func
        from mindformers.parallel_core.transformer_config import TransformerConfig

        config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=2, **options)
        return loss_func.CrossEntropyLoss(config=config)

    return make


def _core(**options):
    def make():
        from mindformers.core import CrossEntropyLoss

        return CrossEntropyLoss(**options)

    return make


MTP = {"mtp_num_layers": 1, "mtp_loss_scaling_factor": 0.3}
GPT = {
    "plain": _gpt(),
    "per token": _gpt(calculate_per_token_loss=True),
    "chunked": _gpt(chunk_loss_num=3),
    "multi-token": _gpt(**MTP),
    "multi-token per token": _gpt(**MTP, calculate_per_token_loss=True),
    "multi-token chunked": _gpt(**MTP, chunk_loss_num=2),
}
PER_TOKEN = {"calculate_per_token_loss": True}
CORE = {
    "core": _alone(_core()),
    "core graph": _alone(_core(), ms.GRAPH_MODE),
    "core per token": _alone(_core(**PER_TOKEN)),
}
# The static graph's own loss stops at OneHotExt, which has no CPU kernel: core's, of the same formula, stands for it.
STATIC = {
    "static": _alone(_static()),
    "static graph": _alone(_static(), ms.GRAPH_MODE),
    "static per token": _alone(_static(**PER_TOKEN)),
}
RUNS = GPT | CORE | STATIC
FORMS: dict[str, dict | None] = {"without": None, "patched": {}, "linear": {"linear": True}}
CASES = [
    (name, form)
    for names, forms in (
        (GPT, FORMS),
        (CORE, ("without", "patched")),
        (STATIC, ("patched",)),
    )
    for name in names
    for form in forms
]


def main(path: str) -> None:
    ms.set_device("CPU")
    hyper_parallel_stand_in.install()
    cpu_operators.install_for_mindformers()
    results = {}
    for name, form in CASES:
        options = FORMS[form]
        with nullcontext() if options is None else ms_ce.patch.mindformers(**options):
            for place, array in enumerate(RUNS[name]()):
                results[f"{name}/{form}/{place}"] = array
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
