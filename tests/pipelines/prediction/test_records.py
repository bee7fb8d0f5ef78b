"""Records: what is written is what is read, in any order, and the doubt that orders images."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.storage.folder import FolderStore
from pipelines.errors import ConfigError
from pipelines.prediction.prediction import Prediction
from pipelines.prediction.records import ImageRecord, Records, doubt, finished_parts, part_name, record, unreadable
from pipelines.prediction.sources import SourceImage


def source(number: int) -> SourceImage:
    return SourceImage(
        number=number,
        name=f"{number}.jpg",
        stem=str(number),
        image_id=number + 1,
        origin=None,
        index=number,  # type: ignore[arg-type]
    )


def prediction(scores: list[float], **more: object) -> Prediction:
    count = len(scores)
    return Prediction(
        boxes=np.arange(4 * count, dtype=np.float32).reshape(count, 4) / 3,
        scores=np.array(scores, dtype=np.float32),
        labels=np.arange(count, dtype=np.int64) % 2,
        class_names=["cat" if row % 2 == 0 else "dog" for row in range(count)],
        size=(30, 40),
        **more,  # type: ignore[arg-type]
    )


THRESHOLDS = np.array([0.5, 0.2])


def test_only_scores_from_the_threshold_of_their_class_on_are_kept() -> None:
    one = record(source(3), "3.jpg", prediction([0.6, 0.4, 0.4, 0.1]), THRESHOLDS)
    assert one.scores.tolist() == [pytest.approx(0.6), pytest.approx(0.4)]
    assert one.labels.tolist() == [0, 1]
    assert (one.height, one.width, one.image_id) == (30, 40, 4)


def test_a_record_survives_its_line() -> None:
    joints = np.random.default_rng(0).random((2, 3, 3), dtype=np.float32)
    bodies = np.random.default_rng(1).random((2, 7), dtype=np.float32)
    camera = [[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    before = record(source(0), "é ✓.jpg", prediction([0.9, 0.8], keypoints=joints, box3d=bodies), THRESHOLDS, camera)
    after = ImageRecord.from_line(before.line())
    for name, value in vars(before).items():
        np.testing.assert_array_equal(getattr(after, name), value, name)
    assert before.line().count("\n") == 1


def test_an_image_without_objects_survives_its_line() -> None:
    after = ImageRecord.from_line(record(source(0), "0.jpg", prediction([]), THRESHOLDS).line())
    assert after.boxes.shape == (0, 4)
    assert after.scores.shape == after.labels.shape == (0,)


def test_clipped_boxes_end_at_the_image() -> None:
    one = record(source(0), "0.jpg", prediction([0.9]), THRESHOLDS)
    wide = ImageRecord(**{**vars(one), "boxes": np.array([[-3.0, 2, 50, 31]])})
    assert wide.clipped_boxes().tolist() == [[0, 2, 40, 30]]


def test_doubt_is_largest_at_the_threshold() -> None:
    # At the threshold 1; half-way from 0.5 to 1, 0.5; at 1 and at half the threshold 0; half-way to it, 0.5.
    scores, thresholds = np.array([0.5, 0.75, 1.0, 0.25, 0.375, 0.1]), np.full(6, 0.5)
    assert [doubt(scores[row : row + 1], thresholds[row : row + 1]) for row in range(6)] == [1, 0.5, 0, 0, 0.5, 0]
    assert doubt(scores, thresholds) == 2
    assert doubt(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(1, abs=1)  # extreme thresholds are finite


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path)
    first = [record(source(0), "0.jpg", prediction([0.99]), THRESHOLDS), unreadable(source(1), "the JPEG ends early")]
    second = [record(source(number), f"{number}.jpg", prediction([0.5 + number / 20]), THRESHOLDS) for number in (2, 3)]
    store.write_bytes(part_name(0), "".join(one.line() for one in first).encode())
    store.write_bytes(part_name(1), "".join(one.line() for one in second).encode())
    store.write_bytes("note.txt", b"")
    return store


def test_records_come_in_order_and_by_doubt(store: FolderStore) -> None:
    assert finished_parts(store) == {0, 1}
    with Records(store, [0, 1]) as records:
        assert [one.number for one in records] == [0, 2, 3]
        assert [one.number for one in records.least_certain_first()] == [2, 3, 0]
        assert [one.number for one in records.between(1, 3)] == [2]
        assert records.count(1, 9) == 2
        assert records.problems == [("1.jpg", "the JPEG ends early")]
        assert records.num_objects == {0: 3}
        assert records.repeated_stems == []
        # Two readers at a time do not disturb one another.
        assert [(one.number, other.number) for one, other in zip(records, records, strict=True)] == [
            (0, 0),
            (2, 2),
            (3, 3),
        ]


def test_a_damaged_file_of_records_is_named(store: FolderStore) -> None:
    store.write_bytes(part_name(1), b'{"number": 2')
    with pytest.raises(ConfigError, match=r"000001\.jsonl is damaged; delete it"):
        Records(store, [0, 1])


def test_two_images_with_one_name_are_noticed(store: FolderStore) -> None:
    with Records(store, [0, 0]) as records:
        assert records.repeated_stems == ["0"]
