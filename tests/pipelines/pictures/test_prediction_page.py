"""The page of pictures: what is drawn, and in which place."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.pictures.drawing import class_color
from pipelines.pictures.prediction_page import Picture, _matched, count_mistakes, prediction_page

CLASSES = ["cat", "dog", "a class with quite a long name"]


def picture(height: int = 170, width: int = 200, num_objects: int = 1, num_detections: int = 1) -> Picture:
    """A grey photograph that is drawn at twice its size, with objects and detections at x, y 40 … 120, 50 … 150."""
    box = np.array([[40.0, 50.0, 120.0, 150.0]])
    return Picture(
        image=np.full((height, width, 3), 128, dtype=np.uint8),
        truth_boxes=np.repeat(box, num_objects, axis=0),
        truth_labels=np.zeros(num_objects, dtype=np.int64),
        truth_crowd=np.zeros(num_objects, dtype=np.bool_),
        predicted_boxes=np.repeat(box, num_detections, axis=0),
        predicted_scores=np.full(num_detections, 0.5),
        predicted_labels=np.ones(num_detections, dtype=np.int64),
        image_id=17,
    )


def page(folder: Path, *samples: Picture, **settings: float | str | list[Picture]) -> NDArray[np.uint8]:
    path = folder / "page.png"
    prediction_page(samples, CLASSES, path, **settings)  # type: ignore[arg-type]
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def panels(drawn: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The two photographs of a page with one `picture()`: 340 × 400, the first at 24, 64, the gap 6."""
    return drawn[64:404, 24:424], drawn[64:404, 430:830]


def test_truth_is_on_the_left_and_predictions_on_the_right(tmp_path: Path) -> None:
    truth, found = panels(page(tmp_path, picture()))
    # The right side of the box at x = 2 × 120, halfway down at y = 2 × 100.
    assert tuple(truth[200, 240]) == class_color(0)
    assert tuple(found[200, 240]) == class_color(1)
    assert (truth[200, 100:230] == 128).all()  # a box is an outline
    assert class_color(0) != class_color(1)


def test_predictions_below_the_threshold_are_not_drawn(tmp_path: Path) -> None:
    two = replace(
        picture(num_detections=2),
        predicted_boxes=np.array([[40.0, 50.0, 120.0, 150.0], [130.0, 20.0, 190.0, 160.0]]),
        predicted_scores=np.array([0.5, 0.6]),
    )
    _, at = panels(page(tmp_path, two, score_threshold=0.5))
    _, above = panels(page(tmp_path, two, score_threshold=0.51))
    # The right sides of the boxes at x = 2 × 120 and 2 × 190.
    assert tuple(at[200, 240]) == tuple(above[200, 380]) == class_color(1)
    assert (above[120:, 240] == 128).all()


def test_the_best_predictions_are_drawn_faintly_if_none_reaches_the_threshold(tmp_path: Path) -> None:
    _, clear = panels(page(tmp_path, replace(picture(), predicted_labels=np.array([0]))))
    _, faint = panels(page(tmp_path, replace(picture(), predicted_labels=np.array([0])), score_threshold=0.51))
    assert tuple(clear[200, 240]) == class_color(0)
    # 0.4 of the colour and 0.6 of the gray photograph.
    assert np.abs(faint[200, 240] - (0.4 * np.array(class_color(0)) + 0.6 * 128)).max() <= 1


def test_wrong_predictions_are_dashed_and_missed_objects_are_marked(tmp_path: Path) -> None:
    right = replace(picture(), predicted_labels=np.array([0]))
    shifted = replace(right, predicted_boxes=np.array([[40.0, 50.0, 79.0, 150.0]]))  # IoU 39 / 80
    enough = replace(right, predicted_boxes=np.array([[40.0, 50.0, 81.0, 150.0]]))  # IoU 41 / 80
    twice = replace(picture(num_detections=2), predicted_labels=np.array([0, 0]), predicted_scores=np.array([0.9, 0.8]))
    in_crowd = replace(shifted, truth_crowd=np.array([True]))
    assert [_share_drawn(page(tmp_path, each)) for each in (right, enough, in_crowd)] == [1, 1, 1]
    assert 0.3 < _share_drawn(page(tmp_path, shifted)) < 0.9
    assert 0.3 < _share_drawn(page(tmp_path, picture())) < 0.9  # another class
    assert _matched(twice, np.array([0, 1])) == ({0}, {0})
    assert _matched(in_crowd, np.array([0])) == ({0}, set())
    (found, _), (missed, _) = (panels(page(tmp_path, each)) for each in (right, shifted))
    assert (found[80:100] != missed[80:100]).any()  # the label above the true object


def _share_drawn(drawn: NDArray[np.uint8]) -> float:
    """The share of the left side of the predicted box, at x = 2 × 40, that is drawn in a class's colour."""
    side = panels(drawn)[1][120:280, 80]
    return float(max((side == class_color(label)).all(axis=1).mean() for label in (0, 1)))


def test_an_image_without_objects_has_its_place(tmp_path: Path) -> None:
    truth, found = panels(page(tmp_path, picture(num_objects=0, num_detections=0)))
    assert (truth == 128).all()
    assert (found == 128).all()


def test_a_crowd_is_hatched_and_dashed(tmp_path: Path) -> None:
    crowd = replace(picture(), truth_crowd=np.array([True]))
    truth, _ = panels(page(tmp_path, crowd))
    plain, _ = panels(page(tmp_path, picture()))
    assert (truth[200, 100:230] != 128).any()
    side, plain_side = truth[120:290, 240], plain[120:290, 240]
    assert (plain_side == class_color(0)).all()
    drawn = (side == class_color(0)).all(axis=1).mean()
    assert 0.3 < drawn < 0.9


def test_every_picture_is_on_the_page_in_order(tmp_path: Path) -> None:
    # Each pair is 800 + 6 wide: two fill a row of 1,880, so five take three rows of 340 + 30 + 12 pixels.
    shades = [replace(picture(), image=np.full((170, 200, 3), 20 * each, np.uint8)) for each in range(1, 6)]
    drawn = page(tmp_path, *shades)
    assert drawn.shape == (64 + 3 * 370 + 12 * 3 + 24, 2 * 24 + 806 + 24 + 806, 3)
    corners = [(64 + 382 * row + 339, 24 + 830 * column) for row in range(3) for column in range(2)]
    assert [int(drawn[y, x, 0]) for y, x in corners] == [20, 40, 60, 80, 100, 250]


def test_the_worst_pictures_have_a_section_of_their_own_at_the_end(tmp_path: Path) -> None:
    shades = [replace(picture(), image=np.full((170, 200, 3), 20 * each, np.uint8)) for each in range(1, 4)]
    drawn = page(tmp_path, shades[0], worst=shades[1:])
    # A row of 340 + 30 + 12 pixels, a heading of 40 + 12, and a row of two pairs.
    assert drawn.shape == (64 + 382 + 52 + 382 + 24, 2 * 24 + 806 + 24 + 806, 3)
    assert [int(drawn[y, x, 0]) for y, x in ((403, 24), (837, 24), (837, 24 + 830))] == [20, 40, 60]
    assert (drawn[446:486, 24:400] < 100).any()  # the heading's letters


def test_mistakes_are_what_the_page_marks() -> None:
    right = replace(picture(), predicted_labels=np.array([0]))
    assert count_mistakes(right) == (0, 0)
    assert count_mistakes(right, score_threshold=0.51) == (1, 0)
    assert count_mistakes(picture()) == (1, 1)  # another class
    assert count_mistakes(picture(num_objects=3, num_detections=0)) == (3, 0)
    assert count_mistakes(picture(num_objects=0, num_detections=2)) == (0, 2)
    assert count_mistakes(replace(right, truth_crowd=np.array([True]))) == (0, 0)
    assert count_mistakes(replace(picture(num_detections=2), predicted_labels=np.array([0, 0]))) == (0, 1)


@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 400, 400],  # leaves the photograph on all sides
        [10, 10, 11, 11],  # one pixel
        [199, 169, 200, 170],  # in the last corner
        [500, 500, 600, 600],  # outside altogether
        [60, 60, 60, 60],  # no size
    ],
)
def test_odd_boxes_are_drawn_within_the_photograph(tmp_path: Path, box: list[float]) -> None:
    odd = replace(
        picture(),
        truth_boxes=np.array([box]),
        truth_labels=np.array([2]),
        predicted_boxes=np.array([box]),
        predicted_labels=np.array([2]),
    )
    drawn = page(tmp_path, odd)
    truth, found = panels(drawn)
    color = np.array(class_color(2))
    assert (truth == color).all(axis=2).any()
    assert (found == color).all(axis=2).any()
    between = drawn[64:404, 424:430]
    assert (between == between[0, 0]).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3000, 10), (10, 3000), (480, 640)])
def test_photographs_of_any_shape_fit(tmp_path: Path, height: int, width: int) -> None:
    sample = picture(height, width, num_objects=3, num_detections=40)
    drawn = page(tmp_path, sample, sample, sample)
    assert drawn.shape[1] <= 1880 + 2 * 24


def test_header_and_file_name_are_written(tmp_path: Path) -> None:
    plain = page(tmp_path, picture())
    headed = page(tmp_path, picture(), header="run cells   step 1,200   AP 0.31")
    named = page(tmp_path, replace(picture(), file_name="cells/0001.jpg"))
    assert (plain[:40] != headed[:40]).any()
    assert (plain[64:] == headed[64:]).all()
    assert (plain[404:] != named[404:]).any()


def test_a_page_without_pictures_is_a_page(tmp_path: Path) -> None:
    assert page(tmp_path).shape[1] == 720 + 2 * 24
