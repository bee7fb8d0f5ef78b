"""Places in the camera's frame, and box sizes as KITTI's results have them."""

import math

import pytest
import torch
from torch.testing import assert_close

from detectors.shared.camera import place_in_camera, with_published_sizes


def test_what_the_camera_sees_is_placed_back() -> None:
    """Project a point of the camera's frame with KITTI's kind of matrix, and get it back."""
    calibration = torch.tensor([[720.0, 0, 610, 45], [0, 720, 173, 0.2], [0, 0, 1, 0.003]], dtype=torch.float64)
    location = torch.tensor([[2.0, 1.6, 20.0], [-15.0, 1.4, 9.0]], dtype=torch.float64)
    dimensions = torch.tensor([[1.5, 1.6, 3.9], [1.7, 0.6, 0.8]], dtype=torch.float64)
    middle = location - torch.tensor([0, 0.5, 0]) * dimensions[:, :1]  # y points down, half a height up
    projected = torch.cat((middle, torch.ones(2, 1)), dim=1) @ calibration.T
    alpha = torch.tensor([0.3, -3.0], dtype=torch.float64)
    centers = projected[:, :2] / projected[:, 2:]
    found, rotation = place_in_camera(centers, projected[:, 2], dimensions, alpha, calibration)
    assert_close(found, location)
    bearing = torch.atan2(centers[:, 0] - 610, torch.tensor(720.0, dtype=torch.float64))
    assert rotation[0].item() == pytest.approx(0.3 + bearing[0].item())
    assert rotation[1].item() == pytest.approx(-3.0 + bearing[1].item() + 2 * math.pi)  # -4.03 is one turn less


def test_published_sizes_are_moved_as_if_they_were_points() -> None:
    # KITTI's 1242 x 375 in an input of 1280 x 384, by its width: the middle of the image is that of the input.
    zoom = 1280 / 1242
    transform = torch.tensor([[zoom, 0, 640 - zoom * 621], [0, zoom, 192 - zoom * 187.5]], dtype=torch.float64)
    boxes = torch.tensor([[100.0, 150.0, 180.0, 200.0], [0.0, 0.0, 2.0, 2.0]])
    # In the map of 320 x 96, 80 x 50 are 20.61 x 12.88; as a point of the map, that is 80, 51.2 in the image:
    # 187.5 - 192 / zoom = 1.2.
    expected = torch.tensor([[100.0, 149.4, 180.0, 200.6], [0.0, -0.6, 2.0, 2.6]])
    assert_close(with_published_sizes(boxes, transform), expected, rtol=0, atol=1e-4)
    # An input that starts where the image does adds nothing.
    assert_close(with_published_sizes(boxes, torch.tensor([[2.0, 0, 0], [0, 2, 0]], dtype=torch.float64)), boxes)
