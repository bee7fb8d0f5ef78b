"""Input sizes: what fits, what is padded and what is suggested."""

import pickle

from detectors.sizes import Multiples, OneLessThanMultiples


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
    # As published, an image of a size that fits is tested in the next larger one.
    assert sizes.at_own_resolution(64, 63) == (96, 64)


def test_cornernets_sizes_are_a_pixel_short_of_multiples() -> None:
    sizes = OneLessThanMultiples(128)
    assert str(sizes) == "one less than multiples of 128"
    assert sizes.fits(511, 127)
    assert not sizes.fits(512, 127)
    for side in range(1, 1000):
        assert sizes.padded(side, 1) == sizes.at_own_resolution(side, 1) == (side | 127, 127)
    assert sizes.nearest(511, 576) == (511, 639)
    assert sizes.nearest(574, 5) == (511, 127)


def test_sizes_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(Multiples(128))) == Multiples(128)
