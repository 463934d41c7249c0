"""One loss problem and every operation on it: kernel on one side, float64 reference on the other."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

from tests.kernel.library import ROOT, Library, cast, dtype_name, empty, options, to_float64


def load_reference() -> ModuleType:
    """ms_ce/reference.py by its path: `import ms_ce` would need MindSpore."""
    spec = importlib.util.spec_from_file_location(
        "ms_ce_reference", ROOT / "ms_ce" / "reference.py"
    )
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

    def _options(self, **more: Any) -> np.ndarray:
        return options(**{**self.settings, "has_weight": self.weight is not None, **more})

    def _inputs(self, **more: Any) -> list[np.ndarray]:
        placeholder = cast(np.full(1, np.nan), self.dtype)
        weight = placeholder if self.weight is None else self.weight
        return [self.logits, self.target, weight, self._options(**more)]

    def forward(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """loss, total_weight, lse."""
        out = (
            empty(self.reduced, self.dtype),
            empty((), "float64"),
            empty(self.rows, "float64"),
        )
        self.library.call("CrossEntropyForward" + self.suffix, self._inputs(), list(out))
        return out

    def statistics(self) -> tuple[np.ndarray, ...]:
        """loss, total_weight, lse, z_loss, num_correct, entropy."""
        out = (
            empty(self.reduced, self.dtype),
            empty((), "float64"),
            empty(self.rows, "float64"),
            empty(self.reduced, self.dtype),
            empty((), "int64"),
            empty(self.reduced, self.dtype),
        )
        self.library.call("CrossEntropyStats" + self.suffix, self._inputs(), list(out))
        return out

    def _saved(self, grad_loss: np.ndarray, *, grad_z: np.ndarray | None = None) -> list:
        _, total_weight, lse = self.forward()
        logits, target, weight, opts = self._inputs(has_grad_z_loss=grad_z is not None)
        placeholder = cast(np.full(1, np.nan), self.dtype)
        second = placeholder if grad_z is None else grad_z
        return [grad_loss, second, logits, target, weight, lse, total_weight, opts]

    def backward(self, grad_loss: np.ndarray, grad_z: np.ndarray | None = None) -> np.ndarray:
        grad = empty(self.shape, self.dtype)
        self.library.call("CrossEntropyBackward", self._saved(grad_loss, grad_z=grad_z), [grad])
        return grad

    def double_backward(
        self, direction: np.ndarray, grad_loss: np.ndarray, grad_z: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """grad_grad_loss, grad_grad_z_loss, grad_logits, direction_mean."""
        out = (
            empty(self.reduced, self.dtype),
            empty(self.reduced, self.dtype),
            empty(self.shape, self.dtype),
            empty(self.rows, "float64"),
        )
        inputs = [direction, *self._saved(grad_loss, grad_z=grad_z)]
        self.library.call("CrossEntropyDoubleBackward", inputs, list(out))
        return out

    def target_grad(self, grad_loss: np.ndarray) -> np.ndarray:
        grad = empty(self.shape, dtype_name(self.target))
        first, _, *rest = self._saved(grad_loss)
        self.library.call("CrossEntropyTargetGrad", [first, *rest], [grad])
        return grad

    def weight_grad(self, grad_loss: np.ndarray) -> np.ndarray:
        assert self.weight is not None
        grad = empty(self.weight.shape, dtype_name(self.weight))
        first, _, *rest = self._saved(grad_loss)
        self.library.call("CrossEntropyWeightGrad", [first, *rest], [grad])
        return grad

    def value_and_grad(self) -> tuple[np.ndarray, ...]:
        """loss, total_weight, lse, grad_logits."""
        out = (
            empty((), self.dtype),
            empty((), "float64"),
            empty(self.rows, "float64"),
            empty(self.shape, self.dtype),
        )
        self.library.call("CrossEntropyValueAndGrad", self._inputs(), list(out))
        return out

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
