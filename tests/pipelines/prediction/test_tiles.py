"""Tiles: every object of an image once and whole, wherever seams cut it, with a detector that finds coloured boxes."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.prediction.prediction import Prediction
from pipelines.prediction.tiles import TiledPredictor, Tiling

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
NAMES = ("red", "green", "blue")


class SeesColors:
    """Finds every rectangle of a colour in what it is shown, exactly; sure of large ones, and of nothing tiny."""

    def __init__(self, smallest: int = 1, shrinks_above: int = 10_000) -> None:
        self.smallest = smallest
        self.shrinks_above = shrinks_above
        self.shown: list[tuple[int, int]] = []

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        return [self._predict(image) for image in images]

    def _predict(self, image: NDArray[np.uint8]) -> Prediction:
        height, width = image.shape[:2]
        self.shown.append((height, width))
        found = []
        # A network shrinks what it is shown to its input: small things vanish.
        least = self.smallest * max(1.0, max(height, width) / self.shrinks_above)
        for label, color in enumerate(COLORS):
            mask = (image == color).all(axis=2).astype(np.uint8)
            _, _, areas, _ = cv2.connectedComponentsWithStats(mask)
            for x, y, w, h, _ in areas[1:].tolist():
                if min(w, h) >= least:
                    found.append(([x, y, x + w, y + h], 0.5 + min(w * h, 4000) / 10_000, label))
        joints = [[[x1, y1, 0.1 + x1 / 1e4], [x2, y2, 0.1 + x2 / 1e4]] for (x1, y1, x2, y2), _, _ in found]
        labels = np.array([label for _, _, label in found], dtype=np.int64)
        return Prediction(
            boxes=np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4),
            scores=np.array([score for _, score, _ in found], dtype=np.float32),
            labels=labels,
            class_names=[NAMES[label] for label in labels],
            keypoints=np.array(joints, dtype=np.float32).reshape(-1, 2, 3),
            size=(height, width),
        )


def painted(height: int, width: int, boxes: Sequence[tuple[int, int, int, int, int]]) -> NDArray[np.uint8]:
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    for x1, y1, x2, y2, label in boxes:
        image[y1:y2, x1:x2] = COLORS[label]
    return image


def found_in(image: NDArray[np.uint8], tiling: Tiling, detector: SeesColors | None = None) -> set[tuple[int, ...]]:
    (found,) = TiledPredictor(detector or SeesColors(), tiling, batch_size=4).predict_batch([image])
    assert found.size == image.shape[:2]
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert [NAMES[label] for label in found.labels] == found.class_names
    boxes = [(*map(int, box), int(label)) for box, label in zip(found.boxes.tolist(), found.labels, strict=True)]
    assert len(set(boxes)) == len(boxes)
    return set(boxes)


def test_tiles_cover_the_image_evenly_and_the_whole_image_comes_last() -> None:
    # (250 - 20) / (100 - 20) = 2.9, so 3 tiles; their starts are 0, 75 and 150, and they overlap by 25.
    views = Tiling(100, 20).views(90, 250)
    assert views == [(0, 0, 100, 90), (75, 0, 175, 90), (150, 0, 250, 90), (0, 0, 250, 90)]


def test_an_image_no_larger_than_a_tile_is_shown_once_as_it_is() -> None:
    detector = SeesColors()
    assert found_in(painted(100, 80, [(0, 0, 9, 9, 0)]), Tiling(100, 20), detector) == {(0, 0, 9, 9, 0)}
    assert detector.shown == [(100, 80)]


@pytest.mark.parametrize("place", range(0, 231, 1))
def test_an_object_is_found_once_and_whole_wherever_seams_are(place: int) -> None:
    boxes = [(place, 40, place + 20, 52, 0), (place, 80, place + 20, 120, 1)]
    assert found_in(painted(200, 250, boxes), Tiling(100, 24)) == set(boxes)


@given(
    st.tuples(st.integers(1, 180), st.integers(1, 180)),
    st.tuples(st.integers(0, 299), st.integers(0, 299)),
    st.sampled_from([(64, 8), (64, 30), (100, 20), (100, 1), (150, 75)]),
)
def test_objects_of_any_size_are_found_once_and_whole(
    size: tuple[int, int], place: tuple[int, int], tiling: tuple[int, int]
) -> None:
    x, y = min(place[0], 300 - size[0]), min(place[1], 300 - size[1])
    box = (x, y, x + size[0], y + size[1], 2)
    assert found_in(painted(300, 300, [box]), Tiling(*tiling)) == {box}


def test_an_object_longer_than_tiles_is_joined_from_its_pieces_if_the_whole_image_does_not_show_it() -> None:
    # 6 pixels high: in the whole image, shrunk from 400 to 100 pixels, it would be 1.5 high.
    box = (10, 60, 390, 66, 0)
    assert found_in(painted(120, 400, [box]), Tiling(100, 20), SeesColors(3, shrinks_above=100)) == {box}


def test_neighbours_of_one_class_on_a_seam_stay_apart() -> None:
    boxes = [(70, 10, 89, 60, 0), (91, 10, 110, 60, 0), (70, 62, 110, 90, 0), (95, 92, 99, 99, 0)]
    assert found_in(painted(100, 180, boxes), Tiling(100, 20)) == set(boxes)


def test_classes_do_not_suppress_one_another() -> None:
    first = painted(100, 180, [(70, 10, 110, 60, 0)])
    (found,) = TiledPredictor(_Twofold(), Tiling(100, 20), batch_size=9).predict_batch([first])
    assert sorted(found.labels.tolist()) == [0, 1]


class _Twofold(SeesColors):
    """Takes everything red for something green as well."""

    def _predict(self, image: NDArray[np.uint8]) -> Prediction:
        one = super()._predict(image)
        again = np.concatenate([np.arange(len(one.scores))] * 2)
        labels = np.concatenate((one.labels, one.labels + 1))
        return Prediction(
            boxes=one.boxes[again],
            scores=one.scores[again],
            labels=labels,
            class_names=[NAMES[label] for label in labels],
            size=one.size,
        )


def test_many_objects_are_each_found_once() -> None:
    boxes = [
        (x, y, x + 6 + (x + y) % 11, y + 6 + (x * y) % 11, (x + y) % 3)
        for x in range(2, 480, 20)
        for y in range(2, 380, 20)
    ]
    assert found_in(painted(400, 500, boxes), Tiling(96, 24)) == set(boxes)


def test_keypoints_move_with_their_tile() -> None:
    image = painted(100, 180, [(120, 10, 150, 40, 0)])
    (found,) = TiledPredictor(SeesColors(), Tiling(100, 20), batch_size=2).predict_batch([image])
    assert found.keypoints is not None
    assert found.keypoints[0, :, :2].tolist() == [[120, 10], [150, 40]]


def test_low_scores_are_left_out_before_tiles_are_merged() -> None:
    image = painted(100, 180, [(20, 10, 50, 40, 0), (20, 60, 50, 90, 1)])
    least = np.array([0.9, 0.1, 0.1], dtype=np.float32)
    (found,) = TiledPredictor(SeesColors(), Tiling(100, 20), batch_size=2, least_score=least).predict_batch([image])
    assert found.class_names == ["green"]


def test_an_image_without_objects() -> None:
    assert found_in(painted(300, 300, []), Tiling(100, 20)) == set()


@pytest.mark.parametrize(("size", "overlap", "pixels"), [(512, 0.25, 128), (512, 64, 64), (100, 1, 1)])
def test_an_overlap_below_1_is_a_fraction(size: int, overlap: float, pixels: int) -> None:
    assert Tiling.of(size, overlap).overlap == pixels


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (16, 0.2, "--tiles is 16; a tile must be at least 32"),
        (100, 0, "it must be above 0"),
        (100, 100, "smaller than the tiles"),
    ],
)
def test_a_tiling_that_cannot_work_is_refused(size: int, overlap: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiling.of(size, overlap)
