"""Settings of detectors: frozen dataclasses that refuse, in one line, what they cannot honour."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from detectors.detector import DetectorError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def configure(name: str, defaults: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings dataclass `defaults` with the fields in `given` replaced.

    Raises:
        DetectorError: the detector `name` has no such setting (the nearest is named), or refuses a value.
    """
    known = [field.name for field in fields(defaults)]
    for setting in given:
        if setting not in known:
            raise DetectorError(f"{name} has no setting {setting!r}{nearest(setting, known)}")
    return replace(defaults, **given)


def require_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        DetectorError: with the name and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DetectorError(f"{name} is {value!r}; it has to be a whole number of at least 1.")


def require_weight(name: str, value: Any) -> None:
    """Refuse what cannot be the weight of a loss.

    Raises:
        DetectorError: with the name and the value.
    """
    if not _is_number(value) or value < 0:
        raise DetectorError(f"{name} is {value!r}; a weight has to be a number of at least 0.")


def require_fraction(name: str, value: Any) -> None:
    """Refuse what does not lie between 0 and 1, both left out.

    Raises:
        DetectorError: with the name and the value.
    """
    if not _is_number(value) or not 0 < value < 1:
        raise DetectorError(f"{name} is {value!r}; it has to lie between 0 and 1.")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of `choices`.

    Raises:
        DetectorError: with the name, the value and the choices.
    """
    if value not in choices:
        raise DetectorError(f"{name} is {value!r}; known are {', '.join(map(repr, choices))}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
