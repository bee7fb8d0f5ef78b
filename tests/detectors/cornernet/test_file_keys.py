"""Weights of the CornerNet family from their authors' files, and written for their authors' code."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import detectors
from detectors.weights import published, save
from tests.detectors.cornernet.owners import NETWORKS, owner

LAYOUTS = Path(__file__).parents[1] / "layouts"
LAYOUT_OF = {
    "cornernet": "cornernet",
    "squeeze": "cornernet_squeeze",
    "saccade": "cornernet_saccade",
    "triplets_104": "centernet_triplets_104",
    "triplets_52": "centernet_triplets_52",
}
LIBRARY = {
    "cornernet": "CornerNet's authors",
    "squeeze": "CornerNet-Squeeze's authors",
    "saccade": "CornerNet-Saccade's authors",
    "triplets_104": "Keypoint Triplets' authors",
    "triplets_52": "Keypoint Triplets' authors",
}


def keys_of(layout: str) -> list[str]:
    return [key for key, _, _ in json.loads((LAYOUTS / f"{layout}.json").read_text())]


def authors_file(name: str, path: Path, num_classes: int = 3) -> dict[str, Tensor]:
    """A narrow network's state dict under the published keys; every number differs from those of a fresh network."""
    torch.manual_seed(1)
    state = owner(name, num_classes, width=8).state_dict()
    keys = keys_of(LAYOUT_OF[name])
    file = {key: value + 1 for key, value in zip(keys, state.values(), strict=True)}
    torch.save(file, path)
    return file


def lite_port(path: Path) -> Mapping[str, Tensor]:
    """Weights of CornerNet under the keys of CornerNet-Lite's port, in that file's order."""
    theirs = keys_of("cornernet_lite_port")
    ours = keys_of("cornernet")
    torch.manual_seed(1)
    state = {f"module.{key}": value + 1 for key, value in owner("cornernet", 3, width=8).state_dict().items()}
    assert list(state) == ours

    def own(key: str) -> str:
        """The renaming, one word after the other."""
        words = key.split(".")
        if words[1] == "hg":
            del words[1]
        renamed = {"hgs": "kps", "tl_modules": "tl_cnvs", "br_modules": "br_cnvs"}
        renamed |= {"tl_offs": "tl_regrs", "br_offs": "br_regrs"}
        words[1] = renamed.get(words[1], words[1])
        return ".".join(words)

    file = {key: state[own(key)] for key in theirs}
    assert len(file) == len(ours)
    torch.save(file, path)
    return {own(key).removeprefix("module."): value for key, value in file.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("counted", [True, False])
def test_the_authors_file_loads_with_and_without_counters(name: str, counted: bool, tmp_path: Path) -> None:
    file = authors_file(name, tmp_path / "theirs.pkl")
    counters = [key for key in file if key.endswith("num_batches_tracked")]
    assert counters
    if not counted:
        torch.save({key: value for key, value in file.items() if key not in counters}, tmp_path / "theirs.pkl")
    detector = owner(name, 3, width=8)
    receipt = published.load(detector, tmp_path / "theirs.pkl")
    assert receipt.library == LIBRARY[name]
    assert not receipt.skipped
    assert len(receipt.missing) == (0 if counted else len(counters))
    for key, value in detector.state_dict().items():
        if counted or f"module.{key}" not in counters:
            assert torch.equal(value, file[f"module.{key}"])


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_written_for_the_authors_code_have_its_keys_and_come_back(name: str, tmp_path: Path) -> None:
    file = authors_file(name, tmp_path / "theirs.pkl")
    detector = owner(name, 3, width=8)
    published.load(detector, tmp_path / "theirs.pkl")
    exported = save.save_as(detector, tmp_path / "ours.pkl")
    written = torch.load(tmp_path / "ours.pkl")
    assert exported.library == LIBRARY[name]
    assert not exported.left_out
    # Their code loads the state dict itself, not a dictionary around it.
    assert list(written) == list(file)
    assert all(torch.equal(written[key], file[key]) for key in file)


def test_cornernet_loads_from_and_is_written_for_cornernet_lite(tmp_path: Path) -> None:
    expected = lite_port(tmp_path / "lite.pkl")
    detector = owner("cornernet", 3, width=8)
    receipt = published.load(detector, tmp_path / "lite.pkl")
    assert receipt.library == "CornerNet-Lite's own CornerNet"
    assert not receipt.skipped
    assert not receipt.missing
    assert all(torch.equal(value, expected[key]) for key, value in detector.state_dict().items())
    save.save_as(detector, tmp_path / "ours.pkl", "cornernet_lite")
    written, original = torch.load(tmp_path / "ours.pkl"), torch.load(tmp_path / "lite.pkl")
    assert written.keys() == original.keys()
    assert all(torch.equal(written[key], original[key]) for key in original)


def mmdetection_keys() -> list[str]:
    """Keys of mmdetection's CornerNet, from what its modules are made of: a norm has five entries."""
    keys: list[str] = []

    def norm(name: str) -> None:
        keys.extend(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        keys.append(f"{name}.num_batches_tracked")

    def convolution(name: str, with_norm: bool = True) -> None:
        keys.append(f"{name}.conv.weight")
        if with_norm:
            norm(f"{name}.bn")
        else:
            keys.append(f"{name}.conv.bias")

    def block(name: str, downsample: bool = False) -> None:
        for number in (1, 2):
            keys.append(f"{name}.conv{number}.weight")
            norm(f"{name}.bn{number}")
        if downsample:
            keys.append(f"{name}.downsample.0.weight")
            norm(f"{name}.downsample.1")

    def hourglass(name: str, channels: tuple[int, ...]) -> None:
        for part in ("up1.0", "up1.1"):
            block(f"{name}.{part}")
        block(f"{name}.low1.0", downsample=True)
        block(f"{name}.low1.1")
        if len(channels) > 2:
            hourglass(f"{name}.low2", channels[1:])
        else:
            for number in range(4):
                block(f"{name}.low2.{number}")
        block(f"{name}.low3.0")
        block(f"{name}.low3.1", downsample=channels[0] != channels[1])

    convolution("backbone.stem.0")
    block("backbone.stem.1.0", downsample=True)
    for stack in (0, 1):
        hourglass(f"backbone.hourglass_modules.{stack}", (256, 256, 384, 384, 384, 512))
    block("backbone.inters.0")
    for name in ("conv1x1s.0", "out_convs.0", "out_convs.1", "remap_convs.0"):
        convolution(f"backbone.{name}")
    for corner in ("tl", "br"):
        for stack in (0, 1):
            for name in ("direction1_conv", "direction2_conv", "aftpool_conv", "conv1", "conv2"):
                convolution(f"bbox_head.{corner}_pool.{stack}.{name}")
            for name in ("heat", "off", "emb"):
                for layer in (0, 1):
                    convolution(f"bbox_head.{corner}_{name}.{stack}.{layer}", with_norm=False)
    return keys


MMDETECTION_PAIRS = {
    "backbone.stem.0.bn.running_var": "pre.0.bn.running_var",
    "backbone.stem.1.0.conv2.weight": "pre.1.conv2.weight",
    "backbone.stem.1.0.downsample.0.weight": "pre.1.skip.0.weight",
    "backbone.hourglass_modules.1.low2.low2.low1.0.downsample.1.bias": "kps.1.low2.low2.low1.0.skip.1.bias",
    "backbone.hourglass_modules.0.up1.1.bn2.weight": "kps.0.up1.1.bn2.weight",
    "backbone.out_convs.1.conv.weight": "cnvs.1.conv.weight",
    # On the stack's input, and on its output.
    "backbone.conv1x1s.0.conv.weight": "inters_.0.0.weight",
    "backbone.remap_convs.0.bn.bias": "cnvs_.0.1.bias",
    "bbox_head.tl_pool.0.direction1_conv.conv.weight": "tl_cnvs.0.p1_conv1.conv.weight",
    "bbox_head.br_pool.1.direction2_conv.bn.weight": "br_cnvs.1.p2_conv1.bn.weight",
    "bbox_head.br_pool.0.aftpool_conv.conv.weight": "br_cnvs.0.p_conv1.weight",
    "bbox_head.br_pool.0.aftpool_conv.bn.weight": "br_cnvs.0.p_bn1.weight",
    "bbox_head.tl_pool.1.conv1.conv.weight": "tl_cnvs.1.conv1.weight",
    "bbox_head.tl_pool.1.conv1.bn.weight": "tl_cnvs.1.bn1.weight",
    "bbox_head.tl_pool.1.conv2.bn.weight": "tl_cnvs.1.conv2.bn.weight",
    "bbox_head.tl_heat.0.0.conv.bias": "tl_heats.0.0.conv.bias",
    "bbox_head.br_heat.1.1.conv.bias": "br_heats.1.1.bias",
    "bbox_head.tl_emb.1.1.conv.weight": "tl_tags.1.1.weight",
    "bbox_head.br_off.0.1.conv.weight": "br_regrs.0.1.weight",
}


def test_cornernet_loads_from_and_is_written_for_mmdetection(tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved = owner("cornernet", 3, width=8)
    exported = save.save_as(saved, tmp_path / "theirs.pth", "mmdetection")
    assert not exported.left_out
    content = torch.load(tmp_path / "theirs.pth")
    assert content["meta"] == {}
    state = saved.state_dict()
    assert set(content["state_dict"]) == set(mmdetection_keys())
    for theirs, ours in MMDETECTION_PAIRS.items():
        assert torch.equal(content["state_dict"][theirs], state[ours])
    detector = owner("cornernet", 3, width=8)
    receipt = published.load(detector, tmp_path / "theirs.pth")
    assert receipt.library == "mmdetection"
    assert not receipt.missing
    assert receipt.skipped == {"meta": "beside 'state_dict': not a weight"}
    assert receipt.renamed["bbox_head.tl_emb.1.1.conv.weight"] == "tl_tags.1.1.weight"
    assert any("trains on RGB images with ImageNet's mean and deviation" in note for note in receipt.notes)
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_for_other_classes_is_refused_or_loads_without_its_class_layers(name: str, tmp_path: Path) -> None:
    file = authors_file(name, tmp_path / "five.pkl", num_classes=5)
    detector = owner(name, 3, width=8)
    with pytest.raises(detectors.DetectorError, match=r"the file was trained on 5 classes, the detector has 3\. Build"):
        published.load(detector, tmp_path / "five.pkl")
    before = detector.state_dict()["tl_heats.0.1.weight"].clone()
    receipt = published.load(detector, tmp_path / "five.pkl", skip_mismatched=True)
    points = 3 if "triplets" in name else 2
    assert len(receipt.skipped) == 2 * points * detector.network.stacks  # weight and bias
    state = detector.state_dict()
    assert torch.equal(state["tl_heats.0.1.weight"], before)
    assert torch.equal(state["tl_tags.0.1.weight"], file["module.tl_tags.0.1.weight"])
    # For as many classes it loads whole.
    assert not published.load(owner(name, 5, width=8), tmp_path / "five.pkl").skipped


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("cornernet", "squeeze", "it is of CornerNet-Squeeze's authors; build cornernet_squeeze for it"),
        ("cornernet", "saccade", "it is of CornerNet-Saccade's authors; build cornernet_saccade for it"),
        ("cornernet", "triplets_104", "it is of Keypoint Triplets' authors; it also has centres. Build keypoint_trip"),
        ("cornernet", "triplets_52", "it is of Keypoint Triplets' authors; it also has centres. Build keypoint_tripl"),
        ("squeeze", "saccade", "it is of CornerNet-Saccade's authors; build cornernet_saccade for it"),
        ("saccade", "squeeze", "it is of CornerNet-Squeeze's authors; build cornernet_squeeze for it"),
        ("triplets_52", "triplets_104", "it has two hourglasses. Build keypoint_triplets_hourglass104 for it"),
    ],
)
def test_a_file_of_a_relative_is_refused(name: str, other: str, message: str, tmp_path: Path) -> None:
    authors_file(other, tmp_path / "other.pkl")
    with pytest.raises(detectors.DetectorError, match=message):
        published.load(owner(name, 3, width=8), tmp_path / "other.pkl")


def test_layers_that_a_relative_lacks_are_listed(tmp_path: Path) -> None:
    """Nothing in CornerNet's file tells it from one of Triplets that lost its centres."""
    authors_file("cornernet", tmp_path / "w.pkl")
    receipt = published.load(owner("triplets_104", 3, width=8), tmp_path / "w.pkl")
    assert any(key.startswith("ct_cnvs.") for key in receipt.missing)
    assert any(key.startswith("tl_cnvs.0.look_conv1.") for key in receipt.missing)
