"""The fields of a COCO file, normalised or refused before anything else reads them.

An empty value (null, "", [], {} or NaN) counts as a missing field, and whole numbers may be written with a point. A
value that contradicts its field is refused, so that nothing that is built fails later in training or in pycocotools.
Values that are right stay as they are: the bytes of shards depend on them.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sized
from pathlib import Path
from typing import Any

from data_shards.building.text_files import visible
from data_shards.errors import DataError

Json = dict[str, Any]

_MOST_INT64 = 2**63 - 1
_MOST_FLOAT32 = 3.4028234e38
_MOST_PIXELS = 2**31 - 1
# Farther away, the next 32-bit float is more than a pixel further.
_MOST_PLACE = 2**24

# Without one of these in the text, its JSON has only finite numbers, and nobody has to walk through all of them.
_MAYBE_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{309}")
# Twenty brackets in a row; COCO's deepest values, polygons, have five.
_MAYBE_DEEP = re.compile(r'(?:[\[{]\s*(?:"[^"]*"\s*:\s*)?){20}')
# Python's JSON and pickle give up at a few hundred levels, the fewer the deeper they are called.
_MOST_LEVELS = 50

# The value of a field that says nothing.
_MISSING = object()


def normalise(path: Path, document: Json, text: str) -> None:
    """Normalise the fields of all categories, images and annotations of a COCO file in place.

    Required fields of a wrong type are left for the checks that follow.

    Args:
        path: the file, for errors.
        document: its contents, with the lists `images`, `annotations` and `categories`.
        text: the text that was parsed.

    Raises:
        DataError: names the first value that contradicts its field, and counts the others of that field.
    """
    for kind, name in (("category", "categories"), ("image", "images"), ("annotation", "annotations")):
        _normalise_fields(path, kind, document[name])
    named = {
        item["id"]
        for item in document["categories"]
        if isinstance(item, dict) and item.get("keypoints") and isinstance(item.get("id"), int)
    }
    _normalise_joints(path, document["annotations"], named)
    if _MAYBE_DEEP.search(text):
        _refuse_deep(path, document["annotations"])
    if _MAYBE_NOT_FINITE.search(text):
        for item in document["annotations"]:
            if isinstance(item, dict):
                item.update({name: _finite(value) for name, value in item.items() if name not in _RULES["annotation"]})


def _normalise_fields(path: Path, kind: str, items: list[Any]) -> None:
    refused: dict[str, list[tuple[Json, str]]] = defaultdict(list)
    rules = _RULES[kind]
    for item in items:
        if not isinstance(item, dict):
            continue  # named by the checks of types
        for name, rule in rules.items():
            if name not in item:
                continue
            value = item[name]
            try:
                normal = rule(value)
            except ValueError as error:
                refused[name].append((item, str(error)))
                continue
            if normal is _MISSING:
                del item[name]
            elif normal is not value:
                item[name] = normal
    for name, found in refused.items():
        item, advice = found[0]
        value = _shown(item[name])
        what = f"{kind} id {value}" if name == "id" else f"{_called(kind, item)} has {name.replace('_', ' ')} {value}"
        raise DataError(f"{path}: {what}{_others(found)}: {advice}.")


def _called(kind: str, item: Json) -> str:
    number = f" {_shown(item['id'])}" if "id" in item else " without an id"
    of_image = f" of image {_shown(item['image_id'])}" if "image_id" in item else ""
    return f"{kind}{number}{of_image}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _others(found: Sized) -> str:
    return f" ({len(found) - 1:,} more like it)" if len(found) > 1 else ""


def _refuse_deep(path: Path, annotations: list[Any]) -> None:
    deep = [
        (item, name)
        for item in annotations
        if isinstance(item, dict)
        for name, value in item.items()
        if _levels(value) > _MOST_LEVELS
    ]
    if deep:
        item, name = deep[0]
        raise DataError(
            f"{path}: {_called('annotation', item)} has {name} nested more than {_MOST_LEVELS} levels deep"
            f"{_others(deep)}: remove it."
        )


def _levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inner), default=0)


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {}) or (isinstance(value, float) and math.isnan(value))


def _is_number(value: Any) -> bool:
    # bool is a kind of int in Python, but true is not a number.
    return isinstance(value, int | float) and not isinstance(value, bool)


def fits_float32(value: Any) -> bool:
    """Return True for a number whose 32-bit float is finite."""
    # Compared, not converted: `math.isfinite` overflows for whole numbers of hundreds of digits.
    return _is_number(value) and -_MOST_FLOAT32 <= value <= _MOST_FLOAT32


def _is_place(value: Any) -> bool:
    """Return True for a place in pixels. Crops enlarge it and areas square it, so it must be far from the largest."""
    return fits_float32(value) and abs(value) <= _MOST_PLACE


def _whole(value: Any) -> Any:
    """Write 3.0 as 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _id(value: Any) -> Any:
    number = _whole(value)
    if isinstance(number, int) and not -_MOST_INT64 <= number <= _MOST_INT64:
        raise ValueError("it does not fit 64 bits; number them from 1")
    return number


def _side(value: Any) -> Any:
    # Tools write 0 or -1 for a size that they do not know; the image's own then counts.
    if _is_empty(value) or (_is_number(value) and value in (0, -1)):
        return _MISSING
    number = _whole(value)
    if _is_number(number) and not 0 < number <= _MOST_PIXELS:
        raise ValueError("write a whole number of pixels, or leave out width and height to read them from the image")
    return number


def _area(value: Any) -> Any:
    number = value
    if isinstance(value, str) and value.strip():
        try:
            number = float(value)
        except ValueError:
            raise ValueError("write a number of pixels, or leave it out to use the area of the box") from None
    # An object has an area, so 0 and -1 stand for one that the tool did not know.
    if (
        _is_empty(number)
        or (isinstance(number, str) and not number.strip())
        or (_is_number(number) and number in (0, -1))
    ):
        return _MISSING
    if not (fits_float32(number) and number > 0):
        raise ValueError("write a number of pixels, or leave it out to use the area of the box")
    return number


# As converters write it that go through CSV, where every value is a text.
_CROWD_WORDS = {"0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}
_NOTHING_WORDS = ("", "none", "null", "nan")


def _iscrowd(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _NOTHING_WORDS:
            return _MISSING
        if word in _CROWD_WORDS:
            return _CROWD_WORDS[word]
    elif _is_empty(value):
        return _MISSING
    elif isinstance(value, int | float) and value in (0, 1):
        return value
    raise ValueError("write 0, or 1 for a crowd")


def _box(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)):
        if any(isinstance(one, float) and not math.isfinite(one) for one in value):
            return value  # named by the checks of boxes
        x, y, width, height = value
        if not all(map(_is_place, (*value, x + width, y + height))):
            raise ValueError("it does not fit 32-bit numbers; write x, y, width, height in pixels")
    return value


def _name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = visible(value)
    if not name:
        raise ValueError("it shows nothing; write the name of the class")
    return name if name != value else value


def _unless_empty(value: Any) -> Any:
    return _MISSING if _is_empty(value) else value


def _skeleton(value: Any) -> Any:
    if _is_empty(value):
        # An empty list is COCO's own way to write no lines.
        return value if value == [] else _MISSING
    if isinstance(value, list) and any(
        isinstance(line, list) and any(isinstance(end, float) for end in line) for line in value
    ):
        return [[_whole(end) for end in line] if isinstance(line, list) else line for line in value]
    return value


_RULES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "category": {"id": _id, "name": _name, "keypoints": _unless_empty, "skeleton": _skeleton},
    "image": {"id": _id, "width": _side, "height": _side, "calib": _unless_empty},
    "annotation": {
        "id": _id,
        "image_id": _id,
        "category_id": _id,
        "bbox": _box,
        "area": _area,
        "iscrowd": _iscrowd,
    },
}


def _normalise_joints(path: Path, annotations: list[Any], named: Collection[int]) -> None:
    """Normalise `keypoints`, whose rule depends on the category: only those of a category with joints are used."""
    refused: list[tuple[Json, str]] = []
    for item in annotations:
        if not isinstance(item, dict) or "keypoints" not in item:
            continue
        joints, category = item["keypoints"], item.get("category_id")
        if isinstance(category, int) and category in named:
            try:
                normal = _triples(joints)
            except ValueError as error:
                refused.append((item, str(error)))
                continue
        else:
            normal = _unused_joints(joints)
        if normal is _MISSING:
            del item["keypoints"]
        elif normal != joints:
            item["keypoints"] = normal
    if refused:
        item, problem = refused[0]
        raise DataError(
            f"{path}: {_called('annotation', item)} has keypoints with {problem}{_others(refused)}. Write x, y and 0 "
            "(not labelled), 1 (hidden) or 2 (visible) for each joint."
        )


def _triples(joints: Any) -> Any:
    """Write 0, 0, 0 for joints without a place; refuse those that are labelled and have none."""
    if _is_empty(joints) or not isinstance(joints, list):
        return _MISSING if _is_empty(joints) else joints  # another type is refused with the number of joints
    normal = list(joints)
    for start in range(0, len(joints) - 2, 3):
        x, y, visibility = joints[start : start + 3]
        joint = start // 3 + 1
        if all(map(_is_empty, (x, y, visibility))):
            visibility = 0
        if not (_is_number(visibility) and visibility in (0, 1, 2)):
            raise ValueError(f"visibility {_shown(visibility)} for joint {joint}")
        if _is_place(x) and _is_place(y):
            continue
        if visibility or not all(_is_empty(one) or _is_number(one) for one in (x, y)):
            raise ValueError(f"x {_shown(x)} and y {_shown(y)} for joint {joint}")
        normal[start : start + 3] = 0, 0, 0
    return normal


def _unused_joints(joints: Any) -> Any:
    """Keep joints that no category names if they are numbers, which evaluation counts; nobody reads others."""
    if isinstance(joints, list) and all(map(fits_float32, joints)):
        return joints
    try:
        normal = _triples(joints)
    except ValueError:
        return _MISSING
    return normal if isinstance(normal, list) and all(map(fits_float32, normal)) else _MISSING


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null, wherever they are."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return {name: _finite(one) for name, one in value.items()} if isinstance(value, dict) else value
