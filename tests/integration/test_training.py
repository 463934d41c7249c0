"""What users build around a loss: Model with callbacks, metrics, loss scales and precision levels; checkpoints.

The same training with MindSpore's own loss gives the numbers; the loss of `Model.eval` is the float64 reference's.
"""

from __future__ import annotations

import csv

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, train
from mindspore.dataset import NumpySlicesDataset

import ms_ce
from ms_ce import reference

ROWS, FEATURES, CLASSES, BATCH, EPOCHS = 24, 6, 5, 8, 2
_random = np.random.default_rng(3)
HIDDEN = _random.normal(size=(ROWS, FEATURES)).astype(np.float32)
LABELS = _random.integers(0, CLASSES, ROWS).astype(np.int32)
TABLE = _random.normal(size=(CLASSES, FEATURES)).astype(np.float32)
SCALE = 1024.0


def batches():
    columns = {"hidden": HIDDEN, "labels": LABELS}
    return NumpySlicesDataset(columns, shuffle=False).batch(BATCH)


def dense() -> nn.Dense:
    layer = nn.Dense(FEATURES, CLASSES)
    layer.weight.set_data(Tensor(TABLE))
    layer.bias.set_data(ms.ops.zeros((CLASSES,), ms.float32))
    return layer


def model(loss: nn.Cell, loss_scale: float = 1.0, **options) -> train.Model:
    network = dense()
    optimizer = nn.Momentum(network.trainable_params(), 0.01, 0.9, loss_scale=loss_scale)
    metrics = {"loss": train.Loss(), "accuracy": train.Accuracy()}
    return train.Model(network, loss, optimizer, metrics, **options)


class Losses(train.Callback):
    """The loss of every step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_step_end(self, run_context):
        out = run_context.original_args().net_outputs
        out = out[0] if isinstance(out, tuple) else out
        self.values.append(float(out.asnumpy()))


def curve(loss: nn.Cell, loss_scale: float = 1.0, **options) -> list[float]:
    losses = Losses()
    model(loss, loss_scale, **options).train(EPOCHS, batches(), [losses], dataset_sink_mode=False)
    assert len(losses.values) == EPOCHS * ROWS // BATCH
    return losses.values


@pytest.mark.parametrize("backend", ["cpu", "composed"])
def test_model_trains(backend, graph_mode):
    got = curve(ms_ce.CrossEntropyLoss(backend=backend))
    np.testing.assert_allclose(got, curve(nn.CrossEntropyLoss()), rtol=2e-5)
    assert got[-1] < got[ROWS // BATCH - 1]  # of the same batch, one epoch earlier


@pytest.mark.parametrize("backend", ["cpu", "composed"])
def test_model_trains_under_a_loss_scale(backend, graph_mode):
    """A fixed one; Model takes no other on CPU."""
    manager = ms.amp.FixedLossScaleManager(SCALE, drop_overflow_update=False)
    plain = curve(ms_ce.CrossEntropyLoss(backend=backend))
    scaled = curve(ms_ce.CrossEntropyLoss(backend=backend), SCALE, loss_scale_manager=manager)
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "composed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["pynative", "jit"])
def test_step_under_a_dynamic_loss_scale(compiled, backend):
    """A scale that overflows float32 leaves the weights as they are and is halved, until the gradients are finite."""
    network, loss = dense(), ms_ce.CrossEntropyLoss(backend=backend)
    update = nn.SGD(network.trainable_params(), 1e-3)
    scaler = ms.amp.DynamicLossScaler(scale_value=2.0**127, scale_factor=2, scale_window=100)

    def scaled(hidden, labels):
        value = loss(network(hidden), labels)
        return scaler.scale(value), value

    differentiated = ms.value_and_grad(scaled, None, update.parameters, has_aux=True)
    if compiled:
        differentiated = ms.jit(differentiated)
    scale, values, finite = [], [], []
    for _ in range(8):
        (_, value), gradients = differentiated(Tensor(10 * HIDDEN), Tensor(LABELS))
        gradients = scaler.unscale(gradients)
        finite.append(bool(ms.amp.all_finite(gradients)))
        if finite[-1]:
            update(gradients)
        scaler.adjust(ms.Tensor(finite[-1]))
        values.append(float(value.asnumpy()))
        scale.append(float(scaler.scale_value.asnumpy()))
    assert finite[0] is False
    assert finite[-1] is True
    steps = [value for value, good in zip(values, finite, strict=True) if good]
    assert values[1] == values[0]
    assert steps == sorted(steps, reverse=True)
    assert scale == sorted(scale, reverse=True)


# MindSpore's CPU has no product of 16 bits: these levels cast the layer, and the loss keeps float32 in both.
@pytest.mark.parametrize("level", ["O0", "O1"])
def test_model_trains_at_a_level_of_precision(level, graph_mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # level O1 writes Cells anew, into files
    expected = curve(nn.CrossEntropyLoss(), amp_level=level)
    got = curve(ms_ce.CrossEntropyLoss(), amp_level=level)
    np.testing.assert_allclose(got, expected, rtol=2e-5)


def test_fit_and_eval_with_callbacks(graph_mode, tmp_path):
    """History, early stopping and a checkpoint of each epoch; the loss of `eval` is the reference's."""
    fitted, history = model(ms_ce.CrossEntropyLoss()), train.History()
    saved = train.ModelCheckpoint("digits", str(tmp_path), train.CheckpointConfig(3))
    stop = train.EarlyStopping("eval_loss", patience=EPOCHS)
    fitted.fit(EPOCHS, batches(), batches(), 1, [history, stop, saved], dataset_sink_mode=False)
    assert len(history.epoch["epoch"]) == EPOCHS
    found = fitted.eval(batches(), dataset_sink_mode=False)
    [last] = [file for file in tmp_path.glob("*.ckpt") if f"-{EPOCHS}_" in file.name]
    weights = {name: value.asnumpy() for name, value in ms.load_checkpoint(str(last)).items()}
    logits = HIDDEN.astype(np.float64) @ weights["weight"].T.astype(np.float64) + weights["bias"]
    means = [
        reference.cross_entropy(logits[start : start + BATCH], LABELS[start : start + BATCH]).loss
        for start in range(0, ROWS, BATCH)
    ]
    np.testing.assert_allclose(found["loss"], np.mean(means), rtol=1e-5)
    assert found["accuracy"] == np.mean(logits.argmax(1) == LABELS)


@pytest.mark.parametrize("backend", ["cpu", "composed"])
def test_a_checkpoint_resumes_the_linear_loss(backend, tmp_path, graph_mode):
    """The layer's parameters are in the file under its names; a new layer goes on where the first one ended."""

    def stepped():
        layer = ms_ce.LinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, backend=backend)
        return layer, nn.TrainOneStepCell(layer, nn.SGD(layer.trainable_params(), 0.1))

    hidden, labels = Tensor(HIDDEN), Tensor(LABELS)
    layer, step = stepped()
    step(hidden, labels)
    file = str(tmp_path / "layer.ckpt")
    ms.save_checkpoint(layer, file)
    again, other_step = stepped()
    assert ms.load_param_into_net(again, ms.load_checkpoint(file)) == ([], [])
    assert {parameter.name for parameter in again.get_parameters()} == {
        "linear_weight",
        "linear_bias",
    }
    expected = [float(step(hidden, labels).asnumpy()) for _ in range(2)]
    got = [float(other_step(hidden, labels).asnumpy()) for _ in range(2)]
    np.testing.assert_array_equal(got, expected)


def test_a_profile_names_the_operators(tmp_path, graph_mode):
    """MindSpore's profiler names operators by their primitive, which on CPU is Custom for all that come from libraries:
    a loss and its gradient are two of them. On Ascend each has a name, MsCe… (ops/ascend/operators.py)."""
    from mindspore import profiler

    network = nn.WithLossCell(dense(), ms_ce.CrossEntropyLoss()).set_train()
    step = nn.TrainOneStepCell(network, nn.SGD(network.trainable_params(), 0.1))
    step(Tensor(HIDDEN), Tensor(LABELS))
    with profiler.profile(
        activities=[profiler.ProfilerActivity.CPU],
        on_trace_ready=profiler.tensorboard_trace_handler(str(tmp_path)),
    ) as recorded:
        step(Tensor(HIDDEN), Tensor(LABELS)).asnumpy()
        recorded.step()
    [table] = tmp_path.rglob("cpu_op_detail_info_*.csv")
    operators = [row["op_type"] for row in csv.DictReader(table.read_text().splitlines())]
    assert operators.count("Custom") == 2
