"""The detector inside an MLflow model: rows with an image in, rows with its objects out.

MLflow loads this module from the copy of our packages in the model's folder, so the project need not be installed where
a model is served. MLflow itself is imported only to report a mistake in its own form.
"""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataError
from data_shards.reading.decode import image_extension, image_size
from data_shards.reading.pictures import read_picture
from detectors import DetectorError
from pipelines.errors import ConfigError
from pipelines.prediction.prediction import Prediction
from pipelines.prediction.predictor import Predictor
from pipelines.trained.trained import open_trained

if TYPE_CHECKING:
    import pandas

IMAGES_FOLDER = "AWEIGH_SERVED_IMAGES"
"""Environment variable of a server: the folder whose images requests may name."""

# Set by `mlflow models serve` for its own processes.
_SERVING = "__pyfunc_model_path__"
_TAKEN = (str, bytes, bytearray, memoryview)
_LARGEST_PIXELS = 200_000_000
"""Pixels of one image: a small file can claim to be an image that fills the memory."""


class ServedModel:
    """A predictor with the interface that MLflow calls.

    Args:
        predictor: finds the objects.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: "pandas.DataFrame", params: Mapping[str, Any] | None = None) -> "pandas.DataFrame":
        """Find the objects in the image of each row.

        A row whose image cannot be read has a text in `error` and no objects; the other rows are not affected.

        Args:
            model_input: a column `image` with the bytes of JPEG or PNG files, or `path` with files.
            params: `threshold`, the least score of all classes; `tta`, none, flip or multiscale.

        Returns:
            For each row: `width` and `height` of the upright image in pixels; `boxes` as x1, y1, x2, y2 in these
            pixels; `scores`, `labels` and `class_names`, one for each box, the best score first; for detectors that
            have them `keypoints` (x, y and score of each joint) and `box3d`; and `error`.

        Raises:
            MlflowException: there is neither column, or a parameter cannot be used; a server answers with its text.
        """
        import pandas

        try:
            return pandas.DataFrame(self._rows(model_input, dict(params or {})))
        except (ConfigError, DetectorError) as error:
            from mlflow.exceptions import MlflowException

            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _rows(self, model_input: "pandas.DataFrame", params: Mapping[str, Any]) -> list[dict[str, Any]]:
        pictures: list[NDArray[np.uint8]] = []
        errors: list[str] = []
        for column, value in _images(model_input):
            try:
                pictures.append(_read(column, value))
                errors.append("")
            except (DataError, ConfigError) as error:
                errors.append(str(error))
        threshold, tta = params.get("threshold"), params.get("tta") or None
        found = iter(self._predictor.predict(pictures, threshold=threshold, tta=tta))
        needs = self._predictor.trained.detector.needs
        return [_row(None if error else next(found), needs) | {"error": error} for error in errors]


def _load_pyfunc(path: str) -> ServedModel:
    """Open the weights of a model; MLflow calls this by name."""
    return ServedModel(Predictor(open_trained(path)))


def _images(model_input: "pandas.DataFrame") -> list[tuple[str, Any]]:
    """Return the column and the value that name the image of each row."""

    columns = [name for name in ("image", "path") if name in model_input.columns]
    if not columns:
        raise ConfigError(
            f"the columns are {', '.join(map(str, model_input.columns)) or 'none'}; give image, the bytes of JPEG or "
            f"PNG files (in base64 as JSON), or path."
        )
    rows = model_input[columns].to_dict("records")
    # The other column of a row is empty.
    return [
        next(((name, row[name]) for name in columns if isinstance(row[name], _TAKEN)), (columns[0], row[columns[0]]))
        for row in rows
    ]


def _read(column: str, value: Any) -> NDArray[np.uint8]:
    """Decode an image, if this process may read it."""
    if column == "path" and isinstance(value, str):
        try:
            path = _allowed(value)
            data, name = path.read_bytes(), str(path)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            if isinstance(error, ConfigError):
                raise
            raise DataError(f"{value} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    elif column == "image" and isinstance(value, _TAKEN):
        data, name = _without_base64(value.encode() if isinstance(value, str) else bytes(value)), "the image"
    else:
        raise ConfigError(
            f"{column} is a {type(value).__name__}; give image, the bytes of a JPEG or PNG file, or path."
        )
    try:
        width, height = image_size(data)
    except ValueError:
        width = height = 0  # reading says what is wrong
    if width * height > _LARGEST_PIXELS:
        raise DataError(f"{name} has {width:,} x {height:,} pixels, more than {_LARGEST_PIXELS:,}.")
    # A copy: reading uses the memory of an image again for the next one.
    return read_picture(data, name).copy()


def _without_base64(data: bytes) -> bytes:
    """Return the bytes of an image that MLflow has left in base64, as it does in requests with `inputs`."""
    if image_extension(data) is not None:
        return data
    try:
        return base64.b64decode(data.rpartition(b";base64,")[2], validate=True)
    except binascii.Error:
        return data


def _allowed(text: str) -> Path:
    """Return the file of a path; a server reads only those of one folder, since anybody may ask it."""
    folder = os.environ.get(IMAGES_FOLDER)
    if not folder and _SERVING not in os.environ:
        return Path(text)
    if not folder:
        raise ConfigError(
            f"this server reads no files; send the bytes of the image, or start it with {IMAGES_FOLDER}=FOLDER."
        )
    path = Path(folder, text).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ConfigError(f"this server reads only files in {IMAGES_FOLDER}.")
    return path


def _row(found: Prediction | None, needs: Sequence[str]) -> dict[str, Any]:
    """Return the values of a row as JSON has them."""
    row: dict[str, Any] = {
        "width": found.size[1] if found else 0,
        "height": found.size[0] if found else 0,
        "boxes": found.boxes.tolist() if found else [],
        "scores": found.scores.tolist() if found else [],
        "labels": found.labels.tolist() if found else [],
        "class_names": list(found.class_names) if found else [],
    }
    if "keypoints" in needs:
        row["keypoints"] = found.keypoints.tolist() if found and found.keypoints is not None else []
    if "depth" in needs:
        row["box3d"] = found.box3d.tolist() if found and found.box3d is not None else []
    return row
