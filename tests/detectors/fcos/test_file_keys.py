"""Files of the authors, AdelaiDet, mmdetection, torchvision and ImageNet, made here with the published keys."""

import json
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import detectors
from detectors import Detector, DetectorError
from detectors.fcos.file_keys import COCO_CATEGORY_IDS
from detectors.weights import published
from detectors.weights.published import Receipt
from detectors.weights.save import save_as

LAYOUTS = Path(__file__).parents[1] / "layouts"


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


@cache
def of_variant(variant: str) -> Detector:
    """One for all tests, which reset it."""
    return detectors.build("fcos_resnet50", variant=variant)


def reset(detector: Detector) -> Detector:
    with torch.no_grad():
        for value in detector.state_dict().values():
            value.fill_(5)
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


LIBRARIES = (
    ("fcos_r50_adelaidet", "adelaidet"),
    ("fcos_r50_mmdet", "mmdetection"),
    ("fcos_r50_mmdet_base", "mmdetection_base"),
)


@pytest.mark.parametrize(("layout", "variant"), LIBRARIES)
def test_a_librarys_file_belongs_to_its_variant_and_loads_into_others_with_a_note(
    layout: str, variant: str, tmp_path: Path
) -> None:
    weights = layout_file(layout, tmp_path / "w.pth")
    own = reset(of_variant(variant))
    receipt = published.load(own, tmp_path / "w.pth")
    assert_whole(receipt, own, weights, ("num_batches_tracked",))
    assert not receipt.notes
    assert not receipt.missing
    # The library's epsilon is this variant's, so that nothing is adjusted but the shape of the scales.
    assert all(key.startswith("rpn.head.scales.") for key in receipt.adjusted)
    library = "AdelaiDet" if variant == "adelaidet" else "mmdetection"
    assert f"library  {library}, variant {variant}" in receipt.summary().splitlines()
    # Keys tell the library, and those of the small tensors are enough.
    torch.save(
        {key: value for key, value in weights.items() if "_head." in key and value.ndim == 1}, tmp_path / "w.pth"
    )
    for other in sorted({"original", "improved", "adelaidet", "mmdetection"} - {variant}):
        receipt = published.load(of_variant(other), tmp_path / "w.pth")
        assert receipt.summary().splitlines()[-1] == (
            f'note  the file is of {library}, which computes variant="{variant}" with these weights; this detector has '
            f'variant="{other}". For the published results, set --detector.settings.variant {variant}'
        )
        assert receipt.variant == variant
        assert published.variant_of(of_variant(other), tmp_path / "w.pth") == variant
        # What differs is listed for the authors' variants.
        assert bool(receipt.published_with) == (other in ("original", "improved"))


def test_biased_towers_do_not_fit_mmdetections_base(tmp_path: Path) -> None:
    for layout, library, variant in (
        ("fcos_r50_adelaidet", "AdelaiDet", '"adelaidet"'),
        ("fcos_r50_mmdet", "mmdetection", '"mmdetection"'),
        ("fcos_r50_tianzhi", "FCOS's authors", '"original" or "improved"'),
    ):
        layout_file(layout, tmp_path / "w.pth")
        with pytest.raises(DetectorError) as error:
            published.load(of_variant("mmdetection_base"), tmp_path / "w.pth")
        assert str(error.value) == (
            f"{tmp_path / 'w.pth'} does not fit this fcos_resnet50: it is of {library}; its towers have biases, which "
            f'variant="mmdetection_base" lacks. Build the detector with variant={variant}.'
        )


def test_files_of_the_authors_tell_no_variant(tmp_path: Path) -> None:
    layout_file("fcos_r50_tianzhi", tmp_path / "w.pth")
    assert published.variant_of(of_variant("original"), tmp_path / "w.pth") == ""
    receipt = published.load(reset(of_variant("adelaidet")), tmp_path / "w.pth")
    assert receipt.notes == [
        'the file is of FCOS\'s authors, which computes variant="original" or variant="improved" with these weights; '
        'this detector has variant="adelaidet". For the published results, set that variant'
    ]
    layout_file("fcos_r50_torchvision", tmp_path / "tv.pth")
    assert published.variant_of(of_variant("original"), tmp_path / "tv.pth") == "torchvision"


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


CAFFE_NAMES = {  # of each part of a bottleneck: its convolution, and scale and shift of its norm
    "conv1": "branch2a",
    "conv2": "branch2b",
    "conv3": "branch2c",
    "downsample.0": "branch1",
}


def caffe_file(path: Path) -> dict[str, np.ndarray]:
    """Detectron's R-50.pkl, by the shapes of torchvision's ResNet-50; every array with a number of its own."""
    arrays: dict[str, np.ndarray] = {}
    for key, shape, _ in json.loads((LAYOUTS / "resnet50_torchvision.json").read_text()):
        stage, _, rest = key.partition(".")
        if stage == "conv1":
            arrays |= {"conv1_w": np.zeros(shape), "res_conv1_bn_s": np.zeros(64), "res_conv1_bn_b": np.zeros(64)}
        elif stage.startswith("layer") and key.endswith("weight") and len(shape) == 4:
            block, part = rest.split(".", 1)
            name = f"res{int(stage[5]) + 1}_{block}_{CAFFE_NAMES[part.removesuffix('.weight')]}"
            arrays |= {f"{name}_w": np.zeros(shape), f"{name}_bn_s": np.zeros(shape[0])}
            arrays |= {f"{name}_bn_b": np.zeros(shape[0]), f"{name}_w_momentum": np.zeros(shape)}
    arrays |= {"conv1_b": np.zeros(64), "fc1000_w": np.zeros((1000, 2048)), "fc1000_b": np.zeros(1000)}
    for number, (key, value) in enumerate(arrays.items()):
        arrays[key] = (value + 1 + number % 97).astype(np.float32)
    path.write_bytes(pickle.dumps({"blobs": arrays}, protocol=2))
    return arrays


def test_detectrons_imagenet_file_loads_into_the_trunk(authors: Detector, tmp_path: Path) -> None:
    arrays = caffe_file(tmp_path / "R-50.pkl")
    receipt = published.load(reset(authors), tmp_path / "R-50.pkl")
    assert sorted([*receipt.renamed, *receipt.skipped]) == sorted(arrays)
    assert len(receipt.renamed) == 159  # 53 convolutions, each with scale and shift
    assert all(key.endswith("_momentum") or key.startswith(("fc1000", "conv1_b")) for key in receipt.skipped)
    state = authors.state_dict()
    for theirs, ours in {
        "res_conv1_bn_s": "stem.bn1.weight",
        "res2_0_branch1_w": "layer1.0.downsample.0.weight",
        "res2_0_branch1_bn_b": "layer1.0.downsample.1.bias",
        "res4_5_branch2c_bn_s": "layer3.5.bn3.weight",
        "res5_2_branch2a_w": "layer4.2.conv1.weight",
    }.items():
        assert receipt.renamed[theirs] == f"backbone.body.{ours}"
        assert state[f"backbone.body.{ours}"].eq(float(arrays[theirs].flat[0])).all()
    # Statistics are folded into scale and shift: nothing of what stood there before may stay.
    assert state["backbone.body.layer3.5.bn3.running_mean"].eq(0).all()
    assert state["backbone.body.layer3.5.bn3.running_var"].eq(1).all()
    assert receipt.missing["backbone.body.stem.bn1.running_var"] == "Detectron does without it; set to 1"


def test_folded_norms_stay_the_identity_where_the_norm_has_an_epsilon(tmp_path: Path) -> None:
    caffe_file(tmp_path / "R-50.pkl")
    for variant in ("adelaidet", "mmdetection", "mmdetection_base"):
        detector = reset(of_variant(variant))
        published.load(detector, tmp_path / "R-50.pkl")
        norm = detector.get_submodule("backbone.body.layer3.5.bn3")
        assert torch.equal((norm.running_var + norm.eps).rsqrt(), torch.ones(1024))


def test_detectron2s_converted_imagenet_file_loads_into_the_trunk(authors: Detector, tmp_path: Path) -> None:
    weights = layout_file("fcos_r50_adelaidet", tmp_path / "whole.pth")
    start = "backbone.bottom_up."
    trunk = {key.removeprefix(start): value.numpy() for key, value in weights.items() if key.startswith(start)}
    content = {"model": trunk, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    receipt = published.load(reset(authors), tmp_path / "R-50.pkl")
    assert len(receipt.renamed) == len(trunk) == 265
    assert not any(key.startswith("backbone.body.") for key in receipt.missing)
    assert receipt.skipped.keys() == {"__author__", "matching_heuristics"}


@pytest.mark.parametrize(
    ("variant", "library", "layout"),
    [
        ("improved", "authors", "fcos_r50_tianzhi"),
        ("improved", "adelaidet", "fcos_r50_adelaidet"),
        ("improved", "mmdetection", "fcos_r50_mmdet"),
        ("original", "authors", "fcos_r50_tianzhi"),
        ("original", "mmdetection", "fcos_r50_mmdet_base"),
        ("adelaidet", "adelaidet", "fcos_r50_adelaidet"),
        ("mmdetection", "mmdetection", "fcos_r50_mmdet"),
        ("mmdetection_base", "mmdetection", "fcos_r50_mmdet_base"),
        ("torchvision", "torchvision", "fcos_r50_torchvision"),
    ],
)
def test_what_a_library_wrote_is_written_back_as_it_was(
    variant: str, library: str, layout: str, tmp_path: Path
) -> None:
    weights = layout_file(layout, tmp_path / "theirs.pth")
    detector = reset(of_variant(variant))
    published.load(detector, tmp_path / "theirs.pth")
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    exported = save_as(detector, tmp_path / "back.pth", library)
    assert sorted([*exported.written, *exported.left_out]) == sorted(detector.state_dict())
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    wrapper = {"torchvision": None, "mmdetection": "state_dict"}.get(library, "model")
    back = content if wrapper is None else content[wrapper]
    assert back.keys() == weights.keys()
    if variant == "mmdetection_base":
        assert not exported.left_out
    for key, value in weights.items():
        assert back[key].shape == value.shape, key
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(back[key], value, rtol=2e-7, atol=0, msg=key)
    published.load(reset(detector), tmp_path / "back.pth")
    for key, value in detector.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=2e-7, atol=0, msg=key)


def test_biases_that_are_not_0_are_written_beside_mmdetections_base(tmp_path: Path) -> None:
    detector = reset(of_variant("original"))
    with torch.no_grad():
        detector.get_parameter("rpn.head.cls_tower.3.bias").fill_(0.5)
    exported = save_as(detector, tmp_path / "back.pth", "mmdetection")
    assert not exported.left_out
    entries = json.loads((LAYOUTS / "fcos_r50_mmdet.json").read_text())
    assert torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"].keys() == {key for key, *_ in entries}


def test_what_a_library_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    original = of_variant("original")
    with pytest.raises(DetectorError, match="cannot be written as 'adelaidet'; known are authors, mmdetection"):
        save_as(original, tmp_path / "back.pth", "adelaidet")
    with torch.no_grad():
        original.get_buffer("backbone.body.layer2.1.bn2.running_var").fill_(2e-6)
    with pytest.raises(
        DetectorError, match=r"layer2.1.bn2.running_var has a variance of 2e-06, to which mmdetection adds"
    ):
        save_as(original, tmp_path / "back.pth", "mmdetection")
    assert not list(tmp_path.iterdir())
    save_as(original, tmp_path / "back.pth", "authors")
    (tmp_path / "file").write_text("")
    with pytest.raises(DetectorError, match="cannot be written"):
        save_as(original, tmp_path / "file" / "back.pth", "authors")
