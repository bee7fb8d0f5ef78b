"""Files of `torch.save`, old and new, read as data.

torch's own loader is not used: it does not verify the checksums of the archive, refuses a file because of one harmless
object beside the weights, and hashes whatever a pickle tells it to.
"""

import functools
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from detectors.weights.plain_pickle import DamagedError, DataUnpickler, ForbiddenGlobalError, Known, OddTensor

OLD_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of torch.save before PyTorch 1.6: its magic number as a pickle."""

_BLOCK = 1 << 20
_HIGHEST_COMPRESSION = 100
"""Weights hardly compress, so an archive that expands more than this is made to fill the memory."""


def read_zip(path: Path) -> tuple[Any, dict[str, int]]:
    """Read a file of PyTorch 1.6 or later. Returns its content, and the inert objects in it, by name.

    Raises:
        DamagedError: a checksum or a size is wrong.
        ForbiddenGlobalError: it holds code or unknown objects.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        _check_sizes(path, list(members.values()))
        roots = [name.removesuffix("data.pkl") for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise DamagedError("a ZIP archive without the one data.pkl that torch.save writes")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise ForbiddenGlobalError("TorchScript")
        storages: dict[str, Tensor] = {}

        def storage(key: str, num_bytes: int) -> Tensor:
            if key not in storages:
                if f"{root}data/{key}" not in members:
                    raise DamagedError(f"it has no data/{key}")
                storages[key] = _bytes_of(archive, members[f"{root}data/{key}"])
            if len(storages[key]) < num_bytes:
                raise DamagedError(f"data/{key} has {len(storages[key]):,} bytes instead of {num_bytes:,}")
            return storages[key]

        order = _read(archive, members[f"{root}byteorder"]) if f"{root}byteorder" in members else b"little"
        unpickler = _TorchUnpickler(archive.open(f"{root}data.pkl"), storage, swap=order != sys.byteorder.encode())
        content = unpickler.load()
        # The weights are whole; damage elsewhere means that the copy is not the file that was saved.
        used = {f"{root}data/{key}" for key in storages}
        for name, member in members.items():
            if name not in used and not member.is_dir():
                _read(archive, member)
    return content, unpickler.objects


def read_old(path: Path) -> tuple[Any, dict[str, int]]:
    """Read a file from before PyTorch 1.6: three pickles, the content's, one of keys, then the bytes of each key.

    Raises:
        DamagedError: the file ends early, or its sizes contradict one another.
        ForbiddenGlobalError: it holds code or unknown objects.
    """
    size = path.stat().st_size
    storages: dict[str, Tensor] = {}

    def storage(key: str, num_bytes: int) -> Tensor:
        # The bytes follow the pickle, so memory is reserved now and filled below.
        if key not in storages:
            if num_bytes + sum(map(len, storages.values())) > size:
                raise DamagedError("it ends before its last tensor")
            storages[key] = torch.empty(num_bytes, dtype=torch.uint8)
        if len(storages[key]) < num_bytes:
            raise DamagedError("a tensor is larger than its storage")
        return storages[key]

    with path.open("rb") as file:
        for _ in ("magic number", "version", "machine"):
            DataUnpickler(file).load()
        unpickler = _TorchUnpickler(file, storage, swap=False)
        content = unpickler.load()
        keys = DataUnpickler(file).load()
        if not isinstance(keys, list) or not set(storages) <= {key for key in keys if isinstance(key, str)}:
            raise DamagedError("it does not list its tensors")
        for key in keys:
            data = storages.get(key) if isinstance(key, str) else None
            count = int.from_bytes(file.read(8), "little")
            if data is None or not unpickler.fits(key, count, len(data)):
                raise DamagedError("the size of a tensor contradicts its description")
            if file.readinto(data.numpy().data) != len(data):
                raise DamagedError("it ends before its last tensor")
    return content, unpickler.objects


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if any(member.flag_bits & 1 for member in members):
        raise DamagedError("a ZIP archive with a password")
    for member in members:
        if member.file_size > _HIGHEST_COMPRESSION * max(member.compress_size, 1):
            raise DamagedError(f"{member.filename} would expand to {member.file_size:,} bytes")
    # Members may be crafted to share the same bytes of the archive.
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise DamagedError("its members are larger than the file")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a member in blocks, comparing its checksum. Returns its first block."""
    with archive.open(member) as file:
        first = file.read(_BLOCK)
        while file.read(_BLOCK):
            pass
    return first


def _bytes_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """Read a member into memory that tensors share, comparing its checksum."""
    data = torch.empty(member.file_size, dtype=torch.uint8)
    view, done = data.numpy(), 0
    with archive.open(member) as file:
        while block := file.read(_BLOCK):
            view[done : done + len(block)] = np.frombuffer(block, np.uint8)
            done += len(block)
    if done != member.file_size:
        raise DamagedError(f"{member.filename} ends early")
    return data


class _Storage:
    """Memory of tensors, as a pickle refers to it: bytes, and the dtype that its tensors have."""

    def __init__(self, data: Tensor, dtype: torch.dtype, swapped_to: Callable[[Tensor], Tensor] | None) -> None:
        self.data = data
        self.dtype = dtype
        self.swapped_to = swapped_to

    def values(self, dtype: torch.dtype) -> Tensor:
        whole = self.data[: len(self.data) // dtype.itemsize * dtype.itemsize]
        return (self.swapped_to(whole) if self.swapped_to else whole).view(dtype)


class _StorageType:
    """Class of a storage, which a pickle only passes on in a reference."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _DType:
    """A dtype of torch, which newer files name beside a tensor."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


_STORAGE_TYPES: dict[tuple[str, str], torch.dtype] = {
    **{
        ("torch", f"{name}Storage"): dtype
        for name, dtype in {
            "Float": torch.float32,
            "Double": torch.float64,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
            "ComplexFloat": torch.complex64,
            "ComplexDouble": torch.complex128,
            # Quantised tensors are recognised by their constructor; only the size matters here.
            "QInt8": torch.uint8,
            "QUInt8": torch.uint8,
            "QInt32": torch.int32,
        }.items()
    },
    ("torch", "UntypedStorage"): torch.uint8,
    ("torch.storage", "UntypedStorage"): torch.uint8,
}
_DTYPES = {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _TorchUnpickler(DataUnpickler):
    def __init__(self, file: IO[bytes], storage: Callable[[str, int], Tensor], *, swap: bool) -> None:
        super().__init__(file)
        self._storage = storage
        self._swap = swap
        self._item_sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the tables, also among torch's own."""
        if (module, name) in _STORAGE_TYPES:
            return _StorageType(_STORAGE_TYPES[module, name])
        if (module, name) in _DTYPES:
            return _DType(_DTYPES[module, name])
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage; anything else that torch.save refers to is a network's class."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            kind = pid[1] if isinstance(pid, tuple) and len(pid) > 1 else pid
            raise ForbiddenGlobalError(getattr(kind, "name", "a persistent object"))
        _, kind, key, _, count, *view = pid
        if not (isinstance(kind, _StorageType) and isinstance(key, str) and _is_count(count)):
            raise DamagedError("a tensor without a description of its storage")
        size = kind.dtype.itemsize
        data = self._storage(key, count * size)
        self._item_sizes.setdefault(key, size)
        if view and view[0] is not None:
            # Files of PyTorch 0.3 and earlier: a part of another storage.
            _, offset, length = view[0]
            if not _is_count(offset) or not _is_count(length) or (offset + length) * size > len(data):
                raise DamagedError("a tensor is larger than its storage")
            data = data[offset * size : (offset + length) * size]
        return _Storage(data, kind.dtype, functools.partial(_swapped, kind.dtype.itemsize) if self._swap else None)

    def fits(self, key: str, count: int, num_bytes: int) -> bool:
        """Return True if a storage has as many elements as the bytes that were reserved for it."""
        return key in self._item_sizes and count * self._item_sizes[key] == num_bytes


def _swapped(size: int, data: Tensor) -> Tensor:
    """The bytes of another byte order, element by element."""
    return torch.from_numpy(data.numpy().view(f"u{size}").byteswap().view(np.uint8)) if size > 1 else data


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None) -> Any:
    """Construct a tensor in its storage, after its sizes are compared with it."""
    described = isinstance(storage, _Storage) and isinstance(size, tuple | list) and isinstance(stride, tuple | list)
    if not described or not all(_is_count(value) for value in (offset, *size, *stride)) or len(size) != len(stride):
        raise DamagedError("a tensor without sizes")
    values = storage.values(dtype or storage.dtype)
    num_elements = math.prod(size)
    if num_elements == 0:
        return values.new_empty(size)
    if offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) >= len(values):
        raise DamagedError("a tensor is larger than its storage")
    if num_elements > len(values):
        # One number may stand for any number of equal ones, and copying it would fill the memory.
        return OddTensor("expanded")
    return values.as_strided(size, stride, offset)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    dtype = next((value.dtype for value in rest if isinstance(value, _DType)), None)
    if dtype is None:
        raise DamagedError("a tensor without a dtype")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _of_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, Known) or not isinstance(arguments, tuple):
        raise DamagedError("a tensor without a description of its storage")
    return function.construct(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _odd(kind: str) -> Callable[..., OddTensor]:
    return lambda *_: OddTensor(kind)


_TorchUnpickler.further = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    # Behind the sizes: whether it learns, and hooks, which are code and come empty.
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
    **{
        ("torch._utils", f"_rebuild_{name}"): _first
        for name in (
            "parameter",
            "parameter_with_state",
            "device_tensor_from_numpy",
            "device_tensor_from_cpu_tensor",
        )
    },
    **{(module, "Tensor"): _first for module in ("torch", "torch._tensor")},
    **{("torch.nn.parameter", name): _first for name in ("Parameter", "Buffer")},
    ("torch._utils", "_rebuild_sparse_tensor"): _odd("sparse"),
    ("torch._utils", "_rebuild_nested_tensor"): _odd("nested"),
    ("torch._utils", "_rebuild_qtensor"): _odd("quantised"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _odd("meta"),
}
