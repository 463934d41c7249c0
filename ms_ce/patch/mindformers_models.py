"""mindformers: the PyNative GPTModel, the models of the static graph, and the loss of mindformers.core."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import mindspore as ms
from mindspore import dtype as mstype
from mindspore import nn, ops

import ms_ce
from ms_ce.ops.options import OPTIONS
from ms_ce.parallel import CrossEntropyLoss, ParallelConfig, VocabParallelCrossEntropyLoss
from ms_ce.patch.engine import Patch, Seam, module_of, names_of, original, seam, version_of
from ms_ce.patch.linear_loss import linear_loss

KNOWN = ("2.0.0", "2.1.0")
_PYNATIVE = "mindformers.pynative.loss.loss"
_UTILITIES = "mindformers.pynative.distributed.utils"
_GPT = "mindformers.pynative.base_models.gpt.gpt_model"
_STATIC = "mindformers.parallel_core.training_graph.loss_func"
_CORE = "mindformers.core.loss.loss"
_IGNORED = OPTIONS[0].default


# PyNative: row losses, then the mask.


class GradientTimes(nn.Cell):
    """The identity, whose gradient is multiplied."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def construct(self, x):
        return x * 1

    def bprop(self, x, out, dout):
        return (dout * self.factor,)


@functools.cache
def _over(group: str) -> VocabParallelCrossEntropyLoss:
    return VocabParallelCrossEntropyLoss(group, reduction="none")


def _sharded_vocabulary(logits):
    """(process group, its size) of logits that are a DTensor with its classes split; None for others."""
    dimension = module_of("mindformers", _UTILITIES).vocab_parallel_shard_dim(logits)
    if dimension is None:
        return None
    mesh = logits.device_mesh
    return mesh.get_group(dimension), mesh.size(dimension)


def _local(logits):
    """A DTensor's part on this rank, whose gradient is a DTensor again."""
    from mindspore.common._grad_function import _Function

    kind = type(logits)

    class Local(_Function):
        @staticmethod
        def forward(ctx, logits):
            ctx.mesh, ctx.placements = logits.device_mesh, logits.placements
            return logits.to_local()

        @staticmethod
        def backward(ctx, grad):
            return kind.from_local(grad, ctx.mesh, ctx.placements)

    return Local.apply(logits)


def _targets(label, mask):
    """Labels as rows; one whose mask is 0 becomes an ignored one, of which neither logits nor label are read."""
    label = ops.cast(ops.reshape(label, (-1,)), mstype.int64)
    return label if mask is None else ops.masked_fill(label, ops.equal(mask, 0.0), _IGNORED)


def _mask_rows(mask):
    return None if mask is None else ops.cast(ops.reshape(mask, (-1,)), mstype.float32)


def _mean(numerator, mask, per_token: bool):
    """mindformers' masked mean, of shape (1,), or its two parts."""
    denominator = ops.sum(mask) + ms.Tensor([1e-8], mstype.float32)
    return (numerator, denominator) if per_token else numerator / denominator


def construct(self, logits, label, input_mask=None):
    """`construct` of the PyNative CrossEntropyLoss.

    Where the vocabulary is split over a tensor-parallel group, logits are this rank's block of classes and the gradient
    is multiplied by the group's size if `compensate_loss_sense_tp` says so, as mindformers' trainer expects.
    """
    group, size = getattr(self, "_tp_group", None), getattr(self, "_tp_size", 1)
    sharded = _sharded_vocabulary(logits)
    if sharded is not None:
        (group, size), logits = sharded, _local(logits)
    mask = _mask_rows(input_mask)
    rows = ops.cast(ops.reshape(logits, (-1, logits.shape[-1])), mstype.float32)
    target = _targets(label, mask)
    if group is None:
        losses = ms_ce.cross_entropy(rows, target, reduction="none")
    else:
        losses = _over(group)(rows, target)
        if self.compensate_loss_sense_tp:
            losses = GradientTimes(size)(losses)
    if mask is None:
        return losses
    return _mean(ops.sum(losses * mask), mask, self.calculate_per_token_loss)


def construct_chunked(self, logits, label, input_mask=None):
    """`construct` of ChunkCrossEntropyLoss: the mean for logits of (batch, sequence, vocabulary), in one call."""
    if logits.ndim != 3:
        return construct(self, logits, label, input_mask)
    mask = ops.ones_like(label) if input_mask is None else input_mask
    result = construct(self, logits, label, mask)
    return result[0] / result[1] if isinstance(result, tuple) else result


# PyNative: without logits.


class LinearLogits:
    """`hidden @ weight.T`, not computed, in the few ways that GPTModel and process_mtp_loss look at logits.

    It has two dimensions where hidden states are (sequence, batch, features), so that GPTModel does not turn it.
    """

    ndim = 2

    def __init__(self, hidden, weight, batch_first: bool = False):
        self.hidden, self.weight, self.batch_first = hidden, weight, batch_first

    @property
    def shape(self):
        return (*self.hidden.shape[:-1], self.weight.shape[0])

    def transpose(self, *axes):
        return LinearLogits(self.hidden, self.weight, True)

    def reshape(self, shape):
        return self

    def rows(self):
        hidden = self.hidden
        if hidden.ndim == 3:
            hidden = ops.transpose(hidden, (1, 0, 2))
        return ops.reshape(hidden, (-1, hidden.shape[-1]))


class _OutputLayer:
    """Stands for GPTModel's output layer during one call."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, hidden, weight=None):
        weight = self.layer.weight if weight is None else weight
        dtype = self.layer.compute_dtype
        return LinearLogits(ops.cast(hidden, dtype), ops.cast(weight, dtype))


def _linear_loss(per_token: bool):
    """`compute_language_model_loss` of GPTModel, on what `_OutputLayer` returns."""

    def compute_language_model_loss(labels, logits, loss_mask=None):
        mask = _mask_rows(loss_mask)
        tensors = logits.rows(), logits.weight, _targets(labels, mask)
        if mask is None:
            losses = ms_ce.linear_cross_entropy(*tensors, reduction="none")
            return ops.cast(losses, mstype.float32)
        numerator = linear_loss(*tensors, None, "sum", _IGNORED, row_weight=mask)
        return _mean(numerator, mask, per_token)

    return compute_language_model_loss


def _call(self, *args, **keywords):
    """`GPTModel.__call__`: in training no logits are made, unless they are returned or split over ranks."""
    layer, loss = getattr(self, "output_layer", None), getattr(self, "loss", None)
    if (
        not self.training
        or self.return_logits
        or layer is None
        or loss is None
        or layer.has_bias
        or getattr(loss, "_tp_group", None) is not None
        or any(hasattr(each, "to_local") for each in self.get_parameters())
        or ms.get_context("mode") != ms.PYNATIVE_MODE
    ):
        return nn.Cell.__call__(self, *args, **keywords)
    instead: dict[str, Any] = {
        "output_layer": _OutputLayer(layer),
        "compute_language_model_loss": _linear_loss(self.calculate_per_token_loss),
        "_should_use_chunked_loss": lambda: False,
    }
    # An instance's own attributes come before its layers and its class.
    own = vars(self)
    own.update(instead)
    try:
        return nn.Cell.__call__(self, *args, **keywords)
    finally:
        for name in instead:
            del own[name]


# The static graph.


def static_loss(config=None, loss_tag="lm", **kwargs):
    """The static graph's CrossEntropyLoss(config=…), as ms_ce.parallel.CrossEntropyLoss.

    Where the context asks to monitor the local loss, whose printing and parameter belong to mindformers' trainer, it is
    mindformers' own.
    """
    module = module_of("mindformers", _STATIC)
    config = module.default_transformer_config if config is None else config
    names = ("monitor_local_loss", "monitor_device_local_loss")
    if module.Context.is_exists() and any(module.get_context(name) for name in names):
        return original(module, "CrossEntropyLoss")(config, loss_tag, **kwargs)
    mesh = ParallelConfig(
        config.data_parallel_size,
        config.tensor_model_parallel_size,
        config.context_parallel_size,
    )
    return CrossEntropyLoss(
        mesh,
        calculate_per_token_loss=getattr(config, "calculate_per_token_loss", False),
        seq_split_num=config.seq_split_num,
    )


def _pynative_seams(linear: bool) -> list[Seam]:
    losses = module_of("mindformers", _PYNATIVE)
    found = []
    for name, new in (
        ("CrossEntropyLoss", construct),
        ("ChunkCrossEntropyLoss", construct_chunked),
    ):
        owner = seam("mindformers", losses, _PYNATIVE, name, None).read()
        found.append(seam("mindformers", owner, f"{_PYNATIVE}.{name}", "construct", new))
    if linear:
        model = module_of("mindformers", _GPT).GPTModel
        found.append(seam("mindformers", model, f"{_GPT}.GPTModel", "__call__", _call))
    return found


def mindformers(
    *,
    pynative: bool | None = None,
    static: bool = True,
    core: bool = True,
    linear: bool = False,
    force: bool = False,
) -> Patch:
    """Replaces the losses of mindformers: where models make them, which no entry in its registry reaches.

    Keyword Args:
        pynative (bool): `construct` of the PyNative CrossEntropyLoss and ChunkCrossEntropyLoss, for GPTModel and
            multi-token prediction, with the vocabulary split over a tensor-parallel group too. Default: where
            hyper_parallel, without which mindformers has no PyNative mode, is installed.
        static (bool): the static graph's CrossEntropyLoss(config=…), which its GPTModel and multi-token prediction
            make. Models that were made before keep theirs. Default True.
        core (bool): mindformers.core.CrossEntropyLoss, which the older models make. Default True.
        linear (bool): GPTModel in PyNative, in training, computes its loss, and those of multi-token prediction, from
            the hidden states in front of the output layer: no logits exist. Where they are returned or the vocabulary
            is split over ranks they are made as before. Needs `pynative`. Default False.
        force (bool): replace them in a version of mindformers that is not known too. Default False.

    Returns:
        Patch, as `patch.mindspore`.

    Raises:
        ValueError: for `linear` without `pynative`.

    Example:
        >>> import ms_ce
        >>> with ms_ce.patch.mindformers(pynative=False, core=False) as patched:
        ...     print(patched.replaced[-1])
        mindformers.parallel_core.training_graph.loss_func.CrossEntropyLoss
    """
    version = version_of("mindformers", KNOWN, force)
    if pynative is None:
        pynative = find_spec("hyper_parallel") is not None
    if linear and not pynative:
        raise ValueError(
            "patch.mindformers: linear=True is for the PyNative models, which pynative leaves out or which cannot be "
            "used here, where hyper_parallel is not installed"
        )
    seams: list[Seam] = []
    if pynative:
        seams += _pynative_seams(linear)
    if static:
        seams += names_of("mindformers", _STATIC, "CrossEntropyLoss", static_loss)
    if core:
        seams += names_of("mindformers", _CORE, "CrossEntropyLoss", CrossEntropyLoss)
    return Patch("mindformers", version, seams)
