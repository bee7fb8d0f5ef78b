"""Pascal VOC and YOLO annotations to COCO's instances JSON, which `aweigh shards build` takes.

Boxes keep their numbers. VOC's corners are read as continuous edges, x = xmin and width = xmax - xmin, as the tools
that write VOC files today mean them. The files of the 2007 to 2012 challenges count pixels from 1 and include the last
one; `one_based` reads those: x = xmin - 1, width = xmax - xmin + 1.

Images get ids from 1 in the order of their file names, classes from 1 in the order of their list, so importing twice
gives the same file.

Source:
    Everingham et al., The PASCAL VOC Challenge 2012 Development Kit, section 4.4; Ultralytics' documentation of the
    YOLO detection format (class, centre x, centre y, width, height, relative to the image).
"""

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.building.coco import read_coco
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.reading.decode import image_size
from data_shards.storage.atomic import replacing
from data_shards.suggestions import did_you_mean

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_NOT_LABELS = ("classes.txt", "obj.names", "notes.txt", "readme.txt")

Corners = tuple[float, float, float, float]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote."""

    annotations: Path
    """The COCO file."""
    images: Path
    """The folder its file names start from."""
    class_names: tuple[str, ...]
    num_images: int
    num_boxes: int
    images_without_boxes: int
    zero_size_boxes: int
    """In the file, as its source has them; `aweigh shards build` drops and counts them."""
    outside_boxes: int
    left_out: str
    """What was left out, for people; empty where nothing was."""

    def describe(self) -> str:
        """A few lines for people."""
        shown = ", ".join(self.class_names[:8]) + (", …" if len(self.class_names) > 8 else "")
        bad = self.zero_size_boxes + self.outside_boxes
        return (
            f"{self.annotations}: {counted(self.num_images, 'image')}, {counted(self.num_boxes, 'box')} of "
            f"{counted(len(self.class_names), 'class')} ({shown}); "
            f"{counted(self.images_without_boxes, 'image')} without boxes"
            + (f"; {counted(bad, 'box')} without area or outside their image, which building drops" if bad else "")
            + (f"; {self.left_out}" if self.left_out else "")
        )


@dataclass(frozen=True)
class _Object:
    """A box in the image frame, `label` the index of its class."""

    label: int
    corners: Corners
    more: dict[str, Any]


@dataclass(frozen=True)
class _Image:
    file_name: str
    width: int
    height: int
    objects: list[_Object]


def import_voc(
    annotations: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    classes: Sequence[str] = (),
    image_set: str | Path | None = None,
    difficult: str = "keep",
    one_based: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Turn a folder of Pascal VOC XML files into a COCO file.

    Args:
        annotations: the folder of XML files, one an image.
        images: the folder of the images.
        output: the JSON to write.
        classes: names in the order of their ids; none takes those of the files, by alphabet. Give them where several
            splits have to agree.
        image_set: a text file with the names of the images to take, such as `ImageSets/Main/train.txt`; None takes all.
        difficult: objects marked difficult are "keep", kept with COCO field `difficult` 1, or "drop", left out.
        one_based: corners count pixels from 1 and include the last one, as in the challenges' own files.
        overwrite: replace the output if it is there.
        progress: called with images done and images in all.

    Raises:
        DataError: names the first file that is no VOC annotation, whose image is missing or of another size, or that
            has an unknown class; or the output is there already.
    """
    folder, image_folder, target = Path(annotations), Path(images), Path(output)
    if difficult not in ("keep", "drop"):
        raise DataError(f"difficult is {difficult!r}; set it to 'keep' or 'drop'.")
    _check_folders(folder, image_folder, target, overwrite)
    files = sorted(folder.glob("*.xml")) if image_set is None else _of_image_set(folder, Path(image_set))
    if not files:
        raise DataError(f"there are no .xml files in {folder}; give VOC's folder Annotations.")
    roots = [(path, _xml(path)) for path in files]
    names = list(classes) or sorted({_text(path, item, "name") for path, root in roots for item in root.iter("object")})
    if not names:
        raise DataError(f"no file in {folder} has an object; give the classes with --classes.")
    _check_names(names, "--classes")
    found: list[_Image] = []
    annotation_of: dict[str, Path] = {}
    dropped = 0
    for done, (path, root) in enumerate(roots, start=1):
        file_name = _voc_image(path, root, image_folder)
        if (other := annotation_of.setdefault(file_name, path)) is not path:
            raise DataError(f"{other} and {path} both annotate {image_folder / file_name}. Remove one of them.")
        width, height = _size_of(image_folder / file_name)
        stated = (_number(path, root, "size/width", 0), _number(path, root, "size/height", 0))
        # Many tools leave the size out or write zeros; the image knows.
        if all(stated) and stated != (width, height):
            raise DataError(
                f"{path} says its image is {stated[0]:g} x {stated[1]:g} pixels, {image_folder / file_name} is "
                f"{width} x {height}. Use the images that were annotated."
            )
        objects = []
        for item in root.iter("object"):
            if difficult == "drop" and _number(path, item, "difficult", 0):
                dropped += 1
                continue
            objects.append(_voc_object(path, item, names, one_based))
        found.append(_Image(file_name, width, height, objects))
        progress(done, len(roots))
    left_out = f"{dropped:,} difficult objects left out" if dropped else ""
    return _write(target, image_folder, names, found, left_out)


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
        labels: the folder of text files, laid out like the images; None takes `labels` where the images' path says
            `images`, as YOLO does, or the images' own folder.
        images: the folder of the images, with any folders below it.
        output: the JSON to write.
        names: a `data.yaml` with `names`, or a text file with a class on each line.
        overwrite: replace the output if it is there.
        progress: called with images done and images in all.

    Raises:
        DataError: names the first file and line that is not five numbers from 0 to 1 after a known class; no image
            has a text file; or the output is there already.
    """
    image_folder, target = Path(images), Path(output)
    folder = _yolo_labels(image_folder) if labels is None else Path(labels)
    _check_folders(folder, image_folder, target, overwrite)
    class_names = _yolo_names(Path(names))
    paths = sorted(path for path in image_folder.rglob("*") if path.suffix in _IMAGE_ENDINGS and path.is_file())
    if not paths:
        raise DataError(f"there are no images in {image_folder}; give the folder of the JPEG or PNG files.")
    found: list[_Image] = []
    used: set[Path] = set()
    for done, path in enumerate(paths, start=1):
        file_name = path.relative_to(image_folder).as_posix()
        width, height = _size_of(path)
        text = (folder / file_name).with_suffix(".txt")
        objects: list[_Object] = []
        if text.is_file():
            used.add(text)
            objects = _yolo_objects(text, width, height, class_names)
        found.append(_Image(file_name, width, height, objects))
        progress(done, len(paths))
    if not used:
        raise DataError(
            f"none of the {len(paths):,} images in {image_folder} has a text file in {folder}; the first would be "
            f"{(folder / found[0].file_name).with_suffix('.txt')}. Give the folder with --labels."
        )
    stray = [path for path in folder.rglob("*.txt") if path not in used and path.name not in _NOT_LABELS]
    parts = [
        f"{counted(len(paths) - len(used), 'image')} without a text file" if len(paths) > len(used) else "",
        f"{len(stray):,} text files without an image were not read, such as {min(stray).name}" if stray else "",
    ]
    return _write(target, image_folder, class_names, found, "; ".join(filter(None, parts)))


def class_list(words: Sequence[str]) -> list[str]:
    """Class names as a command takes them: the words themselves, or the lines of the one file they name.

    Raises:
        DataError: the file has no names.
    """
    if len(words) == 1 and Path(words[0]).is_file():
        return _lines(Path(words[0]))
    return list(words)


def _check_folders(annotations: Path, images: Path, target: Path, overwrite: bool) -> None:
    # The folder of YOLO's labels follows from that of the images.
    for folder, what in ((images, "images"), (annotations, "annotations")):
        if not folder.is_dir():
            raise DataError(f"there is no folder of {what} {folder}; check the path.")
        # What is found in a folder that may not be listed would be nothing at all.
        if not os.access(folder, os.R_OK | os.X_OK):
            raise DataError(f"cannot read the folder of {what} {folder}: Permission denied. Change its permissions.")
    if target.exists() and not overwrite:
        raise DataError(f"{target} is there already. Choose another output, or pass --overwrite to replace it.")


def _check_names(names: Sequence[str], where: str) -> None:
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise DataError(f"{where} has class {twice[0]!r} more than once; give each name its own line.")


def _label(names: Sequence[str], name: str, path: Path) -> int:
    try:
        return names.index(name)
    except ValueError:
        hint = did_you_mean(name, names)
        raise DataError(f"{path} has class {name!r}, which is not among --classes; {hint}") from None


def _size_of(path: Path) -> tuple[int, int]:
    try:
        return image_size(_bytes(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} is no image that can be read: {error}. Correct or remove it.") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path and its permissions.") from error


def _of_image_set(folder: Path, image_set: Path) -> list[Path]:
    # Lines of a class's own list have a second word, -1, 0 or 1.
    paths = [folder / f"{line.split()[0]}.xml" for line in _lines(image_set)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"{image_set} names {missing[0].stem}, but there is no {missing[0]}"
            + (f" ({len(missing) - 1:,} more like it)" if len(missing) > 1 else "")
            + ". Check the folder of annotations."
        )
    return sorted(set(paths))


def _xml(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(_bytes(path))
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not XML: {error}. Correct it there, or export it again.") from error
    if root.tag != "annotation":
        raise DataError(f"{path} is no VOC annotation: it begins with <{root.tag}>, not <annotation>.")
    return root


def _voc_image(path: Path, root: ElementTree.Element, folder: Path) -> str:
    stated = (root.findtext("filename") or "").strip()
    # Files that were renamed keep the old name inside; the annotation's own name is what tools go by.
    candidates = [stated, *(f"{path.stem}{ending}" for ending in _IMAGE_ENDINGS)]
    for name in candidates:
        # A name that no file can have is none either.
        if name and os.path.isfile(folder / name):
            return name
    raise DataError(
        f"{path} names image {stated or path.stem}, which is not in {folder}. Fetch it, or remove the annotation."
    )


def _voc_object(path: Path, item: ElementTree.Element, names: Sequence[str], one_based: bool) -> _Object:
    name = _text(path, item, "name")
    if item.find("bndbox") is None:
        raise DataError(f"{path}: an object of class {name!r} has no <bndbox>. Correct it there.")
    x1, y1, x2, y2 = (_number(path, item, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise DataError(
            f"{path}: the box {x1:g}, {y1:g}, {x2:g}, {y2:g} of class {name!r} ends before it begins; boxes are "
            "xmin, ymin, xmax, ymax. Correct it there."
        )
    corners = (x1 - 1, y1 - 1, x2, y2) if one_based else (x1, y1, x2, y2)
    marks = {mark: 1 for mark in ("difficult", "truncated") if _number(path, item, mark, 0)}
    return _Object(_label(names, name, path), corners, marks)


def _text(path: Path, item: ElementTree.Element, name: str) -> str:
    text = (item.findtext(name) or "").strip()
    if not text:
        raise DataError(f"{path}: an object has no <{name}>. Correct it there.")
    return text


def _number(path: Path, item: ElementTree.Element, name: str, missing: float | None = None) -> float:
    text = (item.findtext(name) or "").strip()
    if not text and missing is not None:
        return missing
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: <{name}> is {text!r}, not a number. Correct it there.")
    return value


def _yolo_labels(images: Path) -> Path:
    parts = list(images.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            beside = Path(*parts[:index], "labels", *parts[index + 1 :])
            if beside.is_dir():
                return beside
    return images


def _yolo_names(path: Path) -> list[str]:
    if path.suffix not in (".yaml", ".yml"):
        names = _lines(path)
    else:
        import yaml

        try:
            document = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is no text"
            raise DataError(f"cannot read {path}: {cause}. Give the data.yaml or a list of names.") from error
        except yaml.YAMLError as error:
            raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        listed = document.get("names") if isinstance(document, dict) else None
        if isinstance(listed, dict):
            if set(listed) != set(range(len(listed))):
                raise DataError(f"{path}: the keys of 'names' are {list(listed)[:8]}; they count the classes from 0.")
            listed = [listed[index] for index in range(len(listed))]
        if not isinstance(listed, list) or not listed:
            raise DataError(f"{path} has no list 'names' of classes; a data.yaml has one.")
        names = [str(name) for name in listed]
    _check_names(names, str(path))
    return names


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}. Give a text file with a name on each line.") from error
    if not lines:
        raise DataError(f"{path} is empty; it needs a name on each line.")
    return lines


def _yolo_objects(path: Path, width: int, height: int, names: Sequence[str]) -> list[_Object]:
    objects = []
    for number, line in enumerate(_bytes(path).decode(errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) != 5:
            kind = "; that looks like a polygon, export boxes instead" if len(words) > 6 else ""
            raise DataError(
                f"{where} has {len(words)} numbers; a box is class, centre x, centre y, width, height{kind}."
            )
        try:
            label, (x, y, across, down) = int(words[0]), (float(word) for word in words[1:])
        except ValueError:
            raise DataError(f"{where} is {line.strip()!r}; a box is a class number and four numbers.") from None
        if not 0 <= label < len(names):
            raise DataError(
                f"{where} has class {label}, but there are {len(names)} names, 0 to {len(names) - 1}. "
                "Give the list of names that belongs to these files."
            )
        # A little more than 1 is what rounding to six digits leaves.
        if not all(-1e-4 <= value <= 1 + 1e-4 for value in (x, y, across, down)):
            raise DataError(
                f"{where} is {line.strip()!r}; centre and size are parts of the image, from 0 to 1. "
                "Divide pixels by the image's width and height."
            )
        corners = ((x - across / 2) * width, (y - down / 2) * height, (x + across / 2) * width, (y + down / 2) * height)
        objects.append(_Object(label, corners, {}))
    return objects


def _write(
    target: Path, image_folder: Path, names: Sequence[str], images: Iterable[_Image], left_out: str
) -> ImportReport:
    images = sorted(images, key=lambda image: image.file_name)
    annotations = [
        _coco_annotation(image_id, item) for image_id, image in enumerate(images, start=1) for item in image.objects
    ]
    document = {
        "info": {"description": "made by aweigh shards import"},
        "images": [
            {"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            for image_id, image in enumerate(images, start=1)
        ],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    try:
        with replacing(target) as part:
            part.write_text(json.dumps(document))
            # Read as building will read it, so that nothing is found wrong later.
            checked = read_coco(part, image_folder)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}. Choose another output.") from error
    return ImportReport(
        annotations=target,
        images=image_folder,
        class_names=tuple(names),
        num_images=len(images),
        num_boxes=len(annotations),
        images_without_boxes=sum(not image.objects for image in images),
        zero_size_boxes=checked.zero_size_boxes,
        outside_boxes=checked.outside_boxes,
        left_out=left_out,
    )


def _coco_annotation(image_id: int, item: _Object) -> dict[str, Any]:
    x1, y1, x2, y2 = item.corners
    width, height = x2 - x1, y2 - y1
    return {
        "image_id": image_id,
        "category_id": item.label + 1,
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [],
        **item.more,
    }
