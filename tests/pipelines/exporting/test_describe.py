"""The description says how each detector clips, and identifies the weights."""

import pytest
import torch

import detectors
from pipelines.exporting.describe import clipping_of, sha256_of
from pipelines.trained.file_description import Clipping


@pytest.mark.parametrize(
    ("name", "settings", "clipping"),
    [
        ("centernet_resnet18", {"width": 8}, Clipping()),
        ("fcos_resnet50", {}, Clipping(to="content", last_pixel=1.0)),
        ("fcos_resnet50", {"variant": "torchvision"}, Clipping(to="content")),
        ("fcos_resnet50", {"variant": "adelaidet"}, Clipping(to="content", drops_empty=True)),
        ("foveabox_resnet50", {}, Clipping(to="content", last_pixel=1.0)),
        ("cornernet_squeeze", {"width": 32}, Clipping(to="photograph")),
    ],
)
def test_the_border_that_boxes_are_clipped_to(name: str, settings: dict[str, object], clipping: Clipping) -> None:
    with torch.device("meta"):
        detector = detectors.build(name, 3, **settings)
    assert clipping_of(detector) == clipping


def test_the_sha256_depends_on_names_shapes_types_and_values_only() -> None:
    weights = {"b": torch.arange(6.0), "a": torch.tensor(3)}
    expected = sha256_of(weights)
    assert sha256_of({"a": torch.tensor(3), "b": torch.arange(12.0)[::2] / 2}) == expected
    for other in (
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"], "b": weights["b"].view(2, 3)},
        {"a": weights["a"], "b": weights["b"].double()},
        {"a": weights["a"], "b": weights["b"] + 1e-6},
    ):
        assert sha256_of(other) != expected
