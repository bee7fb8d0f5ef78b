"""All detections as one table, a CSV file."""

import csv
from typing import Any

import torch

from data_shards.storage.store import Store
from pipelines.evaluation.evaluate import describe_in_3d
from pipelines.prediction.outputs.output import Output, large_file
from pipelines.prediction.records import ImageRecord, Records

TABLE = "detections.csv"

_COLUMNS = ("image", "width", "height", "class", "score", "x1", "y1", "x2", "y2")
_IN_3D = (
    *("center_x", "center_y", "depth", "object_height", "object_width", "object_length", "alpha"),
    *("location_x", "location_y", "location_z", "rotation_y"),
)


class Table(Output):
    """`detections.csv`: a row for each object, with its image, class, score and box, and its joints or place in 3D."""

    def finish(self, store: Store, records: Records) -> list[str]:
        """Write the table."""
        joints = max((one.keypoints for one in self.subject.classes), key=len, default=())
        in_3d: bool | None = None
        with large_file(store, TABLE) as file:
            writer = csv.writer(file, lineterminator="\n")
            for one in records:
                if in_3d is None:
                    in_3d = one.box3d is not None
                    writer.writerow(self._header(joints, in_3d))
                writer.writerows(self._rows(one))
            if in_3d is None:
                writer.writerow(_COLUMNS)
        return [TABLE]

    def _header(self, joints: tuple[str, ...], in_3d: bool) -> list[str]:
        of_joints = [f"{name}_{what}" for name in joints for what in ("x", "y", "score")]
        return [*_COLUMNS, *of_joints, *(_IN_3D if in_3d else ())]

    def _rows(self, record: ImageRecord) -> list[list[Any]]:
        rows: list[list[Any]] = []
        names = self.subject.class_names
        for row, (label, score, box) in enumerate(
            zip(record.labels.tolist(), record.scores.tolist(), record.boxes.tolist(), strict=True)
        ):
            image = [record.name, record.width, record.height]
            rows.append([*image, names[label], f"{score:.6f}", *(f"{number:.3f}" for number in box)])
            if record.keypoints is not None:
                for x, y, sure in record.keypoints[row].tolist():
                    rows[-1] += [f"{x:.3f}", f"{y:.3f}", f"{sure:.6f}"]
        if record.box3d is not None:
            camera = None if record.camera is None else torch.from_numpy(record.camera)
            for one, values in zip(rows, describe_in_3d(torch.from_numpy(record.box3d), camera), strict=True):
                one += _in_3d(values)
        return rows


def _in_3d(values: dict[str, Any]) -> list[str]:
    """Return the columns of an object in 3D; empty ones without a camera."""
    if not values:
        return [""] * len(_IN_3D)
    known = [*values["center"], values["depth"], *values["dimensions"], values["alpha"]]
    placed = [*values["location"], values["rotation_y"]] if "location" in values else [None] * 4
    return ["" if number is None else f"{number:.4f}" for number in [*known, *placed]]
