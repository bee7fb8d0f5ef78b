"""Screening of `.pt2` files, because `torch.export.load` trusts its input.

It unpickles what a file marks as pickled, loads compiled libraries out of it, calls any function of torch that a node
names, and evaluates expressions about sizes as Python. A detector needs none of this. What is loaded is a new archive
of exactly the bytes that were screened, since another reader could find other entries in the same file.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.trained.file_description import EXTRA_FILE

_MODEL = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(?:version|serialization_id|alignment)"
    rf"|{re.escape(_MODEL)}|{re.escape(_SAMPLE_INPUTS)}|{'|'.join(map(re.escape, _CONFIGS))}"
    rf"|data/weights/weight_\d+|data/constants/tensor_\d+|extra/{re.escape(EXTRA_FILE)}"
)

_OPERATOR = re.compile(r"torch\.ops\.(?:aten|torchvision|prims)\.\w+(?:\.\w+)?")
_FORBIDDEN_OPERATORS = ("from_file", "save", "load", "_print")
"""Operators of torch that reach outside of tensors: `from_file` maps any file, and can create it."""
_FUNCTIONS = frozenset(
    {
        *(f"_operator.{name}" for name in (
            *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "invert"),
        )),
        *(f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt")),
        *(f"torch.{name}" for name in (
            *("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum"),
        )),
        "torch._check",
        # These call graphs of the same file.
        *(f"torch.ops.higher_order.{name}" for name in (
            *("cond", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"),
        )),
    }
)  # fmt: skip

_LONGEST_EXPRESSION = 20_000
_NODES = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Load),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Call, ast.keyword, ast.Attribute, ast.Subscript),
)
_CALLS = frozenset(
    {
        *(
            "Symbol",
            "Integer",
            "Float",
            "Rational",
            "Add",
            "Mul",
            "Pow",
            "Max",
            "Min",
            "Mod",
            "Abs",
            "And",
            "Or",
            "Not",
        ),
        *("Eq", "Ne", "Equality", "Unequality", "Relational", "Piecewise", "ExprCondPair", "Where", "Identity"),
        *("LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan", "IsNonOverlappingAndDenseIndicator"),
        *("FloorDiv", "CleanDiv", "CeilDiv", "FloatTrueDiv", "IntTrueDiv", "PythonMod", "ModularIndexing"),
        *("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "TruncToFloat", "RoundDecimal", "ToFloat"),
        *("FloatPow", "PowByNatural", "LShift", "RShift", "OpaqueUnaryFn_sqrt"),
    }
)
_METHODS = frozenset({"size", "stride", "storage_offset"})
_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})


class _ForbiddenError(Exception):
    """A file holds more than a detector needs; `args[0]` says what."""


def metadata_of(content: bytes, path: Path) -> dict[str, Any]:
    """Read the metadata of a file. Returns an empty dictionary if it has none.

    Raises:
        ConfigError: it is not an archive.
    """
    with _archive(content, path) as archive:
        return next((_json(archive, name) for name in archive.namelist() if _inside(name) == f"extra/{EXTRA_FILE}"), {})


def screened(content: bytes, path: Path) -> bytes:
    """Return the archive with the entries that were checked; `torch.export.load` runs nothing of the file's own then.

    Args:
        content: bytes of a `.pt2` file.
        path: of the file, for messages.

    Raises:
        ConfigError: it is damaged, or holds more than tensors, operators and sizes.
    """
    try:
        with _archive(content, path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        if len({name.partition("/")[0] for name in entries}) != 1:
            raise _ForbiddenError("several archives in one")
        for name, data in entries.items():
            _check_entry(_inside(name), data)
    except _ForbiddenError as error:
        raise ConfigError(
            f"{path} holds {error}, which no detector needs and which torch would run; it is not opened. Export the "
            "run again."
        ) from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError, NotImplementedError) as error:
        raise ConfigError(f"{path} is damaged. Export the run again.") from error
    rewritten = io.BytesIO()
    # Not compressed, as torch requires.
    with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return rewritten.getvalue()


def _archive(content: bytes, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError) as error:
        raise ConfigError(f"{path} is damaged, or not a file of torch.export. Export the run again.") from error


def _inside(name: str) -> str:
    """Return the name of an entry without the archive's own, which is that of the file when it was written."""
    return name.partition("/")[2]


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        values = json.loads(archive.read(name))
    except (zipfile.BadZipFile, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _check_entry(name: str, data: bytes) -> None:
    if not _ENTRY.fullmatch(name):
        raise _ForbiddenError(f"an entry {name[:100]!r}")
    if name in _CONFIGS:
        for payload in json.loads(data)["config"].values():
            if payload["use_pickle"] or not re.fullmatch(r"(?:weight|tensor)_\d+", payload["path_name"]):
                raise _ForbiddenError("a pickled object")
    elif name == _SAMPLE_INPUTS:
        _check_pickle(data)
    elif name == _MODEL:
        _check_program(json.loads(data))


def _check_pickle(data: bytes) -> None:
    """Refuse sample inputs that are not plain tensors; torch would unpickle them without any restriction."""
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _ForbiddenError("a pickled object") from error


def _check_program(program: dict[str, Any]) -> None:
    for name in program.get("range_constraints") or {}:
        _check_expression(name)
    for guard in program.get("guards_code") or ():
        _check_expression(guard)
    for key, value in _entries(program):
        if key in ("target", "as_operator") and isinstance(value, str):
            _check_operator(value)
        elif key == "expr_str":
            _check_expression(value)
        elif key in ("in_spec", "out_spec"):
            _check_tree(value)
        elif key in ("custom_obj_values", "treespec_namedtuple_fields", "as_custom_obj") and value:
            raise _ForbiddenError("an object of a class of its own")


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, however deep."""
    waiting = [values]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _check_operator(name: str) -> None:
    if name in _FUNCTIONS:
        return
    if not _OPERATOR.fullmatch(name) or name.split(".")[3].startswith(_FORBIDDEN_OPERATORS):
        raise _ForbiddenError(f"a call of {name[:100]!r}")


def _check_expression(text: Any) -> None:
    """Refuse an expression that is more than arithmetic with sizes."""
    if not isinstance(text, str) or len(text) > _LONGEST_EXPRESSION:
        raise _ForbiddenError("an expression that is not one of sizes")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, MemoryError) as error:
        raise _ForbiddenError(f"the expression {text[:100]!r}") from error
    for node in ast.walk(tree):
        if not _is_arithmetic(node):
            raise _ForbiddenError(f"the expression {text[:100]!r}")


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id in _CALLS
        return isinstance(node.func, ast.Attribute) and not node.args and not node.keywords
    if isinstance(node, ast.Attribute):
        # Of `L['images'].size()[2]`.
        return node.attr in _METHODS and isinstance(node.value, ast.Subscript)
    if isinstance(node, ast.Name):
        return _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or _SYMBOL.fullmatch(node.value) is not None
    return isinstance(node, _NODES)


def _check_tree(text: Any) -> None:
    """Refuse a structure of arguments that is more than tuples, lists and dictionaries of texts."""
    if text in (None, ""):
        return
    for key, value in _entries(json.loads(text)):
        if key == "type" and value not in _TREE_TYPES:
            raise _ForbiddenError(f"an argument of type {str(value)[:100]!r}")
