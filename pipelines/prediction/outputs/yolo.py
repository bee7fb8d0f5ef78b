"""YOLO text: for each image a file with a line for each object, in fractions of the image."""

import json

from data_shards.reading.scratch import Image
from data_shards.storage.store import Store
from pipelines.prediction.outputs.output import Output
from pipelines.prediction.outputs.pictures import visibility
from pipelines.prediction.records import ImageRecord, Records


class Yolo(Output):
    """`yolo/labels/NAME.txt` of every image, empty if nothing was found, and `yolo/data.yaml` with the classes.

    The lines are those that trainings read: class, centre, width and height, and the joints. Scores would be taken for
    coordinates; the table has them.

    Source:
        Ultralytics' documentation of the YOLO detection and pose formats.
    """

    def write_image(self, store: Store, record: ImageRecord, image: Image | None) -> None:
        """Write the lines of one image."""
        store.write_bytes(f"yolo/labels/{record.stem}.txt", _text(record).encode())

    def finish(self, store: Store, records: Records) -> list[str]:
        """Write the classes."""
        joints = max((len(one.keypoints) for one in self.subject.classes), default=0)
        lines = [
            "# Copy or link the images into images/, beside labels/, with the same names.",
            "path: .",
            "train: images",
            "val: images",
            *([f"kpt_shape: [{joints}, 3]"] if joints else []),
            "names:",
            # JSON's texts are YAML's, whatever a class is called.
            *(f"  {label}: {json.dumps(name)}" for label, name in enumerate(self.subject.class_names)),
        ]
        store.write_bytes("yolo/data.yaml", ("\n".join(lines) + "\n").encode())
        return ["yolo/labels", "yolo/data.yaml"]


def _text(record: ImageRecord) -> str:
    lines = []
    boxes = record.clipped_boxes()
    for row, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        if x2 <= x1 or y2 <= y1:
            # The whole box is outside the image.
            continue
        numbers = [
            (x1 + x2) / 2 / record.width,
            (y1 + y2) / 2 / record.height,
            (x2 - x1) / record.width,
            (y2 - y1) / record.height,
        ]
        words = [str(record.labels[row]), *(f"{number:.6f}" for number in numbers)]
        if record.keypoints is not None:
            seen = visibility(record.keypoints[row])
            for (x, y, _), visible in zip(record.keypoints[row].tolist(), seen.tolist(), strict=True):
                inside = 0 <= x <= record.width and 0 <= y <= record.height
                place = (x / record.width, y / record.height) if inside else (0.0, 0.0)
                words += [f"{place[0]:.6f}", f"{place[1]:.6f}", str(visible if inside else 0)]
        lines.append(" ".join(words) + "\n")
    return "".join(lines)
