"""Pre-labels: what was found, as annotations for a person to correct, the least certain images first.

Two forms of the same: a COCO file, which most annotation tools import, and CVAT's own XML. Boxes are cut off at the
sides of the image, because tools refuse others.
"""

import csv
import json
import math
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import quoteattr

from data_shards.storage.store import Store
from pipelines.prediction.outputs.coco import coco_image
from pipelines.prediction.outputs.output import Output, large_file, write_list
from pipelines.prediction.outputs.pictures import visibility
from pipelines.prediction.records import ImageRecord, Records

BOXES, KEYPOINTS = "prelabels/instances_default.json", "prelabels/person_keypoints_default.json"
"""Names by which CVAT's importer knows the two kinds of COCO files."""
CVAT, CVAT_LABELS, ORDER = "prelabels/cvat.xml", "prelabels/cvat_labels.json", "prelabels/order.csv"

_RING = 40
_RINGS_MIDDLE = 50


class PreLabels(Output):
    """A COCO file, `cvat.xml`, the labels of a task in CVAT, and `order.csv` with the doubt of each image.

    Source:
        CVAT: cvat/apps/dataset_manager/formats/cvat.py, `load_anno`, and coco.py; datumaro's `coco` importer; CVAT's
        manual, "XML annotation format" and "Raw".
    """

    def finish(self, store: Store, records: Records) -> list[str]:
        """Write all four files."""
        has_joints = any(one.keypoints for one in self.subject.classes)
        coco = KEYPOINTS if has_joints else BOXES
        with large_file(store, coco) as file:
            file.write(
                '{"info": ' + json.dumps({"description": f"pre-labels of {self.subject.origin}"}) + ',\n"images": '
            )
            write_list(file, (json.dumps(coco_image(one)) for one in records.least_certain_first()))
            file.write(',\n"annotations": ')
            write_list(file, self._annotations(records))
            file.write(f',\n"categories": {json.dumps(self.subject.coco_categories())}}}\n')
        with large_file(store, CVAT) as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
            for one in records.least_certain_first():
                file.writelines(self._cvat_image(one))
            file.write("</annotations>\n")
        store.write_bytes(CVAT_LABELS, (json.dumps(self._cvat_labels(), indent=1) + "\n").encode())
        with large_file(store, ORDER) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("image", "doubt", "objects"))
            writer.writerows((one.name, f"{one.doubt:.4f}", len(one.scores)) for one in records.least_certain_first())
        return [coco, CVAT, CVAT_LABELS, ORDER]

    def _annotations(self, records: Records) -> Iterator[str]:
        number = 0
        for one in records.least_certain_first():
            for row, (x1, y1, x2, y2) in _visible_boxes(one):
                number += 1
                width, height = x2 - x1, y2 - y1
                annotation: dict[str, Any] = {
                    "id": number,
                    "image_id": one.image_id,
                    "category_id": self.subject.classes[one.labels[row]].id,
                    "bbox": [round(value, 2) for value in (x1, y1, width, height)],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "segmentation": [],
                    "score": round(float(one.scores[row]), 4),
                }
                if one.keypoints is not None:
                    joints = _joints(one, row)
                    annotation["keypoints"] = [value for joint in joints for value in joint]
                    annotation["num_keypoints"] = sum(seen > 0 for _, _, seen in joints)
                yield json.dumps(annotation)

    def _cvat_image(self, record: ImageRecord) -> Iterator[str]:
        size = f'width="{record.width}" height="{record.height}"'
        yield f'<image id="{record.number}" name={quoteattr(record.name)} {size}>\n'
        for row, (x1, y1, x2, y2) in _visible_boxes(record):
            label = quoteattr(self.subject.class_names[record.labels[row]])
            score = f'<attribute name="score">{record.scores[row]:.4f}</attribute>'
            names = self.subject.classes[record.labels[row]].keypoints
            if record.keypoints is None or not names:
                place = f'xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" ybr="{y2:.2f}"'
                yield f'<box label={label} source="auto" occluded="0" {place} z_order="0">{score}</box>\n'
                continue
            yield f'<skeleton label={label} source="auto" z_order="0">{score}\n'
            for name, (x, y, seen) in zip(names, _joints(record, row), strict=False):
                state = f'occluded="{int(seen == 1)}" outside="{int(seen == 0)}"'
                yield f'<points label={quoteattr(name)} source="auto" {state} points="{x:.2f},{y:.2f}"></points>\n'
            yield "</skeleton>\n"
        yield "</image>\n"

    def _cvat_labels(self) -> list[dict[str, Any]]:
        """Return the labels of a task in CVAT, for its raw constructor."""
        score = {"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        labels: list[dict[str, Any]] = []
        for one in self.subject.classes:
            if not one.keypoints:
                labels.append({"name": one.name, "type": "rectangle", "attributes": [score]})
                continue
            joints = [{"name": name, "type": "points", "attributes": []} for name in one.keypoints]
            drawing = _skeleton(one.keypoints, one.skeleton)
            labels.append(
                {"name": one.name, "type": "skeleton", "attributes": [score], "sublabels": joints, "svg": drawing}
            )
        return labels


def _visible_boxes(record: ImageRecord) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """Yield the row and the clipped box of each object that is not wholly outside the image."""
    for row, (x1, y1, x2, y2) in enumerate(record.clipped_boxes().tolist()):
        if x1 < x2 and y1 < y2:
            yield row, (x1, y1, x2, y2)


def _joints(record: ImageRecord, row: int) -> list[tuple[float, float, int]]:
    """Return x, y and visibility of the joints of an object; those outside the image are not labelled."""
    assert record.keypoints is not None
    places = record.keypoints[row]
    found = zip(places.tolist(), visibility(places).tolist(), strict=True)
    return [
        (round(x, 2), round(y, 2), seen) if 0 <= x <= record.width and 0 <= y <= record.height else (0.0, 0.0, 0)
        for (x, y, _), seen in found
    ]


def _skeleton(names: tuple[str, ...], edges: tuple[tuple[int, int], ...]) -> str:
    """Draw joints on a ring and the lines between them, in the dialect of SVG by which CVAT defines skeletons."""
    angles = [2 * math.pi * number / len(names) for number in range(len(names))]
    places = [(_RINGS_MIDDLE + _RING * math.sin(angle), _RINGS_MIDDLE - _RING * math.cos(angle)) for angle in angles]
    lines = []
    for one, other in edges:
        (x1, y1), (x2, y2) = places[one - 1], places[other - 1]
        lines.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="black" data-type="edge" '
            f'data-node-from="{one}" stroke-width="0.5" data-node-to="{other}"></line>'
        )
    for number, (name, (x, y)) in enumerate(zip(names, places, strict=True), start=1):
        lines.append(
            f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x:.1f}" cy="{y:.1f}" stroke-width="0.1" '
            f'data-type="element node" data-element-id="{number}" data-node-id="{number}" '
            f"data-label-name={quoteattr(name)}></circle>"
        )
    return "".join(lines)
