"""Results in the form of KITTI's 3D object benchmark: a text file for each image, with a line for each object."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_shards.building.labels import is_calibration
from pipelines.errors import ConfigError
from pipelines.files import write_text

_UNKNOWN = ("-1", "-1")
"""Truncation and occlusion, which no detector predicts."""


def file_names(images: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the name of the result file of each image whose camera is known, by image id.

    Args:
        images: COCO's, with `id` and `file_name`, and the camera's projection matrix as `calib`.

    Raises:
        ConfigError: two images would have one file.
    """
    names: dict[int, str] = {}
    owners: dict[str, str] = {}
    for image in images:
        if not is_calibration(image.get("calib")):
            continue
        original = str(image.get("file_name") or f"{image['id']:06d}")
        name = f"{PurePosixPath(original.replace(chr(92), '/')).stem}.txt"
        if name in owners:
            raise ConfigError(
                f"the images {owners[name]} and {original} would both have their results in {name}; rename one of "
                f"them in the annotations, and build the shards again."
            )
        owners[name], names[image["id"]] = original, name
    return names


def write(
    folder: Path,
    names: Mapping[int, str],
    results: Sequence[Mapping[str, Any]],
    class_names: Mapping[int, str],
    *,
    score_threshold: float,
) -> None:
    """Write a file for each image, also for those without an object, as KITTI's tool expects. Each is replaced whole.

    Args:
        folder: made if it does not exist.
        names: from `file_names`.
        results: detections with `location` and `rotation_y`; see `evaluate.Evaluation.results`.
        class_names: by category id.
        score_threshold: only detections that score above this are written.

    Raises:
        ConfigError: the folder cannot be written.

    Source:
        KITTI's object development kit, readme.txt; xingyizhou/CenterNet, src/lib/datasets/dataset/kitti.py.
    """
    lines: dict[int, list[str]] = {image_id: [] for image_id in names}
    for result in results:
        if result["image_id"] in lines and result["score"] > score_threshold and "location" in result:
            lines[result["image_id"]].append(result_line(result, class_names[result["category_id"]]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for image_id, name in names.items():
            write_text(folder / name, "".join(lines[image_id]))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}. Choose another folder.") from error


def result_line(result: Mapping[str, Any], class_name: str) -> str:
    """Return the line of one object, with its end of line.

    Args:
        result: a detection with `location` and `rotation_y`; see `evaluate.Evaluation.results`.
        class_name: KITTI's name of its class.
    """
    x, y, width, height = result["bbox"]
    numbers = (
        *(result["alpha"], x, y, x + width, y + height),
        *(*result["dimensions"], *result["location"], result["rotation_y"]),
    )
    # The fields are separated by spaces. Scores rank detections, so that theirs need more digits.
    fields = ("_".join(class_name.split()), *_UNKNOWN, *(f"{number:.4f}" for number in numbers))
    return f"{' '.join(fields)} {result['score']:.6f}\n"
