"""Where Python runs, an operator with a derivative is an autograd function of MindSpore's PyNative.

MindSpore itself would ask an operator's bprop for the gradient of every input, wanted or not, and copy one made
earlier. Here the bprop is asked for what `needs_input_grad` names, and a gradient that the forward pass has made is
handed out as it is. Compiled graphs never come here. In a MindSpore without `_Function` its own way serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.ops.primitive import PrimitiveWithInfer

from ms_ce import _versions
from ms_ce._versions import zeros_like

AVAILABLE = _versions.Function is not None
# After an upstream gradient that was not 1, a loss scale say, this many losses do without a gradient made in advance.
_PLAIN_CALLS = 15
_state = threading.local()


def description() -> str:
    """How PyNative differentiates the losses, for `python -m ms_ce`."""
    if AVAILABLE:
        return "gradients by autograd functions"
    return "gradients by MindSpore's way through bprops: this MindSpore has no _Function"


def recording() -> bool:
    """Whether PyNative records for a gradient at this moment."""
    return _versions.pynative_executor.grad_flag() and _versions.pynative_executor.enable_grad()


class _Wanted(PrimitiveWithInfer):
    """wanted(i, …): whether the bprop that runs has to make the gradient of its input i, or of another one named.

    A graph makes all of them and drops what nobody reads.
    """

    def __init__(self):
        super().__init__("ms_ce_wanted")

    def __call__(self, *indices):
        mask = getattr(_state, "wanted", None)
        return mask is None or any(mask[index] for index in indices)

    def __infer__(self, *indices):
        return {"shape": (), "dtype": mstype.bool_, "value": True}


wanted = _Wanted()


class _Upstreams:
    """The gradients that arrive at an operator's outputs, 0 where none does: made when it is read."""

    def __init__(self, given: Sequence[Tensor | None], outputs: Sequence[Tensor]):
        self.given, self.outputs = given, outputs

    def __getitem__(self, index: int) -> Tensor:
        value = self.given[index]
        return zeros_like(self.outputs[index]) if value is None else value


def _node(given: Any) -> str:
    """What made a tensor: another answer later means that it was assigned to, which MindSpore does not notice."""
    return str(_versions.grad_node(given))


def _is_float(value: Any) -> bool:
    """Integers get no gradient and, as outputs, have none: MindSpore 2.11 refuses to differentiate them."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_one(upstream: Tensor | None) -> bool:
    return upstream is not None and upstream.ndim == 0 and upstream.item() == 1


class Derivative:
    """How an operator is differentiated.

    bprop: (*inputs, out, dout) to the gradients of the inputs, as in MindSpore.
    made: {output: input} where an output is the gradient of an input, for an upstream of 1. These outputs, and those
        behind them, are the last ones, and neither the caller nor `bprop` sees them.
    rescale: (upstream, *those outputs) multiplies them where they lie. Without it they are of no use for another
        upstream: then
    plain: the operator without them, serves the next calls.
    """

    def __init__(
        self,
        bprop: Callable,
        made: dict[int, int] | None = None,
        rescale: Callable | None = None,
        plain: Callable | None = None,
    ):
        self.bprop, self.made, self.rescale, self.plain = bprop, made or {}, rescale, plain
        self.visible = min(made) if made else None
        self.plain_calls = 0

    def was_of_no_use(self) -> None:
        self.plain_calls = _PLAIN_CALLS

    def instead(self) -> Callable | None:
        """What to call this time, where it is not the operator."""
        if self.plain is None or self.plain_calls == 0:
            return None
        self.plain_calls -= 1
        return self.plain

    def gradients(self, mask, inputs, outputs, upstreams) -> list[Tensor | None]:
        """By the bprop; None for what is not wanted."""
        if not any(mask):
            return [None] * len(inputs)
        several = len(outputs) > 1
        arriving = _Upstreams(upstreams, outputs)
        before, _state.wanted = getattr(_state, "wanted", None), mask
        try:
            grads = self.bprop(
                *inputs, outputs if several else outputs[0], arriving if several else arriving[0]
            )
        finally:
            _state.wanted = before
        return [grad if want else None for grad, want in zip(grads, mask, strict=True)]


if AVAILABLE:

    class _Recorded(_versions.Function):
        """apply(run, derivative, order, *inputs): run(*inputs), differentiated by `derivative`.

        Integers come last: MindSpore loses count of the outputs behind one that has no gradient. Where there are any,
        `order` is filled with the places that the outputs had.
        """

        @staticmethod
        def forward(
            ctx: Any, run: Callable, derivative: Derivative, order: list[int], *inputs: Tensor
        ) -> Any:
            result = run(*inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            ctx.made = outputs[derivative.visible :] if derivative.made else None
            outputs = outputs[: derivative.visible]
            ctx.derivative, ctx.nodes = derivative, [_node(each) for each in inputs]
            # Where a tensor was given, and what else was, None for an absent weight say.
            ctx.others = [None if isinstance(each, Tensor) else (each,) for each in inputs]
            ctx.set_materialize_grads(False)
            integers = [place for place, each in enumerate(outputs) if not _is_float(each)]
            if integers:
                ctx.mark_non_differentiable(*[outputs[place] for place in integers])
                order += [place for place in range(len(outputs)) if place not in integers]
                order += integers
            tensors = [each for each in inputs if isinstance(each, Tensor)]
            ctx.save_for_backward(*tensors, *outputs)
            ctx.order = order
            if order:
                outputs = tuple(outputs[place] for place in order)
            return outputs if len(outputs) > 1 else outputs[0]

        @staticmethod
        def backward(ctx: Any, *upstreams: Tensor | None) -> tuple:
            derivative, saved = ctx.derivative, iter(ctx.saved_tensors)
            inputs = [next(saved) if other is None else other[0] for other in ctx.others]
            outputs, needed = tuple(saved), ctx.needs_input_grad[3:]
            upstreams = _in_places(upstreams, ctx.order)
            mask = [
                bool(need) and _is_float(each) for need, each in zip(needed, inputs, strict=True)
            ]
            made = {place: each for place, each in _made(ctx, upstreams[0]) if mask[place]}
            rest = [want and place not in made for place, want in enumerate(mask)]
            if any(rest):
                _refuse_assigned(ctx.nodes, inputs)
            grads = derivative.gradients(rest, inputs, outputs, upstreams)
            return (None, None, None, *(made.get(place, grad) for place, grad in enumerate(grads)))

    def _recorded(run: Callable, derivative: Derivative, inputs: Sequence[Any]) -> Any:
        order: list[int] = []
        found = _Recorded.apply(run, derivative, order, *inputs)
        return _in_places(found, order) if isinstance(found, tuple) else found


def _in_places(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """values[i] at place order[i]; without an order, as they are."""
    if not order:
        return tuple(values)
    by_place = dict(zip(order, values, strict=True))
    return tuple(by_place[place] for place in range(len(by_place)))


def _made(ctx: Any, upstream: Tensor | None) -> Iterable[tuple[int, Tensor]]:
    """(input, gradient) from the forward pass, times the upstream; once, since who gets them may change them, and not
    where they are differentiated again, to which they would be constants."""
    made, ctx.made = ctx.made, None
    if made is None or upstream is None or recording():
        return ()
    derivative = ctx.derivative
    if not _is_one(upstream):
        if derivative.rescale is None:
            derivative.was_of_no_use()
            return ()
        derivative.rescale(upstream, *made)
    first = derivative.visible
    return [(place, made[output - first]) for output, place in derivative.made.items()]


def _refuse_assigned(nodes: Sequence[str], inputs: Sequence[Tensor]) -> None:
    for place, (node, tensor) in enumerate(zip(nodes, inputs, strict=True)):
        if _node(tensor) != node:
            raise RuntimeError(
                f"ms_ce: input {place} of the loss was assigned to between the loss and its gradient; compute the loss "
                "again, or assign to a copy"
            )


def call(run: Callable, derivative: Derivative | None, inputs: Sequence[Tensor]) -> Any:
    """run(*inputs), recorded where PyNative records."""
    if derivative is None or not AVAILABLE or not recording():
        return run(*inputs)
    instead = derivative.instead()
    if instead is not None:
        return instead(*inputs)
    return _recorded(run, derivative, inputs)


class DifferentiableCell(nn.Cell):
    """A Cell with a bprop, in PyNative an autograd function too. It takes its inputs by position."""

    def __call__(self, *inputs: Any) -> Any:
        if not AVAILABLE or not recording():
            return super().__call__(*inputs)
        return _recorded(self.construct, Derivative(self.bprop), inputs)
