"""Files of the authors, mmdetection and ImageNet, made here with the published keys."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import detectors
from detectors import Detector, DetectorError
from detectors.weights import published
from detectors.weights.save import save_as

LAYOUTS = Path(__file__).parents[1] / "layouts"


def layout_weights(name: str) -> dict[str, Tensor]:
    """Every tensor filled with a number of its own."""
    entries = json.loads((LAYOUTS / f"{name}.json").read_text())
    return {
        key: torch.full(shape, 1 + index % 97, dtype=getattr(torch, dtype))
        for index, (key, shape, dtype) in enumerate(entries)
    }


@cache
def foveabox(num_classes: int = 80) -> Detector:
    """One for all tests, which reset it."""
    return detectors.build("foveabox_resnet50", num_classes)


def reset(detector: Detector) -> Detector:
    with torch.no_grad():
        for value in detector.state_dict().values():
            value.fill_(5)
    return detector


def test_mmdetections_file(tmp_path: Path) -> None:
    weights = layout_weights("fovea_r50_mmdet")
    torch.save({"state_dict": weights, "meta": {"epoch": 12}}, tmp_path / "w.pth")
    receipt = published.load(reset(foveabox()), tmp_path / "w.pth")
    assert len(receipt.loaded) == 354
    assert not receipt.missing
    assert not receipt.adjusted
    for key, value in foveabox().state_dict().items():
        assert torch.equal(value, weights[key])


def test_early_names(tmp_path: Path) -> None:
    weights = layout_weights("fovea_r50_mmdet_early_names")
    torch.save({"state_dict": weights, "meta": {"epoch": 12}, "optimizer": {}}, tmp_path / "w.pth")
    receipt = published.load(reset(foveabox()), tmp_path / "w.pth")
    assert len(receipt.loaded) == 350
    assert receipt.renamed == {
        f"bbox_head.fovea_{kind}.{part}": f"bbox_head.conv_{kind}.{part}"
        for kind in ("reg", "cls")
        for part in ("weight", "bias")
    }
    assert not receipt.missing
    assert receipt.library == "FoveaBox's authors, or an early mmdetection"
    assert "--data.box_ends edge --detector.settings.box_ends edge" in receipt.published_with[0]
    assert torch.equal(foveabox().state_dict()["bbox_head.conv_cls.bias"], weights["bbox_head.fovea_cls.bias"])


def test_other_classes_are_refused_or_left_out(tmp_path: Path) -> None:
    torch.save(layout_weights("fovea_r50_mmdet_early_names"), tmp_path / "w.pth")
    with pytest.raises(DetectorError, match="the file was trained on 80 classes, the detector has 3"):
        published.load(foveabox(3), tmp_path / "w.pth")
    receipt = published.load(foveabox(3), tmp_path / "w.pth", skip_mismatched=True)
    assert set(receipt.missing) == {"bbox_head.conv_cls.weight", "bbox_head.conv_cls.bias"}


def test_a_file_with_alignment_is_refused_without(tmp_path: Path) -> None:
    aligned = detectors.build("foveabox_resnet50", align=True)
    torch.save(aligned.state_dict(), tmp_path / "w.pth")
    with pytest.raises(DetectorError, match="choose the detector and settings that the file was saved with"):
        published.load(foveabox(), tmp_path / "w.pth")


def test_mmdetections_fcos_is_refused(tmp_path: Path) -> None:
    torch.save(layout_weights("fcos_r50_mmdet"), tmp_path / "w.pth")
    with pytest.raises(DetectorError, match=r"it is an FCOS, whose head .* Build the detector fcos_resnet50 or"):
        published.load(foveabox(), tmp_path / "w.pth")


@pytest.mark.parametrize("counted", [True, False])
def test_imagenets_file_with_and_without_counters(counted: bool, tmp_path: Path) -> None:
    weights = layout_weights("resnet50_torchvision")
    if not counted:
        weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "w.pth")
    receipt = published.load(reset(foveabox()), tmp_path / "w.pth")
    assert set(receipt.skipped) == {"fc.weight", "fc.bias"}
    missing = [key for key in receipt.missing if not key.startswith(("neck.", "bbox_head."))]
    assert len(missing) == (0 if counted else 53)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    own = foveabox().state_dict()["backbone.layer3.5.bn2.running_var"]
    assert torch.equal(own, weights["layer3.5.bn2.running_var"])


@pytest.mark.parametrize(
    ("library", "layout"), [("authors", "fovea_r50_mmdet_early_names"), ("mmdetection", "fovea_r50_mmdet")]
)
def test_exports_have_the_published_keys_and_return_the_same_weights(library: str, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    detector = detectors.build("foveabox_resnet50")
    exported = save_as(detector, tmp_path / "w.pth", library)
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    assert content["meta"] == {}
    written = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in content["state_dict"].items()
    ]
    assert written == json.loads((LAYOUTS / f"{layout}.json").read_text())
    assert not exported.left_out
    receipt = published.load(reset(foveabox()), tmp_path / "w.pth")
    assert not receipt.missing
    for key, value in detector.state_dict().items():
        assert torch.equal(foveabox().state_dict()[key], value)
