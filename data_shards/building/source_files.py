"""Reading the folders, lists of names and images that VOC and YOLO annotations come with."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from data_shards.building.text_files import decode_text, visible
from data_shards.errors import DataError
from data_shards.reading.decode import image_size

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
# Files that are pictures, or that people take for pictures; an import names those that it cannot use.
_OTHER_PICTURES = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg", ".jfif", ".raw")

Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all images."""


def class_list(words: Sequence[str]) -> list[str]:
    """Return class names as a command takes them: the words, or the lines of the file that a single word names.

    Raises:
        DataError: the file is empty or cannot be read.
    """
    if len(words) == 1 and Path(words[0]).is_file():
        return read_names(Path(words[0]))
    return [visible(word) for word in words]


def check_folders(annotations: Path, images: Path, target: Path, overwrite: bool) -> None:
    """Refuse folders that are missing or cannot be listed, and an output that would be overwritten unasked.

    Raises:
        DataError: one of them.
    """
    # Images first: the folder of YOLO's labels is derived from theirs, so its name would mislead.
    for folder, what in ((images, "images"), (annotations, "annotations")):
        if not folder.is_dir():
            raise DataError(f"there is no folder of {what} {folder}; check the path.")
        # Globbing a folder without permission finds nothing and raises nothing: the import would be empty.
        if not os.access(folder, os.R_OK | os.X_OK):
            raise DataError(f"cannot read the folder of {what} {folder}: Permission denied. Change its permissions.")
    if target.exists() and not overwrite:
        raise DataError(f"{target} already exists. Choose another --output, or pass --overwrite to replace it.")


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuse a list with a repeated name; `where` is the file or option that holds the list.

    Raises:
        DataError: names the repeated class.
    """
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise DataError(f"{where} lists class {twice[0]!r} more than once. Remove the repetition.")


def read_names(path: Path) -> list[str]:
    """Return the class names in a text file, one on each line, without invisible characters.

    Raises:
        DataError: as `read_lines`.
    """
    return [name for line in read_lines(path) if (name := visible(line))]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones.

    Raises:
        DataError: the file cannot be read, or has no line with text.
    """
    lines = [line.strip() for line in read_text(path, "a text file with a name on each line").splitlines()]
    if not any(lines):
        raise DataError(f"{path} is empty. Write one name on each line.")
    return [line for line in lines if line]


def read_text(path: Path, wanted: str) -> str:
    """Return the text of a file in UTF-8, or in the encoding that its byte order mark names.

    Args:
        path: the file.
        wanted: what the file should be, for errors.

    Raises:
        DataError: the file cannot be read, or is in another encoding.
    """
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Give {wanted}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not text in UTF-8. Give {wanted}, saved as UTF-8.") from error


def is_image(path: Path) -> bool:
    """Return True for the name of a JPEG or PNG, in any mixture of upper and lower case."""
    return path.suffix.lower() in IMAGE_ENDINGS


def skipped_pictures(folder: Path) -> list[str]:
    """Return the pictures below a folder that are neither JPEG nor PNG by their names."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in _OTHER_PICTURES
    )


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path and its permissions.") from error


def read_image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file, upright, from its header.

    Raises:
        DataError: the file cannot be read, or is not a JPEG or PNG.
    """
    try:
        return image_size(read_bytes(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"cannot read the image {path}: {error}. Export it again, or remove it.") from error
