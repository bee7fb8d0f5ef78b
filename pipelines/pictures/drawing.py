"""A page of validation pictures, truth beside prediction, so that a run is looked at and not only measured."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# In pixels of the page. Photographs have one height, so that rows fill up whatever their shapes.
_PHOTOGRAPH_HEIGHT = 340
_WIDEST_PHOTOGRAPH = 640
_ROW_WIDTH = 1880
_GAP = 24
_PANEL_GAP = 6
_MARGIN = 24
_NARROWEST = 720  # room for the header
_HEADER = 64
_CAPTION = 30
_BACKGROUND: Color = (250, 250, 248)
_INK: Color = (32, 32, 36)
_PALE_INK: Color = (120, 120, 126)
_LABEL_SIZE = 11
_CAPTION_SIZE = 13
_HEADER_SIZE = 20


@dataclass
class Picture:
    """One validation image with what is there and what was predicted; boxes are in its own pixels."""

    image: NDArray[np.uint8]
    """(height, width, 3) RGB."""
    truth_boxes: NDArray[np.floating]
    """(objects, 4) x1, y1, x2, y2."""
    truth_labels: NDArray[np.integer]
    """(objects,) indices of classes."""
    truth_crowd: NDArray[Any]
    """(objects,) true where the box holds a crowd, which is drawn hatched."""
    predicted_boxes: NDArray[np.floating]
    """(detections, 4) x1, y1, x2, y2."""
    predicted_scores: NDArray[np.floating]
    """(detections,)"""
    predicted_labels: NDArray[np.integer]
    """(detections,)"""
    image_id: int
    file_name: str = ""


def prediction_page(
    samples: Sequence[Picture],
    class_names: Sequence[str],
    path: Path,
    score_threshold: float = 0.3,
    *,
    header: str = "",
) -> None:
    """Write a PNG with two panels for each picture: what is there, and what was predicted.

    Args:
        samples: the pictures, in the order of the page; an image without objects has its place too.
        class_names: names by label. A class has the same colour on every page.
        path: where the PNG or JPEG is written.
        score_threshold: predictions of a lower score are left out.
        header: first line of the page, such as the run, the step and its AP.

    Raises:
        OSError: `path` cannot be written.
    """
    pairs = [_pair(sample, class_names, score_threshold) for sample in samples]
    rows: list[list[NDArray[np.uint8]]] = []
    room = 0
    for pair in pairs:
        if pair.shape[1] > room:
            rows.append([])
            room = _ROW_WIDTH
        rows[-1].append(pair)
        room -= pair.shape[1] + _GAP
    heights = [max(pair.shape[0] for pair in row) for row in rows]
    widths = [sum(pair.shape[1] + _GAP for pair in row) - _GAP for row in rows]
    height = _HEADER + sum(heights) + _GAP // 2 * len(rows) + _MARGIN
    page = np.full((height, 2 * _MARGIN + max([_NARROWEST, *widths]), 3), _BACKGROUND, dtype=np.uint8)
    write_text(page, header or "Predictions", (_MARGIN, 34), _INK, _HEADER_SIZE, weight=600)
    note = f"left: what is there, crowds hatched     right: predictions of score {score_threshold:g} and more"
    write_text(page, note, (_MARGIN, 54), _PALE_INK, _CAPTION_SIZE)
    top = _HEADER
    for row, row_height in zip(rows, heights, strict=True):
        left = _MARGIN
        for pair in row:
            page[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
            left += pair.shape[1] + _GAP
        top += row_height + _GAP // 2
    save_page(page, path)


def _pair(sample: Picture, class_names: Sequence[str], score_threshold: float) -> NDArray[np.uint8]:
    """Draw truth and prediction side by side over a caption; (height, 2 panels, 3) RGB."""
    shown = sample.predicted_scores >= score_threshold
    order = np.argsort(sample.predicted_scores[shown], kind="stable")  # the surest on top
    boxes, labels = sample.predicted_boxes[shown][order], sample.predicted_labels[shown][order]
    scores = sample.predicted_scores[shown][order]
    truth = Panel(sample.image)
    for box, label, crowd in zip(sample.truth_boxes, sample.truth_labels, sample.truth_crowd, strict=True):
        truth.add(box, class_names[int(label)], class_color(int(label)), hatched=bool(crowd))
    found = Panel(sample.image)
    for box, label, score in zip(boxes, labels, scores, strict=True):
        found.add(box, f"{class_names[int(label)]} {score:.2f}", class_color(int(label)))
    left, right = truth.drawn(), found.drawn()
    start = left.shape[1] + _PANEL_GAP
    pair = np.full((left.shape[0] + _CAPTION, start + right.shape[1], 3), _BACKGROUND, dtype=np.uint8)
    pair[: left.shape[0], : left.shape[1]] = left
    pair[: right.shape[0], start:] = right
    baseline = left.shape[0] + 19
    name = sample.file_name or f"image {sample.image_id}"
    write_text(pair, f"{name}   {_count(len(sample.truth_labels), 'object')}", (0, baseline), _INK, _CAPTION_SIZE)
    write_text(pair, _count(len(boxes), "prediction"), (start, baseline), _INK, _CAPTION_SIZE)
    return pair


@dataclass
class Panel:
    """One photograph at its size on the page; boxes first, their labels over all of them."""

    photograph: NDArray[np.uint8]
    labels: list[tuple[NDArray[np.float64], str, Color]] = field(default_factory=list)

    def __post_init__(self) -> None:
        import cv2

        height, width = self.photograph.shape[:2]
        self.scale = min(_PHOTOGRAPH_HEIGHT / height, _WIDEST_PHOTOGRAPH / width)
        size = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        self.canvas: NDArray[np.uint8] = np.ascontiguousarray(
            cv2.resize(self.photograph, size, interpolation=method), dtype=np.uint8
        )

    def add(self, box: NDArray[np.floating], text: str, color: Color, hatched: bool = False) -> None:
        """Draw a box, `(4,)` in pixels of the photograph; its label comes with `drawn`."""
        height, width = self.canvas.shape[:2]
        corners = np.asarray(box, dtype=np.float64) * self.scale
        # A box that leaves the photograph is drawn along its border: its line must be seen.
        corners = np.clip(corners, 1, np.array([width, height, width, height]) - 2)
        self._outline(corners, color, hatched)
        self.labels.append((corners, text, color))

    def add_joints(self, joints: NDArray[np.floating], skeleton: Sequence[tuple[int, int]], color: Color) -> None:
        """Draw joints, `(joints, 3)` as x, y and visibility, and the lines of a skeleton (counted from 1)."""
        import cv2

        places = [(round(float(x * self.scale)), round(float(y * self.scale))) for x, y in joints[:, :2]]
        labelled = joints[:, 2] > 0
        for one, other in skeleton:
            if labelled[one - 1] and labelled[other - 1]:
                cv2.line(self.canvas, places[one - 1], places[other - 1], color, 1, cv2.LINE_AA)
        for (x, y), visibility in zip(places, joints[:, 2], strict=True):
            if visibility > 0:
                cv2.circle(self.canvas, (x, y), 3, (0, 0, 0), -1, cv2.LINE_AA)
                # A hidden joint is labelled, too: a ring in place of a dot.
                cv2.circle(self.canvas, (x, y), 2, color if visibility > 1 else (255, 255, 255), -1, cv2.LINE_AA)

    def drawn(self) -> NDArray[np.uint8]:
        """The canvas, (height, width, 3) RGB, with the labels of all boxes."""
        taken: list[Rectangle] = []
        for corners, text, color in reversed(self.labels):  # the surest choose their place first
            taken.append(self._label(corners, text, color, taken))
        return self.canvas

    def _outline(self, corners: NDArray[np.float64], color: Color, hatched: bool) -> None:
        import cv2

        x1, y1, x2, y2 = (round(value) for value in corners)
        if hatched:
            self._hatch(x1, y1, x2, y2, color)
        # A dark line under the coloured one keeps it visible on any photograph.
        thick = 2 if min(x2 - x1, y2 - y1) > 24 else 1
        for ink, thickness in (((0, 0, 0), thick + 1), (color, thick)):
            if not hatched:
                cv2.rectangle(self.canvas, (x1, y1), (x2, y2), ink, thickness, cv2.LINE_AA)
                continue
            for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
                for dash_start, dash_end in _dashes(start, end):
                    cv2.line(self.canvas, dash_start, dash_end, ink, thickness, cv2.LINE_AA)

    def _hatch(self, x1: int, y1: int, x2: int, y2: int, color: Color) -> None:
        import cv2

        inside = self.canvas[y1 : y2 + 1, x1 : x2 + 1]
        lines = inside.copy()
        height, width = inside.shape[:2]
        for start in range(-height, width, 9):
            cv2.line(lines, (start, height), (start + height, 0), color, 1, cv2.LINE_AA)
        inside[:] = cv2.addWeighted(inside, 0.45, lines, 0.55, 0)

    def _label(self, corners: NDArray[np.float64], text: str, color: Color, taken: list[Rectangle]) -> Rectangle:
        """Put the label where it covers the least of standing labels and of small boxes; gives its rectangle."""
        import cv2

        width = _text_width(text, _LABEL_SIZE, 500) + 7
        height = _LABEL_SIZE + 4
        x1, y1, x2, y2 = (round(value) for value in corners)
        places = [
            (x1 - 1, y1 - height),
            (x1 - 1, y2),
            (x2 - width, y1 - height),
            (x1 - 1, y1),
            (x2, y1),
            (x1 - width, y1),
        ]
        rectangles = [self._within(left, top, width, height) for left, top in places]
        small = [other for other, _, _ in self.labels if min(other[2:] - other[:2]) < 3 * height]

        def covered(rectangle: Rectangle) -> float:
            return 2 * sum(_overlap(rectangle, other) for other in taken) + sum(
                _overlap(rectangle, tuple(other)) for other in small
            )

        best = min(rectangles, key=covered)
        left, top, right, bottom = best
        cv2.rectangle(self.canvas, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)
        write_text(self.canvas, text, (left + 3, bottom - 4), _ink_on(color), _LABEL_SIZE, weight=500)
        return best

    def _within(self, left: int, top: int, width: int, height: int) -> Rectangle:
        left = max(0, min(left, self.canvas.shape[1] - width))
        top = max(0, min(top, self.canvas.shape[0] - height))
        return left, top, left + width, top + height


def class_color(label: int) -> Color:
    """Give a class its colour: golden-angle hues in three shades, far apart for neighbouring labels."""
    hue = (0.02 + label * 0.61803398875) % 1.0
    lightness, saturation = ((0.50, 0.85), (0.62, 0.80), (0.40, 0.75))[label // 5 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _ink_on(color: Color) -> Color:
    red, green, blue = color
    return (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else (16, 16, 16)


def _dashes(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    direction = np.subtract(end, start) / length
    pieces = []
    for first in range(0, length, 10):
        a = np.add(start, first * direction).round().astype(int)
        b = np.add(start, min(first + 5, length) * direction).round().astype(int)
        pieces.append(((int(a[0]), int(a[1])), (int(b[0]), int(b[1]))))
    return pieces


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def write_text(
    canvas: NDArray[np.uint8], text: str, baseline: tuple[int, int], color: Color, size: int, weight: int = 400
) -> None:
    """Write a line of text; `baseline` is where it begins, x and y in pixels of the canvas."""
    import cv2

    cv2.putText(canvas, text, baseline, color, cv2.FontFace("sans"), size, weight)


def _text_width(text: str, size: int, weight: int) -> int:
    import cv2

    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), size, weight)
    return int(width)


def save_page(page: NDArray[np.uint8], path: Path) -> None:
    """Write an RGB page as PNG, or as JPEG if the path says so; raises OSError where the path cannot be written."""
    import cv2

    suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
    encoded, content = cv2.imencode(suffix, cv2.cvtColor(page, cv2.COLOR_RGB2BGR))
    assert encoded
    path.write_bytes(content.tobytes())
