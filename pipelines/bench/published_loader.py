"""The authors' way of reading, written for the benchmark: one image at a time, float32, targets drawn on the CPU.

It does what the authors' data set does for every image, step by step, inside a `DataLoader` as theirs is.

Source:
    CenterNet, src/lib/datasets/sample/ctdet.py, src/lib/utils/image.py (colour, lighting, Gaussians).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch.utils.data
from numpy.typing import NDArray

Array = NDArray[Any]

_MEAN = np.array([0.40789654, 0.44719302, 0.47026115], np.float32)
_STD = np.array([0.28863828, 0.27408164, 0.27809835], np.float32)
_LIGHTING_VALUES = np.array([0.2141788, 0.01817699, 0.00341571], np.float32)
_LIGHTING_VECTORS = np.array(
    [
        [-0.58752847, -0.69563484, 0.41340352],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.56089297, 0.71832671, 0.41158938],
    ],
    np.float32,
)
_STRIDE, _MAX_OBJECTS = 4, 128


@dataclass(frozen=True)
class Example:
    """One image and its annotations."""

    path: Path
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


class PublishedDataset(torch.utils.data.Dataset[dict[str, Array]]):
    """Items as the authors' training receives them: float image, heatmap, sizes, offsets, indexes and their mask."""

    def __init__(self, examples: Sequence[Example], classes: int, side: int) -> None:
        self.examples, self.classes, self.side = examples, classes, side

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Array]:
        example = self.examples[index]
        random = np.random.default_rng(index)
        image = cv2.imread(str(example.path))
        assert image is not None
        height, width = image.shape[:2]
        scale = max(height, width) * random.choice(np.arange(0.6, 1.4, 0.1))
        centre = np.array([_centre(random, width), _centre(random, height)])
        flipped = random.random() < 0.5
        if flipped:
            image = image[:, ::-1, :]
            centre[0] = width - centre[0] - 1
        matrix = _matrix(centre, scale, self.side)
        pixels = cv2.warpAffine(image, matrix, (self.side, self.side), flags=cv2.INTER_LINEAR)
        pixels = pixels.astype(np.float32) / 255.0
        _jitter(pixels, random)
        pixels = (pixels - _MEAN) / _STD
        return {"input": pixels.transpose(2, 0, 1), **self._targets(example, centre, scale, flipped, width)}

    def _targets(self, example: Example, centre: Array, scale: float, flipped: bool, width: int) -> dict[str, Array]:
        cells = self.side // _STRIDE
        matrix = _matrix(centre, scale, cells)
        heatmap = np.zeros((self.classes, cells, cells), np.float32)
        sizes, offsets = np.zeros((_MAX_OBJECTS, 2), np.float32), np.zeros((_MAX_OBJECTS, 2), np.float32)
        indexes, mask = np.zeros(_MAX_OBJECTS, np.int64), np.zeros(_MAX_OBJECTS, np.uint8)
        for number, (box, label) in enumerate(zip(example.boxes[:_MAX_OBJECTS], example.labels, strict=False)):
            box = box.copy()
            if flipped:
                box[[0, 2]] = width - box[[2, 0]] - 1
            box[:2] = matrix @ np.array([box[0], box[1], 1])
            box[2:] = matrix @ np.array([box[2], box[3], 1])
            box = np.clip(box, 0, cells - 1)
            across, down = box[2] - box[0], box[3] - box[1]
            if across <= 0 or down <= 0:
                continue
            middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], np.float32)
            cell = middle.astype(np.int32)
            _draw_gaussian(heatmap[label], cell, max(0, int(_radius(np.ceil(down), np.ceil(across)))))
            sizes[number] = across, down
            offsets[number] = middle - cell
            indexes[number] = cell[1] * cells + cell[0]
            mask[number] = 1
        return {"hm": heatmap, "wh": sizes, "reg": offsets, "ind": indexes, "reg_mask": mask}


def _centre(random: np.random.Generator, side: int) -> int:
    border = 128
    while side - border <= border:
        border //= 2
    return int(random.integers(border, side - border))


def _matrix(centre: Array, scale: float, side: int) -> Array:
    steps = np.array([[0.0, 0.0], [0.0, -0.5], [-0.5, -0.5]])
    source, target = centre + scale * steps, np.array([side / 2, side / 2]) + side * steps
    return cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))


def _jitter(pixels: Array, random: np.random.Generator) -> None:
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    mean = gray.mean()
    for kind in random.permutation(3):
        factor = 1.0 + random.uniform(-0.4, 0.4)
        pixels *= factor
        if kind == 1:
            pixels += mean * (1 - factor)
        elif kind == 2:
            pixels += gray[:, :, None] * (1 - factor)
    pixels += _LIGHTING_VECTORS @ (_LIGHTING_VALUES * random.normal(0, 0.1, 3).astype(np.float32))


def _radius(height: float, width: float) -> float:
    overlap = 0.7
    solutions = [
        (1.0, height + width, width * height * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * (height + width), (1 - overlap) * width * height),
        (4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height),
    ]
    return min((b + np.sqrt(max(0.0, b * b - 4 * a * c))) / 2 for a, b, c in solutions)


def _draw_gaussian(heatmap: Array, cell: Array, radius: int) -> None:
    diameter = 2 * radius + 1
    down, across = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    gaussian = np.exp(-(across * across + down * down) / (2 * (diameter / 6) ** 2))
    x, y = int(cell[0]), int(cell[1])
    height, width = heatmap.shape
    left, right = min(x, radius), min(width - x, radius + 1)
    top, bottom = min(y, radius), min(height - y, radius + 1)
    seen = heatmap[y - top : y + bottom, x - left : x + right]
    np.maximum(seen, gaussian[radius - top : radius + bottom, radius - left : radius + right], out=seen)
