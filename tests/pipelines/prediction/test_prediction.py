"""What a prediction offers: its length, its objects, some of its rows, and COCO's results."""

import numpy as np
import pytest

from pipelines.prediction.prediction import Prediction


def prediction(count: int = 3) -> Prediction:
    names = ["cat", "dog", "cat", "cat", "cat", "cat", "cat", "cat"][:count]
    return Prediction(
        boxes=np.array([[1, 2, 11, 22]] * count, dtype=np.float32).reshape(-1, 4),
        scores=np.linspace(0.75, 0.5, count, dtype=np.float32),
        labels=np.array([0 if name == "cat" else 1 for name in names], dtype=np.int64),
        class_names=names,
        size=(480, 640),
        keypoints=np.full((count, 2, 3), 4.0, dtype=np.float32),
    )


def test_a_prediction_is_a_sequence_of_objects() -> None:
    found = prediction()
    assert len(found) == 3
    first, second, third = found
    assert (first.class_name, first.score, first.box, first.label) == ("cat", 0.75, (1.0, 2.0, 11.0, 22.0), 0)
    assert (second.class_name, third.score) == ("dog", 0.5)
    assert first.keypoints is not None
    assert first.keypoints.shape == (2, 3)
    assert first.box3d is None
    assert not prediction(0)


def test_it_is_shown_as_people_count() -> None:
    assert repr(prediction()) == "Prediction(3 objects in 640 x 480 pixels: cat 0.75 0.50, dog 0.62)"
    assert repr(prediction(1)) == "Prediction(1 object in 640 x 480 pixels: cat 0.75)"
    assert repr(prediction(0)) == "Prediction(0 objects in 640 x 480 pixels)"
    assert "cat 0.75 0.68 0.64 0.61 0.57 …, dog 0.71" in repr(prediction(8))


@pytest.mark.parametrize("chosen", [[0, 2], np.array([True, False, True]), np.array([0, 2])])
def test_rows_keep_everything_of_an_object(chosen: object) -> None:
    some = prediction().rows(chosen)  # type: ignore[arg-type]
    assert some.class_names == ["cat", "cat"]
    assert some.scores.tolist() == [0.75, 0.5]
    assert some.keypoints is not None
    assert some.keypoints.shape == (2, 2, 3)
    assert some.size == (480, 640)
    assert len(prediction().rows([])) == len(prediction(0).rows(np.zeros(0, dtype=bool))) == 0


def test_cocos_results_have_corners_as_sizes() -> None:
    first, *_ = prediction().as_coco(42, [18, 1])
    assert first == {
        "image_id": 42,
        "category_id": 18,
        "bbox": [1.0, 2.0, 10.0, 20.0],
        "score": 0.75,
        "keypoints": [4.0, 4.0, 1.0, 4.0, 4.0, 1.0],
    }
    assert prediction(0).as_coco(42, [18, 1]) == []
