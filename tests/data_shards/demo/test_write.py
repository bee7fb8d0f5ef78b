import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as run_lengths

from data_shards.building.build import build_shards
from data_shards.building.coco import read_coco
from data_shards.demo.write import DEMO_CLASSES, DemoDataset, write_demo
from data_shards.errors import DataError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return write_demo(tmp_path_factory.mktemp("demo"), train_images=28, val_images=6)


def test_the_same_seed_draws_the_same_bytes_and_another_draws_others(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        write_demo(folder, train_images=4, val_images=2, seed=seed)
    one, two, three = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert one == two
    assert len(one) == 8
    assert one.keys() == three.keys()
    assert not any(one[name] == three[name] for name in one if name.suffix == ".jpg")
    # More images leave the first ones as they are.
    write_demo(tmp_path / "four", train_images=5, val_images=2, seed=5)
    assert all((tmp_path / "four" / name).read_bytes() == one[name] for name in one if name.suffix == ".jpg")


def test_it_has_the_quirks_of_real_files(demo: DemoDataset) -> None:
    dataset = read_coco(demo.train_annotations, demo.images, degenerate_boxes="refuse")
    assert [(item.id, item.name) for item in dataset.classes] == [
        (1, "orange"),
        (3, "lemon"),
        (7, "mug"),
        (12, "book"),
        (18, "leaf"),
    ]
    annotations = [item for image in dataset.images for item in image.annotations]
    ordinary = [item for item in annotations if not item["iscrowd"]]
    counts = {kind.id: sum(item["category_id"] == kind.id for item in ordinary) for kind in DEMO_CLASSES}
    assert min(counts.values()) >= 8
    assert any(not image.annotations for image in dataset.images)
    assert sum(item["iscrowd"] for item in annotations) == 1
    areas = np.array([item["area"] for item in ordinary])
    assert (areas < 32**2).mean() > 0.1
    assert areas.max() > 80**2
    assert {(image.height, image.width) for image in dataset.images} == {(240, 320), (320, 240), (256, 256)}
    ids = np.array([image.id for image in dataset.images])
    assert (np.diff(ids) > 1).all()
    gray = [image for image in dataset.images if cv2.imread(str(demo.images / image.file_name), -1).ndim == 2]
    assert len(gray) == 1
    assert 1 <= max(len(image.annotations) for image in dataset.images) <= 7


def test_some_objects_overlap_and_some_leave_the_frame(demo: DemoDataset) -> None:
    dataset = read_coco(demo.train_annotations)
    overlapping, at_the_edge = 0, 0
    for image in dataset.images:
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (item["bbox"] for item in image.annotations)]
        for number, (x1, y1, x2, y2) in enumerate(boxes):
            assert 0 <= x1 < x2 <= image.width
            assert 0 <= y1 < y2 <= image.height
            at_the_edge += x1 == 0 or y1 == 0 or x2 == image.width or y2 == image.height
            overlapping += any(x1 < b[2] and b[0] < x2 and y1 < b[3] and b[1] < y2 for b in boxes[:number])
    assert overlapping > 5
    assert at_the_edge > 5


def test_boxes_areas_and_masks_agree(demo: DemoDataset) -> None:
    dataset = read_coco(demo.train_annotations)
    for image in dataset.images:
        for item in image.annotations:
            segmentation = item["segmentation"]
            if item["iscrowd"]:
                segmentation = run_lengths.frPyObjects(segmentation, image.height, image.width)
                assert float(run_lengths.area(segmentation)) == item["area"]
                assert run_lengths.toBbox(segmentation).tolist() == item["bbox"]
                continue
            x, y, width, height = item["bbox"]
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
            # Outlines go through the middles of the outermost pixels.
            assert points.min(axis=0).tolist() == pytest.approx([x, y], abs=1.5)
            assert points.max(axis=0).tolist() == pytest.approx([x + width - 1, y + height - 1], abs=1.5)
            assert 0.2 * width * height < item["area"] <= width * height


def test_the_colours_tell_the_classes_apart(demo: DemoDataset) -> None:
    """The middle of an orange is orange and that of a leaf green, or there would be nothing to learn."""
    dataset = read_coco(demo.train_annotations)
    hues: dict[int, list[float]] = {kind.id: [] for kind in DEMO_CLASSES}
    for image in dataset.images:
        pixels = cv2.cvtColor(cv2.imread(str(demo.images / image.file_name)), cv2.COLOR_BGR2HSV)
        if pixels[..., 1].max() == 0:
            continue
        for item in image.annotations:
            x, y, width, height = item["bbox"]
            middle = pixels[int(y + 0.4 * height) : int(y + 0.6 * height) + 1, int(x + width / 2), 0]
            hues[item["category_id"]].append(2.0 * float(np.median(middle)))
    assert 20 < np.median(hues[1]) < 45
    assert 48 < np.median(hues[3]) < 70
    assert 75 < np.median(hues[18]) < 130


def test_the_set_can_be_built_into_shards(demo: DemoDataset, tmp_path: Path) -> None:
    report = build_shards(demo.val_annotations, demo.images, str(tmp_path), split="val", degenerate_boxes="refuse")
    assert report.manifest.num_samples == 6
    assert report.manifest.class_names == ("orange", "lemon", "mug", "book", "leaf")


def test_progress_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_demo(tmp_path, train_images=2, val_images=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert json.loads((tmp_path / "annotations" / "instances_val.json").read_text())["images"][0]["id"] == 100_139


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_images is 0; set it to 1 or more"):
        write_demo(tmp_path, train_images=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the demonstration set to .*/file/sub: .*Choose another folder"):
        write_demo(tmp_path / "file" / "sub", train_images=1, val_images=1)
