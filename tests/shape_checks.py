"""Check the shapes and types of arrays in signatures while tests run: jaxtyping's annotations, by beartype."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_Function = TypeVar("_Function", bound=Callable[..., Any])

# An int where a float is expected is fine, as for mypy.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_shapes(function: _Function) -> _Function:
    """Check the calls of a function that has an array with a shape in its signature; leave others to mypy.

    Tests hand over small fakes where a class is expected, and a check of every call would take longer than the tests.
    """
    if not any(map(_has_shape, function.__annotations__.values())):
        return function
    for name, parameter in inspect.signature(function).parameters.items():
        # A dataclass marks a field whose default is made by a factory; beartype takes the mark for a wrong default.
        if repr(parameter.default) == "<factory>":
            function.__annotations__[name] = Any
    return _check(function)


def _has_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_has_shape, get_args(annotation)))
