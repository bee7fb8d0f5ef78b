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
        _, height, width = heat.shape
        wide = np.pad(heat, ((0, 0), (1, 1), (1, 1)))
        around = np.max([wide[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
        peaks = [(heat[label, y, x], label, y, x) for label, y, x in np.argwhere(heat == around).tolist()]
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


def soft_nms(rows: list[list[float]], merging: bool, stale: bool, own_corners: bool = False) -> list[list[float]]:
    """Soft-NMS over single boxes, class by class; rows are x1, y1, x2, y2, score, label, both corner scores."""
    merged = []
    for label in range(3):
        table = [[*row[:5], *row[6:]] for row in rows if row[5] == label]
        end, place = len(table), 0
        columns = 7 if own_corners else 5
        while place < end:
            best = max(range(place, end), key=lambda row: (table[row][4], -row))
            first, second = list(table[place]), list(table[best])
            table[place][:columns], table[best][:columns] = second[:columns], first[:columns]
            me = list(table[place])
            sums = [me[0] * me[5], me[1] * me[5], me[2] * me[6], me[3] * me[6], me[5], me[6]]
            at = place + 1
            while at < end:
                it = table[at]
                wide = min(me[2], it[2]) - max(me[0], it[0]) + 1
                high = min(me[3], it[3]) - max(me[1], it[1]) + 1
                if wide > 0 and high > 0:
                    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (me, it)]
                    overlap = wide * high / (sum(areas) - wide * high)
                    decay = math.exp(-overlap * overlap / 0.5)
                    weight = (1 - decay) ** 10
                    for axis in range(4):
                        sums[axis] += it[axis] * it[5 + axis // 2] * weight
                    sums[4], sums[5] = sums[4] + it[5] * weight, sums[5] + it[6] * weight
                    it[4] *= decay
                    if it[4] < 0.001:
                        it[:columns] = table[end - 1][:columns]
                        end -= 1
                        continue
                at += 1
            if merging:
                table[place][:4] = [sums[axis] / sums[4 + axis // 2] for axis in range(4)]
            place += 1
        merged += [[*row[:5], label] for row in (table if stale else table[:end])]
    return sorted(merged, key=lambda row: -row[4])
