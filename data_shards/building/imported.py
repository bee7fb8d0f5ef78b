"""Annotations of other formats as a COCO document in memory."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_shards.building.coco_writing import ImportReport
from data_shards.counting import counted

_MOST_NAMES = 3


def as_document(run: Callable[[Path], ImportReport]) -> tuple[dict[str, Any], list[str]]:
    """Run an import into a temporary file and return what it wrote, and notes about what it left out.

    Args:
        run: receives the JSON file to write.

    Raises:
        DataError: of the import.
    """
    with tempfile.TemporaryDirectory(prefix="aweigh-") as folder:
        target = Path(folder) / "imported.json"
        report = run(target)
        document = json.loads(target.read_text())
    notes = [report.left_out] if report.left_out else []
    names_of: dict[str, list[str]] = {}
    for name, reason in report.skipped.items():
        names_of.setdefault(reason, []).append(name)
    for reason, names in names_of.items():
        shown = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
        notes.append(f"{counted(len(names), 'image')} in {report.images} skipped, {reason}: {shown}")
    return document, notes


def joined(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put documents with the same categories into one, with new ids. A single one stays as it is."""
    if len(documents) == 1:
        return documents[0]
    whole: dict[str, Any] = {"images": [], "annotations": [], "categories": documents[0]["categories"]}
    for document in documents:
        first_image, first = len(whole["images"]), len(whole["annotations"])
        new_id = {image["id"]: first_image + row for row, image in enumerate(document["images"], start=1)}
        whole["images"] += [{**image, "id": new_id[image["id"]]} for image in document["images"]]
        whole["annotations"] += [
            {**item, "id": first + row, "image_id": new_id[item["image_id"]]}
            for row, item in enumerate(document["annotations"], start=1)
        ]
    return whole
