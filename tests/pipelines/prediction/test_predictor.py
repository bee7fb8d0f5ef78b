"""Predictions in Python: those of evaluation on shards, whatever form an image comes in."""

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.testing import assert_allclose

from data_shards.errors import DataError
from data_shards.order.plan import World
from data_shards.reading.pictures import read_picture
from data_shards.reading.split import open_split
from detectors import Detections, Detector, DetectorError, Preprocessing
from detectors.sizes import Multiples
from pipelines import load
from pipelines.errors import ConfigError
from pipelines.evaluation.evaluate import evaluate
from pipelines.prediction.prediction import Prediction
from pipelines.prediction.predictor import Predictor
from pipelines.trained.trained import Trained
from tests.data_shards.pictures import write_pictures
from tests.data_shards.samples import jpeg, photo
from tests.pipelines.prediction.runs import write_run

CLASS_IDS = [1, 18, 44]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "cells")


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load(run)


def assert_same(one: Prediction, other: Prediction) -> None:
    assert one.size == other.size
    assert one.class_names == other.class_names
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def evaluated(predictor: Predictor, location: str, **settings: Any) -> list[dict[str, Any]]:
    """The results of `aweigh evaluate --detections`."""
    trained = predictor.trained
    found = evaluate(
        trained.detector,
        trained.recipe.data.reading(open_split(location), trained.detector.box_corners),
        replace(trained.recipe.evaluation, pictures=0, **settings),
        input_size=trained.input_size,
        device=trained.device,
        world=World(1, 0),
        keep_results=True,
    )
    assert found is not None
    return found.results


@pytest.mark.parametrize("geometry", ["fixed", "width", "keep", "shorter_side"])
@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_a_folder_and_shards_give_identical_detections(
    run: Path, pictures: tuple[list[Path], str], geometry: Any, tta: Any
) -> None:
    flags = [
        "--evaluation.geometry",
        geometry,
        "--evaluation.shorter_side",
        "48",
        "--evaluation.scales",
        "0.5",
        "1",
        "1.25",
    ]
    # With the last pixel, boxes end on edges again in results.
    ends = ["--data.box_ends", "last_pixel"] if geometry == "shorter_side" else []
    predictor = load(run, flags=[*flags, *ends])
    files, location = pictures
    found = predictor.predict(files, threshold=0, tta=tta)
    ids = [image_id for shard in open_split(location).manifest.shards for image_id in _ids(location, shard.name)]
    ours = [
        one for image_id, prediction in zip(ids, found, strict=True) for one in prediction.as_coco(image_id, CLASS_IDS)
    ]
    theirs = evaluated(predictor, location, tta=tta)
    assert len(theirs) > 100
    assert sorted(ours, key=lambda one: one["image_id"]) == theirs
    assert [prediction.size for prediction in found] == [read_picture(file).shape[:2] for file in files]


def _ids(location: str, shard: str) -> list[int]:
    shards = open_split(location).shards()
    try:
        number = [one.name for one in shards.manifest.shards].index(shard)
        return [int(image_id) for image_id in shards.index(number).image_ids]
    finally:
        shards.close()


def test_every_form_of_an_image_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    pixels = photo(3)
    data = jpeg(pixels)
    file = tmp_path / "photo.jpg"
    file.write_bytes(data)
    decoded = read_picture(file)
    expected = predictor.predict(file, threshold=0)
    assert len(expected) == 100
    assert expected.size == (48, 64)
    forms: list[Any] = [str(file), data, bytearray(data), decoded, decoded[::-1][::-1], PIL.Image.fromarray(decoded)]
    for image in forms:
        assert_same(predictor.predict(image, threshold=0), expected)
        assert_same(predictor.predict([image], threshold=0)[0], expected)
        assert_same(predictor.predict((image,), threshold=0)[0], expected)
    assert_same(predictor.predict_batch([decoded], threshold=0)[0], expected)
    gray = decoded[..., 1]
    expected = predictor.predict(np.dstack([gray] * 3), threshold=0)
    for image in (gray, gray[..., None], PIL.Image.fromarray(gray)):
        assert_same(predictor.predict(image, threshold=0), expected)


def test_a_list_keeps_its_order_whatever_the_sizes_and_the_batch(run: Path) -> None:
    predictor = load(run, flags=["--evaluation.geometry", "keep"])
    # More than are grouped at once: 4 for each image of a batch.
    sizes = [(48, 64), (64, 48), (32, 96), (1, 1), (130, 20)]
    images = [photo(seed, *sizes[seed % 5]) for seed in range(23)]
    alone = [predictor.predict(image, threshold=0) for image in images]
    for batch_size in (1, 2, 5, None):
        found = predictor.predict(images, threshold=0, batch_size=batch_size)
        assert [one.size for one in found] == [sizes[seed % 5] for seed in range(23)]
        for one, other in zip(found, alone, strict=True):
            # Sums are taken in another order where more images run together.
            assert_allclose(one.scores, other.scores, atol=1e-5)
        if batch_size == 1:
            for one, other in zip(found, alone, strict=True):
                assert_same(one, other)
    assert predictor.predict([]) == []
    assert predictor.predict_batch([]) == []


def test_threads_get_what_they_would_get_one_after_the_other(predictor: Predictor) -> None:
    images = [photo(seed, 40 + seed, 64) for seed in range(12)]
    expected = [predictor.predict(image, threshold=0) for image in images]
    expected_list = predictor.predict(images, threshold=0)
    with ThreadPoolExecutor(4) as pool:
        one_by_one = pool.map(lambda image: predictor.predict(image, threshold=0), images * 3)
        lists = pool.map(lambda turn: predictor.predict(images, threshold=0), range(4))
        for found, wanted in zip(one_by_one, expected * 3, strict=True):
            assert_same(found, wanted)
        for several in lists:
            for found, wanted in zip(several, expected_list, strict=True):
                assert_same(found, wanted)


class Known(Detector):
    """Finds the same objects in every image, of three classes; the last one is not finite."""

    preprocessing = Preprocessing("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale=1.0)
    sizes = Multiples(32)
    num_classes = 3
    name = "known"
    boxes = ((1.0, 2.0, 30.0, 20.0), (-4.0, -4.0, 70.0, 60.0), (5.0, 5.0, 6.0, 6.0), (3.0, 3.0, float("nan"), 9.0))
    scores = (0.9, 0.5, 0.25, 0.95)
    labels = (0, 1, 2, 0)
    in_3d = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode(self, boxes: Any, labels: Any, input_size: Any, **extra: Any) -> Any:
        raise AssertionError("nothing is trained")

    def losses(self, outputs: Any, targets: Any) -> dict[str, torch.Tensor]:
        raise AssertionError("nothing is trained")

    def decode(self, outputs: torch.Tensor, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        box3d = torch.tensor([[5.0, 6.0, 9.0, 1.5, 1.6, 3.0, 0.5]] * 4) if self.in_3d else None
        found = Detections(torch.tensor(self.boxes), torch.tensor(self.scores), torch.tensor(self.labels), box3d=box3d)
        return [found for _ in outputs]


def knowing(run: Path, thresholds: Mapping[str, float] = {}, flags: tuple[str, ...] = ()) -> Predictor:
    trained: Trained = load(run, flags=["--data.input_size", "64", "64", *flags]).trained
    return Predictor(replace(trained, detector=Known().eval(), thresholds=thresholds))


def test_thresholds_are_the_users_the_runs_or_three_tenths(run: Path) -> None:
    image = photo(1, 64, 64)

    def kept(threshold: Any = None, thresholds: Mapping[str, float] = {}) -> list[str]:
        return knowing(run, thresholds).predict(image, threshold=threshold).class_names

    assert kept() == ["person", "dog"]
    assert kept(0) == kept(0.25) == ["person", "dog", "bottle"]
    assert kept(0.9000001) == []
    best = {"person": 0.95, "bottle": 0.2}
    assert kept(thresholds=best) == ["dog", "bottle"]
    assert kept({"person": 0.5}, best) == ["person", "dog", "bottle"]
    assert kept({"dog": np.float32(0.6)}, best) == ["bottle"]
    for wrong, message in (
        (1.5, r"threshold is 1.5 for person; give a number from 0 to 1\."),
        (float("nan"), r"threshold is nan for person"),
        ("0.5", r"threshold is '0.5' for person"),
        (True, r"threshold is True for person"),
        ({"dog": -1}, r"threshold is -1 for dog"),
        ({"persn": 0.5}, r"threshold has the class 'persn', .*; did you mean 'person'\?"),
        ({"zebra": 0.5}, r"'zebra', which the detector does not know; the classes are person, dog, bottle\."),
    ):
        with pytest.raises(ConfigError, match=message):
            kept(wrong)


def test_boxes_are_edges_in_the_upright_image_and_are_not_clipped(run: Path) -> None:
    image = photo(1, 64, 64)
    found = knowing(run).predict(image)
    assert_allclose(found.boxes, [[1, 2, 30, 20], [-4, -4, 70, 60]], atol=1e-5)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.labels.dtype == np.int64
    # As the authors of FCOS read COCO, a box ends on its last pixel.
    ends = knowing(run, flags=("--data.box_ends", "last_pixel")).predict(image)
    assert_allclose(ends.boxes, [[1, 2, 31, 21], [-4, -4, 71, 61]], atol=1e-5)


def test_objects_in_3d_are_those_of_an_evaluation(run: Path, pictures: tuple[list[Path], str]) -> None:
    files, location = pictures
    for heights in (False, True):
        predictor = knowing(run)
        predictor.trained.detector.in_3d = True
        predictor.trained.detector.needs = ("depth",)
        evaluation = replace(predictor.trained.recipe.evaluation, geometry="fixed", published_heights=heights)
        recipe = replace(predictor.trained.recipe, evaluation=evaluation)
        predictor = Predictor(replace(predictor.trained, recipe=recipe))
        found = predictor.predict(files, threshold=0)
        assert found[0].box3d is not None
        assert found[0].box3d.shape == (3, 7)
        theirs = evaluated(predictor, location)
        ours = [one for number, each in enumerate(found) for one in each.as_coco(number, CLASS_IDS)]
        order = {image_id: place for place, image_id in enumerate(_ids(location, "all-000000.tar"))}
        theirs = sorted(
            ({**one, "image_id": order[one["image_id"]]} for one in theirs), key=lambda one: one["image_id"]
        )
        assert ours == theirs
        assert {"center", "depth", "dimensions", "alpha"} <= ours[0].keys()


def test_mistakes_are_one_line(predictor: Predictor, run: Path, tmp_path: Path) -> None:
    image = photo(1)
    with pytest.raises(ConfigError, match=r"^batch_size is 0; give 1 or more\.$"):
        predictor.predict([image], batch_size=0)
    with pytest.raises(
        DetectorError, match=r"centernet_resnet18 has no test mode 'mirror', only none, flip, multiscale"
    ):
        predictor.predict(image, tta="mirror")
    with pytest.raises(ConfigError, match=r"^images\[1\] is an array of float64, 2 x 2 x 3; pixels have to be uint8"):
        predictor.predict([image, np.zeros((2, 2, 3))])
    with pytest.raises(DataError, match=r"^the image is neither a JPEG nor a PNG, but a GIF picture"):
        predictor.predict(b"GIF89a")
    with pytest.raises(DataError, match=r"^images\[2\] is neither a JPEG nor a PNG"):
        predictor.predict([image, image, b"nothing"])
    with pytest.raises(DataError, match=rf"^{tmp_path}/no\.jpg cannot be read \(No such file or directory\)\.$"):
        predictor.predict([image, tmp_path / "no.jpg"])
    with pytest.raises(ConfigError, match=r"device is 'gpu'; give cpu, cuda"):
        load(run, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device is 'cuda:1', but torch .* finds 0 GPUs here"):
            load(run, device="cuda:1")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        load(tmp_path)
    with pytest.raises(DetectorError, match=r"the input is 50 x 64 pixels"):
        load(run, flags=["--data.input_size", "50", "64"])


def test_a_predictor_says_what_it_is(predictor: Predictor, run: Path) -> None:
    assert repr(predictor) == (
        f"Predictor(centernet_resnet18 from {run}/checkpoints/step-00000007 on cpu; 3 classes: person, dog, bottle)"
    )


def test_three_lines_import_neither_ray_nor_mlflow(run: Path) -> None:
    code = f"""
import sys
import numpy as np
from pipelines import load
assert "torch" not in sys.modules
detector = load({str(run)!r})
found = detector.predict([np.zeros((48, 64, 3), np.uint8)] * 2, threshold=0, tta="flip")
assert len(found) == 2 and found[0].as_coco(1, [1, 18, 44])
heavy = ("ray", "mlflow", "deepspeed", "webdataset", "pycocotools", "matplotlib", "boto3", "pandas")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
