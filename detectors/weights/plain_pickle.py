"""Pickles read as data: tensors, arrays, containers and plain values, without running any code in them.

A pickle may name any function or class of any module, to be called with arguments of its choice. Here a name is only
looked up in tables of our own: it leads to a constructor written here, or to an inert placeholder, and nothing is ever
imported. A name in no table is refused.

Python's unpickler in C is not used: a crafted memo index makes it allocate memory without bound, and a crafted state
can set attributes of the classes that it is allowed to know.
"""

import codecs
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from detectors.weights.known_objects import DATA_CLASSES

_NUMBERS = "fiub"
"""Kinds of dtype that are read: floating, signed and unsigned integers, bool."""


_MOST_CONTAINERS = 5_000_000
"""Lists, tuples and dictionaries of a pickle. Each takes 60 bytes of memory or more for one byte of the file; a large
detector with its optimizer has some hundred thousand."""


class ForbiddenGlobalError(pickle.UnpicklingError):
    """The pickle names something that is neither a tensor nor plain data; `args[0]` is its name."""


class DamagedError(Exception):
    """The bytes of the file contradict themselves; `args[0]` says in what."""


class Inert(dict[Any, Any]):
    """Placeholder of an object that is not a weight. Of its content, only entries of a mapping are kept."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class OddTensor:
    """Placeholder of a tensor that cannot be copied into a parameter, or only with a loss."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Known:
    """The meaning of a name here: the pickle can hold it, pass it on, or ask for what it constructs."""

    def __init__(self, name: str, construct: Callable[..., Any]) -> None:
        self.name = name
        self.construct = construct


class DataUnpickler(pickle._Unpickler):
    """Python's own unpickler, in which every operation that calls, sets or hashes something is replaced.

    `load` raises ForbiddenGlobalError if the pickle holds code or unknown objects, and whatever the parser meets if it
    is damaged. `objects` counts the inert objects of training runners, by name.
    """

    # A copy, since the original belongs to the class that everything else in the process uses.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    further: ClassVar[Mapping[tuple[str, str], Callable[..., Any]]] = {}
    """Names that a subclass knows, to their constructors."""

    # Python's unpickler has these; its type stubs do not.
    stack: list[Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self.objects: dict[str, int] = {}
        self.containers = 0

    def load(self) -> Any:
        """Read one pickle, with every array as a tensor."""
        return _finished(super().load())

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the tables. Nothing is imported."""
        full_name = f"{module}.{name}"
        constructor = self.further.get((module, name)) or _CONSTRUCTORS.get((module, name))
        if constructor is not None:
            return Known(full_name, constructor)
        if name in DATA_CLASSES.get(module, ()):
            return Known(full_name, lambda *_: self._inert(full_name))
        raise ForbiddenGlobalError(printable(full_name))

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the pickle."""
        raise ForbiddenGlobalError("a persistent object")

    def _inert(self, name: str) -> Inert:
        # Values of Python and torch, such as a set or a size, are no news to anyone.
        if not name.startswith(("builtins.", "__builtin__.", "torch.")):
            self.objects[name] = self.objects.get(name, 0) + 1
        return Inert(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Known) or not isinstance(arguments, tuple | list):
            raise pickle.UnpicklingError("a call of something that is not a function")
        return function.construct(*arguments)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _new_with_keywords(self) -> None:
        self.stack.pop()  # keywords matter to no constructor here
        self._reduce()

    def _old_object(self) -> None:
        function, *arguments = self.pop_mark()
        self.stack.append(self._call(function, arguments))

    def _old_instance(self) -> None:
        self._global()
        function = self.stack.pop()
        self.stack.append(self._call(function, self.pop_mark()))

    def _global(self) -> None:
        module, name = self.readline(), self.readline()
        if not name.endswith(b"\n"):
            raise EOFError  # the name is cut, and would be reported as code
        self.stack.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, _DType | _Array):
            built.set_state(state)
        elif not isinstance(built, dict | torch.Tensor):
            raise pickle.UnpicklingError("a state of something that has none")

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Inert):
            raise pickle.UnpicklingError("items of something that is not a list")

    def _set_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        _update(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        _update(self.stack[-1], items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        _update(self.stack[-1], items)

    def _empty_set(self) -> None:
        # A set of crafted tuples would take years to hash; nobody here needs one.
        self.stack.append([])

    def _frozen_set(self) -> None:
        self.stack.append(self.pop_mark())

    def _extension(self) -> None:
        # Numbers for names, which any package of the process may have registered.
        raise ForbiddenGlobalError("an extension code")

    def _byte_array(self) -> None:
        # The original allocates what the length says before it reads.
        self.stack.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch.update(
        {
            pickle.GLOBAL[0]: _global,
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _reduce,
            pickle.NEWOBJ_EX[0]: _new_with_keywords,
            pickle.OBJ[0]: _old_object,
            pickle.INST[0]: _old_instance,
            pickle.BUILD[0]: _build,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _appends,
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.DICT[0]: _dict,
            pickle.EMPTY_SET[0]: _empty_set,
            pickle.FROZENSET[0]: _frozen_set,
            pickle.ADDITEMS[0]: _appends,
            pickle.BYTEARRAY8[0]: _byte_array,
            pickle.EXT1[0]: _extension,
            pickle.EXT2[0]: _extension,
            pickle.EXT4[0]: _extension,
        }
    )


def _counting(operation: Callable[..., None]) -> Callable[..., None]:
    def counted(self: DataUnpickler) -> None:
        self.containers += 1
        if self.containers > _MOST_CONTAINERS:
            raise DamagedError(f"a pickle of more than {_MOST_CONTAINERS:,} containers is not a detector's")
        operation(self)

    return counted


for _operation in (
    *(pickle.MARK, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.LIST, pickle.DICT, pickle.FROZENSET),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
):
    DataUnpickler.dispatch[_operation[0]] = _counting(DataUnpickler.dispatch[_operation[0]])


def printable(name: object) -> str:
    """A name from a file in a message: one line, without control characters, and not a page long."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 200 else repr(text[:200])


def _update(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise pickle.UnpicklingError("items of something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Lightning uses classes as keys, DeepSpeed tuples; hashing a crafted tuple may take years.
        plain = isinstance(key, str | int | float | bytes | None)
        target[key if plain else f"a {type(key).__name__} that is not a name"] = value


class _DType:
    """A dtype as numpy pickles it: a code, then a state whose second entry is the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        # numpy would parse a longer text, and build a structure of it.
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[a-zA-Z?][0-9]{0,2}", code):
            raise ForbiddenGlobalError(f"numpy.dtype({str(code)[:40]!r})")
        self.numpy = np.dtype(code)
        if self.numpy.kind not in _NUMBERS:
            raise ForbiddenGlobalError(f"numpy.dtype({code!r})")

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1]) if state[1] in ("<", ">") else self.numpy


class _Array:
    """An array as numpy pickles it: created empty, then filled by version, shape, dtype, order and bytes."""

    values: np.ndarray[Any, Any]

    def set_state(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a dtype")
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        values = np.frombuffer(raw, dtype=dtype.numpy).reshape(shape, order="F" if is_fortran else "C")
        self.values = np.array(values, dtype=dtype.numpy.newbyteorder("="), order="C")


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _DType, data: str | bytes) -> _Array:
    array = _Array()
    array.set_state(((), dtype, False, data))
    return array


def _from_buffer(data: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.set_state((shape, dtype, order == "F", bytes(data)))
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Rebuild bytes that Python 3 pickled in an old protocol, which always names this codec."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise ForbiddenGlobalError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _object_of_old_protocol(kind: Any, *_: Any) -> Any:
    """Construct an object of protocol 0 or 1, which names its class as an argument."""
    if not isinstance(kind, Known):
        raise pickle.UnpicklingError("an object without a class")
    return kind.construct()


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    # Dictionaries whose content may be weights. A factory of missing values and a count are not needed.
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "defaultdict"): _dictionary,
    ("numpy", "ndarray"): _empty_array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    **{(module, "_reconstructor"): _object_of_old_protocol for module in ("copyreg", "copy_reg")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


def _finished(content: Any) -> Any:
    """Replace arrays by tensors, in place, without recursion: a pickle nests as deeply as it likes."""
    if isinstance(content, _Array):
        return torch.from_numpy(content.values)
    waiting, seen = [content], {id(content)}
    while waiting:
        container: Any = waiting.pop()
        if not isinstance(container, dict | list):
            continue
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(value, _Array):
                container[key] = torch.from_numpy(value.values)
            elif isinstance(value, dict | list) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
    return content
