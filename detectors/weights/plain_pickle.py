"""Pickles of numpy arrays, read without running any code in them.

Weights from the time of Caffe (Detectron's ResNets, for example) are dictionaries of arrays that Python's own pickle
wrote. A pickle may name any function to be called. Here only arrays, their dtypes and OrderedDict are known, built by
code of our own: numpy's would let a crafted dtype pass bytes off as pointers to objects.
"""

import codecs
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch

_NUMBERS = "fiub"
"""Kinds of dtype that are read: floating, signed and unsigned integers, bool."""


class ForbiddenGlobalError(pickle.UnpicklingError):
    """The pickle names something that is neither an array nor a container; `args[0]` is its name."""


def read_arrays(file: IO[bytes]) -> Any:
    """Read a pickle, with every array as a tensor.

    Raises:
        ForbiddenGlobalError: it holds code or other objects.
        pickle.UnpicklingError, or any other exception of the parser: it is damaged, or not a pickle.
    """
    return _as_tensors(_ArrayUnpickler(file, encoding="latin1").load())


class _DType:
    """A dtype as numpy pickles it: a code, then a state whose second entry is the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.numpy = np.dtype(code)
        if self.numpy.kind not in _NUMBERS:
            raise ForbiddenGlobalError(f"numpy.dtype({code!r})")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1]) if state[1] in ("<", ">") else self.numpy


class _Array:
    """An array as numpy pickles it: created empty, then filled by version, shape, dtype, order and bytes."""

    values: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a dtype")
        raw = data.encode("latin1") if isinstance(data, str) else data
        values = np.frombuffer(raw, dtype=dtype.numpy).reshape(shape, order="F" if is_fortran else "C")
        self.values = np.array(values, dtype=dtype.numpy.newbyteorder("="), order="C")


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _DType, data: str | bytes) -> _Array:
    array = _Array()
    array.__setstate__(((), dtype, False, data))
    return array


def _from_buffer(data: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", bytes(data)))
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Rebuild bytes that Python 3 pickled in an old protocol, which always names this codec."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise ForbiddenGlobalError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


class _NDArray:
    """Placeholder for the class of arrays, which a pickle only passes to `_reconstruct`."""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ForbiddenGlobalError(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenGlobalError("a persistent object")


def _as_tensors(value: Any) -> Any:
    if isinstance(value, _Array):
        return torch.from_numpy(value.values)
    if isinstance(value, dict):
        return {key: _as_tensors(item) for key, item in value.items()}
    return value
