"""The `webdataset` library on the same shards, used as its documentation shows, with the same decoding as ours."""

import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch.utils.data
import webdataset

from data_shards.loading.random_draws import draw
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.geometry import crop_resize
from data_shards.settings import AugmentationSettings

_MAX_OBJECTS = 128
_SHUFFLED = 200


def webdataset_loader(
    urls: Sequence[str], side: int, batch_size: int
) -> "torch.utils.data.DataLoader[tuple[torch.Tensor, ...]]":
    """Return a loader of one pass over the shards, with two processes that stay for the next pass."""
    dataset = (
        webdataset.WebDataset(list(urls), shardshuffle=False, empty_check=False)
        .shuffle(_SHUFFLED)
        .map(_Item(side))
        .batched(batch_size, partial=False)
    )
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)


class _Item:
    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, ...]:
        cv2.setNumThreads(1)
        image = decode_jpeg(sample["jpg"])
        about = json.loads(sample["json"])
        size = (self.side, self.side)
        draws = draw(
            AugmentationSettings(), 0, 0, np.array([about["image_id"]]), np.array([image.shape[:2]], dtype=np.int64)
        )
        matrix = draws.matrix(0, size)
        planes = np.empty((3, *size), np.uint8)
        cv2.split(crop_resize(image, matrix, size), list(planes))
        boxes, labels = np.zeros((_MAX_OBJECTS, 4), np.float32), np.full(_MAX_OBJECTS, -1, np.int64)
        for number, annotation in enumerate(about["annotations"][:_MAX_OBJECTS]):
            x, y, width, height = annotation["bbox"]
            boxes[number, :2] = matrix @ (x, y, 1)
            boxes[number, 2:] = matrix @ (x + width, y + height, 1)
            labels[number] = annotation["category_id"]
        return planes, boxes, labels, about["image_id"], matrix.astype(np.float32)
