"""Starting from weights of another class list: rows of classes with the same name are copied, the others start anew."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import detectors
from detectors import Detector, DetectorError
from detectors.weights import published
from detectors.weights.class_rows import COCO_CLASSES, ClassRows

NARROW = {"width": 8, "deconv_channels": (8, 8, 8), "head_channels": 8}


def centernet(num_classes: int) -> Detector:
    torch.manual_seed(num_classes)
    return detectors.build("centernet_resnet18", num_classes, **NARROW)


def numbered(detector: Detector) -> dict[str, Tensor]:
    """Weights in which row r of a layer that counts classes is r + 1 everywhere, and all else is 0.5."""
    weights = {}
    for name, value in detector.state_dict().items():
        weights[name] = torch.full_like(value, 0.5) if value.is_floating_point() else value.clone()
        if name.rpartition(".")[0] in detector.published.class_layers:
            rows = torch.arange(1.0, len(value) + 1).view(-1, *[1] * (value.dim() - 1))
            weights[name] = rows.expand_as(value).contiguous()
    return weights


def loaded(
    ours: Detector, path: Path, weights: dict[str, Tensor], names: tuple[str, ...], theirs: tuple[str, ...] = ()
) -> published.Receipt:
    save_file(weights, path)
    return published.load(ours, path, class_names=names, class_names_of_file=theirs)


def test_rows_of_classes_with_the_same_name_are_copied_from_coco(tmp_path: Path) -> None:
    ours = centernet(4)
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    names = ("Traffic-Light", "jellyfish", "person", "hot_dog")
    receipt = loaded(ours, tmp_path / "coco.safetensors", numbered(centernet(80)), names)
    after = ours.state_dict()
    for layer in ("hm.2.weight", "hm.2.bias"):
        assert after[layer][0].eq(10).all()
        assert torch.equal(after[layer][1], start[layer][1])
        assert after[layer][2].eq(1).all()
        assert after[layer][3].eq(53).all()
    assert after["hm.0.weight"].eq(0.5).all()
    assert receipt.matched_classes == {"Traffic-Light": "traffic light", "person": "person", "hot_dog": "hot dog"}
    assert receipt.new_classes == ["jellyfish"]
    assert receipt.adjusted == dict.fromkeys(
        ("hm.2.weight", "hm.2.bias"), "only the rows of classes with the same name"
    )
    assert not receipt.skipped
    assert not receipt.missing
    assert receipt.summary().splitlines()[-2:] == [
        "classes  copied: Traffic-Light, person, hot_dog (the file's class list is COCO's, since it has 80)",
        "classes  new, from random weights: jellyfish",
    ]


def test_a_list_of_the_same_length_in_another_order_is_matched_too(tmp_path: Path) -> None:
    ours = centernet(3)
    start = ours.state_dict()["hm.2.weight"].clone()
    names, theirs = ("cell", "platelet", "worm"), ("platelet", "egg", "cell")
    receipt = loaded(ours, tmp_path / "w.safetensors", numbered(centernet(3)), names, theirs)
    weight = ours.state_dict()["hm.2.weight"]
    assert weight[0].eq(3).all()
    assert weight[1].eq(1).all()
    assert torch.equal(weight[2], start[2])
    assert receipt.class_source == "its own"


def test_without_names_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    ours, weights = centernet(3), numbered(centernet(3))
    save_file(weights, tmp_path / "w.safetensors")
    receipt = published.load(ours, tmp_path / "w.safetensors")
    assert torch.equal(ours.state_dict()["hm.2.weight"], weights["hm.2.weight"])
    assert receipt.class_source == ""


@pytest.mark.parametrize("num_classes", [3, 80])
def test_torchvisions_rows_are_category_ids(tmp_path: Path, num_classes: int) -> None:
    narrow = {"variant": "torchvision", "width": 8, "channels": 64}
    ours = detectors.build("fcos_resnet50", num_classes, **narrow)
    weights = numbered(detectors.build("fcos_resnet50", 91, **narrow))
    names = ("toothbrush", "stop sign", *(f"class {number}" for number in range(2, num_classes)))
    loaded(ours, tmp_path / "torchvision.safetensors", weights, names)
    bias = ours.state_dict()["head.classification_head.cls_logits.bias"]
    assert bias[:2].tolist() == [91, 14]
    assert bias[2:].lt(0).all()


def test_every_class_layer_of_every_detector_is_matched(tmp_path: Path) -> None:
    for name in ("cornernet_hourglass104", "cornernet_saccade", "foveabox_resnet50", "centernet_dla34"):
        settings = {"width": 8, "channels": 32} if "fovea" in name else {"width": 8}
        ours = detectors.build(name, 2, **settings)
        receipt = loaded(
            ours, tmp_path / "w.safetensors", numbered(detectors.build(name, 80, **settings)), ("zebra", "tooth")
        )
        for layer in ours.published.class_layers:
            for part in ("weight", "bias"):
                assert ours.state_dict()[f"{layer}.{part}"][0].eq(23).all()
                assert not ours.state_dict()[f"{layer}.{part}"][1].eq(24).any()
        assert not receipt.missing


def test_mmdetections_own_list_counts(tmp_path: Path) -> None:
    ours, weights = centernet(2), numbered(centernet(3))
    for meta in ({"CLASSES": ("a", "b", "c")}, {"dataset_meta": {"classes": ["a", "b", "c"]}}):
        torch.save({"meta": meta, "state_dict": weights}, tmp_path / "epoch_12.pth")
        receipt = published.load(ours, tmp_path / "epoch_12.pth", class_names=("c", "a"))
        assert ours.state_dict()["hm.2.bias"].tolist() == [3, 1]
        assert receipt.matched_classes == {"c": "c", "a": "a"}


def test_an_unknown_list_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    ours = centernet(2)
    before = ours.state_dict()["hm.0.weight"].clone()
    path = tmp_path / "seven.safetensors"
    with pytest.raises(DetectorError) as refusal:
        loaded(ours, path, numbered(centernet(7)), ("a", "b"))
    assert str(refusal.value) == (
        f"{path} has 7 classes and does not name them, so that none can be matched. Set detector.skip_mismatched "
        "instead of detector.match_classes, which trains the class layers from random weights."
    )
    with pytest.raises(DetectorError, match=r"seven.safetensors names 2 classes, but its layers have 7\. "):
        loaded(ours, path, numbered(centernet(7)), ("a", "b"), ("a", "b"))
    assert torch.equal(ours.state_dict()["hm.0.weight"], before)


def test_layers_of_another_width_are_still_refused(tmp_path: Path) -> None:
    wide = detectors.build("centernet_resnet18", 80, **(NARROW | {"head_channels": 16}))
    with pytest.raises(DetectorError, match="choose the detector and settings that the file was saved with"):
        loaded(centernet(2), tmp_path / "w.safetensors", numbered(wide), ("person", "car"))


def test_a_file_of_the_trunk_alone_says_that_nothing_was_matched(tmp_path: Path) -> None:
    trunk = {name: value for name, value in numbered(centernet(3)).items() if name.startswith(("conv1", "layer"))}
    receipt = loaded(centernet(2), tmp_path / "trunk.safetensors", trunk, ("person", "car"))
    assert receipt.notes == ["no class was matched, because the file has no layer that fits those of classes"]


def test_the_first_of_equal_names_counts_and_equal_names_here_all_get_its_row() -> None:
    rows = ClassRows(("Car", "car "), ("bus", "car", "CAR"), Path("w"))
    copied = rows.copied(torch.tensor([1.0, 2, 3]), torch.zeros(2))
    assert copied is not None
    assert copied.tolist() == [2, 2]


def test_cocos_classes() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert COCO_CLASSES[:3] == ("person", "bicycle", "car")
    assert COCO_CLASSES[11] == "stop sign"
