"""The Ascend operators on the host model, with numpy in and out: what ops/ascend does on the hardware."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tests.ascend.host_model import AS_FOUND, Chip, Counters, HostModel

ERROR_WORDS = 8


@functools.cache
def model(dtype: str) -> HostModel:
    return HostModel(dtype)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds to a dtype of logits; bfloat16 is kept as its uint16 bits."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def decode(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return values.astype(np.float64)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def empty(shape, dtype: str) -> np.ndarray:
    """An output nobody has written: NaN, or a pattern no kernel produces."""
    if dtype == "bfloat16":
        return np.full(shape, 0x7FC1, np.uint16)
    return np.full(shape, np.nan if dtype.startswith("float") else -0x5A5A5A5A, dtype)


@dataclass(frozen=True)
class Run:
    """How to run: cores of the modelled chip, the pipes' order, the order of blocks, and how the chip is set."""

    cores: int = 48
    lazy_pipes: int = 0
    falling_order: bool = False
    chip: Chip = AS_FOUND


ALL_CORES = Run()


def _weight(weight, classes: int) -> tuple[np.ndarray, int]:
    if weight is None:
        return np.zeros(1, np.float32), 0
    return np.ascontiguousarray(weight, np.float32), 1


def _options(
    run: Run, target: np.ndarray, has_weight: int, machine: HostModel, reduction, **options
):
    wide = target.dtype == np.int64
    return {
        "cores": run.cores,
        "hasWeight": has_weight,
        "targetBytes": 8 if wide else 4,
        "reduction": machine.reductions[reduction],
        **options,
    }


def _execute(machine: HostModel, run: Run, kernel: str, inputs, outputs, problem) -> Counters:
    tiling = machine.tiling(problem)
    return machine.launch(
        kernel,
        inputs,
        outputs,
        tiling,
        lazy_pipes=run.lazy_pipes,
        falling_order=run.falling_order,
        chip=run.chip,
    )


def forward(logits, target, weight, dtype, *, reduction="mean", run=ALL_CORES, **options):
    """MsCeForward or, for floating targets, MsCeProbForward. Returns outputs by name and the counters."""
    rows, cols = logits.shape
    machine = model(dtype)
    is_probability = target.dtype.kind == "f" or (dtype == "bfloat16" and target.dtype == np.uint16)
    weights, has_weight = _weight(weight, cols)
    outputs = {
        "loss": empty(rows if reduction == "none" else 1, "float32"),
        "total_weight": empty(1, "float32"),
        "lse": empty(rows, "float32"),
    }
    if is_probability:
        outputs["mass"] = empty(rows, "float32")
    else:
        outputs["error"] = empty(ERROR_WORDS, "int32")
    kernel = "prob_forward" if is_probability else "forward"
    values = _options(run, target, has_weight, machine, reduction, **options)
    problem = machine.problem(kernel, rows, cols, **values)
    inputs = {"logits": logits, "target": target, "weight": weights}
    return outputs, _execute(machine, run, f"ms_ce_{kernel}", inputs, outputs, problem)


def partial(logits, target, weight, dtype, *, run=ALL_CORES, **options):
    """MsCePartial: log-sum-exp, dot and mass of a block of the vocabulary."""
    rows, cols = logits.shape
    machine = model(dtype)
    weights, has_weight = _weight(weight, cols)
    outputs = {name: empty(rows, "float32") for name in ("lse", "dot", "mass")}
    outputs["error"] = empty(ERROR_WORDS, "int32")
    values = _options(run, target, has_weight, machine, "none", **options)
    problem = machine.problem("partial", rows, cols, **values)
    inputs = {"logits": logits, "target": target, "weight": weights}
    return outputs, _execute(machine, run, "ms_ce_partial", inputs, outputs, problem)


def backward(
    grad_loss,
    logits,
    target,
    weight,
    lse,
    total_weight,
    dtype,
    *,
    mass=None,
    reduction="mean",
    run=ALL_CORES,
    **options,
):
    """MsCeBackward, or MsCeProbBackward where `mass` is given."""
    rows, cols = logits.shape
    machine = model(dtype)
    weights, has_weight = _weight(weight, cols)
    kernel = "backward" if mass is None else "prob_backward"
    inputs = {
        "grad_loss": np.ascontiguousarray(grad_loss, np.float32).reshape(-1),
        "logits": logits,
        "target": target,
        "weight": weights,
        "lse": np.ascontiguousarray(lse, np.float32),
    }
    if mass is not None:
        inputs["mass"] = np.ascontiguousarray(mass, np.float32)
    inputs["total_weight"] = np.ascontiguousarray(total_weight, np.float32).reshape(-1)
    outputs = {"grad_logits": empty((rows, cols), dtype)}
    values = _options(run, target, has_weight, machine, reduction, **options)
    problem = machine.problem(kernel, rows, cols, **values)
    return outputs["grad_logits"], _execute(
        machine, run, f"ms_ce_{kernel}", inputs, outputs, problem
    )


def forward_grad(logits, target, weight, dtype, *, reduction="mean", run=ALL_CORES, **options):
    """MsCeForwardGrad: loss and gradient in one call."""
    rows, cols = logits.shape
    machine = model(dtype)
    weights, has_weight = _weight(weight, cols)
    outputs = {
        "loss": empty(1, "float32"),
        "total_weight": empty(1, "float32"),
        "lse": empty(rows, "float32"),
        "grad_logits": empty((rows, cols), dtype),
        "error": empty(ERROR_WORDS, "int32"),
    }
    values = _options(run, target, has_weight, machine, reduction, **options)
    problem = machine.problem("forward_grad", rows, cols, **values)
    inputs = {"logits": logits, "target": target, "weight": weights}
    return outputs, _execute(machine, run, "ms_ce_forward_grad", inputs, outputs, problem)


def nll_forward(log_prob, target, weight, dtype, *, reduction="mean", run=ALL_CORES, **options):
    """MsCeNllForward."""
    rows, cols = log_prob.shape
    machine = model(dtype)
    weights, has_weight = _weight(weight, cols)
    outputs = {
        "loss": empty(rows if reduction == "none" else 1, "float32"),
        "total_weight": empty(1, "float32"),
        "error": empty(ERROR_WORDS, "int32"),
    }
    values = _options(run, target, has_weight, machine, reduction, **options)
    problem = machine.problem("nll_forward", rows, cols, **values)
    inputs = {"log_prob": log_prob, "target": target, "weight": weights}
    return outputs, _execute(machine, run, "ms_ce_nll_forward", inputs, outputs, problem)


def nll_backward(
    grad_loss,
    log_prob,
    target,
    weight,
    total_weight,
    dtype,
    *,
    reduction="mean",
    run=ALL_CORES,
    **options,
):
    """MsCeNllBackward."""
    rows, cols = log_prob.shape
    machine = model(dtype)
    weights, has_weight = _weight(weight, cols)
    outputs = {"grad_log_prob": empty((rows, cols), dtype)}
    values = _options(run, target, has_weight, machine, reduction, **options)
    problem = machine.problem("nll_backward", rows, cols, **values)
    inputs = {
        "grad_loss": np.ascontiguousarray(grad_loss, np.float32).reshape(-1),
        "log_prob": log_prob,
        "target": target,
        "weight": weights,
        "total_weight": np.ascontiguousarray(total_weight, np.float32).reshape(-1),
    }
    return outputs["grad_log_prob"], _execute(
        machine, run, "ms_ce_nll_backward", inputs, outputs, problem
    )
