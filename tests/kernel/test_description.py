"""What the library says of itself, against what is written out here: tests that read it would not see it err."""

from __future__ import annotations

import pytest

from tests.kernel.library import Library, options, plan

# Inputs, then outputs, as name:type:extent, in the order of the call.
EXPECTED = {
    "CrossEntropyForward": (
        "scalar",
        "logits:F:logits target:T:target weight:W:weight row_weight:R:rows options:I:options",
        "loss:F:loss total_weight:D:scalar lse:D:rows",
    ),
    "CrossEntropyStatsRows": (
        "per_row",
        "logits:F:logits target:T:target weight:W:weight row_weight:R:rows options:I:options",
        "loss:F:loss total_weight:D:scalar lse:D:rows z_loss:F:loss num_correct:I:scalar entropy:D:loss "
        "predicted:J:rows",
    ),
    "CrossEntropyDoubleBackward": (
        "either",
        "direction:F:logits grad_loss:U:loss grad_z_loss:U:loss logits:F:logits target:T:target weight:W:weight "
        "row_weight:R:rows lse:D:rows total_weight:D:scalar options:I:options",
        "grad_grad_loss:F:loss grad_grad_z_loss:F:loss grad_logits:F:logits direction_mean:D:rows",
    ),
    "CrossEntropyWeightGradAlong": (
        "either",
        "direction:F:logits grad_loss:U:loss grad_z_loss:U:loss logits:F:logits target:T:target weight:W:weight "
        "row_weight:R:rows lse:D:rows direction_mean:D:rows total_weight:D:scalar options:I:options",
        "grad_weight:W:weight",
    ),
    "CrossEntropyPartialTargetGrad": (
        "either",
        "grad_rows:V:rows logits:F:logits target:P:target weight:W:weight lse:D:rows total_weight:D:scalar "
        "options:I:options",
        "grad_target:P:target",
    ),
    "CrossEntropyValueAndGrads": (
        "scalar",
        "logits:F:logits target:P:target weight:W:weight row_weight:R:rows options:I:options",
        "loss:F:loss total_weight:D:scalar lse:D:rows grad_logits:F:logits grad_target:P:target",
    ),
    "CrossEntropyPartial": (
        "either",
        "logits:F:logits target:T:target weight:W:weight options:I:options",
        "partial:D:partial",
    ),
    "TokenLogProbsBackward": (
        "either",
        "grad_rows:V:rows grad_entropy:V:rows logits:F:logits target:C:target lse:D:rows entropy:D:rows "
        "options:I:options",
        "grad_logits:F:logits",
    ),
    "NLLForwardRows": (
        "per_row",
        "log_prob:F:logits target:C:target weight:W:weight row_weight:R:rows options:I:options",
        "loss:F:loss total_weight:W:scalar",
    ),
    "LinearCrossEntropyBackward": (
        "either",
        "grad_loss:F:loss grad_z_loss:F:loss input:F:input linear_weight:F:linear_weight target:T:target "
        "linear_bias:F:linear_bias weight:W:weight row_weight:R:rows lse:D:rows total_weight:D:scalar "
        "options:I:options plan:I:plan",
        "grad_input:F:input grad_linear_weight:F:linear_weight grad_linear_bias:F:linear_bias",
    ),
    "LinearCrossEntropyTargetGrad": (
        "either",
        "grad_loss:F:loss grad_z_loss:F:loss input:F:input linear_weight:F:linear_weight target:P:target "
        "linear_bias:F:linear_bias weight:W:weight row_weight:R:rows lse:D:rows total_weight:D:scalar "
        "options:I:options plan:I:plan",
        "grad_target:P:target",
    ),
    "LinearDistillationForwardRows": (
        "per_row",
        "input:F:input linear_weight:F:linear_weight linear_bias:F:linear_bias teacher_hidden:M:teacher_hidden "
        "teacher_weight:M:teacher_weight teacher_bias:M:teacher_bias row_weight:R:rows options:I:options plan:I:plan",
        "loss:F:loss",
    ),
    "LinearDistillationBackward": (
        "either",
        "grad_loss:F:loss input:F:input linear_weight:F:linear_weight linear_bias:F:linear_bias "
        "teacher_hidden:M:teacher_hidden teacher_weight:M:teacher_weight teacher_bias:M:teacher_bias "
        "row_weight:R:rows options:I:options plan:I:plan",
        "grad_input:F:input grad_linear_weight:F:linear_weight grad_linear_bias:F:linear_bias",
    ),
    "LinearDistillationValueAndGradInput": (
        "scalar",
        "input:F:input linear_weight:F:linear_weight linear_bias:F:linear_bias teacher_hidden:M:teacher_hidden "
        "teacher_weight:M:teacher_weight teacher_bias:M:teacher_bias row_weight:R:rows options:I:options plan:I:plan",
        "loss:F:loss grad_input:F:input grad_linear_weight:F:scalar grad_linear_bias:F:linear_bias applied:D:scalar",
    ),
    "LinearTopKDistillationBackwardInput": (
        "either",
        "grad_loss:F:loss input:F:input linear_weight:F:linear_weight linear_bias:F:linear_bias "
        "teacher_log_probs:M:top_k teacher_indices:C:top_k tail:D:scalar row_weight:R:rows options:I:options "
        "plan:I:plan",
        "grad_input:F:input grad_linear_weight:F:scalar grad_linear_bias:F:linear_bias",
    ),
    "RefuseDerivative": ("either", "arriving:D:scalar reason:I:text", "done:D:scalar"),
}


def side(arguments: list[dict[str, str]]) -> str:
    return " ".join(":".join((each["name"], each["type"], each["extent"])) for each in arguments)


@pytest.mark.parametrize("name", EXPECTED)
def test_operations(default_library: Library, name: str) -> None:
    operation = default_library.operations[name]
    described = (operation["form"], side(operation["inputs"]), side(operation["outputs"]))
    assert described == EXPECTED[name]


def test_types(default_library: Library) -> None:
    floats, labels = ["float16", "bfloat16", "float32", "float64"], ["int32", "int64", "uint8"]
    assert default_library.description["types"] == {
        "F": floats,
        "T": [*labels, "F", "float32"],
        "C": labels,
        "P": ["F", "float32"],
        "W": ["F", "float32"],
        "R": ["F", "float64"],
        "U": ["F"],
        "V": ["float64"],
        "I": ["int64"],
        "J": ["int32"],
        "D": ["float64"],
        "M": floats,
    }


def test_slots(default_library: Library) -> None:
    """Places and bits of every option, each with a value of its own."""
    packed = options(
        ignore_index=-7,
        reduction="sum",
        label_smoothing=0.5,
        z_loss=0.25,
        softcap=2.0,
        logit_scale=1.5,
        class_offset=3,
        total_classes=9,
        has_weight=True,
        has_row_weight=True,
        has_grad_z_loss=True,
        has_entropy=True,
        beta=0.75,
    )
    assert packed[[0, 1, 6, 7, 8, 9, 10, 11]].tolist() == [-7, 2, 3, 9, 1, 1, 1, 1]
    assert packed.view("f8")[[2, 3, 4, 5, 12]].tolist() == [0.5, 0.25, 2.0, 1.5, 0.75]
    assert len(packed) == 13
    assert plan(chunk_bytes=4096, shift=True).tolist() == [4096, 1, 0]
    assert plan(bias_frozen=True).tolist() == [0, 0, 1]
    assert default_library.description["reductions"] == ["none", "mean", "sum"]


def test_every_operation_is_exported(default_library: Library) -> None:
    """As MindSpore looks for it: by its name, and by its name and InferShape."""
    names = list(default_library.operations)
    assert len(names) == len(set(names)) == len(default_library.description["operations"])
    for name in names:
        assert hasattr(default_library.handle, name)
        assert hasattr(default_library.handle, f"{name}InferShape")
