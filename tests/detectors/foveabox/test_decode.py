"""From maps to boxes: against a loop with the published rules, and by hand."""

import functools
import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors import DetectorError
from detectors.detector import View
from detectors.foveabox.foveabox import FoveaBox
from detectors.foveabox.network import Outputs
from detectors.layers.feature_pyramid import grid_sizes

STRIDES = (8, 16, 32, 64, 128)
LENGTHS = (16, 32, 64, 128, 256)


@functools.cache
def foveabox(**settings: object) -> FoveaBox:
    torch.manual_seed(0)
    detector = detectors.build("foveabox_resnet50", 3, width=4, channels=8, **settings)
    assert isinstance(detector, FoveaBox)
    return detector


def silent(size: tuple[int, int], batch: int = 1) -> Outputs:
    """Maps in which no class is likely, and every box reaches one base length to each side."""
    grids = grid_sizes(size)
    return Outputs(
        [torch.full((batch, 3, *grid), -20.0) for grid in grids], [torch.zeros(batch, 4, *grid) for grid in grids]
    )


def random_maps(size: tuple[int, int], batch: int) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    grids = grid_sizes(size)
    return Outputs(
        [torch.randn(batch, 3, *grid, generator=generator) * 2 - 1 for grid in grids],
        [torch.randn(batch, 4, *grid, generator=generator) * 0.5 for grid in grids],
    )


def by_loops(
    maps: Outputs, image: int, size: tuple[int, int], top: int, by: str, one: int
) -> list[tuple[float, int, list[float]]]:
    found: list[tuple[float, int, list[float]]] = []
    for logits, log_sides, stride, length in zip(*maps, STRIDES, LENGTHS, strict=True):
        cells = []
        for i in range(logits.shape[2]):
            for j in range(logits.shape[3]):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                left, up, right, down = (length * math.exp(v) for v in log_sides[image, :, i, j].double().tolist())
                box = [x - left, y - up, x + right, y + down]
                box = [min(max(v, 0), size[1 - k % 2] - 1) for k, v in enumerate(box)]
                cells.append(([1 / (1 + math.exp(-v)) for v in logits[image, :, i, j].double().tolist()], box))
        if by == "location":
            cells = sorted(cells, key=lambda cell: -max(cell[0]))[:top]
        scored = [(s, label, box) for scores, box in cells for label, s in enumerate(scores) if s > 0.05]
        found += sorted(scored, key=lambda entry: -entry[0])[:top] if by == "class" else scored
    kept: list[tuple[float, int, list[float]]] = []
    for entry in sorted(found, key=lambda entry: -entry[0]):
        if all(other[1] != entry[1] or overlap(other[2], entry[2], one) <= 0.5 for other in kept):
            kept.append(entry)
    return kept


def overlap(a: list[float], b: list[float], one: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("by", ["location", "class"])
@pytest.mark.parametrize("box_ends", ["last_pixel", "edge"])
def test_decoding_is_that_of_the_loops(by: str, box_ends: str) -> None:
    size, maps = (96, 160), random_maps((96, 160), 2)
    detector = foveabox(candidates=50, candidates_by=by, box_ends=box_ends)
    for image, given in enumerate(detector.decode(maps, size, limit=40)):
        expected = by_loops(maps, image, size, 50, by, 1 if box_ends == "last_pixel" else 0)
        assert len(expected) > 40
        assert given.labels.tolist() == [entry[1] for entry in expected[:40]]
        assert_close(given.scores, tensor([entry[0] for entry in expected[:40]]))
        assert_close(given.boxes, tensor([entry[2] for entry in expected[:40]]), rtol=1e-5, atol=1e-4)


def test_one_box_by_hand() -> None:
    # Logit 0 is 1/2. Row 2, column 3 of P3: the point 28, 20; sides of 16 × 1, 1/2, 2 and 1 pixels.
    maps = silent((64, 64))
    maps.logits[0][0, 1, 2, 3] = 0
    maps.log_sides[0][0, :, 2, 3] = tensor([0.0, -math.log(2), math.log(2), 0.0])
    (found,) = foveabox().decode(maps, (64, 64))
    assert_close(found.boxes, tensor([[12.0, 12.0, 60.0, 36.0]]))
    assert found.scores.tolist() == [0.5]
    assert found.labels.tolist() == [1]


def test_the_rules_keep_different_candidates() -> None:
    # Two candidates. By location: the cells with 0.9 and 0.7, and all their classes. By class: 0.9 and 0.8.
    maps = silent((64, 128))
    for label, column, probability in ((0, 2, 0.9), (1, 2, 0.8), (0, 12, 0.7), (2, 12, 0.3), (1, 7, 0.6)):
        maps.logits[0][0, label, 4, column] = math.log(probability / (1 - probability))
    found = foveabox(candidates=2).decode(maps, (64, 128))[0]
    assert_close(found.scores, tensor([0.9, 0.8, 0.7, 0.3]))
    found = foveabox(candidates=2, candidates_by="class").decode(maps, (64, 128))[0]
    assert_close(found.scores, tensor([0.9, 0.8]))


def test_the_threshold_excludes_itself() -> None:
    maps = silent((64, 64))
    for column, probability in enumerate((0.04, 0.06, 0.5)):
        maps.logits[0][0, 0, 2, 2 * column] = math.log(probability / (1 - probability))
        maps.log_sides[0][0, :, 2, 2 * column] = -2
    assert len(foveabox().decode(maps, (64, 64))[0].scores) == 2
    assert len(foveabox(score_threshold=0.5).decode(maps, (64, 64))[0].scores) == 0


def test_the_pixel_decides_about_an_overlap() -> None:
    # Boxes 8 × 8 and 8 × 4, IoU 32/64, which is not above the threshold; with the pixel 9 × 9 and 9 × 5, 45/81 is.
    maps = silent((64, 64))
    maps.logits[0][0, 0, 2, 2], maps.logits[1][0, 0, 1, 1] = 1, 0.5
    maps.log_sides[0][0, :, 2, 2] = tensor([2.0, 2.0, 6.0, 6.0]).div(16).log()  # 18 .. 26, 18 .. 26
    maps.log_sides[1][0, :, 1, 1] = tensor([6.0, 2.0, 2.0, 2.0]).div(32).log()  # 18 .. 26, 22 .. 26
    found = foveabox(box_ends="edge").decode(maps, (64, 64))[0]
    assert_close(found.boxes, tensor([[18.0, 18.0, 26.0, 26.0], [18.0, 22.0, 26.0, 26.0]]))
    assert len(foveabox().decode(maps, (64, 64))[0].scores) == 1


def test_boxes_end_at_the_last_pixel() -> None:
    maps = silent((64, 64))
    maps.logits[4][0, 0] = 0
    maps.log_sides[4].fill_(2)
    for box_ends in ("last_pixel", "edge"):
        assert foveabox(box_ends=box_ends).decode(maps, (64, 64))[0].boxes.tolist() == [[0, 0, 63, 63]]


def test_targets_decode_to_their_boxes() -> None:
    boxes = tensor([[[10.0, 12.0, 50.0, 40.0], [5.0, 8.0, 120.0, 90.0]]])
    detector = foveabox()
    targets = detector.encode(boxes, tensor([[2, 1]]), (128, 128))
    own = [labels[:, None] == torch.arange(3)[:, None, None] for labels in targets.labels]
    outputs = Outputs([torch.where(one, 5.0, -20.0) for one in own], targets.log_sides)
    (found,) = detector.decode(outputs, (128, 128))
    assert found.labels.sort().values.tolist() == [1, 2]
    assert_close(found.boxes[found.labels.argsort()], boxes[0, [1, 0]], rtol=1e-5, atol=1e-4)


def test_no_detection_and_a_batch_like_its_images() -> None:
    (found,) = foveabox().decode(silent((64, 64)), (64, 64))
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64
    maps = random_maps((64, 64), 3)
    together = foveabox().decode(maps, (64, 64))
    for image in range(3):
        rows = slice(image, image + 1)
        (alone,) = foveabox().decode(Outputs(*([level[rows] for level in kind] for kind in maps)), (64, 64))
        assert torch.equal(alone.boxes, together[image].boxes)
        assert torch.equal(alone.scores, together[image].scores)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(
        DetectorError, match=r"a level has 8 x 8 cells, but an input of 64 x 96 has 8 x 12. Pass the size"
    ):
        foveabox().decode(silent((64, 64)), (64, 96))


@pytest.mark.parametrize(
    ("box_ends", "turned"), [("last_pixel", [31.0, 12.0, 79.0, 36.0]), ("edge", [32.0, 12.0, 80.0, 36.0])]
)
def test_the_mirror_is_turned_back_within_the_photograph(box_ends: str, turned: list[float]) -> None:
    # In the mirror of a photograph 92 wide, 12 .. 60 is 91 - 60 .. 91 - 12, or 92 - 60 .. 92 - 12.
    maps, mirrored = silent((64, 96)), silent((64, 96))
    mirrored.logits[0][0, 1, 2, 3] = 0
    mirrored.log_sides[0][0, :, 2, 3] = tensor([0.0, -math.log(2), math.log(2), 0.0])
    detector = foveabox(box_ends=box_ends)
    (found,) = detector.candidates(maps, (64, 96), mirrored=mirrored, content_sizes=tensor([[64, 92]]))
    assert_close(found.boxes, tensor([turned]))
    # Boxes are clipped to the photograph, of which 40 columns are left here: 12 .. 39, in the mirror 0 .. 27.
    (found,) = detector.candidates(maps, (64, 96), mirrored=mirrored, content_sizes=tensor([[64, 40]]))
    assert_close(found.boxes[0, 0::2], tensor([0.0, 27.0]) + (1 if box_ends == "edge" else 0))


def test_views_are_joined_before_one_nms_in_the_image() -> None:
    class Fixed(FoveaBox):
        """A detector that finds the box 24 .. 40 of the image in the first view, and 24 .. 41 in the second."""

        def forward(self, images: Tensor) -> Outputs:
            size = (images.shape[-2], images.shape[-1])
            maps = silent(size, len(images))
            scale = size[0] // 64
            # In the image itself, not in its mirror, which comes second.
            level = 0 if scale == 1 else 1
            maps.logits[level][0, 0, 3, 3] = 1.0 if scale == 1 else 2.0
            # The point 28, 28 of the image in both views.
            stride, length = STRIDES[level], LENGTHS[level]
            assert 3.5 * stride == 28 * scale
            sides = tensor([4.0, 4.0, 12.0, 12.0]) + tensor([0.0, 0.0, 1.0, 1.0]) * (scale - 1)
            maps.log_sides[level][0, :, 3, 3] = (sides * scale / length).log()
            return maps

    detector = foveabox().eval()
    fixed = Fixed.__new__(Fixed)
    fixed.__dict__ = detector.__dict__
    views = [
        View(torch.zeros(1, 3, 64 * scale, 64 * scale), tensor([[[scale, 0.0, 0.0], [0.0, scale, 0.0]]]))
        for scale in (1, 2)
    ]
    (alone,) = fixed.detect(views[:1], mode="flip")
    assert_close(alone.boxes, tensor([[24.0, 24.0, 40.0, 40.0]]))
    (found,) = fixed.detect(views, mode="multiscale")
    assert_close(found.boxes, tensor([[24.0, 24.0, 41.0, 41.0]]))
    assert_close(found.scores, tensor([2.0]).sigmoid())
