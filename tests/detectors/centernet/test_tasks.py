"""Pose and 3D, whole and narrow: a batch is its images one by one, and saving keeps the output."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import detectors
from detectors import Detector
from detectors.weights import published
from detectors.weights.save import save_as

NARROW: dict[str, tuple[dict[str, object], tuple[int, int]]] = {
    "centernet_dla34_pose": ({"width": 4, "head_channels": 8}, (64, 96)),
    "centernet_hourglass104_pose": ({"width": 8}, (128, 128)),
    "centernet_dla34_3d": ({"width": 4, "head_channels": 8}, (64, 96)),
}


def warmed_up(name: str, seed: int = 0) -> tuple[Detector, torch.Tensor]:
    settings, (height, width) = NARROW[name]
    torch.manual_seed(seed)
    detector = detectors.build(name, **settings)
    images = torch.randn(3, 3, height, width)
    with torch.no_grad():
        detector(images)  # batch statistics that are not the initial ones
    return detector.eval(), images


@pytest.mark.parametrize("name", NARROW)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    detector, images = warmed_up(name)
    size = (images.shape[2], images.shape[3])
    with torch.no_grad():
        together = detector(images)
        alone = [detector(image[None]) for image in images]
    for head, values in together[-1].items():
        assert values.dtype == torch.float32
        assert_close(values, torch.cat([maps[-1][head] for maps in alone]), rtol=1e-4, atol=1e-5)
    for image, found in enumerate(detector.decode(together, size, limit=10)):
        single = detector.decode([{head: maps[image : image + 1] for head, maps in together[-1].items()}], size, 10)[0]
        for field in ("boxes", "scores", "labels", "keypoints", "box3d"):
            assert_close(getattr(found, field), getattr(single, field), rtol=0, atol=0)


@pytest.mark.parametrize("name", NARROW)
def test_the_authors_file_of_it_gives_the_same_output(name: str, tmp_path: Path) -> None:
    detector, images = warmed_up(name)
    exported = save_as(detector, tmp_path / "model.pth")
    assert exported.written == {key: key for key in detector.state_dict()}
    again, _ = warmed_up(name, seed=1)
    receipt = published.load(again, tmp_path / "model.pth")
    assert not receipt.missing
    assert receipt.skipped == {"epoch": "beside 'state_dict': not a weight"}
    with torch.no_grad():
        for head, values in detector(images)[-1].items():
            assert torch.equal(values, again(images)[-1][head])


def test_the_detector_of_boxes_starts_the_one_of_pose(tmp_path: Path) -> None:
    """The published poses start so: only the heatmap of 80 classes is another."""
    settings, _ = NARROW["centernet_dla34_pose"]
    of_boxes = detectors.build("centernet_dla34", **settings)
    save_as(of_boxes, tmp_path / "ctdet_coco_dla_2x.pth")
    pose = detectors.build("centernet_dla34_pose", **settings)
    with pytest.raises(detectors.DetectorError, match="trained on 80 classes, the detector has 1"):
        published.load(pose, tmp_path / "ctdet_coco_dla_2x.pth")
    receipt = published.load(pose, tmp_path / "ctdet_coco_dla_2x.pth", skip_mismatched=True)
    anew = {key for key, reason in receipt.missing.items() if reason == "another shape in the file"}
    assert anew == {"hm.2.weight", "hm.2.bias"}
    assert {key.split(".")[0] for key in receipt.missing} == {"hm", "hps", "hm_hp", "hp_offset"}
