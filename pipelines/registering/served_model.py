"""The detector inside an MLflow model: rows with an image in, rows with its objects out.

MLflow loads this module from the copy of our packages in the model's folder, so the project need not be installed where
a model is served. Nothing here imports MLflow.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import DataError
from data_shards.reading.pictures import read_picture
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
            ConfigError: there is neither column, or a parameter cannot be used.
        """
        import pandas

        chosen = dict(params or {})
        threshold, tta = chosen.get("threshold"), chosen.get("tta") or None
        pictures: list[Any] = []
        errors: list[str] = []
        for picture in _pictures(model_input):
            try:
                # A copy: reading may use the memory of the last picture again.
                pictures.append(_read(picture).copy())
                errors.append("")
            except (DataError, ConfigError) as error:
                errors.append(str(error))
        found = iter(self._predictor.predict(pictures, threshold=threshold, tta=tta))
        needs = self._predictor.trained.detector.needs
        rows = [_row(None if error else next(found), needs) | {"error": error} for error in errors]
        return pandas.DataFrame(rows)


def _load_pyfunc(path: str) -> ServedModel:
    """Open the weights of a model; MLflow calls this by name."""
    return ServedModel(Predictor(open_trained(path)))


def _pictures(model_input: "pandas.DataFrame") -> list[Any]:
    """Return what each row names: bytes or a path."""
    import pandas

    columns = [name for name in ("image", "path") if name in model_input.columns]
    if not columns:
        raise ConfigError(
            f"the columns are {', '.join(map(str, model_input.columns)) or 'none'}; give image, the bytes of JPEG or "
            f"PNG files (in base64 as JSON), or path."
        )

    def of_row(row: Sequence[Any]) -> Any:
        return next((value for value in row if not pandas.api.types.is_scalar(value) or not pandas.isna(value)), None)

    return [of_row(row) for row in model_input[columns].itertuples(index=False)]


def _read(picture: Any) -> Any:
    """Decode an image, if this process may read it."""
    from data_shards.reading.decode import image_size

    if isinstance(picture, str):
        picture = _allowed(picture)
        name = str(picture)
        data = _bytes_of(picture)
    elif isinstance(picture, (bytes, bytearray, memoryview)):
        data, name = bytes(picture), "the image"
    else:
        raise ConfigError(f"the image is a {type(picture).__name__}; give the bytes of a JPEG or PNG file, or a path.")
    try:
        width, height = image_size(data)
    except ValueError:
        width = height = 0  # reading says what is wrong
    if width * height > _LARGEST_PIXELS:
        raise DataError(f"{name} has {width:,} x {height:,} pixels, more than {_LARGEST_PIXELS:,}.")
    return read_picture(data, name)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


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
