"""Labels beside boxes, from shards to a detector's targets: what fits is learnt, what is missing is said at once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import detectors
from data_shards.building.build import build_shards
from data_shards.settings import AugmentationSettings, BoxRules
from detectors import DetectorError
from pipelines.errors import ConfigError
from pipelines.recipes.recipe import with_flags
from pipelines.recipes.settings import DataSettings, DetectorSettings, Recipe
from pipelines.training.checks import check, check_run_name
from tests.data_shards.building.test_labels import IGNORE, PERSON, kitti_document, pose_document
from tests.data_shards.samples import document, write_coco

SMALL: dict[str, Any] = {"width": 4, "head_channels": 8}


def recipe_of(location: str, detector: str, **settings: Any) -> Recipe:
    return Recipe(
        recipe="test",
        detector=DetectorSettings(name=detector, settings={**SMALL, **settings}),
        data=DataSettings(train=location, input_size=(64, 64)),
        batch=with_flags(Recipe(recipe=""), ["--batch.global_size", "2"]).batch,
        cluster=with_flags(Recipe(recipe=""), ["--cluster.workers", "1"]).cluster,
    )


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("people")
    content = pose_document()
    content["categories"] = [{"id": 1, "name": "person", "keypoints": PERSON}]
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] == 1]
    annotations, images = write_coco(folder, content)
    return build_shards(annotations, images, str(folder), split="train").location


def test_a_detector_of_pose_takes_people_and_refuses_other_data(people: str, small_shards: Path) -> None:
    check(recipe_of(people, "centernet_dla34_pose", joints=5))
    with pytest.raises(
        DetectorError, match=r"needs keypoints of shape \(1, 1, 17, 3\) .* got a shape of \(1, 1, 5, 3\)"
    ):
        check(recipe_of(people, "centernet_dla34_pose"))
    with pytest.raises(DetectorError, match=r"got none. Train it on COCO keypoint annotations"):
        check(recipe_of(str(small_shards / "train"), "centernet_dla34_pose"))
    turned = AugmentationSettings(rotation_probability=0.5, rotation_degrees=10.0)
    check(replace(recipe_of(people, "centernet_dla34_pose", joints=5), augmentation=turned))
    with pytest.raises(ConfigError, match="is for pose: centernet_dla34 would learn boxes of the unturned image"):
        check(replace(recipe_of(people, "centernet_dla34"), augmentation=turned))


def test_training_of_pose_warns_of_images_without_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = pose_document()
    content["categories"] = [{"id": 1, "name": "person", "keypoints": PERSON}]
    with_person = {item["image_id"] for item in content["annotations"] if item["category_id"] == 1}
    last = max(with_person)
    content["annotations"] = [
        item for item in content["annotations"] if item["category_id"] == 1 and item["image_id"] != last
    ]
    empty = len([image for image in content["images"] if image["id"] not in with_person - {last}])
    annotations, images = write_coco(tmp_path, content)
    kept = build_shards(annotations, images, str(tmp_path / "kept"), split="train").location
    check(recipe_of(kept, "centernet_dla34_pose", joints=5))
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("warning")]
    assert f"{empty} of {len(content['images'])} images in {kept} have no object, and the published training" in line
    assert line.endswith("build the split with --empty-images drop.")
    # Boxes alone are learnt from all images, as published.
    check(recipe_of(kept, "centernet_dla34"))
    dropped = build_shards(annotations, images, str(tmp_path / "dropped"), split="train", empty_images="drop")
    assert dropped.manifest.num_samples == len(content["images"]) - empty
    check(replace(recipe_of(dropped.location, "centernet_dla34_pose", joints=5)))
    assert "warning" not in capsys.readouterr().err


def test_a_detector_of_3d_takes_kitti_and_refuses_other_data(tmp_path: Path, small_shards: Path) -> None:
    content = kitti_document(3)
    for image in content["images"]:
        image |= {"width": 124, "height": 37}
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path), split="train", ignore=IGNORE, leave_out=["Tram", "Misc"])
    check(recipe_of(report.location, "centernet_dla34_3d"))
    with pytest.raises(DetectorError, match="needs depth of shape"):
        check(recipe_of(str(small_shards / "train"), "centernet_dla34_3d"))


def test_geometries_box_rules_and_resizing_are_flags(small_shards: Path) -> None:
    flags = (
        "--augmentation.geometry shorter_side --augmentation.shorter_side_range 640 800 --data.crowd drop "
        "--data.box_ends last_pixel --data.resizing detectron2 "
        "--evaluation.geometry shorter_side --evaluation.shorter_side 800"
    )
    recipe = with_flags(Recipe(recipe=""), flags.split())
    assert recipe.augmentation.shorter_side_range == (640, 800)
    assert recipe.data.box_rules.crowd == "drop"
    assert recipe.data.box_rules.box_ends == "last_pixel"
    detector = detectors.build("fcos_resnet50", 3, width=8, channels=64)
    reading = recipe.data.reading(recipe.data.split(str(small_shards / "train")), detector.box_corners)
    assert reading.boxes == BoxRules(crowd="drop", box_ends="last_pixel", corners="edges")
    assert reading.resizing == "detectron2"
    assert detectors.build("centernet_resnet18", 3, width=8, head_channels=8).box_corners == "indexes"
    for flag, message in [
        ("--augmentation.geometry shorter", "augmentation.geometry is 'shorter'"),
        ("--data.crowd ignore", "data.crowd is 'ignore'"),
        ("--data.resizing pillow", "data.resizing is 'pillow'"),
        ("--evaluation.shorter_side 1400", "evaluation.shorter_side is 1400 and longer_side_limit 1333"),
        ("--augmentation.shorter_side 800", "did you mean --augmentation.shorter_sides"),
    ]:
        with pytest.raises(ConfigError, match=message):
            with_flags(Recipe(recipe=""), flag.split())


@pytest.mark.parametrize(
    "name", ["", "first", "größe", "実験1", "🐱", "exp/lr1e-3", "a b'c\"+;&()=#%", "..a", "a..", "v1.0"]
)
def test_a_run_may_have_any_name_inside_its_folder(name: str) -> None:
    check_run_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("..", "is not a path inside run.folder"),
        ("../../escape", "is not a path inside run.folder"),
        ("a/../../b", "is not a path inside run.folder"),
        ("a/ .. /b", "is not a path inside run.folder"),
        ("/tmp/elsewhere", "must not start or end with a slash"),
        ("a/", "must not start or end with a slash"),
        (".", "is not a path inside run.folder"),
        (" ", "is not a path inside run.folder"),
        ("two\nlines", "contains '\\\\n', a line break or control character"),
        ("a\u2028b", "a line break or control character"),
        ("bell\x07", "a line break or control character"),
        ("nul\x00", "a line break or control character"),
        ("half\ud83d", "a line break or control character"),
        ("ä" * 101, "contains 202 bytes between slashes"),
    ],
)
def test_a_name_that_leaves_the_folder_or_breaks_a_line_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_run_name(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 0}, r"cell has id 0 instead of 1 \(1 more class\)\. Build it again with --classes-from .*/train"),
        ({"keypoints": ["tip", "end"]}, r"cell has the joints tip, end instead of none\. Build it again"),
        ({"name": "dust"}, r"dust, seed instead of cell, seed\. Build it again with --classes-from"),
    ],
)
def test_splits_whose_classes_differ_are_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = document(4)
    content["annotations"] = []
    content["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "seed"}]
    annotations, images = write_coco(tmp_path, content)
    train = build_shards(annotations, images, str(tmp_path), split="train").location
    content["categories"] = [{"id": 1, "name": "cell"} | change, {"id": 3 if "id" in change else 2, "name": "seed"}]
    annotations.write_text(json.dumps(content))
    other = build_shards(annotations, images, str(tmp_path), split="val").location
    recipe = recipe_of(train, "centernet_dla34")
    with pytest.raises(ConfigError, match=message) as refused:
        check(replace(recipe, data=replace(recipe.data, validation=other)))
    assert other in str(refused.value)
    if "name" not in change:
        build_shards(annotations, images, str(tmp_path), split="val", classes_from=train, overwrite=True)
        check(replace(recipe, data=replace(recipe.data, validation=other)))
