"""Replace MindSpore's cross entropy by one line, in PyNative and in graph mode.

Run ``python examples/minimal.py``.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor

import ms_ce

ms.set_device("CPU")
generator = np.random.default_rng(0)
logits = Tensor(generator.standard_normal((4, 10)), ms.float32)
target = Tensor([1, 0, -100, 9], ms.int32)  # the third row is ignored

loss_function = ms_ce.CrossEntropyLoss()  # was: mindspore.nn.CrossEntropyLoss()

for name, mode in (("PyNative", ms.PYNATIVE_MODE), ("graph", ms.GRAPH_MODE)):
    ms.set_context(mode=mode)
    loss, gradient = ms.value_and_grad(loss_function)(logits, target)
    print(f"{name} mode: loss {float(loss):.6f}, gradient with respect to the logits:")
    print(np.array2string(gradient.asnumpy(), precision=4, suppress_small=True))
