"""Photographs with predictions: what is drawn, where, and nothing beside it."""

import numpy as np

from pipelines.pictures.drawing import class_color
from pipelines.pictures.predictions import corners_in_3d, draw_predictions

CAMERA = np.array([[100.0, 0, 50, 0], [0, 100, 40, 0], [0, 0, 1, 0]])


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 around the pixels that differ."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_a_box_is_drawn_in_place_and_the_image_keeps_its_size() -> None:
    image = np.full((200, 300, 3), 90, dtype=np.uint8)
    drawn = draw_predictions(image, np.array([[40.0, 60, 140, 160]]), np.array([1]), np.array([0.5]), ["a", "b"])
    assert drawn.shape == image.shape
    assert image.max() == 90, "the photograph itself is left as it was"
    x1, y1, x2, y2 = changed(image, drawn)
    assert max(abs(x1 - 40), abs(x2 - 140), abs(y2 - 160)) <= 3, "lines are 3 pixels wide, and smooth"
    assert 40 <= y1 <= 58, "the label is above the box"
    assert tuple(drawn[100, 40]) == class_color(1)
    assert (drawn[100, 90] == 90).all(), "the inside can be seen"


def test_lines_and_text_grow_with_the_image() -> None:
    def thickness(side: int) -> int:
        image = np.zeros((side, side, 3), dtype=np.uint8)
        box = np.array([[0.2, 0.2, 0.8, 0.8]]) * side
        drawn = draw_predictions(image, box, np.array([0]), np.array([0.5]), ["a"])
        return int((drawn[side // 2, : side // 2] == class_color(0)).all(axis=1).sum())

    assert 2 <= thickness(300) <= 3
    assert 7 <= thickness(2800) <= 10


def test_an_image_without_objects_stays_as_it_is() -> None:
    image = np.full((20, 30, 3), 90, dtype=np.uint8)
    assert (draw_predictions(image, np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros(0), ["a"]) == image).all()


def test_joints_and_their_skeleton() -> None:
    image = np.full((200, 200, 3), 90, dtype=np.uint8)
    joints = np.array([[[60.0, 60, 2], [140, 60, 1], [100, 150, 0]]])
    drawn = draw_predictions(
        image,
        np.array([[50.0, 50, 150, 160]]),
        np.array([0]),
        np.array([0.5]),
        ["a"],
        keypoints=joints,
        skeletons=[[(1, 2), (2, 3)]],
    )
    assert tuple(drawn[60, 60]) == class_color(0)
    assert tuple(drawn[60, 140]) == (255, 255, 255), "a joint that was not seen is white"
    between = drawn[60, 100].astype(int) - class_color(0)
    assert np.abs(between).max() < 40, "the line between them, whose sides are smooth"
    assert (drawn[150, 100] == 90).all(), "a joint that is not labelled has neither dot nor line"


def test_corners_of_a_box_that_faces_the_camera() -> None:
    # 2 m high, 4 m wide across the view, 2 m long along it, 10 m ahead: turned by -90 degrees, it drives away.
    corners = corners_in_3d([2.0, 4.0, 2.0], [0.0, 1.0, 10.0], -np.pi / 2, CAMERA)
    # The front is at 11 m: 50 ± 100 * 2 / 11, and 40 + 100 * 1 / 11 for the underside, 40 - 100 / 11 for the top.
    front = corners[[0, 1, 4, 5]]
    assert sorted(front[:, 0].round(2).tolist()) == [31.82, 31.82, 68.18, 68.18]
    assert sorted(front[:, 1].round(2).tolist()) == [30.91, 30.91, 49.09, 49.09]
    back = corners[[2, 3, 6, 7]]
    assert sorted(back[:, 0].round(2).tolist()) == [27.78, 27.78, 72.22, 72.22]  # at 9 m


def test_a_box_in_3d_replaces_the_flat_one_and_corners_behind_the_camera_are_left_out() -> None:
    image = np.full((80, 100, 3), 90, dtype=np.uint8)
    near = corners_in_3d([2.0, 2.0, 4.0], [0.0, 1.0, 1.0], -np.pi / 2, CAMERA)
    assert np.isnan(near).any()
    assert np.isfinite(near).any()
    whole = corners_in_3d([2.0, 4.0, 2.0], [0.0, 1.0, 10.0], -np.pi / 2, CAMERA)
    boxes = np.array([[0.0, 0, 100, 80], [27.0, 30, 73, 51]])
    for body in (near, whole):
        drawn = draw_predictions(
            image, boxes[1:], np.array([0]), np.array([0.5]), ["a"], corners=[body], notes=["10.0 m"]
        )
        assert (drawn != image).any()
    assert tuple(drawn[40, 28]) == class_color(0), "the left edge of the back"
