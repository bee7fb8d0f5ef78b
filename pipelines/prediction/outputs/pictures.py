"""Every image with what was found in it, as a JPEG of the image's size."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.reading.scratch import Image
from data_shards.storage.store import Store
from pipelines.evaluation.evaluate import describe_in_3d
from pipelines.pictures.predictions import corners_in_3d, draw_predictions
from pipelines.prediction.outputs.output import Output, Subject
from pipelines.prediction.records import ImageRecord, Records

_QUALITY = 92
SURE_JOINT = 0.1
"""Score of a joint from which it counts as visible; CenterNet's authors use the same for its peaks."""


class Pictures(Output):
    """`pictures/NAME.jpg` of every image."""

    needs_pixels = True

    def write_image(self, store: Store, record: ImageRecord, image: Image | None) -> None:
        """Draw one image."""
        assert image is not None
        store.write_bytes(f"pictures/{record.stem}.jpg", as_jpeg(drawn(record, image, self.subject)))

    def finish(self, store: Store, records: Records) -> list[str]:
        """Return the folder."""
        return ["pictures"] if len(records) else []


def drawn(record: ImageRecord, image: Image, subject: Subject) -> NDArray[np.uint8]:
    """Return an image with the objects of its record."""
    keypoints: NDArray[np.floating] | None = None
    if record.keypoints is not None:
        keypoints = np.concatenate((record.keypoints[..., :2], visibility(record.keypoints)[..., None]), axis=-1)
    corners: list[NDArray[np.floating] | None] = []
    notes: list[str] = []
    if record.box3d is not None:
        camera = None if record.camera is None else torch.from_numpy(record.camera)
        for one in describe_in_3d(torch.from_numpy(record.box3d), camera):
            notes.append(f"{one['depth']:.1f} m" if one else "")
            inside = "location" in one and record.camera is not None
            corners.append(
                corners_in_3d(one["dimensions"], one["location"], one["rotation_y"], record.camera)  # type: ignore[arg-type]
                if inside
                else None
            )
    return draw_predictions(
        image,
        record.boxes,
        record.labels,
        record.scores,
        subject.class_names,
        keypoints=keypoints,
        skeletons=[one.skeleton for one in subject.classes],
        corners=corners,
        notes=notes,
    )


def visibility(keypoints: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return COCO's visibility of joints from their scores: 2 if it was seen, 1 if its place was inferred."""
    return np.where(keypoints[..., 2] >= SURE_JOINT, 2, 1)


def as_jpeg(image: NDArray[np.uint8], quality: int = _QUALITY) -> bytes:
    """Encode an RGB image."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    encoded, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert encoded
    return bytes(content)
