"""Exported files detect like any detector, and strangers' files are refused in one line."""

import builtins
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detectors import DetectorError, View
from pipelines.errors import ConfigError
from pipelines.trained.exported_file import external_files, is_exported, open_exported
from pipelines.trained.file_description import Clipping, DescribedInput
from pipelines.trained.trained import open_trained
from tests.pipelines.trained.tiny_files import BATCH, HEIGHT, WIDTH, description, write_onnx, write_pt2


def view(images: int = 1, height: int = HEIGHT, width: int = WIDTH, **more: Any) -> View:
    """Images whose channels are 51, 102 and 204, at twice their size and moved by 1 and 2 pixels."""
    pixels = torch.tensor([51.0, 102.0, 204.0]).view(1, 3, 1, 1).expand(images, 3, height, width)
    transforms = torch.tensor([[2.0, 0, 1], [0, 2, 2]]).expand(images, 2, 3)
    return View(pixels.clone(), transforms, **more)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_an_onnx_file_detects_in_the_image_frame_whatever_its_own_batch(tmp_path: Path, images: int) -> None:
    detector, device = open_exported(write_onnx(tmp_path / "tiny.onnx"))
    assert device.type == "cpu"
    found = detector.eval().detect([view(images)], limit=3)
    assert len(found) == images
    for one in found:
        assert one.boxes.tolist() == [[-0.5, -1, 3.5, 1], [1.5, 1, 19.5, 9]]
        assert one.scores.tolist() == pytest.approx([0.2, 0.4])
        assert one.labels.tolist() == [2, 0]


def test_a_torch_file_detects_likewise_at_any_size(tmp_path: Path) -> None:
    detector, device = open_exported(write_pt2(tmp_path / "tiny.pt2"), torch.device("cpu"))
    for size in ((32, 48), (64, 16)):
        found = detector.eval().to(device).detect([view(3, *size)], limit=3)
        assert [one.scores.tolist() for one in found] == 3 * [pytest.approx([0.2, 0.4])]
        assert found[0].boxes.tolist() == [[-0.5, -1, 3.5, 1], [1.5, 1, 19.5, 9]]


def test_fewer_detections_may_be_asked_for_than_the_file_returns_but_not_more(tmp_path: Path) -> None:
    detector, _ = open_exported(write_onnx(tmp_path / "tiny.onnx"))
    assert detector.detect([view()], limit=1)[0].labels.tolist() == [2]
    with pytest.raises(DetectorError, match=r"tiny\.onnx returns at most 3 detections .* with --limit 4\."):
        detector.detect([view()], limit=4)


@pytest.mark.parametrize(("mode", "soft"), [("flip", False), ("multiscale", False), ("none", True)])
def test_test_time_augmentation_is_refused(tmp_path: Path, mode: Any, soft: bool) -> None:
    detector, _ = open_exported(write_onnx(tmp_path / "tiny.onnx"))
    what = "soft-NMS" if soft else rf"test-time augmentation \({mode}\)"
    with pytest.raises(DetectorError, match=f"one pass over one image, without {what}"):
        detector.detect([view()], mode=mode, soft=soft, limit=3)
    with pytest.raises(DetectorError, match="without"):
        detector.scales_shown(mode, soft)


def test_another_size_is_refused(tmp_path: Path) -> None:
    fixed, _ = open_exported(write_onnx(tmp_path / "tiny.onnx"))
    with pytest.raises(DetectorError, match=r"32 x 32 pixels; .* 16 and 32, as the exported file has them"):
        fixed.detect([view(1, 32, 32)], limit=3)
    any_size = description(input=DescribedInput(dtype="uint8", batch=BATCH, least_side=32))
    dynamic, _ = open_exported(write_onnx(tmp_path / "any.onnx", any_size))
    with pytest.raises(DetectorError, match=r"16 x 32 pixels; .* from 32 on"):
        dynamic.detect([view()], limit=3)
    with pytest.raises(DetectorError, match="multiples of 16"):
        dynamic.detect([view(1, 40, 40)], limit=3)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_padding_is_the_mean_in_the_order_of_the_file(tmp_path: Path, dtype: Any) -> None:
    about = description(input=DescribedInput(dtype=dtype, batch=BATCH, height=HEIGHT, width=WIDTH))
    detector, _ = open_exported(write_onnx(tmp_path / "tiny.onnx", about))
    padded = view(2, content_sizes=torch.tensor([[16, 32], [8, 16]]))
    pixels = detector.pixels(padded)
    # The means are those of blue, green and red.
    red, green, blue = 0.75 * 255, 0.4 * 255, 0.25 * 255
    expected = [red, green, blue] if dtype == "float32" else [191, 102, 64]
    assert pixels[1, :, 8, 0].tolist() == pytest.approx(expected)
    assert pixels[1, :, 0, 16].tolist() == pytest.approx(expected)
    assert pixels[1, :, 7, 15].tolist() == [51, 102, 204]
    assert pixels[0, :, 15, 31].tolist() == [51, 102, 204]
    assert pixels.dtype == getattr(torch, dtype)


def test_boxes_are_clipped_to_the_photograph_as_the_detector_does(tmp_path: Path) -> None:
    clipping = Clipping(to="content", last_pixel=1.0, drops_empty=True)
    detector, _ = open_exported(write_onnx(tmp_path / "fcos.onnx", description(clipping=clipping)))
    (found,) = detector.detect([view(content_sizes=torch.tensor([[12, 25]]))], limit=3)
    assert found.boxes[1].tolist() == [1.5, 1, (24 - 1) / 2, (11 - 2) / 2]
    (none_left,) = detector.detect([view(content_sizes=torch.tensor([[3, 3]]))], limit=3)
    assert none_left.labels.tolist() == [2]

    detector, _ = open_exported(write_onnx(tmp_path / "corners.onnx", description(clipping=Clipping(to="photograph"))))
    (found,) = detector.detect([view(image_sizes=torch.tensor([[7, 15]]))], limit=3)
    assert found.boxes.tolist() == [[0, 0, 3.5, 1], [1.5, 1, 15, 7]]


def test_a_file_has_neither_maps_nor_losses(tmp_path: Path) -> None:
    detector, _ = open_exported(write_onnx(tmp_path / "tiny.onnx"))
    for refused in (
        lambda: detector(torch.zeros(1, 3, HEIGHT, WIDTH)),
        lambda: detector.decode(None, (HEIGHT, WIDTH)),
        lambda: detector.losses(None, None),
        lambda: detector.encode(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long), (HEIGHT, WIDTH)),
    ):
        with pytest.raises(DetectorError, match="is an exported file, which has no"):
            refused()


def test_open_trained_opens_files(tmp_path: Path) -> None:
    trained = open_trained(write_onnx(tmp_path / "tiny.onnx"))
    assert trained.class_names == ("dog", "person", "bottle")
    assert trained.classes[1].keypoints == ("nose",)
    assert trained.thresholds == {"dog": 0.25}
    assert (trained.identity.run, trained.identity.step, trained.identity.mlflow_run) == ("first", 7, "abc")
    assert trained.input_size == (HEIGHT, WIDTH)
    assert not trained.detector.training
    with pytest.raises(ConfigError, match=r"takes only images of 16 x 32 pixels, but evaluation\.geometry is keep"):
        open_trained(tmp_path / "tiny.onnx", flags=["--evaluation.geometry", "keep"])
    with pytest.raises(ConfigError, match="belongs to the trained weights"):
        open_trained(tmp_path / "tiny.onnx", flags=["--detector.name", "other"])


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_files_that_are_none_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ConfigError, match=f"model{suffix} does not exist; `aweigh export"):
        open_exported(path)
    path.write_bytes(b"\x08\x07not a model" * 100)
    with pytest.raises(ConfigError, match=f"model{suffix} is damaged, or not a"):
        open_exported(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"model{suffix} "):
        open_exported(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    for path in (write_onnx(tmp_path / "tiny.onnx"), write_pt2(tmp_path / "tiny.pt2")):
        content = path.read_bytes()
        for length in (len(content) // 3, len(content) // 2, len(content) - 20):
            path.write_bytes(content[:length])
            with pytest.raises(ConfigError, match=path.name):
                open_exported(path)


def test_an_onnx_file_of_another_tool_is_refused(tmp_path: Path) -> None:
    import onnx

    path = write_onnx(tmp_path / "tiny.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ConfigError, match="was not written by `aweigh export`"):
        open_exported(path)


def test_a_graph_that_onnxruntime_refuses_is_one_line(tmp_path: Path) -> None:
    import onnx

    path = write_onnx(tmp_path / "tiny.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(ConfigError, match=r"tiny\.onnx is refused by onnxruntime: ") as refused:
        open_exported(path)
    assert "\n" not in str(refused.value)


def test_outputs_unlike_the_description_are_refused(tmp_path: Path) -> None:
    for about, message in (
        (description(limit=5), r"returned boxes of shape \[2, 3, 4\], not \[2, 5, 4\]"),
        (description(classes=description().classes[:2]), "returned label 2, but it lists 2 classes"),
    ):
        detector, _ = open_exported(write_onnx(tmp_path / "tiny.onnx", about))
        with pytest.raises(DetectorError, match=message):
            detector.detect([view()], limit=3)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "folder/../../secret.bin", "link.bin", ""])
def test_tensors_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    import onnx

    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(96))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = _with_external(write_onnx(folder / "tiny.onnx"), location)
    assert list(external_files(onnx.load(path, load_external_data=False))) == [location]
    with pytest.raises(ConfigError, match="outside of its folder, which is refused"):
        open_exported(path)


def test_tensors_beside_the_file_are_read(tmp_path: Path) -> None:
    import onnx

    path = write_onnx(tmp_path / "tiny.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="tiny.onnx.data", size_threshold=64)
    detector, _ = open_exported(path)
    assert detector.detect([view()], limit=3)[0].labels.tolist() == [2, 0]
    shutil.move(tmp_path / "tiny.onnx.data", tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"keeps tensors in tiny\.onnx\.data, which is missing"):
        open_exported(path)


def _with_external(path: Path, location: str) -> Path:
    import onnx

    model = onnx.load(path)
    tensor = next(one for one in model.graph.initializer if one.name == "all_boxes")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = write_onnx(tmp_path / "tiny.onnx")
    original = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments, **more)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf'the package {package}, .* pip install "aweigh\[export\]"'):
        open_exported(path)


def test_exported_files_are_known_by_their_names() -> None:
    assert [is_exported(name) for name in ("a.onnx", "b.PT2", "runs/first", "c.pth", "onnx")] == [
        True,
        True,
        False,
        False,
        False,
    ]
