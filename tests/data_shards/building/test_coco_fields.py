import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.building.build import build_shards
from data_shards.building.coco import CocoDataset, read_coco
from data_shards.checking.examine import examine
from data_shards.checking.verify import verify_shards
from data_shards.errors import DataError
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.loading.training_batches import TrainingSource
from data_shards.order.plan import World, make_plan
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split
from data_shards.settings import AugmentationSettings
from pipelines.evaluation.coco_metrics import evaluate_boxes
from pipelines.evaluation.keypoint_metrics import evaluate_keypoints
from tests.data_shards.samples import write_coco

NAN, INFINITE = float("nan"), float("inf")
HUGE = 10**400


def small() -> dict[str, Any]:
    """Two images; a person with 17 joints and a cup whose joints the file does not name."""
    joints = [8 * (number % 3 != 2) + 2 * (number % 3 == 2) for number in range(51)]
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 2, "file_name": "b.jpg", "width": 40, "height": 40},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [8, 8, 24, 16],
                "area": 384,
                "iscrowd": 0,
                "segmentation": [[8, 8, 32, 8, 32, 24]],
                "keypoints": joints,
                "num_keypoints": 17,
                "score": 0.5,
            },
            {
                "id": 2,
                "image_id": 2,
                "category_id": 7,
                "bbox": [4, 4, 12, 20],
                "area": 240,
                "iscrowd": 0,
                "segmentation": [],
                "keypoints": 17 * [1, 2, 2],
            },
        ],
        "categories": [
            {"id": 1, "name": "person", "keypoints": [f"joint {number}" for number in range(17)], "skeleton": [[1, 2]]},
            {"id": 7, "name": "cup"},
        ],
    }


def read(folder: Path, content: dict[str, Any]) -> CocoDataset:
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return read_coco(path)


def changed(kind: str, field: str, value: Any, number: int = 0) -> dict[str, Any]:
    content = small()
    content[kind][number][field] = value
    return content


@pytest.mark.parametrize(
    ("field", "value", "normal"),
    [
        *[("area", value, None) for value in (None, "", [], {}, NAN, 0, -1, -1.0, " ", "nan", "-1")],
        *[("area", value, value) for value in (384, 384.5, 1e-3)],
        ("area", "384.5", 384.5),
        *[("iscrowd", value, None) for value in (None, "", [], NAN, "None", "null")],
        *[("iscrowd", value, 0) for value in ("0", "false", "False", " no ", "0.0")],
        *[("iscrowd", value, 1) for value in ("1", "true", "TRUE", "yes", "1.0")],
        *[("iscrowd", value, value) for value in (0, 1, False, True, 0.0, 1.0)],
        ("id", 1.0, 1),
        ("image_id", 1.0, 1),
        ("category_id", 1.0, 1),
        ("id", 2**63 - 1, 2**63 - 1),
        ("bbox", [8.0, 8, 24.5, 16], [8.0, 8, 24.5, 16]),
        ("segmentation", [8, 8, 32, 8, 32, 24], [8, 8, 32, 8, 32, 24]),
        ("segmentation", {"counts": "PPYo0", "size": [48, 64]}, {"counts": "PPYo0", "size": [48, 64]}),
        ("segmentation", [[8, NAN, 32, 8]], [[8, None, 32, 8]]),
        ("attributes", {"occluded": True, "score": [INFINITE, "NaN"]}, {"occluded": True, "score": [None, "NaN"]}),
    ],
)
def test_a_field_of_an_annotation_is_normalised(tmp_path: Path, field: str, value: Any, normal: Any) -> None:
    annotation = read(tmp_path, changed("annotations", field, value)).images[0].annotations[0]
    assert annotation.get(field) == normal
    assert type(annotation.get(field)) is type(normal)
    assert (field in annotation) == (normal is not None)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("annotations", "area", "big", "annotation 1 of image 1 has area 'big': write a number of pixels, or leave it"),
        ("annotations", "area", -5, "annotation 1 of image 1 has area -5: write a number of pixels"),
        ("annotations", "area", INFINITE, "annotation 1 of image 1 has area inf: write a number of pixels"),
        ("annotations", "area", HUGE, "annotation 1 of image 1 has area 1000.*…: write a number of pixels"),
        ("annotations", "area", [384], r"has area \[384\]: write a number of pixels"),
        ("annotations", "area", True, "has area True: write a number of pixels"),
        ("annotations", "iscrowd", 2, "annotation 1 of image 1 has iscrowd 2: write 0, or 1 for a crowd"),
        ("annotations", "iscrowd", "maybe", "has iscrowd 'maybe': write 0, or 1 for a crowd"),
        ("annotations", "iscrowd", [0], r"has iscrowd \[0\]: write 0, or 1 for a crowd"),
        ("annotations", "category_id", 2**70, "has category id 1180591620717411303424: it does not fit 64 bits"),
        ("annotations", "id", 1.5, "annotation id 1.5 has id 1.5; write a whole number"),
        ("annotations", "bbox", [8, 8, 1e39, 16], r"has bbox \[8, 8, 1e\+39, 16\]: it does not fit 32-bit numbers"),
        ("annotations", "bbox", [HUGE, 8, 8, 16], r"has bbox \[1000.*…: it does not fit 32-bit numbers"),
        ("annotations", "bbox", [-1e30, -1e30, 3e30, 3e30], "it does not fit 32-bit numbers"),  # its area
        ("annotations", "bbox", [0, 0, 1, 1e38], "it does not fit 32-bit numbers"),  # once a crop has enlarged it
        ("annotations", "bbox", [3e38, 8, 3e38, 16], "it does not fit 32-bit numbers"),
        ("annotations", "bbox", ["8", 8, 24, 16], r"has the box \['8', 8, 24, 16\]; write four finite numbers"),
        (
            "annotations",
            "keypoints",
            [1, 2, 3] * 17,
            "annotation 1 of image 1 has keypoints with visibility 3 for joint",
        ),
        (
            "annotations",
            "keypoints",
            [None, 2, 2] * 17,
            "has keypoints with x None and y 2 for joint 1. Write x, y and 0",
        ),
        ("annotations", "keypoints", [HUGE, 2, 2] * 17, "has keypoints with x 1000"),
        ("annotations", "keypoints", [1, 2], "lists 17 joints, which take 51 numbers"),
        ("images", "id", 2**64, "image id 18446744073709551616: it does not fit 64 bits; number them from 1"),
        (
            "images",
            "width",
            -64,
            "image 1 has width -64: write a whole number of pixels, or leave out width and height",
        ),
        ("images", "width", 64.5, "image id 1 has width 64.5; write a whole number of pixels"),
        ("images", "calib", "none", "image 1 has the calib 'none'; write three rows of four numbers"),
        ("categories", "name", " \u200b", r"category 1 has name ' \\u200b': it shows nothing"),
        ("categories", "keypoints", "nose", "category 1 has keypoints 'nose'; write the list"),
        ("categories", "skeleton", [[1, True]], r"category 1 has the skeleton \[\[1, True\]\]"),
    ],
)
def test_a_value_that_contradicts_its_field_is_refused(
    tmp_path: Path, kind: str, field: str, value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path, changed(kind, field, value))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_values_like_the_first_are_counted(tmp_path: Path) -> None:
    content = changed("annotations", "area", "big")
    content["annotations"][1]["area"] = "small"
    with pytest.raises(DataError, match=r"annotation 1 of image 1 has area 'big' \(1 more like it\): write a number"):
        read(tmp_path, content)


@pytest.mark.parametrize("joint", [[None, None, 0], [None, None, None], [NAN, NAN, 0.0], [INFINITE, 3, 0]])
def test_a_joint_without_a_place_is_not_labelled(tmp_path: Path, joint: list[Any]) -> None:
    content = small()
    content["annotations"][0]["keypoints"][3:6] = joint
    content["annotations"][1]["keypoints"] = joint
    first, second = read(tmp_path, content).images
    assert first.annotations[0]["keypoints"][:9] == [8, 8, 2, 0, 0, 0, 8, 8, 2]
    assert second.annotations[0]["keypoints"] == [0, 0, 0]


@pytest.mark.parametrize("joints", [None, "", {}])
def test_no_joints_are_the_same_as_a_missing_field(tmp_path: Path, joints: Any) -> None:
    content = small()
    for annotation in content["annotations"]:
        annotation["keypoints"] = joints
    assert all("keypoints" not in image.annotations[0] for image in read(tmp_path, content).images)


def test_joints_that_no_category_names_and_nobody_can_read_are_left_out(tmp_path: Path) -> None:
    for joints in ("1 2 2", {"tip": [1, 2]}, [[1, 2, 2]], [1, 2, "visible"]):
        dataset = read(tmp_path, changed("annotations", "keypoints", joints, number=1))
        assert "keypoints" not in dataset.images[1].annotations[0]


@pytest.mark.parametrize("size", [None, "", 0, -1, NAN, []])
def test_a_size_that_the_tool_did_not_know_is_that_of_the_image(tmp_path: Path, size: Any) -> None:
    annotations, images = write_coco(tmp_path, small())
    content = small()
    content["images"][0]["width"] = size
    content["images"][1] |= {"width": size, "height": size}
    annotations.write_text(json.dumps(content))
    sizes = [(image.width, image.height) for image in read_coco(annotations, images).images]
    assert sizes == [(64, 48), (40, 40)]
    (images / "a.jpg").write_bytes(b"<html>log in</html>")
    with pytest.raises(
        DataError, match=r"image 1 has no width or no height, and .*a\.jpg does not tell: neither a JPEG"
    ):
        read_coco(annotations, images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(small()).replace('"score": 0.5', f'"score": {200 * "["}{200 * "]"}'), "has score nested more than"),
        (f"{100_000 * '['}{100_000 * ']'}", "is nested too deeply for a COCO file"),
        (json.dumps(small()).replace("0.5", 5000 * "7"), "has a number that cannot be read"),
    ],
)
def test_what_python_cannot_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        read_coco(path)
    assert "\n" not in str(refused.value)


PLACES = [
    (kind, number, field)
    for kind in ("images", "annotations", "categories")
    for number in (0, 1)
    for field in {**small()[kind][0], "calib": None, "depth": None, "segmentation": None}
]
VALUES = [
    *(
        None,
        "",
        [],
        {},
        "0",
        "1",
        "text",
        "-1",
        0,
        1,
        1.0,
        2,
        -1,
        -1.0,
        0.5,
        3.0,
        True,
        False,
        NAN,
        INFINITE,
        -INFINITE,
    ),
    *(2**31, 2**53 + 1, 2**63, 2**70, HUGE, 1e39, 1e300, -1e300, 1e-320),
    *([1, 2, 3, 4], [[1, 2, 3]], [None] * 51, [0] * 51, [NAN] * 51, [1, 2, 2] * 17, [8, 8, 24, 16], [8, 8, 24, 16, 3]),
    *([1e30, 1, 2e30, 3], [-1e30, -1e30, 3e30, 3e30], [-1e18, 1, 2e18, 3], [1, 1, 1e-30, 1e-30], [1e-30, 0, 1e-30, 9]),
    *([[8, 8, 32]], [{"counts": "PPYo0", "size": [48, 64]}], [[[1, 2], [3, 4]]], [[8, 8], [9]]),
]
LISTS = st.lists(st.sampled_from([None, NAN, 0, 1, 2, 3.5, -7, "2", 1e38, INFINITE]), min_size=3, max_size=4)


@settings(max_examples=120)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(VALUES) | LISTS), min_size=1, max_size=3))
def test_a_changed_file_is_refused_in_one_line_or_works_everywhere(changes: Any) -> None:
    _check_changed(changes)


def _check_changed(changes: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations, images = write_coco(folder, small())
        content = small()
        for (kind, number, field), value in changes:
            content[kind][number][field] = value
        annotations.write_text(json.dumps(content))
        try:
            report = build_shards(annotations, images, str(folder / "whole"), split="train")
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - or no error at all
            return
        shrunk = build_shards(annotations, images, str(folder / "shrunk"), split="train", max_size=32)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            for location in (report.location, shrunk.location):
                assert verify_shards(location, decode=True, cache_folder=folder / "cache").problems == ()
                _use(location)


def _use(location: str) -> None:
    split = open_split(location)
    truth = coco_ground_truth(split)
    json.dumps(truth, allow_nan=False)
    results = [
        {name: item[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.5, "keypoints": 17 * [1, 2, 1]}
        for item in truth["annotations"]
    ]
    metrics = evaluate_boxes(truth, results)
    if any(not item["iscrowd"] for item in truth["annotations"]):
        assert pytest.approx(1.0) == metrics.AP
    evaluate_keypoints(truth, results)
    examine(location).describe()
    shards = split.shards()
    for shard in range(len(split.manifest.shards)):
        index = shards.index(shard)
        assert np.isfinite(index.boxes).all()
        assert index.keypoints is None or np.isfinite(index.keypoints).all()
    source = TrainingSource(
        reading=Reading(split=split),
        plan=make_plan(split.manifest, seed=0, global_batch_size=len(truth["images"])),
        world=World(ranks=1, rank=0),
        input_size=(64, 64),
        augmentation=AugmentationSettings(),
        sizes=None,
        start_step=0,
        stop_step=1,
        microbatches=1,
    )
    samples = source.open()
    (work,) = source.batches(samples)
    _, fill_row = work.prepare(np.zeros(source.slot_bytes(samples), dtype=np.uint8))
    for row in range(work.rows):
        fill_row(row)
    samples.close()
