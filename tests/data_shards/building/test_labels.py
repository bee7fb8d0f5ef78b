"""Joints and 3D labels: from the annotation file into shards, batches, and through augmentation."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from data_shards.building.build import BuildReport, build_shards
from data_shards.errors import DataError
from data_shards.format.manifest import load_manifest
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.loading.random_draws import draw
from data_shards.order.plan import World, make_plan
from data_shards.reading.shards import Shards
from data_shards.reading.split import open_split
from data_shards.settings import AugmentationSettings, BoxRules
from data_shards.storage.open import open_store
from tests.data_shards.loaders import evaluation_loader, training_loader
from tests.data_shards.loading.test_augment import CocoNormalisation
from tests.data_shards.samples import document, write_coco

INPUT = (96, 96)
PERSON = ["nose", "left_eye", "right_eye", "left_hand", "right_hand"]
DOG = ["tail", "right_ear", "left_ear"]


def pose_document(count: int = 8) -> dict[str, Any]:
    """People with five joints and dogs with three; the second annotation of an image has none, the third is a crowd."""
    content = document(count)
    random = np.random.default_rng(0)
    for number, item in enumerate(content["annotations"]):
        joints = {1: 5, 18: 3, 44: 0}[item["category_id"]]
        item.pop("keypoints")
        if joints and number % 5 != 4:
            visible = random.integers(0, 3, joints)
            points = random.uniform(0, 40, (joints, 2)).round(1) * (visible[:, None] > 0)
            item["keypoints"] = np.concatenate([points, visible[:, None]], axis=1).reshape(-1).tolist()
    content["categories"] = [
        {"id": 18, "name": "dog", "keypoints": DOG, "skeleton": [[1, 2], [1, 3]]},
        {"id": 1, "name": "person", "keypoints": PERSON, "skeleton": [[2, 4], [3, 5]]},
        {"id": 44, "name": "bottle"},
    ]
    return content


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], BuildReport]:
    folder = tmp_path_factory.mktemp("posed")
    content = pose_document()
    annotations, images = write_coco(folder, content)
    return content, build_shards(annotations, images, str(folder / "out"), split="train", shard_bytes=16_000)


def own_annotations(content: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
    return [item for item in content["annotations"] if item["image_id"] == image_id]


def test_the_index_holds_the_joints_and_the_manifest_their_names(posed: tuple[dict[str, Any], BuildReport]) -> None:
    content, report = posed
    manifest = load_manifest(report.location)
    assert manifest == report.manifest
    assert json.loads((Path(report.location) / "manifest.json").read_text())["version"] == 2
    assert (manifest.labels, manifest.joints, manifest.in_3d) == (("keypoints",), 5, False)
    assert [list(item.keypoints) for item in manifest.classes] == [PERSON, DOG, []]
    assert manifest.classes[0].skeleton == ((2, 4), (3, 5))
    assert "with 5 joints" in report.describe()
    shards = Shards(open_store(report.location), manifest)
    seen = 0
    for number in range(len(manifest.shards)):
        index = shards.index(number)
        assert index.keypoints is not None
        assert index.depth is None
        for row, image_id in enumerate(index.image_ids.tolist()):
            for place, item in enumerate(own_annotations(content, image_id), int(index.row_splits[row])):
                expected = np.zeros((5, 3), np.float32)
                values = np.array(item.get("keypoints", []), np.float32).reshape(-1, 3)
                expected[: len(values)] = values
                assert np.array_equal(index.keypoints[place], expected)
                seen += 1
    assert seen == len(content["annotations"])


def test_data_without_such_labels_keeps_the_first_version(built: BuildReport) -> None:
    """A manifest that needs nothing new is the one that was always written, and its checksum: digests stay."""
    text = json.loads((Path(built.location) / "manifest.json").read_text())
    assert text["version"] == 1
    assert set(text) == {"format", "version", "split", "classes", "shards", "source", "sha256"}
    assert set(text["classes"][0]) == {"id", "name"}
    assert set(text["source"]) == {"annotations_sha256", "shard_bytes", "degenerate_boxes", "boxes", "dropped_boxes"}
    # The fixture has keypoints in its JSON, and no category that names them.
    assert built.unnamed_joints == 19
    assert "keypoints of 19 objects are not used" in built.describe()


def published_pose(
    image: np.ndarray, boxes: np.ndarray, joints: list[np.ndarray], names: list[list[str]], drawn: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The published sampler's steps for one image, one after the other: mirror, turn, crop; pixels, boxes, joints."""
    height, width = INPUT
    bgr, centre = image[..., ::-1], drawn["centre"].copy()
    boxes, joints = boxes.copy(), [points.copy() for points in joints]
    if drawn["flip"]:
        bgr, centre[0] = bgr[:, ::-1], image.shape[1] - centre[0] - 1
        boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]] - 1
        for points, own in zip(joints, names, strict=True):
            points[:, 0] = image.shape[1] - points[:, 0] - 1
            for one, name in enumerate(own):
                if name.startswith("left_"):
                    other = own.index(name.replace("left_", "right_"))
                    points[one], points[other] = points[other].copy(), points[one].copy()

    def affine(degrees: float) -> np.ndarray:
        radians = np.pi * degrees / 180
        up = np.array([0, -0.5 * drawn["scale"]])
        turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
        source = [centre, centre + turn @ up]
        source.append(source[1] + np.array([-(source[0] - source[1])[1], (source[0] - source[1])[0]]))
        middle = np.array([width / 2, height / 2])
        target = [middle, middle + np.array([0, -0.5 * width])]
        target.append(target[1] + np.array([-(target[0] - target[1])[1], (target[0] - target[1])[0]]))
        return cv2.getAffineTransform(np.float32(source), np.float32(target))

    turned, straight = affine(drawn["degrees"]), affine(0)
    pixels = cv2.warpAffine(np.ascontiguousarray(bgr), turned, (width, height), flags=cv2.INTER_LINEAR)
    corners = np.concatenate([boxes.reshape(-1, 2), np.ones((2 * len(boxes), 1))], axis=1) @ straight.T
    for points in joints:
        points[:, :2] = points[:, :2] @ turned[:, :2].T + turned[:, 2]
    return pixels, corners.reshape(-1, 4), joints


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rotation_probability": 0.7, "rotation_degrees": 30.0},
        {"geometry": "shift", "rotation_probability": 0.5, "rotation_degrees": 15.0},
    ],
)
def test_joints_boxes_and_pixels_are_augmented_as_published(
    posed: tuple[dict[str, Any], BuildReport], settings: dict[str, Any]
) -> None:
    content, report = posed
    plan = make_plan(report.manifest, seed=3, global_batch_size=8)
    augmentation = AugmentationSettings(**settings, brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0)
    names = {1: PERSON, 18: DOG, 44: []}
    flipped, turned = set(), 0
    with training_loader(
        report.location,
        plan,
        World(1, 0),
        input_size=INPUT,
        max_objects=3,
        augmentation=augmentation,
        stop_step=3,
    ) as loader:
        for batch in loader:
            draws = draw(augmentation, 3, batch.epoch, batch.sample_ids.numpy(), batch.original_sizes.numpy())
            assert batch.extra.keys() == {"keypoints", "rotated"}
            assert batch.rotated is not None
            assert batch.rotated.tolist() == draws.rotated.tolist()
            flips = draws.flips.copy()
            result = augment(batch, CocoNormalisation())
            assert batch.keypoints is not None
            for row, image_id in enumerate(batch.image_ids.tolist()):
                own = own_annotations(content, image_id)
                image = cv2.imread(str(Path(report.location).parents[1] / "images" / f"{image_id}.jpg"))[..., ::-1]
                boxes = np.array([item["bbox"] for item in own], np.float32).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                joints = [np.array(item.get("keypoints", []), np.float64).reshape(-1, 3) for item in own]
                drawn = {
                    "centre": draws.centre(row, INPUT),
                    "scale": draws.scales[row],
                    "flip": flips[row],
                    "degrees": draws.degrees[row],
                }
                expected, expected_boxes, expected_joints = published_pose(
                    image,
                    boxes,
                    joints,
                    [names[item["category_id"]] if "keypoints" in item else [] for item in own],
                    drawn,
                )
                assert_allclose(batch.boxes[row, : len(own)], expected_boxes, atol=2e-3)
                for place, points in enumerate(expected_joints):
                    found = batch.keypoints[row, place].numpy()
                    assert np.array_equal(found[: len(points), 2], points[:, 2])
                    assert (found[len(points) :] == 0).all()
                    labelled = points[:, 2] > 0
                    assert_allclose(found[: len(points)][labelled, :2], points[labelled, :2], atol=2e-3)
                    assert (found[: len(points)][~labelled] == 0).all()
                ours = (result[row].numpy().transpose(1, 2, 0) * CocoNormalisation.std + CocoNormalisation.mean) * 255
                # Where the published one mixes the edge of the image with the black outside, ours is one or the other.
                white, *_ = published_pose(np.full_like(image, 255), boxes[:0], [], [], drawn)
                edge = (white > 0) & (white < 255)
                assert edge.mean() < 0.1
                # cv2 rounds places to 1/32 pixel, on the other side of a mirror.
                assert np.abs(ours - expected)[~edge].mean() < 0.6
                flipped.add(bool(flips[row]))
                turned += bool(draws.rotated[row])
    assert flipped == {True, False}
    assert (turned > 5) == ("rotation_probability" in settings)


def test_evaluation_gives_joints_in_the_input_frame(posed: tuple[dict[str, Any], BuildReport]) -> None:
    content, report = posed
    with evaluation_loader(report.location, World(1, 0), input_size=INPUT, batch_size=8) as loader:
        batch = next(loader)
    assert batch.keypoints is not None
    assert batch.rotated is None
    assert batch.keypoints.shape == (8, 3, 5, 3)
    row = batch.image_ids.tolist().index(107)  # 48 wide, 64 high: zoom 1.5, 12 pixels of border
    (item,) = own_annotations(content, 107)
    points = torch.tensor(item["keypoints"]).reshape(-1, 3)
    labelled = points[:, 2] > 0
    assert labelled.any()
    expected = points[labelled, :2] * 1.5 + torch.tensor([12.0, 0.0])
    torch.testing.assert_close(batch.keypoints[row, 0, : len(points)][labelled, :2], expected)
    truth = coco_ground_truth(open_split(report.location))
    assert truth["categories"][0]["keypoints"] == PERSON
    assert next(item for item in truth["annotations"] if item["image_id"] == 107)["keypoints"] == item["keypoints"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda item: item.update(keypoints=[1, 2]),
            r"has keypoints \[1, 2\], but its category 'person' lists 5 joints",
        ),
        (
            lambda item: item["keypoints"].__setitem__(0, "a"),
            r"has keypoints with x 'a' and y [\d.]+ for joint 1\. Write",
        ),
    ],
)
def test_joints_that_do_not_fit_their_category_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = pose_document()
    change(next(item for item in content["annotations"] if item["category_id"] == 1 and "keypoints" in item))
    annotations, images = write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")


def test_a_skeleton_of_joints_that_are_not_there_is_refused(tmp_path: Path) -> None:
    content = pose_document()
    content["categories"][0]["skeleton"] = [[1, 4]]
    annotations, images = write_coco(tmp_path, content)
    with pytest.raises(DataError, match=r"category 18 has the skeleton \[\[1, 4\]\]; write a list of pairs"):
        build_shards(annotations, images, str(tmp_path / "out"), split="train")


def test_turning_images_of_plain_boxes_is_refused(built: BuildReport) -> None:
    with pytest.raises(DataError, match=r"rotation_probability is 0\.5, but .* has no joints: as published, only"):
        training_loader(
            built.location,
            make_plan(built.manifest, seed=0, global_batch_size=2),
            World(1, 0),
            input_size=INPUT,
            augmentation=AugmentationSettings(rotation_probability=0.5),
        )


# --- 3D, as CenterNet's converted KITTI files have it

KITTI = ["Pedestrian", "Car", "Cyclist", "Van", "Truck", "Person_sitting", "Tram", "Misc", "DontCare"]
IGNORE = {"Van": "Car", "Truck": "Car", "Person_sitting": "Pedestrian", "DontCare": "*"}


def kitti_document(count: int = 6) -> dict[str, Any]:
    """Images of 124 x 37 pixels without a size in the file, one object of every category but one in turn."""
    images, annotations = [], []
    for number in range(count):
        camera = [[72.0, 0, 61.0, 4.5], [0, 72.0, 17.0, -0.3], [0, 0, 1, 0.005 * number]]
        images.append({"id": 7 + number, "file_name": f"{7 + number}.jpg", "calib": camera})
        for category in range(1, 10):
            if category == 1 + number:
                continue
            x, angle = 5.0 + 10 * category, -3.0 + 0.6 * category
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 7 + number,
                    "category_id": category,
                    "bbox": [x, 6.5, 14.0, 12.0],
                    "depth": 10.0 + category,
                    "dim": [1.5, 1.6, 3.0 + category],
                    "alpha": angle,
                    "location": [1.0, 1.5, 10.0 + category],
                    "rotation_y": angle / 2,
                    "truncated": 0,
                    "occluded": 0,
                }
            )
    categories = [{"id": 1 + place, "name": name} for place, name in enumerate(KITTI)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], BuildReport]:
    folder = tmp_path_factory.mktemp("driven")
    content = kitti_document()
    for image in content["images"]:
        image |= {"width": 124, "height": 37}
    annotations, images = write_coco(folder, content)
    for image in content["images"]:
        del image["width"], image["height"]  # the converted files have none
    annotations.write_text(json.dumps(content))
    report = build_shards(
        annotations, images, str(folder / "out"), split="train", ignore=IGNORE, leave_out=("Tram", "Misc")
    )
    return content, report


def batches_of(report: BuildReport, augmentation: AugmentationSettings, steps: int = 4) -> list[Batch]:
    plan = make_plan(report.manifest, seed=1, global_batch_size=6)
    with training_loader(
        report.location,
        plan,
        World(1, 0),
        input_size=(96, 320),
        max_objects=8,
        augmentation=augmentation,
        stop_step=steps,
    ) as loader:
        return list(loader)


def test_kitti_becomes_three_classes_and_labels_to_ignore(driven: tuple[dict[str, Any], BuildReport]) -> None:
    content, report = driven
    manifest = report.manifest
    assert manifest.class_names == ("Pedestrian", "Car", "Cyclist")
    assert manifest.labels == ("3d",)
    assert load_manifest(report.location) == manifest
    assert "ignored: Van (as Car), Truck (as Car), Person_sitting (as Pedestrian), DontCare (as any class)" in (
        report.describe()
    )
    # The detector's labels: -2 - c for class c, -2 - 3 for all three.
    label_of = {1: 0, 2: 1, 3: 2, 4: -3, 5: -3, 6: -2, 9: -5}
    still = AugmentationSettings(geometry="shift", fit="width", shift_probability=0.0, flip_probability=0.0)
    (batch, *_) = batches_of(report, still)
    for row, image_id in enumerate(batch.image_ids.tolist()):
        own = [item for item in own_annotations(content, image_id) if item["category_id"] in label_of]
        assert batch.labels[row, : len(own)].tolist() == [label_of[item["category_id"]] for item in own]
        assert (batch.labels[row, len(own) :] == -1).all()
        assert batch.original_sizes[row].tolist() == [37, 124]
        assert batch.extra.keys() == {"depth", "dimensions", "alpha", "rescaled"}
        assert batch.depth is not None
        assert batch.dimensions is not None
        assert batch.alpha is not None
        assert batch.calibration is not None
        assert_allclose(batch.depth[row, : len(own)], [item["depth"] for item in own])
        assert_allclose(batch.dimensions[row, : len(own)], [item["dim"] for item in own])
        assert_allclose(batch.alpha[row, : len(own)], [item["alpha"] for item in own], rtol=1e-6)
        assert_allclose(batch.calibration[row], content["images"][image_id - 7]["calib"], rtol=1e-6)
        # The width fills the input: zoom 320 / 124, the middle of the image in the middle of the input.
        zoom = 320 / 124
        assert_allclose(batch.transforms[row], [[zoom, 0, 0], [0, zoom, 48 - zoom * 18.5]], atol=1e-4)
    index = Shards(open_store(report.location), manifest).index(0)
    assert index.location is not None
    assert index.rotation_y is not None
    assert index.location.shape == (len(index.labels), 3)
    assert_allclose(index.rotation_y, index.alpha / 2, rtol=1e-6)


def test_what_is_ignored_is_a_crowd_to_the_judge(driven: tuple[dict[str, Any], BuildReport]) -> None:
    content, report = driven
    truth = coco_ground_truth(open_split(report.location))
    # 48 objects of 9 categories but one; Tram and Misc are gone, DontCare stands for three classes.
    count = {
        category: sum(item["category_id"] == category for item in content["annotations"]) for category in range(10)
    }
    assert len(truth["annotations"]) == sum(count[each] for each in (1, 2, 3, 4, 5, 6)) + 3 * count[9]
    assert len({item["id"] for item in truth["annotations"]}) == len(truth["annotations"])
    cars = [item for item in truth["annotations"] if item["category_id"] == 2]
    assert sum(item["iscrowd"] for item in cars) == count[4] + count[5] + count[9]
    with evaluation_loader(report.location, World(1, 0), geometry="width", input_size=(96, 320)) as loader:
        zoom = 320 / 124
        assert_allclose(next(loader).transforms[0], [[zoom, 0, 0], [0, zoom, 48 - zoom * 18.5]], atol=1e-4)


def test_half_of_the_images_are_moved_in_3d_and_say_so(driven: tuple[dict[str, Any], BuildReport]) -> None:
    _, report = driven
    settings = AugmentationSettings(geometry="shift", fit="width", shift_probability=0.5, flip_probability=0.0)
    moved = []
    for batch in batches_of(report, settings, steps=12):
        draws = draw(settings, 1, batch.epoch, batch.sample_ids.numpy(), batch.original_sizes.numpy())
        assert batch.rescaled is not None
        assert batch.rescaled.tolist() == draws.rescaled.tolist()
        plain = (draws.scales == 124) & (draws.centres == [62, 18.5]).all(axis=1)
        assert np.array_equal(plain, ~draws.rescaled)
        moved += draws.rescaled.tolist()
    assert 20 < sum(moved) < 52  # of 72, 36 ± 4 standard deviations of 4.2


def test_a_mirrored_object_faces_the_other_way(driven: tuple[dict[str, Any], BuildReport]) -> None:
    content, report = driven
    settings = AugmentationSettings(geometry="shift", fit="width", shift_probability=0.0, flip_probability=1.0)
    (batch,) = batches_of(report, settings, steps=1)
    augment(batch, CocoNormalisation())
    assert batch.alpha is not None
    own = [item for item in own_annotations(content, int(batch.image_ids[0])) if item["category_id"] not in (7, 8)]
    for place, item in enumerate(own):
        mirrored = np.arctan2(np.sin(np.pi - item["alpha"]), np.cos(np.pi - item["alpha"]))
        assert_allclose(batch.alpha[0, place], mirrored, atol=1e-6)
    x1, x2 = (320 / 124 * (own[0]["bbox"][0] + side) for side in (0, own[0]["bbox"][2]))
    # The image is mirrored about its last pixel and its centre with it, so x' = 320 - x, also for what is ignored.
    assert_allclose(batch.boxes[0, 0, [0, 2]], [320 - x2, 320 - x1], atol=1e-3)
    ignored = (batch.labels[0] < -1).nonzero()[-1]
    item = own[int(ignored)]
    assert_allclose(batch.boxes[0, int(ignored), 0], 320 - 320 / 124 * (item["bbox"][0] + 14), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda content: content["annotations"][0].pop("alpha"),
            {},
            "has no alpha, but others have 3D labels; it takes a number",
        ),
        (lambda content: content["annotations"][0].update(dim=[1, 2]), {}, r"has dim \[1, 2\], .* it takes 3 numbers"),
        (
            lambda content: content["images"][0].update(calib=[[1, 2]]),
            {},
            r"image 7 has the calib .* three rows of four",
        ),
        (lambda content: None, {"ignore": {"Vam": "Car"}}, "has no category 'Vam'; did you mean 'Van'?"),
        (
            lambda content: None,
            {"ignore": {"Van": "Truck", "Truck": "Car"}},
            "category 'Truck' is itself ignored or left out",
        ),
        (lambda content: None, {"leave_out": KITTI}, "all categories are ignored or left out"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    tmp_path: Path, change: Any, options: dict[str, Any], message: str
) -> None:
    content = kitti_document(2)
    for image in content["images"]:
        image |= {"width": 124, "height": 37}
    change(content)
    annotations, images = write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message):
        build_shards(annotations, images, str(tmp_path / "out"), split="train", **options)


# --- which boxes count


def test_crowds_are_left_out_when_asked_before_they_take_a_place(built: BuildReport) -> None:
    plan = make_plan(built.manifest, seed=4, global_batch_size=14)
    options: dict[str, Any] = {"input_size": INPUT, "max_objects": 3, "stop_step": 1}
    with (
        training_loader(built.location, plan, World(1, 0), **options) as every,
        training_loader(built.location, plan, World(1, 0), boxes=BoxRules(crowd="drop"), **options) as without,
    ):
        kept, dropped = next(every), next(without)
    # The plan and the pixels are the same ones; of 14 images with i % 4 boxes three have a crowd, their third box.
    assert torch.equal(kept.sample_ids, dropped.sample_ids)
    assert torch.equal(kept.images, dropped.images)
    assert int((kept.labels >= 0).sum()) == 19
    assert int((dropped.labels >= 0).sum()) == 16
    assert torch.equal(kept.boxes[:, :2], dropped.boxes[:, :2])
    assert (dropped.labels[:, 2] == -1).all()


def test_boxes_may_end_on_their_last_pixel(tmp_path: Path) -> None:
    content = document(2, sizes=((40, 50),))
    first = content["annotations"][0]
    boxes = [[2.5, 4.0, 10.0, 20.0], [45.0, 3.0, 9.0, 9.0], [7.0, 7.0, 1.0, 5.0], [3.0, 3.0, 0.5, 8.0]]
    content["annotations"] = [first | {"id": number, "bbox": box, "iscrowd": 0} for number, box in enumerate(boxes)]
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train")
    with evaluation_loader(
        report.location, World(1, 0), input_size=(50, 50), boxes=BoxRules(box_ends="last_pixel"), max_objects=4
    ) as loader:
        found = next(batch for batch in loader if int(batch.image_ids[0]) == 107)
    # x2 = x + width - 1, clipped to the last pixel 49; a pixel wide or less, nothing is left. The border is 5 high.
    expected = [[2.5, 9.0, 11.5, 28.0], [45.0, 8.0, 49.0, 16.0]]
    assert found.boxes[0, :2].tolist() == expected
    assert found.labels[0].tolist()[2:] == [-1, -1]
