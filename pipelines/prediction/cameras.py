"""Projection matrices of cameras, from the calibration files of KITTI's 3D object benchmark."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.errors import ConfigError

_MATRIX = "P2:"
"""Of the left colour camera, whose images the benchmark uses."""


@dataclass(frozen=True)
class Cameras:
    """The cameras of images: one file for all of them, or a folder with a file for each.

    Args:
        path: a file, or a folder in which `000012.txt` is of the image `000012.png`.

    Raises:
        ConfigError: there is neither.
    """

    path: Path

    def __post_init__(self) -> None:
        if self.path.is_file():
            _matrix(self.path)
        elif not self.path.is_dir():
            raise ConfigError(f"--calibration {self.path} is neither a file nor a folder; check the path.")

    def of(self, name: str) -> list[list[float]] | None:
        """Return the matrix of an image's camera, 3 by 4 numbers; None if the folder has no file for it.

        Raises:
            ConfigError: the file has no such matrix.
        """
        path = self.path if self.path.is_file() else self.path / f"{PurePosixPath(name).stem}.txt"
        return _matrix(path) if path.is_file() else None


def _matrix(path: Path) -> list[list[float]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(_MATRIX):
                numbers = [float(word) for word in line.removeprefix(_MATRIX).split()]
                if len(numbers) == 12:
                    return [numbers[:4], numbers[4:8], numbers[8:]]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a calibration file ({error}); check the file.") from error
    raise ConfigError(f"{path} has no line with {_MATRIX} and 12 numbers, as KITTI's calibration files have.")
