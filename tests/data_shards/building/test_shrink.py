from pathlib import Path

import cv2
import numpy as np
import pytest

from data_shards.building.build import build_shards
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.reading.shards import Shards
from data_shards.storage.open import open_store
from tests.data_shards.building.test_build import contents
from tests.data_shards.samples import document, write_coco


def test_larger_images_are_encoded_again_only_when_asked(tmp_path: Path) -> None:
    content = document(4, sizes=((48, 64), (60, 30)))
    names = ["nose", "left_eye", "right_eye"]
    content["categories"] = [item | {"keypoints": names, "skeleton": []} for item in content["categories"]]
    for item in content["annotations"]:
        item["keypoints"] = [5.0, 6.0, 2, 7.0, 8.0, 1, 0, 0, 0]
    annotations, images = write_coco(tmp_path, content)
    options = {"split": "train", "max_size": 60, "jpeg_quality": 90}
    report = build_shards(annotations, images, str(tmp_path / "a"), **options)  # type: ignore[arg-type]
    again = build_shards(annotations, images, str(tmp_path / "b"), **options)  # type: ignore[arg-type]
    assert contents(Path(report.location)) == contents(Path(again.location))
    assert (report.manifest.source.max_size, report.manifest.source.jpeg_quality) == (60, 90)
    assert "images longer than 60 pixels were encoded again, JPEG quality 90" in report.describe()
    shards = Shards(open_store(report.location), load_manifest(report.location))
    index = shards.index(0)
    for row, image_id in enumerate(index.image_ids.tolist()):
        stored = (images / f"{image_id}.jpg").read_bytes()
        sample = shards.read_json(0, row)
        own = [item for item in content["annotations"] if item["image_id"] == image_id]
        if image_id in (107, 121):  # 60 high, 30 wide: as it was
            assert shards.read_image(0, row) == stored
            assert sample["annotations"] == own
            continue
        # 64 x 48 becomes 60 x 45: everything is 0.9375 times as large.
        assert (sample["width"], sample["height"]) == (index.widths[row], index.heights[row]) == (60, 45)
        small = cv2.imdecode(np.frombuffer(shards.read_image(0, row), np.uint8), cv2.IMREAD_COLOR)
        by_opencv = cv2.resize(cv2.imread(str(images / f"{image_id}.jpg")), (60, 45), interpolation=cv2.INTER_AREA)
        assert small.shape == (45, 60, 3)
        assert np.abs(small.astype(int) - by_opencv).mean() < 4
        first_box, last_box = index.row_splits[row : row + 2]
        for item, kept, place in zip(own, sample["annotations"], range(first_box, last_box), strict=True):
            assert np.allclose(kept["bbox"], np.array(item["bbox"]) * 0.9375)
            assert np.isclose(kept["area"], item["area"] * 0.9375**2)
            assert np.allclose(kept["segmentation"], np.array(item["segmentation"]) * 0.9375)
            assert kept["keypoints"] == [4.6875, 5.625, 2, 6.5625, 7.5, 1, 0, 0, 0]
            assert index.keypoints[place].tolist() == [[4.6875, 5.625, 2], [6.5625, 7.5, 1], [0, 0, 0]]
            assert index.boxes[place, 0] == item["bbox"][0] * 0.9375
    with pytest.raises(DataError, match="max_size is -1 and jpeg_quality 95"):
        build_shards(annotations, images, str(tmp_path / "c"), split="train", max_size=-1)


def test_a_segmentation_in_run_lengths_does_not_outlive_a_smaller_image(tmp_path: Path) -> None:
    content = document(2, sizes=((48, 64),))
    content["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": "abc"}
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "a"), split="train", max_size=32)
    shards = Shards(open_store(report.location), report.manifest)
    (sample,) = (sample for row in range(2) if (sample := shards.read_json(0, row))["annotations"])
    assert "segmentation" not in sample["annotations"][0]
    assert sample["annotations"][0]["bbox"] == [1.25, 2.125, 6.5, 4.75]
