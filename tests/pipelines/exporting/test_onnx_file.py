"""ONNX files, run by onnxruntime, against the detectors that they were made from."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detectors.portable import PortableDetector
from pipelines.exporting.onnx_file import to_onnx
from pipelines.exporting.torch_file import FileInput
from tests.detectors.test_portable import built, pixels


def run(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(torch.from_numpy(values) for values in session.run(None, {"images": images.numpy()}))


def assert_same_objects(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Each object has its like; two whose scores are nearly equal may come in either order."""
    assert len(found) == len(expected)
    scores = expected[1]
    assert_close(found[1], scores, rtol=0, atol=1e-4)
    for image in range(len(scores)):
        # An object that nearly ties for the last place may be missing.
        real = (expected[2][image] >= 0) & (scores[image] > scores[image, -1] + 2e-4)
        assert real.any()
        for row in real.nonzero().flatten().tolist():
            like = (found[2][image] == expected[2][image, row]) & ((found[1][image] - scores[image, row]).abs() < 2e-4)
            assert like.any()
            missed = (found[0][image][like] - expected[0][image, row]).abs().amax(dim=-1)
            assert float(missed.min()) < 0.05, (image, row)
            for values, wanted in zip(found[3:], expected[3:], strict=True):
                assert_close(values[image][like][missed.argmin()], wanted[image, row], rtol=1e-3, atol=0.05)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("centernet_resdcn18", {}),
        ("fcos_resnet50", {}),
        ("cornernet_squeeze", {}),
        pytest.param("centernet_hourglass104_pose", {}, marks=pytest.mark.slow),
        pytest.param("centernet_dla34_3d", {}, marks=pytest.mark.slow),
        pytest.param("fcos_resnet50", {"variant": "adelaidet"}, marks=pytest.mark.slow),
        pytest.param("foveabox_resnet50", {"align": True}, marks=pytest.mark.slow),
        pytest.param("keypoint_triplets_hourglass52", {}, marks=pytest.mark.slow),
    ],
)
def test_a_file_finds_what_its_detector_finds(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    portable = PortableDetector(built(name, **settings), limit=20)
    images = pixels(portable.detector)  # of the size for which `built` spreads the scores
    given = FileInput(height=images.shape[2], width=images.shape[3])
    to_onnx(portable, tmp_path / "model.onnx", given, {})
    with torch.no_grad():
        assert_same_objects(run(tmp_path / "model.onnx", images), portable(images))
        assert_same_objects(run(tmp_path / "model.onnx", images[1:]), portable(images[1:]))


def test_a_file_for_any_size_says_so_and_has_its_metadata(tmp_path: Path) -> None:
    portable = PortableDetector(built("centernet_resnet18"), limit=20)
    path = tmp_path / "model.onnx"
    given = FileInput(height=192, width=160, any_size=True, pixels="float32")
    to_onnx(portable, path, given, {"classes": '["a", "b", "c"]'})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, "height", "width"])
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("boxes", ["batch", 20, 4]),
        ("scores", ["batch", 20]),
        ("labels", ["batch", 20]),
    ]
    assert session.get_modelmeta().custom_metadata_map == {"classes": '["a", "b", "c"]'}
    with torch.no_grad():
        for size in ((3, 4), (4, 3), (2, 2)):
            pictures = pixels(portable.detector, *size).float()
            assert_same_objects(run(path, pictures), portable(pictures))


@pytest.mark.slow
def test_a_pyramid_for_any_size_takes_sides_that_its_last_stride_does_not_divide(tmp_path: Path) -> None:
    portable = PortableDetector(built("fcos_resnet50"), limit=20)
    path = tmp_path / "model.onnx"
    to_onnx(portable, path, FileInput(height=256, width=192, any_size=True, pixels="float32"), {})
    with torch.no_grad():
        for size in ((5, 3), (3, 5)):
            pictures = pixels(portable.detector, *size).float()
            assert_same_objects(run(path, pictures), portable(pictures))
