"""Detections on their way from the input frame to the image frame: boxes, joints and 3D boxes, and all of them."""

import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors import Detections, View
from detectors.detections import in_image, in_other_input, joined, points_in_image
from detectors.shared.test_time_augmentation import merge_by_soft_nms
from detectors.sizes import Multiples

# x' = 2 x + 10, y' = 2 y - 4.
TRANSFORM = tensor([[2.0, 0.0, 10.0], [0.0, 2.0, -4.0]])


def found(num_objects: int = 2) -> Detections:
    """Objects apart from one another, each with two joints and a 3D box, whose values tell the rows."""
    first = torch.arange(num_objects).float()[:, None]
    return Detections(
        boxes=tensor([[30.0, 16.0, 50.0, 36.0]]) + 100 * first,
        scores=0.9 - first[:, 0] / 10,
        labels=torch.arange(num_objects),
        keypoints=(tensor([[30.0, 16.0, 0.5], [50.0, 36.0, 0.25]]) + tensor([100.0, 100, 0]) * first[..., None]),
        box3d=tensor([[40.0, 26.0, 7.0, 1.5, 1.6, 3.9, -1.0]]) + tensor([100.0, 100, 1, 0, 0, 0, 0]) * first,
    )


def assert_same(given: Detections, expected: Detections) -> None:
    for name in ("boxes", "scores", "labels", "keypoints", "box3d"):
        assert torch.equal(getattr(given, name), getattr(expected, name)), name


def test_boxes_go_back_to_the_image_corner_by_corner() -> None:
    # (30, 16) is (10, 10) in the image, and (50, 36) is (20, 20).
    assert_close(points_in_image(tensor([[30.0, 16.0], [50.0, 36.0]]), TRANSFORM), tensor([[10.0, 10], [20, 20]]))
    assert points_in_image(torch.zeros(0, 2, 2), TRANSFORM).shape == (0, 2, 2)


def test_boxes_of_a_mirrored_input_keep_their_corners() -> None:
    # x' = 99 - x takes the left edge 20 to 79; the published code maps each corner and leaves them in order.
    transform = tensor([[-1.0, 0.0, 99.0], [0.0, 1.0, 0.0]])
    mirrored = Detections(tensor([[79.0, 5.0, 59.0, 9.0]]), torch.ones(1), torch.zeros(1, dtype=torch.long))
    assert_close(in_image(mirrored, transform).boxes, tensor([[20.0, 5, 40, 9]]))


def test_joints_and_the_centres_of_3d_boxes_go_back_too_and_metres_stay() -> None:
    moved = in_image(found(1), TRANSFORM)
    assert_close(moved.boxes, tensor([[10.0, 10, 20, 20]]))
    assert_close(moved.keypoints, tensor([[[10.0, 10, 0.5], [20, 20, 0.25]]]))
    assert_close(moved.box3d, tensor([[15.0, 15, 7, 1.5, 1.6, 3.9, -1]]))
    nothing = in_image(found(2).rows(tensor([], dtype=torch.long)), TRANSFORM)
    assert nothing.keypoints is not None
    assert nothing.box3d is not None
    assert (nothing.keypoints.shape, nothing.box3d.shape) == ((0, 2, 3), (0, 7))


def test_another_views_input_frame_is_reached_without_the_image() -> None:
    here, other = TRANSFORM.double(), tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]]).double()
    assert in_other_input(found(), here, here) is not None
    assert_same(in_other_input(found(), here, here), found())
    moved = in_other_input(found(1), here, other)  # in the image 10, 10, 20, 20; 3 to the right in the other input
    assert_close(moved.boxes, tensor([[13.0, 10, 23, 20]]))
    assert_close(moved.keypoints, tensor([[[13.0, 10, 0.5], [23, 20, 0.25]]]))
    assert_close(moved.box3d, tensor([[18.0, 15, 7, 1.5, 1.6, 3.9, -1]]))


def test_nothing_is_lost_when_parts_are_joined_chosen_or_merged() -> None:
    one, other = found(3), found(2)
    both = joined([one, other])
    assert_same(both.rows(torch.arange(3)), one)
    assert_same(both.rows(torch.arange(3, 5)), other)
    # The objects are far apart, so soft-NMS lowers no score; it sorts them.
    merged = merge_by_soft_nms([one.rows(tensor([1, 2, 0]))], limit=10)
    assert_same(merged, one)


def test_detect_keeps_what_a_detector_in_3d_found_and_takes_it_to_the_image() -> None:
    torch.manual_seed(0)
    detector = detectors.build("centernet_dla34_3d", width=4, head_channels=8).eval()
    view = View(torch.randn(2, 3, 64, 96), torch.stack([TRANSFORM, TRANSFORM]))
    with torch.no_grad():
        in_input = detector.decode(detector(view.images), (64, 96), 5)
    for given, expected in zip(detector.detect([view], limit=5), in_input, strict=True):
        assert given.box3d is not None
        assert expected.box3d is not None
        assert_close(given.boxes, (expected.boxes - tensor([10.0, -4, 10, -4])) / 2, rtol=1e-5, atol=1e-4)
        assert_close(given.box3d[:, :2], (expected.box3d[:, :2] - tensor([10.0, -4])) / 2, rtol=1e-5, atol=1e-4)
        assert torch.equal(given.box3d[:, 2:], expected.box3d[:, 2:])


class TwoLooks(detectors.Detector):
    """Finds where to look in the whole image, then cuts that part out of the view and runs again."""

    preprocessing = detectors.Preprocessing("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    sizes = Multiples(1)
    num_classes = 1

    def forward(self, images: Tensor) -> Tensor:
        return images

    def encode(self, boxes: Tensor, labels: Tensor, input_size: tuple[int, int], **extra: Tensor) -> Tensor:
        return labels

    def losses(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": outputs.sum()}

    def decode(self, outputs: Tensor, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """The brightest pixel."""
        brightest = outputs[:, 0].flatten(1).argmax(dim=1)
        x, y = (brightest % input_size[1]).float(), (brightest // input_size[1]).float()
        boxes = torch.stack((x, y, x + 1, y + 1), dim=-1)[:, None]
        return [Detections(box, torch.ones(1), torch.zeros(1, dtype=torch.long)) for box in boxes]

    def detect(self, views, **options):  # type: ignore[no-untyped-def]
        (view,) = views
        results = []
        for row, coarse in enumerate(self.decode(self(view.images[..., ::2, ::2]), (8, 16))):
            left, top = (2 * coarse.boxes[0, :2]).long().tolist()
            crop = view.images[row : row + 1, :, top : top + 2, left : left + 2]
            (fine,) = self.decode(self(crop), (2, 2))
            fine.boxes = fine.boxes + tensor([left, top, left, top])
            results.append(in_image(fine, view.transforms[row].double()))
        return results


def test_a_detector_that_looks_twice_has_all_it_needs_in_a_view() -> None:
    images = torch.zeros(1, 3, 16, 32)
    images[..., 6, 20], images[..., 7, 21] = 0.5, 1.0
    (result,) = TwoLooks().detect([View(images, TRANSFORM[None])])
    assert_close(result.boxes, tensor([[5.5, 5.5, 6.0, 6.0]]))  # x = (21 - 10) / 2, y = (7 + 4) / 2
