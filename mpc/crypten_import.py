"""Importing CrypTen 0.4.1 on current torch: the one place that knows what has to be mended first."""

from __future__ import annotations

import sys
import types
import warnings
from functools import cache
from typing import Any, NoReturn

_ONNX_CONVERTER = "crypten.nn.onnx_converter"


@cache
def import_crypten() -> Any:
    """The crypten package, mended for torch >= 2.9; raises ImportError with advice where it is not installed.

    CrypTen's ONNX converter imports a torch module that no longer exists. Nothing here converts from ONNX, so the
    converter is replaced before the first import; its functions raise.
    """
    if _ONNX_CONVERTER not in sys.modules:
        stub = types.ModuleType(_ONNX_CONVERTER)
        stub.TF_AND_TF2ONNX = False  # type: ignore[attr-defined]
        for name in ("from_onnx", "from_pytorch", "from_tensorflow"):
            setattr(stub, name, _no_converter)
        sys.modules[_ONNX_CONVERTER] = stub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import crypten
            from crypten.mpc.primitives import converters
    except ImportError as error:
        raise ImportError(
            f"CrypTen cannot be imported ({error}); install it with: pip install crypten==0.4.1 sklearn==0.0"
        ) from error
    converters._A2B = _arithmetic_to_binary
    return crypten


def _no_converter(*_: object, **__: object) -> NoReturn:
    raise NotImplementedError("CrypTen's ONNX converter does not work on this torch; run the module itself instead")


def _arithmetic_to_binary(tensor: Any) -> Any:
    """Binary shares of an arithmetic sharing.

    Unlike CrypTen's own, which takes any RuntimeError (a lost connection, too) for lack of memory and then falls out of
    step with the other parties by changing algorithm, errors pass through.
    """
    import crypten.communicator as comm
    from crypten.mpc.primitives.binary import BinarySharedTensor

    parties = range(comm.get().get_world_size())
    stacked = BinarySharedTensor.stack([BinarySharedTensor(tensor.share, src=party) for party in parties])
    binary = stacked.sum(dim=0)
    binary.encoder = tensor.encoder
    return binary
