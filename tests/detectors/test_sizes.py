"""Input sizes: what fits, what is padded and what is suggested."""

import pickle

from detectors.sizes import Multiples


def test_multiples_fit_pad_and_suggest() -> None:
    sizes = Multiples(32)
    assert str(sizes) == "multiples of 32"
    assert sizes.fits(64, 96)
    assert not sizes.fits(64, 100)
    assert not sizes.fits(60, 96)
    assert sizes.padded(64, 97) == (64, 128)
    assert sizes.padded(1, 32) == (32, 32)
    assert sizes.nearest(64, 70) == (64, 64)
    assert sizes.nearest(90, 5) == (96, 32)  # never nothing


def test_sizes_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Multiples(128))) == Multiples(128)
