"""The published procedures for one image, one object or pair after the other, in plain Python and numpy."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor


def radius(height: int, width: int, overlap: float, formula: str) -> int:
    total, area = height + width, height * width
    if formula == "original":
        roots = [
            (total + math.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2,
            (2 * total + math.sqrt(4 * total**2 - 16 * (1 - overlap) * area)) / 2,
            (-2 * overlap * total + math.sqrt((2 * overlap * total) ** 2 + 16 * overlap * (1 - overlap) * area)) / 2,
        ]
    else:
        roots = [
            (total - math.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2,
            (2 * total - math.sqrt(4 * total**2 - 16 * (1 - overlap) * area)) / 8,
            (-2 * overlap * total + math.sqrt((2 * overlap * total) ** 2 + 16 * overlap * (1 - overlap) * area))
            / (8 * overlap),
        ]
    return max(0, int(min(roots)))


def draw(plane: np.ndarray, column: int, row: int, reach: int, deviations: int = 6) -> None:
    sigma = (2 * reach + 1) / deviations
    for y in range(max(0, row - reach), min(plane.shape[0], row + reach + 1)):
        for x in range(max(0, column - reach), min(plane.shape[1], column + reach + 1)):
            value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma * sigma))
            plane[y, x] = max(plane[y, x], np.float32(value))


def clipped(corners: Sequence[float], input_size: tuple[int, int]) -> list[float] | None:
    """The box in the input, None if nothing is left."""
    height, width = input_size
    x1, x2 = (min(max(x, 0.0), width - 1.0) for x in (corners[0], corners[2]))
    y1, y2 = (min(max(y, 0.0), height - 1.0) for y in (corners[1], corners[3]))
    return [x1, y1, x2, y2] if x2 - x1 > 0 and y2 - y1 > 0 else None


def pairs(
    maps: dict[str, Tensor], *, corners: int, distance: float, limit: int, border: bool = False
) -> list[list[float]]:
    """x1, y1, x2, y2, score, label, both corner scores of one image, in cells, best first; `limit` before rejection."""
    found = {}
    for name in ("top_left", "bottom_right"):
        heat = 1 / (1 + np.exp(-maps[f"{name}_heatmap"][0].numpy().astype(np.float64)))
        classes, height, width = heat.shape
        peaks = []
        for label in range(classes):
            for y in range(height):
                for x in range(width):
                    around = heat[label, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                    if heat[label, y, x] == around.max():
                        peaks.append((heat[label, y, x], label, y, x))
        found[name] = sorted(peaks, key=lambda peak: -peak[0])[:corners]
    rows = []
    for first, label, y1, x1 in found["top_left"]:
        for second, other, y2, x2 in found["bottom_right"]:
            dx1, dy1 = maps["top_left_offset"][0, :, y1, x1].tolist()
            dx2, dy2 = maps["bottom_right_offset"][0, :, y2, x2].tolist()
            apart = abs(float(maps["top_left_tag"][0, 0, y1, x1]) - float(maps["bottom_right_tag"][0, 0, y2, x2]))
            if label != other or apart > distance or x2 + dx2 < x1 + dx1 or y2 + dy2 < y1 + dy1:
                continue
            if border and (0 in (x1, y1) or x2 == width - 1 or y2 == height - 1):
                continue
            rows.append([x1 + dx1, y1 + dy1, x2 + dx2, y2 + dy2, (first + second) / 2, label, first, second])
    return sorted(rows, key=lambda row: -row[4])[:limit]
