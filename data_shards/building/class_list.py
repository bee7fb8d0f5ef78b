"""Building one split with the classes of another: categories with the same name are the same, whatever their ids."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass
from data_shards.suggestions import did_you_mean

Json = dict[str, Any]


def take_over(
    path: Path, document: Json, categories: Sequence[CocoClass], wanted: Sequence[CocoClass], others: Collection[str]
) -> tuple[CocoClass, ...]:
    """Give the categories of a file the ids and joints of another split, and its annotations the new ids.

    Args:
        path: the file, for errors.
        document: its contents, with known category ids only; those of the annotations change in place.
        categories: its own categories.
        wanted: the classes of the other split.
        others: names of categories that are not learnt, which the other split need not have.

    Returns:
        The wanted classes, and behind them the categories that are not learnt, in the order of their ids.

    Raises:
        DataError: the file has a category that the other split lacks, shares a name between two categories, or has
            other joints.
    """
    class_of = {item.name: item for item in wanted}
    if len(class_of) < len(wanted) or len({item.name for item in categories}) < len(categories):
        raise DataError(
            f"{path} or the split given by --classes-from has two classes with one name, so names do not tell which is "
            "which. Rename one of them."
        )
    new_ids: dict[int, int] = {}
    kept: list[CocoClass] = list(wanted)
    free = 1 + max(item.id for item in wanted)
    for item in categories:
        if (same := class_of.get(item.name)) is not None:
            if item.keypoints and same.keypoints and item.keypoints != same.keypoints:
                raise DataError(
                    f"{path}: category {item.name!r} has {counted(len(item.keypoints), 'joint')} "
                    f"({', '.join(item.keypoints)}), but the split given by --classes-from has "
                    f"{counted(len(same.keypoints), 'joint')} ({', '.join(same.keypoints)}). Correct one of them."
                )
            new_ids[item.id] = same.id
        elif item.name in others:
            # Not learnt, so any id will do that no class has.
            new_ids[item.id] = free
            kept.append(CocoClass(free, item.name, item.keypoints, item.skeleton))
            free += 1
        else:
            raise DataError(
                f"{path} has the category {item.name!r}, which the split given by --classes-from lacks; "
                f"{did_you_mean(item.name, list(class_of))} Rename it in the file, or pass --leave-out or --ignore."
            )
    for annotation in document["annotations"]:
        annotation["category_id"] = new_ids[annotation["category_id"]]
    return tuple(sorted(kept, key=lambda item: item.id))
