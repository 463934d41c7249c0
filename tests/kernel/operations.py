"""One loss problem and every operation on it: kernel on one side, float64 reference on the other."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

from tests.kernel.library import (
    NO_ROW_WEIGHT,
    ROOT,
    Library,
    cast,
    dtype_name,
    empty,
    fixed_dtypes,
    options,
    to_float64,
)


def load_reference(name: str = "reference") -> ModuleType:
    """ms_ce/reference.py by its path: `import ms_ce` would need MindSpore."""
    spec = importlib.util.spec_from_file_location(f"ms_ce_{name}", ROOT / "ms_ce" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reference = load_reference()
_OF_LSE = ("softcap", "logit_scale")


class Loss:
    """Logits, target, weight and options, as the kernel gets them and as the reference does."""

    def __init__(
        self,
        library: Library,
        logits: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray | None = None,
        **settings: Any,
    ):
        self.library = library
        self.logits, self.target, self.weight = logits, target, weight
        self.dtype, self.shape = dtype_name(logits), logits.shape
        self.settings = {"reduction": "mean", **settings}
        self.rows = reference.rows_shape(self.shape)
        self.reduced = self.rows if self.settings["reduction"] == "none" else ()
        self.suffix = "Rows" if self.settings["reduction"] == "none" else ""
        self.probability = target.dtype.kind == "f" or dtype_name(target) == "bfloat16"

    def _given(self, **more: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs by name; what is not given is a placeholder of nan."""
        placeholder = cast(np.full(1, np.nan), self.dtype)
        return {
            "logits": self.logits,
            "target": self.target,
            "weight": placeholder if self.weight is None else self.weight,
            "options": options(
                **self.settings,
                has_weight=self.weight is not None,
                has_grad_z_loss="grad_z_loss" in more,
            ),
            "row_weight": NO_ROW_WEIGHT,
            "grad_z_loss": placeholder,
            **more,
        }

    def _output(self, argument: dict[str, str]) -> np.ndarray:
        shapes = {
            "scalar": (),
            "rows": self.rows,
            "loss": self.reduced,
            "logits": self.shape,
            "target": self.target.shape,
            "weight": np.shape(self.weight),
        }
        dtypes = {**fixed_dtypes(), "P": dtype_name(self.target)}
        if self.weight is not None:
            dtypes["W"] = dtype_name(self.weight)
        return empty(shapes[argument["extent"]], dtypes.get(argument["type"], self.dtype))

    def _run(self, name: str, **more: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs of an operation, which the library's description of it lists."""
        operation, given = self.library.operations["CrossEntropy" + name], self._given(**more)
        out = tuple(self._output(argument) for argument in operation["outputs"])
        inputs = [given[argument["name"]] for argument in operation["inputs"]]
        self.library.call(operation["name"], inputs, list(out))
        return out

    def _run_backward(
        self, name: str, grad_loss: np.ndarray, grad_z: np.ndarray | None = None, **more: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        _, total_weight, lse = self.forward()
        if grad_z is not None:
            more["grad_z_loss"] = grad_z
        return self._run(name, grad_loss=grad_loss, lse=lse, total_weight=total_weight, **more)

    def forward(self) -> tuple[np.ndarray, ...]:
        """loss, total_weight, lse."""
        return self._run("Forward" + self.suffix)

    def statistics(self) -> tuple[np.ndarray, ...]:
        """loss, total_weight, lse, z_loss, num_correct, entropy, predicted."""
        return self._run("Stats" + self.suffix)

    def backward(self, grad_loss: np.ndarray, grad_z: np.ndarray | None = None) -> np.ndarray:
        """grad_logits."""
        return self._run_backward("Backward", grad_loss, grad_z)[0]

    def double_backward(
        self, direction: np.ndarray, grad_loss: np.ndarray, grad_z: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """grad_grad_loss, grad_grad_z_loss, grad_logits, direction_mean."""
        return self._run_backward("DoubleBackward", grad_loss, grad_z, direction=direction)

    def target_grad(self, grad_loss: np.ndarray) -> np.ndarray:
        """grad_target."""
        return self._run_backward("TargetGrad", grad_loss)[0]

    def weight_grad(self, grad_loss: np.ndarray, grad_z: np.ndarray | None = None) -> np.ndarray:
        """grad_weight."""
        return self._run_backward("WeightGrad", grad_loss, grad_z)[0]

    def value_and_grad(self) -> tuple[np.ndarray, ...]:
        """loss, total_weight, lse, grad_logits."""
        return self._run("ValueAndGrad")

    def _reference_arguments(self) -> tuple[Any, Any, Any]:
        target = to_float64(self.target) if self.probability else self.target
        weight = None if self.weight is None else to_float64(self.weight)
        return to_float64(self.logits), target, weight

    def reference(self) -> Any:
        return reference.cross_entropy(*self._reference_arguments(), **self.settings)

    def reference_grad(self, grad_loss: np.ndarray) -> Any:
        upstream = to_float64(grad_loss)
        arguments = self._reference_arguments()
        return reference.cross_entropy_grad(*arguments, **self.settings, grad_loss=upstream)

    def reference_direction_mean(self, direction: np.ndarray) -> np.ndarray:
        """Σ p·d of each row, the derivative of its lse along the direction; 0 where the row is ignored."""
        logits, target, _ = self._reference_arguments()
        softmax = {name: self.settings[name] for name in _OF_LSE if name in self.settings}
        rows = reference.to_rows(reference.lse_grad(logits, **softmax) * to_float64(direction))
        mean = rows.sum(1).reshape(self.rows)
        if self.probability:
            return mean
        return np.where(target == self.settings.get("ignore_index", -100), 0.0, mean)

    def reference_hvp(self, direction: np.ndarray, grad_loss: np.ndarray) -> np.ndarray:
        return reference.cross_entropy_hvp(
            to_float64(direction),
            *self._reference_arguments(),
            **self.settings,
            grad_loss=to_float64(grad_loss),
        )
