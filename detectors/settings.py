"""Checks for the settings of detectors: frozen dataclasses that refuse a value in one line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from detectors.errors import DetectorError, nearest


@runtime_checkable
class Settings(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


First = TypeVar("First", bound=Settings)
Second = TypeVar("Second", bound=Settings)


def configure(name: str, given: Mapping[str, Any], first: First, second: Second) -> tuple[First, Second]:
    """Distribute settings by name over two dataclasses, whose other fields keep their values.

    Raises:
        DetectorError: the detector `name` has no such setting (the nearest is named), or refuses a value.
    """
    of_first = {field.name for field in fields(first)}
    of_second = {field.name for field in fields(second)}
    for setting in given:
        if setting not in of_first | of_second:
            raise DetectorError(f"{name} has no setting {setting!r}{nearest(setting, sorted(of_first | of_second))}")
    return (
        replace(first, **{setting: given[setting] for setting in given if setting in of_first}),
        replace(second, **{setting: given[setting] for setting in given if setting in of_second}),
    )


def require_count(name: str, value: Any) -> None:
    """Refuse a value that is not a whole number of at least 1.

    Raises:
        DetectorError: with the name and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DetectorError(f"{name} is {value!r}; it has to be a whole number of at least 1.")


def require_weight(name: str, value: Any) -> None:
    """Refuse a value that cannot be the weight of a loss.

    Raises:
        DetectorError: with the name and the value.
    """
    if not _is_number(value) or value < 0:
        raise DetectorError(f"{name} is {value!r}; a weight has to be a number of at least 0.")


def require_fraction(name: str, value: Any) -> None:
    """Refuse a value that is not between 0 and 1, both excluded.

    Raises:
        DetectorError: with the name and the value.
    """
    if not _is_number(value) or not 0 < value < 1:
        raise DetectorError(f"{name} is {value!r}; it has to be between 0 and 1.")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is not among `choices`.

    Raises:
        DetectorError: with the name, the value and the choices.
    """
    if value not in choices:
        raise DetectorError(f"{name} is {value!r}; known are {', '.join(map(repr, choices))}.")


def require_flag(name: str, value: Any) -> None:
    """Refuse a value that is neither True nor False.

    Raises:
        DetectorError: with the name and the value.
    """
    if not isinstance(value, bool):
        raise DetectorError(f"{name} is {value!r}; it has to be True or False.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
