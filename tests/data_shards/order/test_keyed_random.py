import warnings

import numpy as np

from data_shards.order.keyed_random import key, keys, mix64, uniforms


def splitmix64(seed: int, count: int) -> list[int]:
    """Vigna's splitmix64.c in plain integers: the reference for the mixing."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


def test_mixing_is_splitmix64() -> None:
    # The first outputs of splitmix64 with seed 1234567, as published with the algorithm.
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    with np.errstate(over="ignore"):
        counters = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(counters).tolist() == splitmix64(1234567, 5)


def test_golden_numbers() -> None:
    # Made by printing the same expressions; they must never change, or resumed runs would see other data.
    assert int(key(1, 2, 3)) == GOLDEN_KEY
    assert uniforms(7, 3, np.array([0, 1, 10**12]), 2, 5).tolist() == GOLDEN_UNIFORMS


GOLDEN_KEY = 12096571958832185870
GOLDEN_UNIFORMS = [
    [0.2316769058259881, 0.41284829495516173],
    [0.061348201337348196, 0.4194002743748533],
    [0.4325648244113349, 0.3586915611736614],
]


def test_words_of_a_key_are_not_added_up() -> None:
    seen = {int(key(a, b, c)) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seen) == 1000
    assert key(-1) != key(1)
    assert key(0) != key(0, 0)


def test_keys_are_those_of_the_longer_tuple() -> None:
    assert keys(key(4, 5), np.array([6, 7])).tolist() == [int(key(4, 5, 6)), int(key(4, 5, 7))]


def test_a_sample_has_its_numbers_whoever_asks() -> None:
    alone = uniforms(1, 2, np.array([41]), 3, 0)
    among = uniforms(1, 2, np.array([7, 41, 3]), 8, 0)
    assert np.array_equal(alone[0], among[1, :3])


def test_numbers_are_uniform_and_independent() -> None:
    numbers = uniforms(0, 0, np.arange(50_000), 4, 1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # 20 bins of 200,000 numbers: chi-square has 19 degrees of freedom, 43.8 is passed once in a thousand.
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8
    others = [numbers[1:, 0], numbers[:-1, 1]]
    others += [
        uniforms(seed, epoch, np.arange(49_999), 1, stream)[:, 0]
        for seed, epoch, stream in [(1, 0, 1), (0, 1, 1), (0, 0, 2)]
    ]
    for other in others:
        # A correlation of 50,000 independent pairs has standard deviation 1 / sqrt(50,000) = 0.0045.
        assert abs(np.corrcoef(numbers[:-1, 0], other)[0, 1]) < 4 * 0.0045


def test_nothing_warns_about_overflow() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uniforms(2**63, 2**40, np.array([0, 2**62]), 3, 9)
