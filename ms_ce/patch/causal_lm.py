"""Language models that follow transformers: the head hands its hidden states on, and the loss multiplies by the table.

Such a model computes `logits = self.lm_head(hidden)` and then `self.loss_function(logits=logits, labels=labels)`. While
it trains on labels, `lm_head` answers with `LinearLogits`, the product that has not been made, which our loss function
takes apart. Whatever else a model does with them would fail, so that only those are asked that do no more.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mindspore as ms

from ms_ce.patch.engine import Seam, module_of, original, seam
from ms_ce.patch.linear_loss import linear_loss

# Their `forward` or `construct` hands the head's output to the loss function and to its result, and nothing else.
FAMILIES = (
    "Apertus", "Arcee", "AriaText", "DeepseekV2", "DiffLlama", "Doge", "Dots1", "Ernie4_5",
    "Ernie4_5_Moe", "Exaone4", "FlexOlmo", "Gemma", "Glm", "Glm4", "Glm4Moe", "Helium",
    "HunYuanDenseV1", "HunYuanMoEV1", "Jamba", "Lfm2", "Llama", "MiniMax", "Ministral", "Mistral",
    "Mixtral", "Nemotron", "Olmo", "Olmo2", "Olmo3", "Olmoe", "Phi", "Phimoe", "Qwen2Moe", "Qwen3",
    "Qwen3Moe", "Qwen3Next", "SeedOss", "SmolLM3", "StableLm", "Starcoder2",
)  # fmt: skip
CLASSES = frozenset(f"{family}ForCausalLM" for family in FAMILIES)


class LinearLogits(NamedTuple):
    """`hidden @ weight.T + bias`, not computed."""

    hidden: Any
    weight: Any
    bias: Any


class _Head:
    """Stands for `lm_head` during one call of its model."""

    def __init__(self, head):
        self.head = head

    def __call__(self, hidden):
        return LinearLogits(hidden, self.head.weight, getattr(self.head, "bias", None))


def causal_loss(
    logits: LinearLogits, labels, num_items_in_batch=None, ignore_index=-100, shift_labels=None
):
    """The mean over the labels that count, or their sum over `num_items_in_batch`, in float32.

    labels answer for the position before them; shift_labels for their own.
    """
    shift = shift_labels is None
    target = labels if shift else shift_labels
    rows = tuple(logits.hidden.shape[:-1])
    if math.prod(target.shape) != math.prod(rows):
        raise ValueError(
            f"patch: labels must have shape {rows}, as the hidden states in front of lm_head, got "
            f"{tuple(target.shape)}; logits_to_keep leaves no position for labels"
        )
    target = target.reshape(rows)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = linear_loss(*logits[:2], target, logits.bias, reduction, ignore_index, shift=shift)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def loss_function(library: str, losses: str, finished: Callable | None = None) -> Callable:
    """The library's ForCausalLMLoss of module `losses`, which takes hidden states too; their loss and the states then
    go through `finished`."""

    def causal_loss_of(
        logits,
        labels,
        vocab_size,
        num_items_in_batch=None,
        ignore_index=-100,
        shift_labels=None,
        **kwargs,
    ):
        options = (num_items_in_batch, ignore_index, shift_labels)
        if isinstance(logits, LinearLogits):
            loss = causal_loss(logits, labels, *options)
            return loss if finished is None else finished(loss, logits.hidden)
        theirs = original(module_of(library, losses), "ForCausalLMLoss")
        return theirs(logits, labels, vocab_size, *options, **kwargs)

    return causal_loss_of


def seams(library: str, losses: str, models: str, loss: Callable, call: Callable) -> list[Seam]:
    """Where a library finds the loss of its causal language models, and where it calls a model."""
    table = module_of(library, losses).LOSS_MAPPING
    model = module_of(library, models).PreTrainedModel
    return [
        seam(library, table, f"{losses}.LOSS_MAPPING", "ForCausalLM", loss),
        seam(library, model, f"{models}.PreTrainedModel", "__call__", call),
    ]


def without_logits(call, model, forward: str, args, keywords, loss, heads):
    """`call(model, …)` with the head's product left to the loss, where the model is asked for a loss in training.

    call: the method that runs the model. forward: name of the method that computes. loss: our loss function, which the
    model must use. heads: classes of layers that are no more than a product with a table.
    """
    if (
        type(model).__name__ not in CLASSES
        or not model.training
        or ms.get_context("mode") != ms.PYNATIVE_MODE
        or type(model.lm_head) not in heads
        or model.loss_function is not loss
    ):
        return call(model, *args, **keywords)
    compute = getattr(model, forward)
    given = inspect.signature(compute).bind(*args, **keywords).arguments
    if given.get("labels") is None:
        return call(model, *args, **keywords)

    def computed(*args, **keywords):
        return _without(compute(*args, **keywords))

    # An instance's own attributes come before its layers and its class.
    own = vars(model)
    own["lm_head"], own[forward] = _Head(model.lm_head), computed
    try:
        return call(model, *args, **keywords)
    finally:
        del own["lm_head"], own[forward]


def _without(output):
    """The model's output with None for the logits that were not made."""
    if isinstance(output, tuple):
        return tuple(None if isinstance(one, LinearLogits) else one for one in output)
    output["logits"] = None
    return output
