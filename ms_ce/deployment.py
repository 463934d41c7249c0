"""Exported graphs where ms_ce lies in another folder than where they were exported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any


def relocate_mindir(
    file_name: str | os.PathLike[str], library: str | os.PathLike[str] | None = None
) -> int:
    """Makes an exported graph find the kernel of backend 'cpu', wherever that was when it was exported.

    MindSpore's MindIR holds the path of a custom operator's library, and MindSpore opens that path and no other. This
    writes another one into the file, where it lies. Run it once in the environment that loads the graph, before
    `mindspore.load`; graphs of the other backends hold no path.

    Args:
        file_name (str): a .mindir file (of a large model the one that ends in _graph.mindir), not encrypted.
        library (str): the path to write. Default: that of libms_ce.so of the ms_ce that is imported. With another one
            the graph needs that library alone, and no ms_ce: a path relative to the working folder will do.

    Returns:
        int, how many operators were given the path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MindIR, or is encrypted.

    Example:
        >>> import tempfile, mindspore, ms_ce
        >>> file = tempfile.mkdtemp() + "/loss.mindir"
        >>> inputs = mindspore.Tensor([[2.0, 0.0]]), mindspore.Tensor([0])
        >>> loss = ms_ce.CrossEntropyLoss(backend="composed")
        >>> mindspore.export(loss, *inputs, file_name=file, file_format="MINDIR")
        >>> ms_ce.relocate_mindir(file)
        0
        >>> print(f"{float(mindspore.nn.GraphCell(mindspore.load(file))(*inputs)):.4f}")
        0.1269
    """
    # Not needed by anything else, and protobuf and the operators of `cpu` with it.
    from google.protobuf.message import DecodeError
    from mindspore.train.mind_ir_pb2 import ModelProto

    from ms_ce.ops.cpu import library as kernel

    file, path = Path(file_name), str(kernel.PATH if library is None else library)
    model = ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise ValueError(
            f"relocate_mindir: {file} is no MindIR that can be read; relocate before it is encrypted"
        ) from None
    relocated = sum(_relocate(primitive, kernel.PATH.name, path) for primitive in model.primitives)
    beside = file.with_name(file.name + ".relocated")
    beside.write_bytes(model.SerializeToString())
    shutil.copymode(file, beside)
    os.replace(beside, file)  # whoever reads it meanwhile reads all of one or of the other
    return relocated


def _relocate(primitive: Any, name: str, path: str) -> bool:
    attributes = {attribute.name: attribute for attribute in primitive.attribute}
    if primitive.op_type != "Custom" or "func_name" not in attributes:
        return False
    before, _, operation = attributes["func_name"].s.decode().rpartition(":")
    if Path(before).name != name:
        return False
    attributes["func_name"].s = f"{path}:{operation}".encode()
    if "uniq_name" in attributes:
        unique = attributes["uniq_name"]
        unique.s = unique.s.replace(before.encode(), path.encode())
    return True
