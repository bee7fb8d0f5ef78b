"""Keypoint Triplets: centres among the targets, and the central region, against the published procedure in loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from detectors import DetectorError, View
from detectors.cornernet.cornernet import CornerNetSettings
from detectors.cornernet.decoding import Centers, Pairs
from detectors.detector import TestMode
from detectors.keypoint_triplets.triplets import KeypointTriplets, keypoint_triplets_hourglass52, with_center
from detectors.shared.network import Outputs
from tests.detectors.cornernet import reference
from tests.detectors.cornernet.stand_in import StandIn, perfect_maps, random_maps
from tests.detectors.cornernet.test_targets import random_boxes

INPUT = (95, 127)
POINTS = ("top_left", "bottom_right", "center")


def answer(images: Tensor) -> Outputs:
    """Noise that depends on the size of the input and the number of the image."""
    height, width = ((side + 1) // 4 for side in images.shape[-2:])
    maps = [random_maps(2, (height, width), 1000 * number + width, names=POINTS) for number in range(len(images))]
    return [{name: torch.cat([one[name] for one in maps]) for name in maps[0]}]


def detector(**settings: Any) -> KeypointTriplets:
    chosen = {"gaussian_radius": "original", "min_overlap": 0.7, "corners": 70, **settings}
    return KeypointTriplets(3, StandIn(answer), CornerNetSettings(**chosen)).eval()


def test_the_published_settings() -> None:
    with torch.device("meta"):
        built = keypoint_triplets_hourglass52(7)
    settings = built.settings
    assert (settings.gaussian_radius, settings.min_overlap, settings.corners) == ("original", 0.7, 70)
    assert (settings.candidates, settings.tag_distance) == (1000, 0.5)
    assert built.test_time.scales == (0.6, 1.0, 1.2, 1.5, 1.8)
    assert built.num_classes == 7


@pytest.mark.parametrize("seed", range(3))
def test_centres_are_those_of_the_published_procedure(seed: int) -> None:
    boxes, labels = random_boxes(seed, batch=2, objects=12)
    targets = detector(max_objects=12).encode(boxes, labels, INPUT)
    center = targets.points["center"]
    ratio_x, ratio_y = 32 / 127, 24 / 95
    for image in range(2):
        heat = {name: np.zeros((3, 24, 32), np.float32) for name in POINTS}
        for slot in range(12):
            label, corners = int(labels[image, slot]), reference.clipped(boxes[image, slot].tolist(), INPUT)
            if label < 0 or corners is None:
                continue
            x1, y1, x2, y2 = corners
            reach = reference.radius(math.ceil((y2 - y1) * ratio_y), math.ceil((x2 - x1) * ratio_x), 0.7, "original")
            x, y = (x1 + x2) / 2 * ratio_x, (y1 + y2) / 2 * ratio_y
            assert center.index[image, slot] == int(y) * 32 + int(x)
            np.testing.assert_allclose(center.offset[image, slot], [x % 1, y % 1], atol=1e-6)
            reference.draw(heat["center"][label], int(x), int(y), reach, deviations=5)
            reference.draw(heat["top_left"][label], int(x1 * ratio_x), int(y1 * ratio_y), reach)
            reference.draw(heat["bottom_right"][label], int(x2 * ratio_x), int(y2 * ratio_y), reach)
        for name, expected in heat.items():
            np.testing.assert_allclose(targets.points[name].heatmap[image], expected, rtol=1.2e-7, atol=0)


def test_losses_and_pictures_include_the_centres() -> None:
    one = detector()
    targets = one.encode(tensor([[[8.0, 8, 60, 60]]]), tensor([[1]]), INPUT)
    assert list(one.heatmaps(targets)) == ["top-left", "bottom-right", "centre"]
    maps = random_maps(3, (24, 32), 0, names=POINTS)
    both = one.losses([maps], targets)
    shifted = one.losses([{**maps, "center_offset": maps["center_offset"] + 1}], targets)
    assert shifted["offset"] != both["offset"]
    surer = one.losses([{**maps, "center_heatmap": maps["center_heatmap"] - 1}], targets)
    assert surer["heatmap"] != both["heatmap"]
    assert surer["offset"] == both["offset"]


def test_decoding_the_targets_yields_the_boxes() -> None:
    boxes = tensor([[[3.0, 5, 40, 33], [50, 4, 120, 90], [12, 30, 13, 31]], [[8, 8, 60, 60]] * 3])
    labels = tensor([[0, 1, 1], [2, -1, -1]])
    one = detector()
    found = one.decode([perfect_maps(one.encode(boxes, labels, INPUT))], INPUT)
    for image, expected in enumerate((boxes[0], boxes[1, :1])):
        sure = found[image].scores > 0.9
        assert sorted(found[image].boxes[sure].round(decimals=2).tolist()) == sorted(expected.tolist())


# The central region


def one_pair(corners: list[float], score: float = 0.6, label: int = 1) -> Pairs:
    return Pairs(tensor([corners]), tensor([score]), tensor([label]), torch.ones(1, 2))


def centers(*rows: tuple[float, float, float, int]) -> Centers:
    table = tensor([row[:3] for row in rows])
    return Centers(table[:, :2], table[:, 2], tensor([row[3] for row in rows]))


def test_the_central_region_is_a_third_of_small_boxes_and_a_fifth_of_large_ones() -> None:
    for side, first in ((150, 50.0), (151, 60.4)):  # 150 x 150 = 22,500 is still small
        box = one_pair([0.0, 0, side, side])
        assert len(with_center(box, centers((first + 0.1, side / 2, 0.3, 1))).scores) == 1
        assert len(with_center(box, centers((first - 0.1, side / 2, 0.3, 1))).scores) == 0
        assert len(with_center(box, centers((side / 2, side - first + 0.1, 0.3, 1))).scores) == 0
    # Strictly inside.
    assert len(with_center(one_pair([0.0, 0, 150, 150]), centers((50.0, 75.0, 0.3, 1))).scores) == 0


def test_the_first_centre_in_the_list_counts_not_the_best() -> None:
    listed = centers((5, 5, 0.9, 0), (5, 5, 0.3, 1), (5, 5, 0.9, 1))
    kept = with_center(one_pair([0.0, 0, 10, 10]), listed)
    assert kept.scores.tolist() == pytest.approx([(2 * 0.6 + 0.3) / 3])
    assert len(with_center(one_pair([0.0, 0, 10, 10], label=2), listed).scores) == 0
    assert len(with_center(one_pair([0.0, 0, 0, 0]), listed).scores) == 0


def view(scale: float, image_size: tuple[int, int] = (180, 261)) -> View:
    height, width = int(image_size[0] * scale), int(image_size[1] * scale)
    rows, columns = (-(-(side + 1) // 32) * 32 - 1 for side in (height, width))
    border = (rows // 2 - height // 2, columns // 2 - width // 2)
    return View(
        torch.zeros(1, 3, rows, columns),
        tensor([[[scale, 0.0, border[1]], [0.0, scale, border[0]]]]),
        image_sizes=tensor([list(image_size)]),
        scale=scale,
    )


@pytest.mark.parametrize(("mode", "scales"), [("none", (1.0,)), ("flip", (1.0,)), ("multiscale", (0.6, 1.0, 1.2))])
def test_pairs_without_a_centre_are_dropped_as_published(mode: TestMode, scales: tuple[float, ...]) -> None:
    height, width = 180, 261
    views, flip = [view(scale) for scale in scales], mode != "none"
    rows, found_centers = [], []
    for one in views:
        (in_h, in_w), scale = one.input_size, one.scale
        out_h, out_w = (in_h + 1) // 4, (in_w + 1) // 4
        left, top = int(one.transforms[0, 0, 2]), int(one.transforms[0, 1, 2])
        high, wide = int(height * scale), int(width * scale)
        for number in range(1 + flip):
            maps = {
                name: values[number : number + 1] for name, values in answer(torch.zeros(2, 3, in_h, in_w))[0].items()
            }
            for x1, y1, x2, y2, *rest in reference.pairs(maps, corners=40, distance=0.5, limit=1000):
                first, last = (out_w - x2, out_w - x1) if number else (x1, x2)
                xs = [x / (out_w / in_w) - left for x in (first, last)]
                ys = [y / (out_h / in_h) - top for y in (y1, y2)]
                if xs[0] <= -5 or ys[0] <= -5 or xs[1] >= wide + 5 or ys[1] >= high + 5:
                    continue
                xs, ys = [min(max(x, 0), wide) / scale for x in xs], [min(max(y, 0), high) / scale for y in ys]
                rows.append([xs[0], ys[0], xs[1], ys[1], *rest])
            if scale == 1:
                heat = maps["center_heatmap"].sigmoid()
                peak = torch.nn.functional.max_pool2d(heat, 3, 1, 1) == heat
                for score, index in zip(*(values.tolist() for values in (heat * peak).flatten().topk(40)), strict=True):
                    label, y, x = index // (out_h * out_w), index // out_w % out_h, index % out_w
                    dx, dy = maps["center_offset"][0, :, y, x].tolist()
                    at = out_w - (x + dx) if number else x + dx
                    found_centers.append((at / (out_w / in_w) - left, (y + dy) / (out_h / in_h) - top, label, score))
    expected = []
    for x1, y1, x2, y2, score, label, *corners in rows:
        n = 3 if (x2 - x1) * (y2 - y1) <= 22500 else 5
        for x, y, other, center_score in found_centers:
            low, high_ = ((n + 1) / 2, (n - 1) / 2), ((n - 1) / 2, (n + 1) / 2)
            if (
                other == label
                and (low[0] * x1 + low[1] * x2) / n < x < (high_[0] * x1 + high_[1] * x2) / n
                and (low[0] * y1 + low[1] * y2) / n < y < (high_[0] * y1 + high_[1] * y2) / n
            ):
                expected.append([x1, y1, x2, y2, (2 * score + center_score) / 3, label, *corners])
                break
    one_detector = detector(corners=40)
    kept: list[Pairs] = []
    one_detector.suppress = lambda pairs, limit, merging: kept.append(pairs)  # type: ignore[method-assign,assignment,return-value]
    one_detector.detect(views, mode=mode)
    given = torch.cat(
        (kept[0].boxes, kept[0].scores[:, None], kept[0].labels[:, None], kept[0].corner_scores), dim=1
    ).numpy()
    assert 2 < len(expected) == len(given)
    assert (np.diff(given[:, 4]) <= 0).all()
    # Scores that are nearly equal may be in another order.
    wanted = np.array(expected)
    given, wanted = (rows[np.lexsort(rows[:, :4].round(2).T)] for rows in (given, wanted))
    np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-3)


def test_scale_1_cannot_be_left_out() -> None:
    one = detector()
    assert one.scales_shown("multiscale") == (0.6, 1.0, 1.2, 1.5, 1.8)
    assert one.scales_shown("flip") == (1.0,)
    message = "the scales are 0.6, 1.2, but detector takes its centres from scale 1. Add 1 to evaluation.scales"
    with pytest.raises(DetectorError, match=message):
        one.scales_shown("multiscale", scales=(0.6, 1.2))
    with pytest.raises(DetectorError, match=message):
        one.detect([view(0.6), view(1.2)], mode="multiscale")


def test_the_whole_way_with_and_without_objects() -> None:
    (found,) = detector().detect([view(1.0)], mode="flip")
    assert len(found.scores) >= 1
    silent = KeypointTriplets(
        3,
        StandIn(lambda images: [{name: values - 30 for name, values in answer(images)[0].items()}]),
        CornerNetSettings(candidates=10),
    )
    (nothing,) = silent.detect([view(1.0)], mode="flip")
    assert nothing.boxes.shape[1] == 4
