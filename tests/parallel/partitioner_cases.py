"""What the partitioner tests compile: meshes, options, inputs, and the answer of the float64 reference."""

from dataclasses import dataclass, field

import numpy as np

from ms_ce import reference

ROWS_PER_RANK, CLASSES_PER_RANK = 4, 6


@dataclass(frozen=True)
class Case:
    """A mesh, the loss's options, the context's settings, and what the inputs hold."""

    data_parallel: int = 2
    model_parallel: int = 2
    loss: dict = field(default_factory=dict)
    context: dict = field(default_factory=dict)
    probabilities: bool = False
    infinite_logits: bool = False
    dtype: type = np.float32
    mask_dtype: type = np.float32
    backend: str = "composed"
    copies: int = 1  # of the mesh, where there are more devices than it needs

    @property
    def ranks(self) -> int:
        return self.data_parallel * self.model_parallel * self.copies


def _weights(classes: int) -> list[float]:
    """One class weighs nothing."""
    return [0.0, *np.round(np.random.default_rng(7).uniform(0.2, 2, classes - 1), 3).tolist()]


EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.01, "weight": _weights(12)}
CASES = {
    **{
        f"mesh {rows}x{classes}": Case(rows, classes)
        for rows, classes in ((2, 2), (2, 4), (4, 2), (8, 1), (1, 8), (16, 8))
    },
    "every option": Case(loss=EVERYTHING),
    "ignore_index in range, bool mask": Case(loss={"ignore_index": 3}, mask_dtype=np.bool_),
    "probabilities": Case(probabilities=True),
    "probabilities, every option": Case(loss=EVERYTHING, probabilities=True),
    "infinite logits, integer mask": Case(infinite_logits=True, mask_dtype=np.int32),
    "infinite logits, probabilities": Case(infinite_logits=True, probabilities=True),
    "float16": Case(dtype=np.float16),
    "auto_parallel": Case(
        context={"parallel_mode": "auto_parallel", "search_mode": "sharding_propagation"}
    ),
    "split batch": Case(context={"dataset_strategy": ((2, 1), (2,), (2,))}),
    "copies of rows": Case(2, 1, copies=2),
}
# The same graphs with the Ascend kernels, which the host model of tests/ascend runs.
FUSED = {"backend": "ascend"}
CASES |= {
    "fused, mesh 2x2": Case(**FUSED),
    "fused, mesh 4x1": Case(4, 1, **FUSED),
    "fused, mesh 1x4": Case(1, 4, **FUSED),
    "fused, every option": Case(loss=EVERYTHING, **FUSED),
    "fused, infinite logits": Case(infinite_logits=True, **FUSED),
    "fused, float16": Case(dtype=np.float16, **FUSED),
    "fused, copies": Case(copies=2, **FUSED),
    "AutoParallel": Case(context={"wrapper": "semi_auto"}),
    "fused, AutoParallel": Case(context={"wrapper": "sharding_propagation"}, **FUSED),
}


def make_inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, label, mask; a masked row holds nan, another is ignored, a third counts half where it can."""
    rows, classes = ROWS_PER_RANK * case.data_parallel, CLASSES_PER_RANK * case.model_parallel
    draw = np.random.default_rng(rows * classes)
    logits = (3 * draw.normal(size=(rows, classes))).astype(case.dtype)
    label = draw.integers(0, classes, rows).astype(np.int32)
    mask = np.ones(rows, case.mask_dtype)
    mask[1], logits[1] = 0, np.nan
    label[2] = case.loss.get("ignore_index", -100)
    label[0] = classes - 1
    if case.mask_dtype is np.float32:
        mask[3] = 0.5
    if case.infinite_logits:
        logits[0, ::2] = -np.inf
        label[0] = 1
    if case.probabilities:
        label = draw.dirichlet(np.ones(classes), rows).astype(np.float32)
        if case.infinite_logits:
            label[0] = 0
            label[0, 1] = 1
    return logits, label, mask


def expected(case: Case, logits, label, mask) -> tuple[float, np.ndarray, np.ndarray | None]:
    """Loss, gradient of the logits and of a probability label, from the float64 reference."""
    counted = mask.astype(np.float64) != 0
    options = {"ignore_index": -100, **case.loss}
    if not case.probabilities:
        counted &= label != options["ignore_index"]
    factor = mask[counted].astype(np.float64)
    weight = (
        np.ones(logits.shape[1]) if options.get("weight") is None else np.array(options["weight"])
    )
    row_weight = np.ones(counted.sum()) if case.probabilities else weight[label[counted]]
    total = (factor * row_weight).sum() + 1e-8
    rows = reference.cross_entropy(
        logits[counted], label[counted], reduction="none", **options
    ).loss
    gradients = reference.cross_entropy_grad(
        logits[counted], label[counted], reduction="none", grad_loss=factor / total, **options
    )
    grad_logits, grad_label = np.zeros(logits.shape), None
    grad_logits[counted] = gradients.logits
    if case.probabilities:
        grad_label = np.zeros(logits.shape)
        grad_label[counted] = gradients.target
    return float((factor * rows).sum() / total), grad_logits, grad_label
