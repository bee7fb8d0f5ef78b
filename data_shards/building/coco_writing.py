"""Writing annotations of other formats as a COCO instances file, the one format that shards are built from.

Images get ids from 1 in the order of their file names, and classes from 1 in the order of their list, so importing the
same data twice writes the same bytes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.building.coco import CocoDataset, read_coco
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.storage.atomic import replacing

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2 in the image frame, continuous edges."""


@dataclass(frozen=True)
class ImportedObject:
    """One box and its class."""

    label: int
    """Index into the list of class names."""
    corners: Corners
    extra_fields: dict[str, Any]
    """Further fields of the COCO annotation, such as `difficult`."""


@dataclass(frozen=True)
class ImportedImage:
    """One image and its objects."""

    file_name: str
    """Relative to the folder of the images."""
    width: int
    height: int
    objects: list[ImportedObject]


@dataclass(frozen=True)
class ImportReport:
    """Counts of an import, and the files that the next step needs."""

    annotations: Path
    """The COCO file that was written."""
    images: Path
    """The folder that its file names are relative to."""
    class_names: tuple[str, ...]
    num_images: int
    num_boxes: int
    images_without_boxes: int
    zero_size_boxes: int
    """Written as they are in the source; `aweigh shards build` drops and counts them."""
    outside_boxes: int
    left_out: str
    """Readable summary of the files and objects that were not imported; empty if there are none."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Images that were not imported, each with the reason."""

    def describe(self) -> str:
        """Summarise the import in one line, followed by a line for each reason to skip images, with their names."""
        shown = ", ".join(self.class_names[:8]) + (", …" if len(self.class_names) > 8 else "")
        bad = self.zero_size_boxes + self.outside_boxes
        summary = (
            f"{self.annotations}: {counted(self.num_images, 'image')}, {counted(self.num_boxes, 'box')} of "
            f"{counted(len(self.class_names), 'class')} ({shown}); "
            f"{counted(self.images_without_boxes, 'image')} without boxes"
            + (f"; {counted(bad, 'box')} without area or outside the image, dropped when building" if bad else "")
            + (f"; {self.left_out}" if self.left_out else "")
        )
        names_of: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            names_of.setdefault(reason, []).append(name)
        return "\n".join(
            [
                summary,
                *(
                    f"skipped {counted(len(names), 'image')}, {reason}: {', '.join(names)}"
                    for reason, names in names_of.items()
                ),
            ]
        )


def write_coco(
    target: Path,
    image_folder: Path,
    class_names: Sequence[str],
    images: Iterable[ImportedImage],
    left_out: str,
    skipped: Mapping[str, str],
) -> ImportReport:
    """Write a COCO file, check it as `build_shards` will, and only then put it in place.

    Args:
        target: the JSON file to write.
        image_folder: the folder that file names are relative to.
        class_names: in the order of their ids.
        images: in any order.
        left_out: readable summary of what was not imported.
        skipped: images that were not imported, each with the reason.

    Raises:
        DataError: the file cannot be written, or `read_coco` refuses it.
    """
    images = sorted(images, key=lambda image: image.file_name)
    document = _document(class_names, images)
    checked = _write_checked(target, document, image_folder)
    return ImportReport(
        annotations=target,
        images=image_folder,
        class_names=tuple(class_names),
        num_images=len(images),
        num_boxes=len(document["annotations"]),
        images_without_boxes=sum(not image.objects for image in images),
        zero_size_boxes=checked.zero_size_boxes,
        outside_boxes=checked.outside_boxes,
        left_out=left_out,
        skipped=dict(skipped),
    )


def _document(class_names: Sequence[str], images: Sequence[ImportedImage]) -> dict[str, Any]:
    annotations = [
        _annotation(image_id, item) for image_id, image in enumerate(images, start=1) for item in image.objects
    ]
    return {
        "info": {"description": "made by aweigh shards import"},
        "images": [
            {"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            for image_id, image in enumerate(images, start=1)
        ],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
    }


def _annotation(image_id: int, item: ImportedObject) -> dict[str, Any]:
    x1, y1, x2, y2 = item.corners
    width, height = x2 - x1, y2 - y1
    return {
        "image_id": image_id,
        "category_id": item.label + 1,
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [],
        **item.extra_fields,
    }


def _write_checked(target: Path, document: dict[str, Any], image_folder: Path) -> CocoDataset:
    try:
        with replacing(target) as part:
            part.write_text(json.dumps(document))
            # Read before the rename: a file that building would refuse never gets its final name.
            return read_coco(part, image_folder)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}. Choose another --output.") from error
