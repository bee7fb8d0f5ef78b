"""Drawing: photographs with boxes and their labels, captions, rows of panels, a page, and its file.

Every picture is `(height, width, 3)` uint8 RGB, until `save_image` writes it.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.files import PICTURE_SUFFIXES

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the canvas."""

# In pixels of the page. Photographs have one height, so that rows fill up whatever their shapes.
_PHOTOGRAPH_HEIGHT = 340
_PHOTOGRAPH_WIDTH_LIMIT = 640
_MARGIN = 24
_HEADER = 64
_CAPTION = 30
_HEADING = 40
_BACKGROUND: Color = (250, 250, 248)
_INK: Color = (32, 32, 36)
_PALE_INK: Color = (120, 120, 126)
# Share of a faint box's own colour.
_FAINT = 0.4
_LABEL_SIZE = 11
# Geometric mean of height and width, in pixels, for which lines and text are as large as on a page.
_FULL_SIZE_PER_UNIT = 700
_CAPTION_SIZE = 13
_HEADING_SIZE = 16
_HEADER_SIZE = 20


@dataclass
class Panel:
    """One photograph, at its size on the page or at its own. Labels are drawn last, over all boxes.

    Args:
        photograph: (height, width, 3) RGB.
        full_size: keep the photograph's own size; lines and text grow with it.
    """

    photograph: NDArray[np.uint8]
    labels: list[tuple[NDArray[np.float64], str, Color]] = field(default_factory=list)
    full_size: bool = False

    def __post_init__(self) -> None:
        height, width = self.photograph.shape[:2]
        self.unit = max(1.0, (height * width) ** 0.5 / _FULL_SIZE_PER_UNIT) if self.full_size else 1.0
        self.label_size = round(_LABEL_SIZE * self.unit)
        if self.full_size:
            self.scale = 1.0
            self.canvas: NDArray[np.uint8] = self.photograph.copy()
            return
        self.scale = min(_PHOTOGRAPH_HEIGHT / height, _PHOTOGRAPH_WIDTH_LIMIT / width)
        size = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        self.canvas = np.ascontiguousarray(cv2.resize(self.photograph, size, interpolation=method), dtype=np.uint8)

    def add(
        self,
        box: NDArray[np.floating],
        text: str,
        color: Color,
        *,
        hatched: bool = False,
        dashed: bool = False,
        faint: bool = False,
    ) -> None:
        """Draw a box, `(4,)` x1, y1, x2, y2 in pixels of the photograph; `drawn` adds its label.

        Args:
            box: may leave the photograph.
            text: its label.
            color: of outline and label.
            hatched: draw the outline dashed and hatch the inside, as for a crowd.
            dashed: draw the outline dashed.
            faint: let the photograph show through outline and label.
        """
        height, width = self.canvas.shape[:2]
        corners = np.asarray(box, dtype=np.float64) * self.scale
        # A box that leaves the photograph is drawn along the border, where its line can be seen.
        corners = np.clip(corners, 1, np.array([width, height, width, height]) - 2)
        before = self.canvas.copy() if faint else None
        if hatched:
            self._hatch(corners, color)
        self._outline(corners, color, hatched or dashed)
        if before is not None:
            cv2.addWeighted(before, 1 - _FAINT, self.canvas, _FAINT, 0, dst=self.canvas)
            color = _mixed(color, _BACKGROUND, _FAINT)
        self.labels.append((corners, text, color))

    def add_label(self, box: NDArray[np.floating], text: str, color: Color) -> None:
        """Add the label of a box that is drawn otherwise."""
        height, width = self.canvas.shape[:2]
        corners = np.asarray(box, dtype=np.float64) * self.scale
        self.labels.append((np.clip(corners, 1, np.array([width, height, width, height]) - 2), text, color))

    def add_joints(self, joints: NDArray[np.floating], skeleton: Sequence[tuple[int, int]], color: Color) -> None:
        """Draw joints and the lines between them.

        Args:
            joints: (joints, 3) x, y in pixels of the photograph, and COCO's visibility: 0 not labelled, 1 hidden, 2
                visible.
            skeleton: pairs of joints, counted from 1 as in COCO.
            color: of dots and lines.
        """
        places = [(round(float(x * self.scale)), round(float(y * self.scale))) for x, y in joints[:, :2]]
        labelled = joints[:, 2] > 0
        for one, other in skeleton:
            if labelled[one - 1] and labelled[other - 1]:
                cv2.line(self.canvas, places[one - 1], places[other - 1], color, self._pixels(1), cv2.LINE_AA)
        for (x, y), visibility in zip(places, joints[:, 2], strict=True):
            if visibility > 0:
                cv2.circle(self.canvas, (x, y), self._pixels(3), (0, 0, 0), -1, cv2.LINE_AA)
                # A hidden joint is labelled, too: it is a white dot.
                inside = color if visibility > 1 else (255, 255, 255)
                cv2.circle(self.canvas, (x, y), self._pixels(2), inside, -1, cv2.LINE_AA)

    def add_edges(self, corners: NDArray[np.floating], edges: Sequence[tuple[int, int]], color: Color) -> None:
        """Draw the edges of a body, such as a box in 3D.

        Args:
            corners: (corners, 2) x, y in pixels of the photograph; edges with a corner that is not finite are left out.
            edges: pairs of corners, counted from 0.
            color: of the lines.
        """
        # OpenCV's coordinates are 32-bit; a corner beside the camera may be projected to anywhere.
        places = np.clip(np.asarray(corners, dtype=np.float64) * self.scale, -30_000, 30_000)
        for ink, thickness in (((0, 0, 0), self._pixels(2) + 1), (color, self._pixels(2))):
            for one, other in edges:
                if np.isfinite(places[[one, other]]).all():
                    (x1, y1), (x2, y2) = places[[one, other]].round().astype(int).tolist()
                    cv2.line(self.canvas, (x1, y1), (x2, y2), ink, thickness, cv2.LINE_AA)

    def drawn(self) -> NDArray[np.uint8]:
        """Return the canvas, (height, width, 3) RGB, with the labels of all boxes."""
        taken: list[Rectangle] = []
        for corners, text, color in reversed(self.labels):  # the last added, the highest score, chooses its place first
            taken.append(self._label(corners, text, color, taken))
        return self.canvas

    def _pixels(self, length: float) -> int:
        return max(1, round(length * self.unit))

    def _outline(self, corners: NDArray[np.float64], color: Color, dashed: bool) -> None:
        x1, y1, x2, y2 = (round(value) for value in corners)
        # A dark line under the coloured one keeps it visible on any photograph.
        thick = self._pixels(2) if min(x2 - x1, y2 - y1) > 24 * self.unit else self._pixels(1)
        for ink, thickness in (((0, 0, 0), thick + 1), (color, thick)):
            if not dashed:
                cv2.rectangle(self.canvas, (x1, y1), (x2, y2), ink, thickness, cv2.LINE_AA)
                continue
            for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
                for dash_start, dash_end in _dashes(start, end):
                    cv2.line(self.canvas, dash_start, dash_end, ink, thickness, cv2.LINE_AA)

    def _hatch(self, corners: NDArray[np.float64], color: Color) -> None:
        x1, y1, x2, y2 = (round(value) for value in corners)
        inside = self.canvas[y1 : y2 + 1, x1 : x2 + 1]
        lines = inside.copy()
        height, width = inside.shape[:2]
        for start in range(-height, width, 9):
            cv2.line(lines, (start, height), (start + height, 0), color, 1, cv2.LINE_AA)
        inside[:] = cv2.addWeighted(inside, 0.45, lines, 0.55, 0)

    def _label(self, corners: NDArray[np.float64], text: str, color: Color, taken: list[Rectangle]) -> Rectangle:
        """Draw a label where it covers the least of earlier labels and of small boxes; return its rectangle."""
        width = _text_width(text, self.label_size, 500) + self._pixels(7)
        height = self.label_size + self._pixels(4)
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
        # A label hides a small box altogether, while a large one is still seen around it.
        small = [other for other, _, _ in self.labels if min(other[2:] - other[:2]) < 3 * height]

        def covered(rectangle: Rectangle) -> float:
            return 2 * sum(_overlap(rectangle, other) for other in taken) + sum(
                _overlap(rectangle, tuple(other)) for other in small
            )

        best = min(rectangles, key=covered)
        left, top, right, bottom = best
        cv2.rectangle(self.canvas, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)
        baseline = (left + self._pixels(3), bottom - self._pixels(4))
        _write_text(self.canvas, text, baseline, _ink_on(color), self.label_size, weight=500)
        return best

    def _within(self, left: int, top: int, width: int, height: int) -> Rectangle:
        left = max(0, min(left, self.canvas.shape[1] - width))
        top = max(0, min(top, self.canvas.shape[0] - height))
        return left, top, left + width, top + height


def class_color(label: int) -> Color:
    """Return the colour of a class: golden-angle hues in three shades, far apart for neighbouring labels."""
    hue = (0.02 + label * 0.61803398875) % 1.0
    lightness, saturation = ((0.50, 0.85), (0.62, 0.80), (0.40, 0.75))[label // 5 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _mixed(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(share * one + (1 - share) * two) for one, two in zip(color, other, strict=True))
    return red, green, blue


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


def page_of_rows(
    rows: Sequence[NDArray[np.uint8]], header: str, note: str, *, gap: int, minimum_width: int
) -> NDArray[np.uint8]:
    """Put rows below one another, under a header.

    Args:
        rows: pictures of any width, from top to bottom.
        header: first line of the page.
        note: second line, smaller and paler.
        gap: pixels below each row.
        minimum_width: of the page without its margins, in pixels.
    """
    height = _HEADER + sum(row.shape[0] + gap for row in rows) + _MARGIN
    page = _blank(height, 2 * _MARGIN + max([minimum_width, *(row.shape[1] for row in rows)]))
    _write_text(page, header, (_MARGIN, 34), _INK, _HEADER_SIZE, weight=600)
    _write_text(page, note, (_MARGIN, 54), _PALE_INK, _CAPTION_SIZE)
    top = _HEADER
    for row in rows:
        page[top : top + row.shape[0], _MARGIN : _MARGIN + row.shape[1]] = row
        top += row.shape[0] + gap
    return page


def heading(text: str) -> NDArray[np.uint8]:
    """Return a row of a page that holds one line of text."""
    row = _blank(_HEADING, _text_width(text, _HEADING_SIZE, 600) + 8)
    _write_text(row, text, (0, _HEADING - 10), _INK, _HEADING_SIZE, weight=600)
    return row


def row_of_panels(
    panels: Sequence[tuple[NDArray[np.uint8], str]], *, gap: int, widths: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Put panels beside one another, each over its caption.

    Args:
        panels: pictures with their captions; a caption that is too long for its column loses its middle.
        gap: pixels between columns.
        widths: of the columns, in pixels; None makes each as wide as its panel.
    """
    widths = widths or [panel.shape[1] for panel, _ in panels]
    tallest = max(panel.shape[0] for panel, _ in panels)
    columns = []
    for (panel, caption), width in zip(panels, widths, strict=True):
        column = _blank(tallest + _CAPTION, width)
        column[: panel.shape[0], : panel.shape[1]] = panel
        _write_text(column, shortened(caption, width - 8), (0, tallest + 19), _INK, _CAPTION_SIZE)
        columns.append(column)
    return side_by_side(columns, gap)


def side_by_side(pictures: Sequence[NDArray[np.uint8]], gap: int) -> NDArray[np.uint8]:
    """Put pictures beside one another, aligned at the top, `gap` pixels apart."""
    width = sum(picture.shape[1] + gap for picture in pictures) - gap
    row = _blank(max(picture.shape[0] for picture in pictures), width)
    left = 0
    for picture in pictures:
        row[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return row


def shortened(caption: str, width: int) -> str:
    """Replace the middle of a caption by "…" until it is at most `width` pixels wide.

    The end stays: it holds the counts, while a long file name is recognised by its beginning.
    """
    if _text_width(caption, _CAPTION_SIZE, 400) <= width:
        return caption
    for kept in range(len(caption) - 1, 0, -1):
        end = kept // 2
        text = f"{caption[: kept - end]}…{caption[len(caption) - end :]}"
        if _text_width(text, _CAPTION_SIZE, 400) <= width:
            return text
    return ""


def check_picture_path(path: Path) -> None:
    """Refuse a file that `save_image` would not write; call it before long work.

    Raises:
        ConfigError: the suffix is not that of a PNG or JPEG.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ConfigError(f"{path} cannot be written as a picture; let its name end in .png, .jpg or .jpeg.")


def save_image(page: NDArray[np.uint8], path: Path) -> None:
    """Write an RGB picture as a PNG or JPEG, by the suffix of `path`.

    Raises:
        ConfigError: the suffix is not that of a PNG or JPEG.
        OSError: `path` cannot be written.
    """
    check_picture_path(path)
    encoded, content = cv2.imencode(path.suffix.lower(), cv2.cvtColor(page, cv2.COLOR_RGB2BGR))
    assert encoded
    path.write_bytes(content.tobytes())


def _blank(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)


def _write_text(
    canvas: NDArray[np.uint8], text: str, baseline: tuple[int, int], color: Color, size: int, weight: int = 400
) -> None:
    """Write a line of text; `baseline` is its left end, x and y in pixels of the canvas."""
    cv2.putText(canvas, text, baseline, color, cv2.FontFace("sans"), size, weight)


def _text_width(text: str, size: int, weight: int) -> int:
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), size, weight)
    return int(width)
