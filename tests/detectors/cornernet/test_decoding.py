"""Pairs of corners against the published procedure, one pair after the other."""

import numpy as np
import pytest
import torch

from detectors.cornernet.decoding import pair_corners
from tests.detectors.cornernet import reference
from tests.detectors.cornernet.stand_in import random_maps

CELLS = (16, 24)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("border", [False, True])
def test_pairs_are_those_of_the_published_loops(seed: int, border: bool) -> None:
    maps = random_maps(3, CELLS, seed)
    expected = np.array(reference.pairs(maps, corners=30, distance=0.5, limit=1000, border=border))
    given = pair_corners(maps, corners=30, tag_distance=0.5, limit=1000, rejects_border=border)
    kept = given.scores[0] > -1
    assert 5 < int(kept.sum()) == len(expected)
    rows = torch.cat(
        (
            given.boxes[0],
            given.scores[0, :, None],
            given.labels[0, :, None],
            given.corner_scores[0],
        ),
        dim=1,
    )[kept]
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    first = pair_corners(maps, corners=30, tag_distance=0.5, limit=3, rejects_border=border)
    assert torch.equal(first.boxes, given.boxes[:, :3])
