"""One drawn loss through every operation of the kernel, against the reference and against itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.bounds import Terms, to64
from tests.fuzz.draw import Drawn, draw
from tests.kernel.call import placeholder
from tests.kernel.float_environment import ENVIRONMENTS, changed
from tests.kernel.library import NO_ROW_WEIGHT, Brain, Library, dtype_name, empty, options
from tests.kernel.operations import reference

_GUARD = 64  # bytes on each side of a tensor, which no operation may write
_MARK = 0xA5


class Placed:
    """A tensor `odd` elements behind a cache line, with guards around it."""

    def __init__(self, array: np.ndarray, odd: int):
        size = array.nbytes
        self.memory = np.full(size + 4 * _GUARD + 64 * array.itemsize, _MARK, np.uint8)
        self.begin = -self.memory.ctypes.data % 64 + _GUARD + odd * array.itemsize
        self.array = (
            self.memory[self.begin : self.begin + size].view(array.dtype).reshape(array.shape)
        )
        if isinstance(array, Brain):
            self.array = self.array.view(Brain)
        self.array[...] = array

    def intact(self) -> bool:
        before, after = self.memory[: self.begin], self.memory[self.begin + self.array.nbytes :]
        return bool(np.all(before == _MARK) and np.all(after == _MARK))


class Kernel:
    """Calls operations with a drawn loss's tensors by name."""

    def __init__(self, library: Library):
        self.library, self.calls = library, 0

    def __call__(self, name: str, drawn: Drawn, **more: np.ndarray) -> dict[str, np.ndarray]:
        operation, given = self.library.operations[name], self._given(drawn, more)
        inputs = [Placed(given[each["name"]], drawn.odd) for each in operation["inputs"]]
        outputs = [Placed(self._empty(each, drawn), drawn.odd) for each in operation["outputs"]]
        self.library.call(name, [p.array for p in inputs], [p.array for p in outputs])
        self.calls += 1
        names = [each["name"] for each in operation["outputs"]]
        for argument, placed in zip(names, outputs, strict=True):
            assert placed.intact(), f"{name} wrote beside {argument}"
        return {n: p.array for n, p in zip(names, outputs, strict=True)}

    def _given(self, drawn: Drawn, more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nothing = placeholder(drawn.dtype)
        flags: dict[str, Any] = {
            "has_weight": drawn.weight is not None,
            "has_row_weight": drawn.row_weight is not None,
        }
        return {
            "logits": drawn.logits,
            "log_prob": drawn.logits,
            "target": drawn.target,
            "weight": nothing if drawn.weight is None else drawn.weight,
            "row_weight": NO_ROW_WEIGHT if drawn.row_weight is None else drawn.row_weight,
            "options": options(**drawn.options, **flags),
            "grad_loss": drawn.upstream,
            "grad_z_loss": nothing,
            **more,
        }

    def _empty(self, argument: dict[str, str], drawn: Drawn) -> np.ndarray:
        per_row = drawn.options["reduction"] == "none"
        shapes = {
            "scalar": (), "rows": drawn.rows, "loss": drawn.rows if per_row else (),
            "logits": drawn.shape, "target": drawn.target.shape, "weight": np.shape(drawn.weight),
        }  # fmt: skip
        dtypes = {"D": "float64", "I": "int64", "P": dtype_name(drawn.target), "F": drawn.dtype}
        dtypes["W"] = drawn.dtype if drawn.weight is None else dtype_name(drawn.weight)
        return empty(shapes[argument["extent"]], dtypes[argument["type"]])


def results(kernel: Kernel, drawn: Drawn) -> dict[str, np.ndarray]:
    """Every result by "operation output"."""
    per_row = drawn.options["reduction"] == "none"
    suffix = "Rows" if per_row else ""
    forward = kernel("CrossEntropyForward" + suffix, drawn)
    saved = {"lse": forward["lse"], "total_weight": forward["total_weight"]}
    found = {f"Forward {name}": value for name, value in forward.items()}
    operations = ["Stats" + suffix, "Backward"]
    operations += ["TargetGrad"] * drawn.probabilities + ["WeightGrad"] * (drawn.weight is not None)
    operations += ["ValueAndGrad"] * (not per_row)
    operations += ["ValueAndGrads"] * (not per_row and drawn.probabilities)
    for name in operations:
        more = {} if name.startswith(("Stats", "ValueAndGrad")) else saved
        made = kernel("CrossEntropy" + name, drawn, **more)
        found.update(
            {f"{name.removesuffix('Rows')} {output}": value for output, value in made.items()}
        )
    return found


def against_reference(drawn: Drawn, found: dict[str, np.ndarray]) -> None:
    terms, dtype = Terms(drawn), drawn.dtype
    settings = {**drawn.options, "row_weight": drawn.row_weight}
    with np.errstate(all="ignore"):
        result = reference.cross_entropy(*drawn.exact, **settings)
        loss = terms.reduced(terms.row_losses())
        grads = reference.cross_entropy_grad(
            *drawn.exact, **settings, grad_loss=to64(drawn.upstream)
        )
        unit = reference.cross_entropy_grad(
            *drawn.exact, **settings, grad_loss=np.ones(np.shape(drawn.upstream))
        )
        arriving = np.maximum(np.abs(to64(drawn.upstream)).max(initial=0.0), 1e-30)
        own = terms.grad_logits() / arriving
        lse = terms.unit * (terms.lse + terms.moved).reshape(drawn.rows)
        for operation in ("Forward", "Stats", "ValueAndGrad", "ValueAndGrads"):
            if f"{operation} loss" not in found:
                continue
            if terms.known():
                actual = found[f"{operation} loss"]
                terms.check(f"{operation} loss", actual, result.loss, loss, dtype)
            terms.check(f"{operation} lse", found[f"{operation} lse"], result.lse, lse, "float64")
            total = 1e-13 * np.abs(result.total_weight)
            terms.check(
                "total_weight",
                found[f"{operation} total_weight"],
                result.total_weight,
                total,
                "float64",
            )
        terms.check(
            "grad_logits", found["Backward grad_logits"], grads.logits, terms.grad_logits(), dtype
        )
        for operation in ("ValueAndGrad", "ValueAndGrads"):
            if f"{operation} grad_logits" in found:
                actual = found[f"{operation} grad_logits"]
                terms.check("own grad_logits", actual, unit.logits, own, dtype)
        if "ValueAndGrads grad_target" in found:
            actual = found["ValueAndGrads grad_target"]
            most = terms.grad_target() / arriving
            terms.check("own grad_target", actual, unit.target, most, dtype_name(actual))
        if "TargetGrad grad_target" in found:
            actual = found["TargetGrad grad_target"]
            terms.check(
                "grad_target", actual, grads.target, terms.grad_target(), dtype_name(actual)
            )
        if "WeightGrad grad_weight" in found:
            actual = found["WeightGrad grad_weight"]
            terms.check(
                "grad_weight", actual, grads.weight, terms.grad_weight(), dtype_name(actual)
            )


def same_bits(what: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, values in one.items():
        assert values.tobytes() == other[name].tobytes(), f"{what} changes {name}"


def invariances(
    kernel: Kernel, drawn: Drawn, found: dict[str, np.ndarray], random: np.random.Generator
) -> None:
    """Threads, the floating-point environment, where tensors lie, and what ignored rows hold change no bit."""
    kernel.library.set_threads(int(random.choice((1, 2, 3, 8))))
    kernel.library.around = lambda: changed(ENVIRONMENTS[str(random.choice(list(ENVIRONMENTS)))])
    try:
        moved = drawn._replace(odd=int(random.integers(0, 9)))
        same_bits("threads, environment or place", found, results(kernel, moved))
    finally:
        kernel.library.set_threads(0)
        del kernel.library.around
    if not drawn.probabilities:
        rows = reference.to_rows(np.asarray(drawn.logits)).copy()
        ignored = np.reshape(drawn.target, -1).astype(np.int64) == drawn.options["ignore_index"]
        rows[ignored] = rows[::-1][ignored]
        logits = np.ascontiguousarray(reference.from_rows(rows, drawn.shape)).view(
            type(drawn.logits)
        )
        same_bits("an ignored row", found, results(kernel, drawn._replace(logits=logits)))


def of_rows(drawn: Drawn, rows: np.ndarray) -> Drawn:
    """The loss of some rows of logits (N, C), in their order."""

    def taken(array: np.ndarray | None, per_row: bool = True) -> np.ndarray | None:
        if array is None or not per_row:
            return array
        return np.ascontiguousarray(array[rows]).view(type(array))

    return drawn._replace(
        shape=(len(rows), drawn.shape[1]),
        logits=taken(drawn.logits),
        target=taken(drawn.target),
        row_weight=taken(drawn.row_weight),
        upstream=taken(drawn.upstream, drawn.options["reduction"] == "none"),
    )


def rows_are_alone(
    kernel: Kernel, drawn: Drawn, found: dict[str, np.ndarray], random: np.random.Generator
) -> None:
    """A row's results are the same bits in any order of the rows, and without the others."""
    if len(drawn.shape) != 2 or drawn.options["reduction"] != "none" or not drawn.shape[0]:
        return
    order = random.permutation(drawn.shape[0])
    for rows in (order, order[:1]):
        alone = results(kernel, of_rows(drawn, rows))
        for name, values in found.items():
            if values.shape[:1] == (drawn.shape[0],) and not name.startswith("WeightGrad"):
                same = np.ascontiguousarray(values[rows]).tobytes() == alone[name].tobytes()
                assert same, f"other rows change {name}"


def gradients_cancel(drawn: Drawn, found: dict[str, np.ndarray]) -> None:
    """A common offset of a row's logits changes no loss: its gradients add up to 0."""
    if drawn.options["z_loss"] or drawn.options["softcap"] or not np.prod(drawn.shape):
        return
    terms, axis = Terms(drawn), 0 if len(drawn.shape) == 1 else 1
    grad = to64(found["Backward grad_logits"])
    with np.errstate(all="ignore"):
        allowed = terms.grad_logits() + terms._rounded(grad, drawn.dtype)
        left, most = np.abs(grad.sum(axis)), allowed.sum(axis)
    assert not np.any(left > most), f"gradients add up to {left.max()}"


def one(seed: int, number: int, library: Library) -> int:
    """Draws and checks loss `number` of `seed`; returns the calls made. AssertionError says what is wrong."""
    random = np.random.default_rng([seed, number])
    drawn, kernel = draw(random), Kernel(library)
    library.set_isa(str(random.choice(library.isas())))
    try:
        found = results(kernel, drawn)
        against_reference(drawn, found)
        invariances(kernel, drawn, found, random)
        rows_are_alone(kernel, drawn, found, random)
        gradients_cancel(drawn, found)
    except (AssertionError, RuntimeError) as failure:
        text = f"seed {seed}, case {number}: {drawn}, odd {drawn.odd}, {library.handle.MsCeIsa().decode()}: {failure}"
        raise AssertionError(text) from failure
    finally:
        library.set_isa("auto")
    return kernel.calls
