"""Checkpoints of training runners: weights under any key and behind any prefix, once or twice."""

import argparse
import datetime
import sys
import types
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detectors
from detectors import DetectorError
from detectors.weights import published
from tests.detectors.weights.test_published import assert_accounted, assert_loaded, detector, other_weights, saved

PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "detector.", "student.", "a.b.c.d.", "net.module."]
KEYS = [
    ("state_dict",),
    ("model",),
    ("net",),
    ("network",),
    ("model_state_dict",),
    ("weights",),
    ("params",),
    ("generator", "state_dict"),
    ("state", "model", "weights"),
]


def average(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1000 for key, value in weights.items()}


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_found_removed_and_named(prefix: str, tmp_path: Path) -> None:
    weights = other_weights()
    file = {**prefixed(weights, prefix), "loss.weight": torch.ones(3)}
    ours = detector()
    receipt = published.load(ours, saved({"epoch": 3, "state_dict": file}, tmp_path / "w.pth"))
    assert_loaded(ours, weights)
    assert_accounted(receipt, ours, {"epoch", *file})
    assert receipt.prefix == prefix
    assert f"prefix  {prefix} removed from the keys" in receipt.summary().splitlines()
    assert receipt.skipped["loss.weight"] == "the detector has no such parameter"


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_of_single_layers_are_removed_inside_the_keys(wrapper: str, tmp_path: Path) -> None:
    weights = other_weights()
    file = {
        "module." + key.replace("layer1.0.", f"layer1.{wrapper}0.{wrapper}"): value for key, value in weights.items()
    }
    ours = detector()
    receipt = published.load(ours, saved(file, tmp_path / "w.pth"))
    assert_loaded(ours, weights)
    assert_accounted(receipt, ours, set(file))
    assert receipt.prefix == "module."
    assert f"prefix  {wrapper} removed inside the keys" in receipt.summary().splitlines()


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_any_key_leads_to_the_weights_that_fit(path: tuple[str, ...], tmp_path: Path) -> None:
    weights = other_weights()
    content: Any = weights
    for key in reversed(path):
        # Beside them are tensors that are not the detector's, in a dictionary that is named like weights.
        content = {"discriminator": {"conv.weight": torch.ones(2)}, "epoch": 3, key: content}
    ours = detector()
    receipt = published.load(ours, saved(content, tmp_path / "w.pth"))
    assert_loaded(ours, weights)
    assert receipt.skipped["discriminator"] == f"beside {path[0]!r}: not a weight"
    assert not receipt.other_weights


def test_the_content_decides_which_dictionary_is_taken(tmp_path: Path) -> None:
    # `state_dict` is another network's, as of a teacher for distillation; the detector's own weights are in `net`.
    weights = other_weights()
    content = {"state_dict": {"conv1.weight": torch.ones(9)}, "net": weights}
    ours = detector()
    receipt = published.load(ours, saved(content, tmp_path / "w.pth"))
    assert_loaded(ours, weights)
    assert receipt.skipped == {"state_dict": "beside 'net': not a weight"}


@pytest.mark.parametrize(
    ("last", "averaged"),
    [
        (("model",), ("model_ema",)),
        (("state_dict",), ("ema_state_dict",)),
        (("model",), ("ema",)),
        (("model",), ("ema", "module")),
        (("net",), ("swa",)),
        (("model",), ("modelEma",)),
        (("student",), ("teacher",)),
        (("state_dict",), ("callbacks", "EMACallback", "ema_state_dict")),
    ],
    ids=str,
)
def test_an_average_beside_the_last_weights_is_named_and_can_be_chosen(
    last: tuple[str, ...], averaged: tuple[str, ...], tmp_path: Path
) -> None:
    weights = other_weights()
    content: dict[str, Any] = {"epoch": 3}
    for path, value in ((averaged, average(weights)), (last, weights)):
        inner: Any = value
        for key in reversed(path[1:]):
            inner = {key: inner, "updates": 7}
        content[path[0]] = inner
    path = saved(content, tmp_path / "w.pth")
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, weights)
    names = {place: repr(".".join(keys)) for place, keys in (("last", last), ("averaged", averaged))}
    assert receipt.summary().splitlines()[1] == (
        f"weights  {names['last']} (the last step) loaded; the file also has {names['averaged']} (the moving average); "
        f"--averaged chooses it"
    )
    assert receipt.skipped[averaged[0]] == "of the other weights in the file"
    assert list(receipt.other_weights) == [names["averaged"]]
    receipt = published.load(ours, path, averaged=True)
    assert_loaded(ours, average(weights))
    assert list(receipt.other_weights) == [names["last"]]


def test_student_and_teacher_in_one_dictionary(tmp_path: Path) -> None:
    weights = other_weights()
    file = {**prefixed(average(weights), "teacher."), **prefixed(weights, "student.")}
    path = saved({"state_dict": file}, tmp_path / "w.pth")
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, weights)
    assert_accounted(receipt, ours, set(file))
    assert list(receipt.other_weights) == ["the keys teacher.… under 'state_dict'"]
    assert receipt.skipped["teacher.conv1.weight"] == "of the other weights in the file"
    published.load(ours, path, averaged=True)
    assert_loaded(ours, average(weights))


def test_torchs_averaged_model_is_recognised(tmp_path: Path) -> None:
    ours = detector()
    model = torch.optim.swa_utils.AveragedModel(ours)
    path = saved({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    receipt = published.load(ours, path)
    assert receipt.prefix == "module."
    assert receipt.notes == ["the file holds a moving average of the weights, which was loaded"]
    published.load(ours, path, averaged=True)
    # Beside the model itself, as trainers save both.
    weights = other_weights()
    content = {"model": weights, "average": model.state_dict()}
    receipt = published.load(ours, saved(content, tmp_path / "both.pth"))
    assert_loaded(ours, weights)
    assert list(receipt.other_weights) == ["the keys module.… under 'average'"]


def test_mmengine_exchanges_the_two_sets(tmp_path: Path) -> None:
    weights = other_weights()
    content = {
        "meta": {"mmengine_version": "0.10.4", "epoch": 12},
        "state_dict": average(weights),
        "ema_state_dict": {"steps": torch.tensor(9), **prefixed(weights, "module.")},
        "message_hub": {},
    }
    path = saved(content, tmp_path / "epoch_12.pth")
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, average(weights))
    assert receipt.loaded_weights == "'state_dict' (the moving average)"
    assert receipt.other_weights == {"the keys module.… under 'ema_state_dict'": "(the last step)"}
    published.load(ours, path, averaged=True)
    assert_loaded(ours, average(weights))


@pytest.mark.parametrize("style", ["ema_{}", "model_ema.{}"])
def test_an_average_in_buffers_without_dots(style: str, tmp_path: Path) -> None:
    weights = other_weights()
    learning = dict(detector().named_parameters())
    join = "_" if style == "ema_{}" else ""
    flat = {style.format(key.replace(".", join)): weights[key] + 1000 for key in learning}
    path = saved({"state_dict": {**weights, **flat}}, tmp_path / "w.pth")
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, weights)
    assert len(receipt.other_weights) == 1
    published.load(ours, path, averaged=True)
    assert_loaded(ours, {key: value + 1000 if key in learning else value for key, value in weights.items()})


def test_statistics_that_an_average_lacks_are_the_last_steps(tmp_path: Path) -> None:
    weights = other_weights()
    learning = dict(detector().named_parameters())
    averaged = {key: value for key, value in average(weights).items() if key in learning}
    path = saved({"model": weights, "ema": averaged}, tmp_path / "w.pth")
    ours = detector()
    receipt = published.load(ours, path, averaged=True)
    assert_loaded(ours, {**weights, **averaged})
    assert not receipt.missing
    assert receipt.renamed["model.bn1.running_mean"] == "bn1.running_mean"
    (note,) = receipt.notes
    assert note.startswith("bn1.running_mean, bn1.running_var, bn1.num_batches_tracked and ")
    assert note.endswith(": not in the average, so of the last step's weights")


def test_parts_of_a_network_in_dictionaries_of_their_own_are_joined(tmp_path: Path) -> None:
    weights = other_weights()
    content: dict[str, Any] = {"epoch": 3}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        content.setdefault(part, {})[rest] = value
    ours = detector()
    receipt = published.load(ours, saved({"model": content}, tmp_path / "w.pth"))
    assert_loaded(ours, weights)
    assert not receipt.missing
    assert not receipt.other_weights


def test_a_file_without_an_average_is_refused_when_one_is_asked_for(tmp_path: Path) -> None:
    path = saved({"state_dict": other_weights()}, tmp_path / "w.pth")
    with pytest.raises(DetectorError, match=r"holds no moving average of the weights, only 'state_dict'. Leave") as e:
        published.load(detector(), path, averaged=True)
    assert "\n" not in str(e.value)


def test_a_trunk_in_a_detectors_file_is_not_a_second_set(tmp_path: Path) -> None:
    with torch.device("cpu"):
        fcos = detectors.build("fcos_resnet50", 3, variant="torchvision", channels=64)
    receipt = published.load(fcos, saved({"model": fcos.state_dict()}, tmp_path / "w.pth"))
    assert not receipt.other_weights
    assert not receipt.missing


def runner_class(module: str, name: str, base: type = object) -> Any:
    """A class as pickle would find it in a package that is not installed here."""
    found = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:length]), types.ModuleType(module))
    setattr(sys.modules[module], name, found)
    return found


@pytest.fixture
def runner_objects() -> Any:
    before = set(sys.modules)
    objects: dict[str, Any] = {
        "mmengine": runner_class("mmengine.config.config", "ConfigDict", dict)(lr=0.1),
        "history": runner_class("mmengine.logging.history_buffer", "HistoryBuffer")(),
        "mmcv": runner_class("mmcv.utils.config", "Config")(),
        "yacs": runner_class("yacs.config", "CfgNode", dict)(A=1),
        "lightning": runner_class("pytorch_lightning.utilities.parsing", "AttributeDict", dict)(width=3),
        "omegaconf": runner_class("omegaconf.dictconfig", "DictConfig")(),
    }
    objects["mmcv"].__dict__.update(filename=Path("/a/b.py"), nested={"x": [1, 2]})
    yield objects
    for module in set(sys.modules) - before:
        del sys.modules[module]


@pytest.mark.parametrize("old", [False, True])
def test_objects_of_training_runners_are_listed_and_not_read(
    old: bool, runner_objects: dict[str, Any], tmp_path: Path
) -> None:
    weights = other_weights()
    content = {
        "state_dict": OrderedDict(weights),
        **runner_objects,
        "args": argparse.Namespace(lr=0.1, output=Path("/runs")),
        "when": datetime.datetime(2026, 11, 29),
        "best": np.float64(0.37),
        "history_of": defaultdict(list, loss=[1.0]),
        "last": deque([1, 2]),
        "seen": {1, 2, (3, 4)},
        "shape": torch.Size([3, 4]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "callbacks": {runner_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {"k": 1}},
    }
    path = saved(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    for module in [name for name in sys.modules if name.startswith(("mmengine", "mmcv", "yacs", "omegaconf"))]:
        del sys.modules[module]
    ours = detector()
    receipt = published.load(ours, path)
    assert_loaded(ours, weights)
    assert receipt.skipped["args"] == "an object of class argparse.Namespace, not read"
    assert {"mmengine.config.config.ConfigDict", "yacs.config.CfgNode", "datetime.datetime"} < set(
        receipt.ignored_objects
    )
    assert "pathlib.PosixPath (2)" in receipt.summary()
    # Nothing was imported for them.
    assert not [name for name in sys.modules if name.startswith(("mmengine", "mmcv", "yacs", "omegaconf"))]


def test_an_unknown_object_is_still_refused(tmp_path: Path) -> None:
    unknown = runner_class("somewhere.else", "Thing")()
    path = saved({"state_dict": other_weights(), "x": unknown}, tmp_path / "w.pth")
    del sys.modules["somewhere.else"], sys.modules["somewhere"]
    with pytest.raises(DetectorError, match=r"holds code or objects beside tensors \(somewhere.else.Thing\)"):
        published.load(detector(), path)
