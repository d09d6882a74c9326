"""Images that come as arrays in files: CIFAR's pickles and idx files. Nothing in a file is run."""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CIFAR_PX = 32
# All that CIFAR's pickles name: a pickle may ask for any function, and one that asks for another is no CIFAR.
_ARRAY_PARTS = {("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy"), ("encode", "_codecs")}


class _ArrayUnpickler(pickle.Unpickler):
    """Arrays, numbers and text only, so that no file can run code: torchvision, too, trusts known files alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (name, module.rpartition(".")[2]) not in _ARRAY_PARTS or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def cifar_pickle(file: Path, classes: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 32, 32) as bytes and labels of one batch file. Raises ValueError naming what is wrong with it."""
    batch = _unpickled(file)
    labels = batch.get(b"labels" if classes == 10 else b"fine_labels")
    data = batch.get(b"data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * _CIFAR_PX**2,):
        raise ValueError(f"{file} has no array `data` of rows of 3,072 bytes, as CIFAR's batches have")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(label in range(classes) for label in labels):
        raise ValueError(f"{file} has not one label below {classes} for each of its {len(data)} images")
    return torch.from_numpy(data.reshape(-1, 3, _CIFAR_PX, _CIFAR_PX).copy()), torch.tensor(labels)


def cifar_pickle_names(folder: Path, classes: int) -> tuple[str, ...]:
    """The names of the classes, from the file that has them."""
    file = folder / ("batches.meta" if classes == 10 else "meta")
    names = _unpickled(file).get(b"label_names" if classes == 10 else b"fine_label_names")
    if not isinstance(names, list) or len(names) != classes:
        raise ValueError(f"{file} does not name {classes} classes, as CIFAR-{classes}'s does")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _unpickled(file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="bytes").load()
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing; expected it beside the other files of CIFAR") from error
    except Exception as error:  # a torn pickle raises almost anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} is not a CIFAR pickle ({reason}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; CIFAR's pickles hold a dictionary")
    return content


def idx_array(file: Path, dimensions: int) -> Tensor:
    """The bytes of an idx file, plain or with .gz at its end. Raises ValueError naming what is wrong with it."""
    packed = file.with_name(file.name + ".gz")
    if not file.is_file() and not packed.is_file():
        raise ValueError(f"{file} is missing; expected it, plain or with .gz at its end")
    try:
        content = file.read_bytes() if file.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{packed} cannot be unpacked ({error}); fetch it again") from error
    header_bytes = 4 + 4 * dimensions
    if len(content) < header_bytes or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{file} is no idx file of bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header_bytes])
    wanted = int(np.prod(shape, dtype=np.int64))
    if len(content) - header_bytes != wanted:
        raise ValueError(f"{file} has {len(content) - header_bytes:,} bytes after its header, which says {wanted:,}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape).copy())
