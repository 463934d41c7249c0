"""Export a network with its loss to a MindIR file, and load it in another process.

Run ``python examples/export_and_reload.py``. The second process imports mindspore alone: the file, and the kernel's
library beside it, are all that it needs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import ms_ce

LIBRARY = Path(ms_ce.ops.__path__[0]) / "libms_ce.so"
READER = """
import sys
import mindspore, numpy

loss = mindspore.nn.GraphCell(mindspore.load("network.mindir"))
features, labels = numpy.load("features.npy"), numpy.load("labels.npy")
print(float(loss(mindspore.Tensor(features), mindspore.Tensor(labels))))
assert "ms_ce" not in sys.modules
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo_output/export"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    ms.set_device("CPU")
    ms.set_seed(0)

    network = nn.WithLossCell(nn.Dense(20, 5), ms_ce.CrossEntropyLoss(label_smoothing=0.1))
    generator = np.random.default_rng(0)
    features = generator.standard_normal((8, 20)).astype(np.float32)
    labels = generator.integers(0, 5, 8).astype(np.int32)
    here = float(network(Tensor(features), Tensor(labels)))

    file = folder / "network.mindir"
    file.unlink(missing_ok=True)  # an exported file may only be read
    inputs = Tensor(features), Tensor(labels)
    ms.export(network, *inputs, file_name=str(file), file_format="MINDIR")
    np.save(folder / "features.npy", features)
    np.save(folder / "labels.npy", labels)

    # What is carried to another machine: two files. The first then has to say where the second lies there.
    if LIBRARY.exists():
        shutil.copy(LIBRARY, folder)
    relocated = ms_ce.relocate_mindir(file, "./libms_ce.so")
    print(f"{relocated} operators of the graph now look for ./libms_ce.so")

    command = [sys.executable, "-c", READER]
    there = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    print(f"loss here {here:.6f}, in the other process {float(there):.6f}")


if __name__ == "__main__":
    main()
