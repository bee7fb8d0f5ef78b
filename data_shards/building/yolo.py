"""YOLO text files to a COCO file: class, centre x, centre y, width, height, as fractions of the image.

Source:
    Ultralytics' documentation of the YOLO detection format.
"""

from collections.abc import Sequence
from pathlib import Path

from data_shards.building.coco_writing import ImportedImage, ImportedObject, ImportReport, write_coco
from data_shards.building.source_files import (
    Progress,
    check_class_names,
    check_folders,
    is_image,
    read_bytes,
    read_image_size,
    read_names,
    read_text,
    skipped_pictures,
)
from data_shards.building.text_files import marked_encoding, visible
from data_shards.counting import counted
from data_shards.errors import DataError

# Text files that labelling tools write beside the labels.
_NOT_LABELS = ("classes.txt", "obj.names", "notes.txt", "readme.txt")


def import_yolo(
    labels: str | Path | None,
    images: str | Path,
    output: str | Path,
    *,
    names: str | Path,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Turn YOLO's text files into a COCO file. An image without a text file has no objects.

    Args:
        labels: the folder of the text files, with the same subfolders as the images. None uses YOLO's rule: replace
            `images` in the images' path by `labels`; if there is no such folder, look beside the images.
        images: the folder of the images, which may have subfolders.
        output: the JSON file to write.
        names: a `data.yaml` with `names`, or a text file with a class on each line.
        overwrite: replace the output if it exists.
        progress: called with the number of images done and the number of all images.

    Raises:
        DataError: names the first file and line that is not a known class and four numbers from 0 to 1; or no image
            has a text file; or the output exists.
    """
    image_folder, target = Path(images), Path(output)
    folder = _label_folder(image_folder) if labels is None else Path(labels)
    check_folders(folder, image_folder, target, overwrite)
    class_names = _class_names(Path(names))
    paths = sorted(path for path in image_folder.rglob("*") if is_image(path) and path.is_file())
    if not paths:
        raise DataError(f"there are no images in {image_folder}. Give the folder of the JPEG or PNG files.")
    found: list[ImportedImage] = []
    used: set[Path] = set()
    for done, path in enumerate(paths, start=1):
        file_name = path.relative_to(image_folder).as_posix()
        width, height = read_image_size(path)
        text = (folder / file_name).with_suffix(".txt")
        objects: list[ImportedObject] = []
        if text.is_file():
            used.add(text)
            objects = _read_objects(text, width, height, class_names)
        found.append(ImportedImage(file_name, width, height, objects))
        progress(done, len(paths))
    # Without this check a wrong folder of labels would make a data set without a single object.
    if not used:
        raise DataError(
            f"none of the {counted(len(paths), 'image')} in {image_folder} has a text file in {folder}; the first "
            f"would be {(folder / found[0].file_name).with_suffix('.txt')}. Put them there, or name their folder "
            "(`aweigh shards import-yolo --labels FOLDER`)."
        )
    skipped = dict.fromkeys(skipped_pictures(image_folder), "neither JPEG nor PNG")
    return write_coco(target, image_folder, class_names, found, _left_out(folder, used, len(paths)), skipped)


def _left_out(folder: Path, used: set[Path], num_images: int) -> str:
    stray = [path for path in folder.rglob("*.txt") if path not in used and path.name not in _NOT_LABELS]
    parts = [
        f"{counted(num_images - len(used), 'image')} without a text file" if num_images > len(used) else "",
        f"{counted(len(stray), 'text file')} without an image not read, such as {min(stray).name}" if stray else "",
    ]
    return "; ".join(filter(None, parts))


def _label_folder(images: Path) -> Path:
    """Apply YOLO's rule: the last folder named `images` in the path has a twin named `labels`."""
    parts = list(images.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            beside = Path(*parts[:index], "labels", *parts[index + 1 :])
            if beside.is_dir():
                return beside
    return images


def _class_names(path: Path) -> list[str]:
    names = _names_of_yaml(path) if path.suffix in (".yaml", ".yml") else read_names(path)
    check_class_names(names, str(path))
    return names


def _names_of_yaml(path: Path) -> list[str]:
    import yaml  # only data.yaml needs it

    text = read_text(path, "the data.yaml, or a text file of names")
    try:
        # Names are words as they are written: YAML itself would read yes, no, on and off as true and false.
        document = yaml.load(text, yaml.BaseLoader)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply. Give YOLO's data.yaml, or a text file of names.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct it there.") from error
    listed = document.get("names") if isinstance(document, dict) else None
    if isinstance(listed, dict):
        if set(listed) != {str(number) for number in range(len(listed))}:
            raise DataError(
                f"{path}: the keys of 'names' are {', '.join(map(str, list(listed)[:8]))}; they must count the classes "
                "from 0. Renumber them."
            )
        listed = [listed[str(index)] for index in range(len(listed))]
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path} has no list 'names' of classes. Give YOLO's data.yaml, or a text file of names.")
    for number, name in enumerate(listed):
        if not isinstance(name, str) or not visible(name):
            raise DataError(f"{path}: class {number} of 'names' is not a word. Write the name of the class.")
    return [visible(name) for name in listed]


def _read_objects(path: Path, width: int, height: int, names: Sequence[str]) -> list[ImportedObject]:
    data = read_bytes(path)
    lines = data.decode(marked_encoding(data) or "utf-8", errors="replace").splitlines()
    return [
        _read_object(f"{path}, line {number}", line, width, height, names)
        for number, line in enumerate(lines, start=1)
        if line.split()
    ]


def _read_object(where: str, line: str, width: int, height: int, names: Sequence[str]) -> ImportedObject:
    words = line.split()
    if len(words) != 5:
        polygon = " It looks like a polygon: export boxes instead." if len(words) > 6 else ""
        raise DataError(
            f"{where} has {counted(len(words), 'value')}, but a box is class, centre x, centre y, width, height."
            f"{polygon or ' Correct it there.'}"
        )
    try:
        # Tools that write all values alike write class 1 as 1.0 or 1.000000000000000000e+00.
        number, x, y, across, down = map(float, words)
        label = int(number)
        if label != number:
            raise ValueError(words[0])
    except (ValueError, OverflowError):
        raise DataError(
            f"{where} is {line.strip()!r}, but a box is a class number and four numbers. Correct it there."
        ) from None
    if not 0 <= label < len(names):
        raise DataError(
            f"{where} has class {label}, but there are {counted(len(names), 'name')}, numbered from 0. "
            "Give the list of names that belongs to these files."
        )
    # Six printed digits can round a box at the border to slightly more than 1. NaN fails the comparison, too.
    if not all(-1e-4 <= value <= 1 + 1e-4 for value in (x, y, across, down)):
        raise DataError(
            f"{where} is {line.strip()!r}, but centre and size are fractions of the image, from 0 to 1. "
            "Divide pixels by the image's width and height."
        )
    corners = ((x - across / 2) * width, (y - down / 2) * height, (x + across / 2) * width, (y + down / 2) * height)
    return ImportedObject(label, corners, {})
