"""Files of the authors, AdelaiDet, mmdetection, torchvision and ImageNet, made here with the published keys."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import detectors
from detectors import Detector, DetectorError, published
from detectors.fcos_files import COCO_CATEGORY_IDS
from detectors.published import Receipt

LAYOUTS = Path(__file__).parent / "layouts"


def layout_file(name: str, path: Path) -> dict[str, Tensor]:
    """Every tensor filled with a number of its own, saved as that library saves."""
    entries = json.loads((LAYOUTS / f"{name}.json").read_text())
    weights = {
        key: torch.full(shape, 1 + index % 97, dtype=getattr(torch, dtype))
        for index, (key, shape, dtype) in enumerate(entries)
    }
    torch.save({"model": weights, "iteration": 90000} if "tianzhi" in name or "adel" in name else weights, path)
    return weights


@pytest.fixture(scope="module")
def authors() -> Detector:
    return detectors.build("fcos_resnet50", variant="improved")


def reset(detector: Detector) -> Detector:
    with torch.no_grad():
        for value in detector.state_dict().values():
            value.fill_(-5)
    return detector


def assert_whole(
    receipt: Receipt, detector: Detector, weights: dict[str, Tensor], skipped_ends: tuple[str, ...]
) -> None:
    assert all(key.endswith((*skipped_ends, "iteration")) for key in receipt.skipped), receipt.skipped
    state = detector.state_dict()
    pairs = {**{key: key for key in receipt.loaded}, **receipt.renamed}
    assert sorted([*pairs, *receipt.skipped]) == sorted({*weights, *(k for k in receipt.skipped if k == "iteration")})
    assert sorted([*pairs.values(), *receipt.missing]) == sorted(state)
    for theirs, ours in pairs.items():
        shift = 1e-5 if ours in receipt.adjusted and ours.endswith("running_var") else 0.0
        torch.testing.assert_close(state[ours].flatten(), weights[theirs].flatten() + shift, rtol=0, atol=2e-7)


def test_the_authors_file(authors: Detector, tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_tianzhi", tmp_path / "w.pth")
    receipt = published.load(reset(authors), tmp_path / "w.pth")
    assert_whole(receipt, authors, weights, ())
    assert len(receipt.renamed) == 324
    assert not receipt.missing
    assert not receipt.adjusted


def test_adelaidets_file(authors: Detector, tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_adelaidet", tmp_path / "w.pth")
    receipt = published.load(reset(authors), tmp_path / "w.pth")
    assert_whole(receipt, authors, weights, ())
    assert len(receipt.renamed) == 324
    assert receipt.renamed["proposal_generator.fcos_head.ctrness.bias"] == "rpn.head.centerness.bias"
    assert receipt.renamed["backbone.fpn_lateral5.weight"] == "backbone.fpn.fpn_inner4.weight"
    theirs = "backbone.bottom_up.res4.0.shortcut.norm.running_var"
    assert receipt.renamed[theirs] == "backbone.body.layer3.0.downsample.1.running_var"
    assert set(receipt.adjusted.values()) == {"+1e-05: the file's batch norm has another epsilon"}
    assert len(receipt.adjusted) == 53  # norms of a ResNet-50
    assert "adjusted  backbone.body." in receipt.summary()


def test_mmdetections_file(authors: Detector, tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_mmdet", tmp_path / "w.pth")
    receipt = published.load(reset(authors), tmp_path / "w.pth")
    assert_whole(receipt, authors, weights, ("num_batches_tracked",))
    assert not receipt.missing
    assert len(receipt.renamed) == 324
    assert receipt.renamed["neck.fpn_convs.4.conv.bias"] == "backbone.fpn.top_blocks.p7.bias"
    assert receipt.renamed["bbox_head.reg_convs.2.gn.weight"] == "rpn.head.bbox_tower.7.weight"
    assert receipt.adjusted["rpn.head.scales.0.scale"] == "a single number in the file, 1 in the detector"


def test_mmdetections_base_file_has_no_biases_in_its_towers(authors: Detector, tmp_path: Path) -> None:
    layout_file("fcos_r50_mmdet_base", tmp_path / "w.pth")
    receipt = published.load(reset(authors), tmp_path / "w.pth")
    expected = {f"rpn.head.{tower}_tower.{i}.bias" for tower in ("cls", "bbox") for i in (0, 3, 6, 9)}
    assert receipt.missing == dict.fromkeys(expected, "mmdetection does without it; set to 0")
    for key in expected:
        assert not authors.state_dict()[key].any()


def test_mmdetections_early_names(authors: Detector, tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_mmdet", tmp_path / "new.pth")
    early = {key.replace("bbox_head.conv_", "bbox_head.fcos_"): value for key, value in weights.items()}
    torch.save({"state_dict": early, "meta": {"epoch": 12}}, tmp_path / "old.pth")
    receipt = published.load(reset(authors), tmp_path / "old.pth")
    assert receipt.renamed["bbox_head.fcos_centerness.weight"] == "rpn.head.centerness.weight"
    assert not receipt.missing


def test_torchvisions_file(tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_torchvision", tmp_path / "w.pth")
    detector = detectors.build("fcos_resnet50", variant="torchvision")
    receipt = published.load(reset(detector), tmp_path / "w.pth")
    assert_whole(receipt, detector, weights, ())
    assert len(receipt.loaded) == 319
    assert not receipt.adjusted


def test_torchvisions_file_for_the_80_classes_in_use(tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_torchvision", tmp_path / "w.pth")
    bias = "head.classification_head.cls_logits.bias"
    weights[bias] = torch.arange(91.0)
    torch.save(weights, tmp_path / "w.pth")
    detector = detectors.build("fcos_resnet50", 80, variant="torchvision")
    receipt = published.load(detector, tmp_path / "w.pth")
    assert receipt.adjusted[bias] == "80 of the file's 91 rows: the classes in use"
    rows = detector.state_dict()[bias].int().tolist()
    assert rows == list(COCO_CATEGORY_IDS)
    # person, train, hair drier's neighbour and toothbrush in the official list.
    assert (len(rows), rows[0], rows[6], rows[11], rows[79]) == (80, 1, 7, 13, 90)


def test_kin_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        authors = detectors.build("fcos_resnet50")
        torchvision = detectors.build("fcos_resnet50", variant="torchvision")
    torch.save({"head.classification_head.conv.0.bias": torch.ones(2)}, tmp_path / "tv.pth")
    with pytest.raises(DetectorError, match=r"it is of torchvision; .*variant=\"torchvision\""):
        published.load(authors, tmp_path / "tv.pth")
    torch.save({"model": {"module.rpn.head.cls_logits.bias": torch.ones(2)}}, tmp_path / "authors.pth")
    with pytest.raises(DetectorError, match=r"it is of FCOS's authors; .*variant=\"original\" or \"improved\""):
        published.load(torchvision, tmp_path / "authors.pth")


def test_another_number_of_classes_is_named(authors: Detector, tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_mmdet", tmp_path / "w.pth")
    weights["bbox_head.conv_cls.weight"] = torch.ones(5, 256, 3, 3)
    weights["bbox_head.conv_cls.bias"] = torch.ones(5)
    torch.save(weights, tmp_path / "five.pth")
    with pytest.raises(DetectorError, match=r"cls_logits.weight is 5x256x3x3 .* the file was trained on 5 classes"):
        published.load(authors, tmp_path / "five.pth")


@pytest.mark.parametrize("variant", ["original", "torchvision"])
def test_an_imagenet_file_loads_into_the_trunk(variant: str, tmp_path: Path) -> None:
    layout_file("resnet50_torchvision", tmp_path / "resnet50.pth")
    detector = reset(detectors.build("fcos_resnet50", 3, variant=variant, channels=64))
    receipt = published.load(detector, tmp_path / "resnet50.pth")
    assert len(receipt.renamed) == 265  # 53 convolutions, each with four tensors of its norm
    assert all(key.startswith("fc.") or key.endswith("num_batches_tracked") for key in receipt.skipped)
    assert not any(key.startswith("backbone.body.") for key in receipt.missing)
    stem = "backbone.body.conv1.weight" if variant == "torchvision" else "backbone.body.stem.conv1.weight"
    assert detector.state_dict()[stem].eq(1).all()
