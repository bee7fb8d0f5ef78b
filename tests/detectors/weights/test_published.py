"""Published weights: every key accounted for, nothing loaded by halves, no code run."""

import codecs
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import detectors
from detectors import Detector, DetectorError
from detectors.weights import published
from detectors.weights.published import Receipt

NARROW = {"width": 8, "deconv_channels": (8, 8, 8), "head_channels": 8}


def detector(num_classes: int = 3, name: str = "centernet_resnet18") -> Detector:
    torch.manual_seed(num_classes)
    return detectors.build(name, num_classes, **NARROW)


def other_weights(num_classes: int = 3) -> dict[str, Tensor]:
    return {
        key: torch.full_like(value, index + 1)
        for index, (key, value) in enumerate(detector(num_classes).state_dict().items())
    }


def saved(content: object, path: Path, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def assert_accounted(receipt: Receipt, detector: Detector, file_keys: set[str]) -> None:
    of_file = [*receipt.loaded, *receipt.renamed, *receipt.skipped]
    of_detector = [*receipt.loaded, *receipt.renamed.values(), *receipt.missing]
    assert sorted(of_file) == sorted(file_keys)
    assert sorted(of_detector) == sorted(detector.state_dict())


def assert_loaded(detector: Detector, weights: dict[str, Tensor]) -> None:
    for key, value in detector.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".safetensors"])
def test_a_plain_state_dict_loads_whole(tmp_path: Path, suffix: str) -> None:
    weights = other_weights()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, weights)
    assert_accounted(receipt, ours, set(weights))
    assert len(receipt.loaded) == 150
    assert not receipt.renamed
    assert receipt.summary() == f"{path}: 150 loaded (0 of them under another name), 0 skipped, 0 missing"


def test_files_from_before_pytorch_1_6_load(tmp_path: Path) -> None:
    weights = other_weights()
    ours = detector()
    published.load(ours, saved(weights, tmp_path / "old.pkl", _use_new_zipfile_serialization=False))
    assert_loaded(ours, weights)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_the_authors_wrapping_is_taken_off_and_accounted(tmp_path: Path, wrapper: str) -> None:
    weights = other_weights()
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    content = {"epoch": 140, wrapper: wrapped, "optimizer": {"state": {}, "param_groups": []}}
    ours = detector()
    receipt = published.load(ours, saved(content, tmp_path / "model_best.pth"))
    assert_loaded(ours, weights)
    assert_accounted(receipt, ours, {"epoch", "optimizer", *wrapped})
    assert receipt.renamed["module.conv1.weight"] == "conv1.weight"
    assert receipt.skipped["optimizer"] == f"beside '{wrapper}': not a weight"


def test_counters_that_old_files_lack_keep_their_value(tmp_path: Path) -> None:
    weights = other_weights()
    old = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    ours = detector()
    receipt = published.load(ours, saved(old, tmp_path / "old.pth"))
    assert_accounted(receipt, ours, set(old))
    assert set(receipt.missing.values()) == {"not in the file, which may be older than this counter of batch norm"}
    assert ours.state_dict()["bn1.num_batches_tracked"] == 0
    assert_loaded(ours, weights | {key: torch.tensor(0) for key in receipt.missing})


def test_an_imagenet_resnet_loads_into_the_trunk(tmp_path: Path) -> None:
    layout = json.loads((Path(__file__).parents[1] / "layouts" / "resnet18_torchvision.json").read_text())
    file = {key: torch.full(shape, 0.5).to(getattr(torch, dtype)) for key, shape, dtype in layout}
    ours = detectors.build("centernet_resnet18", 3, deconv_channels=(8, 8, 8), head_channels=8)
    before = ours.state_dict()["hm.0.weight"].clone()
    receipt = published.load(ours, saved(file, tmp_path / "resnet18-5c106cde.pth"))
    assert_accounted(receipt, ours, set(file))
    assert len(receipt.loaded) == 120
    no_parameter = "the detector has no such parameter"
    assert receipt.skipped == {"fc.weight": no_parameter, "fc.bias": no_parameter}
    assert {key.split(".")[0] for key in receipt.missing} == {"deconv_layers", "hm", "reg", "wh"}
    assert ours.state_dict()["layer4.1.conv2.weight"].eq(0.5).all()
    assert torch.equal(ours.state_dict()["hm.0.weight"], before)
    assert "skipped  fc.weight, fc.bias: the detector has no such parameter" in receipt.summary()
    assert "deconv_layers.0.weight, deconv_layers.1.weight, deconv_layers.1.bias and " in receipt.summary()


def test_an_imagenet_dla_loads_into_the_base_with_its_classifier(tmp_path: Path) -> None:
    ours = detectors.build("centernet_dla34", 3, width=4, head_channels=8)
    of_base = {key.removeprefix("base."): value + 1 for key, value in ours.state_dict().items() if "base." in key}
    receipt = published.load(ours, saved(of_base, tmp_path / "dla34-ba72cf86.pth"))
    assert_accounted(receipt, ours, set(of_base))
    assert receipt.renamed["fc.weight"] == "base.fc.weight"
    assert not receipt.skipped
    assert {key.split(".")[0] for key in receipt.missing} == {"dla_up", "ida_up", "hm", "wh", "reg"}
    assert torch.equal(ours.state_dict()["base.level5.root.conv.weight"], of_base["level5.root.conv.weight"])


def test_an_hourglass_for_other_classes_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    five = detectors.build("centernet_hourglass104", 5, width=2)
    path = saved(five.state_dict(), tmp_path / "five.pth")
    with pytest.raises(
        DetectorError, match=r"hm.0.1.weight is 5x2x1x1 .* \(and 3 more\): the file was trained on 5 classes"
    ):
        published.load(detectors.build("centernet_hourglass104", 3, width=2), path)


def test_half_precision_files_load_into_float32(tmp_path: Path) -> None:
    weights = {key: value.half() if value.is_floating_point() else value for key, value in other_weights().items()}
    ours = detector()
    published.load(ours, saved(weights, tmp_path / "half.pth"))
    assert ours.state_dict()["conv1.weight"].dtype == torch.float32
    assert ours.state_dict()["conv1.weight"].eq(1).all()


def test_another_number_of_classes_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = saved(other_weights(num_classes=5), tmp_path / "five.pth")
    ours = detector()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(DetectorError) as refusal:
        published.load(ours, path)
    assert str(refusal.value) == (
        f"hm.2.weight is 5x8x1x1 in {path} but 3x8x1x1 in centernet_resnet18 (and 1 more): the file was trained on "
        "5 classes, the detector has 3. Build it for 5 (num_classes), copy the rows of classes with the same name "
        "(match_classes), or train these layers from random weights (skip_mismatched)."
    )
    assert_loaded(ours, before)


def test_all_but_the_last_layers_load_when_asked(tmp_path: Path) -> None:
    weights = other_weights(num_classes=5)
    ours = detector()
    before = ours.state_dict()["hm.2.weight"].clone()
    receipt = published.load(ours, saved(weights, tmp_path / "five.pth"), skip_mismatched=True)
    assert_accounted(receipt, ours, set(weights))
    assert receipt.skipped == {
        "hm.2.weight": "shape 5x8x1x1, the detector's is 3x8x1x1",
        "hm.2.bias": "shape 5, the detector's is 3",
    }
    assert receipt.missing == dict.fromkeys(("hm.2.weight", "hm.2.bias"), "another shape in the file")
    assert torch.equal(ours.state_dict()["hm.2.weight"], before)
    assert torch.equal(ours.state_dict()["hm.0.weight"], weights["hm.0.weight"])


def test_a_network_of_another_width_is_not_taken_for_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wider = detectors.build("centernet_resnet18", 5, **{**NARROW, "head_channels": 16})
    path = saved(wider.state_dict(), tmp_path / "wider.pth")
    with pytest.raises(DetectorError) as refusal:
        published.load(detector(), path)
    assert str(refusal.value) == (
        f"hm.0.weight is 16x8x3x3 in {path} but 8x8x3x3 in centernet_resnet18 (and 9 more); choose the detector and "
        "settings that the file was saved with."
    )


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = saved(detector(name="centernet_resdcn18").state_dict(), tmp_path / "dcn.pth")
    with pytest.raises(
        DetectorError, match=r"deconv_layers.0.weight is 8x64x3x3 in .* but 64x8x4x4 in centernet_resnet18"
    ):
        published.load(detector(), path)
    path = saved({"backbone.stem": torch.ones(3), "head": torch.ones(2)}, tmp_path / "strange.pth")
    message = (
        "has no key that fits centernet_resnet18: the file has backbone.stem, head, the detector has "
        "conv1.weight, bn1.weight, bn1.bias and 147 more. Choose the detector"
    )
    with pytest.raises(DetectorError, match=message):
        published.load(detector(), path)


def test_what_is_no_tensor_or_there_twice_is_accounted(tmp_path: Path) -> None:
    weights = other_weights()
    content = {**weights, "module.conv1.weight": weights["conv1.weight"] + 1, "version": 3, 0: torch.zeros(1)}
    ours = detector()
    receipt = published.load(ours, saved(content, tmp_path / "twice.pth"))
    assert_accounted(receipt, ours, set(map(str, content)))
    assert receipt.skipped == {
        "0": "its key is not a name",
        "module.conv1.weight": "conv1.weight is in the file twice",
        "version": "not a tensor",
    }
    assert_loaded(ours, weights)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".anything"])
def test_a_file_with_code_is_refused_and_its_code_not_run(tmp_path: Path, suffix: str) -> None:
    path = saved({**other_weights(), "extra": Code(tmp_path / "ran")}, tmp_path / f"evil{suffix}")
    with pytest.raises(
        DetectorError, match=r"evil.* holds code or objects beside tensors \(posix.mkdir\), .* refused"
    ) as e:
        published.load(detector(), path)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = saved(detector(), tmp_path / "module.pth")
    with pytest.raises(
        DetectorError,
        match=r"\(detectors.centernet.centernet.CenterNet\).* as torch.save\(model.state_dict\(\), path\)",
    ):
        published.load(detector(), path)


def test_files_that_are_no_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = saved(other_weights(), tmp_path / "whole.pth").read_bytes()
    cases = {
        "cut.pth": (whole[: len(whole) // 2], "is not a checkpoint: damaged or of another kind"),
        "empty.pth": (b"", "is not a checkpoint: damaged or of another kind"),
        "text.pth": (b"<html>quota exceeded</html>" * 20, "is not a checkpoint: "),
        "text.safetensors": (b"<html>quota exceeded</html>" * 20, "is not a checkpoint: damaged or of another kind"),
        "plain.pkl": (
            pickle.dumps({"conv1.weight": [1.0]}),
            "is not a checkpoint: it holds conv1.weight, but no tensor",
        ),
        "cut.pkl": (pickle.dumps({"conv1.weight": [1.0]})[:-4], "is not a checkpoint: "),
        "evil.pkl": (pickle.dumps(Code(tmp_path / "ran")), r"evil.pkl holds code or objects .*\(posix.mkdir\)"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DetectorError, match=message) as refusal:
            published.load(detector(), tmp_path / name)
        assert str(tmp_path / name) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_other_content_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"weights file .*nowhere.pth is not there. Check the path"):
        published.load(detector(), tmp_path / "nowhere.pth")
    with pytest.raises(DetectorError, match="is not a checkpoint: it holds a list, not a state dict"):
        published.load(detector(), saved([1, 2], tmp_path / "list.pth"))
    with pytest.raises(DetectorError, match="is not a checkpoint: it holds epoch, name, but no tensor"):
        published.load(detector(), saved({"epoch": 3, "name": "x"}, tmp_path / "numbers.pth"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_arrays_loads(tmp_path: Path, protocol: int) -> None:
    weights = other_weights()
    weights["conv1.weight"] = weights["conv1.weight"] * torch.arange(1, 8)  # no two columns alike
    content = {key: value.numpy() for key, value in weights.items()}
    content["conv1.weight"] = np.asfortranarray(content["conv1.weight"])
    content["bn1.weight"] = content["bn1.weight"].astype(">f8")
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"blobs": OrderedDict(content), "cfg": "text"}, protocol=protocol))
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, weights)
    assert_accounted(receipt, ours, {"cfg", *weights})


def test_a_pickle_of_python_2_loads(tmp_path: Path) -> None:
    # Python 2 wrote the bytes of arrays as text of one byte a character; so does protocol 0 of Python 3 by _codecs.
    path = tmp_path / "weights.pkl"
    path.write_bytes(
        b"\x80\x02}q\x00X\x0a\x00\x00\x00bn1.weightq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq"
        b"\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x08\x85q\x08cnumpy\ndtype\nq\x09U\x02f4q\x0aK\x00K\x01"
        b"\x87q\x0bRq\x0c(K\x03U\x01<q\x0dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x20"
        + np.arange(-3, 5, dtype="<f4").tobytes()
        + b"q\x0ftq\x10bs."
    )
    ours = detector()
    published.load(ours, path)
    assert ours.state_dict()["bn1.weight"].tolist() == [-3, -2, -1, 0, 1, 2, 3, 4]


class Forged:
    """An array of objects whose bytes pretend to be addresses."""

    def __reduce__(self) -> tuple[object, ...]:
        return np.dtype, ("O",), (3, "|", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Forged(), r"numpy.dtype\('O'\)"),
        (np.array([print, None]), r"numpy.dtype\('O8'\)"),
        ({"weights": range(3)}, "range"),
        (codecs.encode, "but no tensor"),  # known as a name; it is neither called nor kept
    ],
)
def test_a_pickle_of_anything_but_arrays_of_numbers_is_refused(tmp_path: Path, content: object, named: str) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"conv1.weight": content}, protocol=2))
    with pytest.raises(DetectorError, match=named) as refusal:
        published.load(detector(), path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("sparse", torch.ones(8, 3, 7, 7).to_sparse()),
        ("complex", torch.ones(8, 3, 7, 7, dtype=torch.complex64)),
        ("meta", torch.empty(8, 3, 7, 7, device="meta")),
    ],
)
def test_tensors_that_cannot_be_copied_whole_are_refused(kind: str, odd: Tensor, tmp_path: Path) -> None:
    path = saved({**other_weights(), "conv1.weight": odd}, tmp_path / "w.pth")
    with pytest.raises(DetectorError, match=rf"^conv1.weight in {path} is a {kind} tensor; save the file with"):
        published.load(detector(), path)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    weights = other_weights()
    weights["bn1.bias"][2] = torch.nan
    receipt = published.load(detector(), saved(weights, tmp_path / "w.pth"))
    assert receipt.summary().endswith("note  bn1.bias: values that are not finite, as in a training that diverged")
