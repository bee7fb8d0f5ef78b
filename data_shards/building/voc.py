"""Pascal VOC XML files to a COCO file.

Corners are read as continuous edges, x = xmin and width = xmax - xmin: the tools that write VOC files today mean them
so. The files of the 2007 to 2012 challenges count pixels from 1 and include the last one; `one_based` reads those:
x = xmin - 1, width = xmax - xmin + 1.

Source:
    Everingham et al., The PASCAL VOC Challenge 2012 Development Kit, section 4.4.
"""

import codecs
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.building.coco_writing import ImportedImage, ImportedObject, ImportReport, write_coco
from data_shards.building.file_names import ImageFiles, leaves_folder
from data_shards.building.source_files import (
    IMAGE_ENDINGS,
    Progress,
    check_class_names,
    check_folders,
    is_image,
    read_bytes,
    read_image_size,
    read_lines,
    skipped_pictures,
)
from data_shards.building.text_files import marked_encoding, visible
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.suggestions import did_you_mean


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
        annotations: the folder of the XML files, one an image.
        images: the folder of the images.
        output: the JSON file to write.
        classes: names in the order of their ids. Empty takes the names in the files, by alphabet; list them where
            several splits must agree.
        image_set: a text file with the names of the images to import, such as `ImageSets/Main/train.txt`; None imports
            all.
        difficult: "keep" imports objects marked difficult, with the COCO field `difficult` 1; "drop" leaves them out.
        one_based: corners count pixels from 1 and include the last one, as in the challenges' own files.
        overwrite: replace the output if it exists.
        progress: called with the number of images done and the number of all images.

    Raises:
        DataError: names the first file that is not a VOC annotation, whose image is missing or has a different size,
            or that has an unknown class; or the output exists.
    """
    folder, image_folder, target = Path(annotations), Path(images), Path(output)
    if difficult not in ("keep", "drop"):
        raise DataError(f"difficult is {difficult!r}; set it to 'keep' or 'drop'.")
    check_folders(folder, image_folder, target, overwrite)
    files = _read_annotations(folder, image_set)
    names = _class_names(folder, files, classes)
    found: list[ImportedImage] = []
    annotation_of: dict[str, Path] = {}
    image_files = ImageFiles(image_folder)
    for done, file in enumerate(files, start=1):
        image = _read_image(file, image_files, names, one_based, drop_difficult=difficult == "drop")
        if (other := annotation_of.setdefault(image.file_name, file.path)) is not file.path:
            raise DataError(
                f"{other} and {file.path} both annotate {image_folder / image.file_name}. Remove one of them."
            )
        found.append(image)
        progress(done, len(files))
    dropped = sum(len(file.objects) for file in files) - sum(len(image.objects) for image in found)
    left_out = f"{counted(dropped, 'difficult object')} left out" if dropped else ""
    return write_coco(target, image_folder, names, found, left_out, _skipped(image_folder, annotation_of, image_set))


def class_names_in(annotations: str | Path, image_set: str | Path | None = None) -> list[str]:
    """Return the names of all classes in a folder of VOC files, by alphabet; none if there is no object.

    Raises:
        DataError: as `import_voc`.
    """
    files = _read_annotations(Path(annotations), image_set)
    return sorted({_text(file.path, item, "name") for file in files for item in file.objects})


def _skipped(folder: Path, imported: Collection[str], image_set: str | Path | None) -> dict[str, str]:
    """Return the images below a folder that were not imported, each with the reason."""
    skipped = dict.fromkeys(skipped_pictures(folder), "neither JPEG nor PNG")
    if image_set is None:  # otherwise the set leaves out the others on purpose
        known = {os.path.normpath(name) for name in imported}
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_image(path))
        skipped |= {path: "no annotation names them" for path in paths if path not in known}
    return skipped


@dataclass(frozen=True)
class _VocFile:
    """One parsed XML file."""

    path: Path
    root: ElementTree.Element

    @property
    def objects(self) -> list[ElementTree.Element]:
        return list(self.root.iter("object"))


def _read_annotations(folder: Path, image_set: str | Path | None) -> list[_VocFile]:
    paths = sorted(folder.glob("*.xml")) if image_set is None else _of_image_set(folder, Path(image_set))
    if not paths:
        raise DataError(f"there are no .xml files in {folder}. Give VOC's folder Annotations.")
    return [_VocFile(path, _parse(path)) for path in paths]


def _of_image_set(folder: Path, image_set: Path) -> list[Path]:
    paths = [listed_file(folder, line) for line in read_lines(image_set)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"{image_set} names {missing[0].stem}, but there is no {missing[0]}"
            + (f" ({len(missing) - 1:,} more like it)" if len(missing) > 1 else "")
            + ". Check the folder of annotations."
        )
    return sorted(set(paths))


def listed_file(folder: Path, line: str) -> Path:
    """Return the annotation file that a line of an image set means."""
    # A name may contain spaces. Lists of one class, such as dog_train.txt, have a second word on each line: -1, 0 or 1.
    whole = folder / f"{line}.xml"
    return whole if whole.is_file() else folder / f"{line.split()[0]}.xml"


def _parse(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(_decoded(path, read_bytes(path)))
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not valid XML: {error}. Correct it there, or export it again.") from error
    if root.tag != "annotation":
        raise DataError(
            f"{path} is not a VOC annotation: it begins with <{root.tag}>, not <annotation>. Remove it from the folder."
        )
    return root


# Python's parser reads none of these; the first names are subsets that tools declare for the second ones.
_WIDER_ENCODINGS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}


def _decoded(path: Path, data: bytes) -> str | bytes:
    """Decode XML by its mark or by the encoding that it declares; bytes without either are the parser's to decode."""
    encoding = marked_encoding(data)
    if encoding is None:
        declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']", data[:200])
        if declared is None:
            return data
        encoding = declared[1].decode("ascii")
    try:
        known = codecs.lookup(encoding).name
        return data.decode(_WIDER_ENCODINGS.get(known, known))
    except (LookupError, ValueError) as error:
        raise DataError(
            f"{path} declares the encoding {encoding}, but is not text in it: {error}. Save it as UTF-8."
        ) from error


def _class_names(folder: Path, files: Sequence[_VocFile], classes: Sequence[str]) -> list[str]:
    names = list(classes) or sorted({_text(file.path, item, "name") for file in files for item in file.objects})
    if not names:
        raise DataError(f"no file in {folder} has an object. List the classes with --classes.")
    check_class_names(names, "--classes")
    return names


def _read_image(
    file: _VocFile, images: ImageFiles, names: Sequence[str], one_based: bool, *, drop_difficult: bool
) -> ImportedImage:
    folder = images.folder
    file_name = _find_image(file, images)
    width, height = read_image_size(folder / file_name)
    stated = (_number(file.path, file.root, "size/width", 0), _number(file.path, file.root, "size/height", 0))
    # Many tools leave the size out or write zeros; then the image's own size counts.
    if all(stated) and stated != (width, height):
        raise DataError(
            f"{file.path} says its image is {stated[0]:g} x {stated[1]:g} pixels, but {folder / file_name} is "
            f"{width} x {height}. Use the images that were annotated."
        )
    used = [item for item in file.objects if not (drop_difficult and _number(file.path, item, "difficult", 0))]
    return ImportedImage(file_name, width, height, [_read_object(file.path, item, names, one_based) for item in used])


def _find_image(file: _VocFile, images: ImageFiles) -> str:
    stated = (file.root.findtext("filename") or "").strip()
    # Renamed files keep their old name inside, so the annotation's own name is tried as well.
    for name in [stated, *(f"{file.path.stem}{ending}" for ending in IMAGE_ENDINGS)]:
        # os.path.isfile returns False for a name that no file can have; Path.is_file would raise.
        if name and not leaves_folder(name) and os.path.isfile(images.folder / name):
            return name
    if stated and (meant := images.meant_by(stated)) is not None:
        return meant
    raise DataError(
        f"{file.path} names image {stated or file.path.stem}, which is not in {images.folder}"
        f"{images.hint(stated or file.path.stem) or '.'} Add it, or remove the annotation."
    )


def _read_object(path: Path, item: ElementTree.Element, names: Sequence[str], one_based: bool) -> ImportedObject:
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
    return ImportedObject(_label(names, name, path), corners, marks)


def _label(names: Sequence[str], name: str, path: Path) -> int:
    try:
        return names.index(name)
    except ValueError:
        hint = did_you_mean(name, names)
        raise DataError(f"{path} has class {name!r}, which is not among --classes; {hint}") from None


def _text(path: Path, item: ElementTree.Element, name: str) -> str:
    text = visible(item.findtext(name) or "")
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
