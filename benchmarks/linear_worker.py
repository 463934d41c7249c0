"""One way to compute the linear loss, in a process of its own: answers one JSON request a line.

The parent (linear.py) stops this process between requests, since idle threads of the libraries spin.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

TOP = 64  # classes of a stored teacher
IGNORE_INDEX = -100
ENTROPY_SHARE = 0.1  # of the loss that log-probabilities and entropies make


def inputs(rows: int, features: int, classes: int, ignored: float):
    """(hidden, linear_weight, target) of a language model's size; logits of about unit variance."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((rows, features), dtype=np.float32)
    linear_weight = random.standard_normal((classes, features), dtype=np.float32)
    linear_weight *= np.float32(features**-0.5)
    target = random.integers(0, classes, rows)
    target[random.random(rows) < ignored] = IGNORE_INDEX
    return hidden, linear_weight, target


def teacher_of(hidden, linear_weight):
    """Hidden states and table of a teacher: those of the student in another order."""
    return hidden[::-1].copy(), linear_weight[::-1].copy()


def top_k_of(hidden, linear_weight):
    """That teacher's log-probabilities of its likeliest classes, and these."""
    rows, table = teacher_of(hidden, linear_weight)
    logits = rows @ table.T
    top = logits.max(1, keepdims=True)
    lse = top + np.log(np.exp(logits - top).sum(1, keepdims=True))
    k = min(TOP, logits.shape[1] // 2)
    classes = np.argpartition(-logits, k, 1)[:, :k]
    return np.take_along_axis(logits, classes, 1) - lse, classes


TEACHERS = {"distillation": teacher_of, "top-k": top_k_of}


def resident_bytes(field: str = "VmRSS") -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class MindSporeLoss:
    """ms_ce, and MindSpore's MatMul with or without a loss after it."""

    def __init__(self, name: str) -> None:
        import mindspore as ms

        import ms_ce

        ms.set_device("CPU")
        self.ms = ms

        chunk_bytes = 64 << 20 if "64 MiB" in name else None
        backend = "composed" if "composed" in name else "auto"

        def linear(hidden, linear_weight, target):
            return ms_ce.linear_cross_entropy(
                hidden, linear_weight, target, gradient_in_forward=True, chunk_bytes=chunk_bytes
            )

        def two_sweeps(hidden, linear_weight, target):
            return ms_ce.linear_cross_entropy(
                hidden, linear_weight, target, gradient_in_forward=False
            )

        def plain(hidden, linear_weight, target):
            return ms_ce.cross_entropy(ms.ops.matmul(hidden, linear_weight.T), target)

        def products(hidden, linear_weight, target):
            product = ms.ops.MatMul(transpose_b=True)(hidden, linear_weight)
            of_hidden = ms.ops.MatMul()(product, linear_weight)
            of_weight = ms.ops.MatMul(transpose_a=True)(product, hidden)
            return product[0, 0], (of_hidden, of_weight)

        def tokens(hidden, linear_weight, target):
            log_prob, entropy = ms_ce.linear_token_log_probs(
                hidden, linear_weight, target, entropy=True, chunk_bytes=chunk_bytes
            )
            return -(log_prob + ENTROPY_SHARE * entropy).mean()

        def distillation(hidden, linear_weight, *teacher):
            return ms_ce.linear_distillation_loss(
                hidden, linear_weight, *teacher, gradient_in_forward=True, backend=backend
            )

        def top_k(hidden, linear_weight, *teacher):
            return ms_ce.linear_top_k_distillation_loss(
                hidden, linear_weight, *teacher, gradient_in_forward=True
            )

        self.teacher = next((of for key, of in TEACHERS.items() if key in name), None)
        if name == "MindSpore MatMul x3":
            self.function = ms.jit(products)
        else:
            loss = {"tokens": tokens, "two sweeps": two_sweeps, "MindSpore MatMul": plain}
            loss.update({"distillation": distillation, "top-k": top_k})
            chosen = next((f for key, f in loss.items() if key in name), linear)
            self.function, self.loss = ms.value_and_grad(chosen, (0, 1)), chosen
            if "PyNative" not in name:
                self.function, self.loss = ms.jit(self.function), ms.jit(chosen)

    def tensors(self, hidden, linear_weight, target):
        # Results of an operator lie in MindSpore's own memory; a Tensor made of an array is copied there when used.
        ms, taught = self.ms, self.teacher(hidden, linear_weight) if self.teacher else ()
        hidden, linear_weight = ms.Tensor(hidden) * 1.0, ms.Tensor(linear_weight) * 1.0
        hidden.asnumpy(), linear_weight.asnumpy()
        if taught:
            teacher = [each * 1 for each in map(ms.Tensor, taught)]
            return hidden, linear_weight, *teacher
        return hidden, linear_weight, ms.Tensor(target.astype(np.int32))

    def __call__(self, *tensors):
        loss, gradients = self.function(*tensors)
        for gradient in gradients:
            gradient.asnumpy()  # MindSpore is asynchronous; float(loss) would wait with a core of its own
        return float(loss), gradients

    def forward(self, *tensors):
        return float(self.loss(*tensors))

    def arrays(self, gradients):
        return [gradient.asnumpy() for gradient in gradients]


class TorchLoss:
    """torch.nn.functional, plain or chunked."""

    def __init__(self, name: str) -> None:
        import torch

        self.torch = torch
        functional = torch.nn.functional
        options = torch.nn.LinearCrossEntropyOptions()

        def plain(hidden, linear_weight, target):
            return functional.cross_entropy(functional.linear(hidden, linear_weight), target)

        def chunked(hidden, linear_weight, target):
            return functional.linear_cross_entropy(hidden, linear_weight, target, options=options)

        def tokens(hidden, linear_weight, target):
            log_p = functional.log_softmax(functional.linear(hidden, linear_weight), -1)
            log_prob = log_p.gather(1, target[:, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(-1)
            return -(log_prob + ENTROPY_SHARE * entropy).mean()

        def distillation(hidden, linear_weight, *teacher):
            log_q = functional.log_softmax(functional.linear(hidden, linear_weight), -1)
            log_p = functional.log_softmax(functional.linear(*teacher), -1)
            return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

        def top_k(hidden, linear_weight, log_p, classes):
            log_q = functional.log_softmax(functional.linear(hidden, linear_weight), -1)
            log_q = log_q.gather(1, classes)
            outcomes = [
                torch.cat((each, torch.log1p(-each.exp().sum(1, keepdim=True))), 1)
                for each in (log_q, log_p)
            ]
            return functional.kl_div(*outcomes, reduction="batchmean", log_target=True)

        self.teacher = next((of for key, of in TEACHERS.items() if key in name), None)
        losses = {"chunked": chunked, "tokens": tokens, "distillation": distillation}
        losses["top-k"] = top_k
        self.function = next((loss for key, loss in losses.items() if key in name), plain)
        self.products_alone = "x3" in name

    def tensors(self, hidden, linear_weight, target):
        torch = self.torch
        first = torch.from_numpy(hidden).requires_grad_()
        if self.teacher:
            teacher = [torch.from_numpy(each) for each in self.teacher(hidden, linear_weight)]
            return first, torch.from_numpy(linear_weight).requires_grad_(), *teacher
        return first, torch.from_numpy(linear_weight).requires_grad_(), torch.from_numpy(target)

    def __call__(self, hidden, linear_weight, *rest):
        if self.products_alone:
            with self.torch.no_grad():
                product = hidden @ linear_weight.T
                return product[0, 0].item(), (product @ linear_weight, product.T @ hidden)
        hidden.grad = linear_weight.grad = None
        loss = self.function(hidden, linear_weight, *rest)
        loss.backward()
        return loss.item(), (hidden.grad, linear_weight.grad)

    def forward(self, *tensors):
        with self.torch.no_grad():
            return self.function(*tensors).item()

    def arrays(self, gradients):
        return [gradient.numpy() for gradient in gradients]


class Session:
    """Requests to one entrant; the tensors of the last size are kept."""

    def __init__(self, entrant) -> None:
        self.entrant = entrant
        self.size, self.tensors = None, None

    def _tensors(self, request: dict):
        size = tuple(request[name] for name in ("rows", "features", "classes", "ignored"))
        if size != self.size:
            self.tensors = None
            self.tensors, self.size = self.entrant.tensors(*inputs(*size)), size
        return self.tensors

    def check(self, request: dict) -> dict:
        """The loss, and the gradients in a file."""
        loss, gradients = self.entrant(*self._tensors(request))
        np.savez(request["file"], *self.entrant.arrays(gradients))
        return {"loss": loss}

    def memory(self, request: dict) -> dict:
        """How far the first call of this size raises the peak; a small one before it loads the libraries."""
        self.entrant(*self.entrant.tensors(*inputs(8, 16, 32, 0.0)))
        tensors = self._tensors(request)
        reset_peak()
        before = resident_bytes()
        loss, _ = self.entrant(*tensors)
        return {"loss": loss, "growth": resident_bytes("VmHWM") - before}

    def time(self, request: dict) -> dict:
        """Seconds of one call."""
        tensors = self._tensors(request)
        start = time.perf_counter()
        loss, _ = self.entrant(*tensors)
        return {"loss": loss, "seconds": time.perf_counter() - start}

    def forward(self, request: dict) -> dict:
        """Seconds of the loss alone."""
        tensors = self._tensors(request)
        start = time.perf_counter()
        loss = self.entrant.forward(*tensors)
        return {"loss": loss, "seconds": time.perf_counter() - start}


def main() -> None:
    name = sys.argv[1]
    session = Session(TorchLoss(name) if name.startswith("torch") else MindSporeLoss(name))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            reply = getattr(session, request["kind"])(request)
        except Exception as error:  # the parent prints it in the table
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
