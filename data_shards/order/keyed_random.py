"""Random numbers without a generator: every number is a function of what it is for.

There is no state to seed, fork, save or restore. The numbers of one sample depend on nothing but the seed,
the epoch and the sample, so any worker, thread or restart draws the same ones. numpy's generators give no
promise that their streams survive a new release; these few lines do, and tests pin their values.
"""

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

# 2**64 / golden ratio, the odd step of splitmix64: successive counters land far apart.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_SECOND = np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1


def mix64(words: UInt64) -> UInt64:
    """Scramble 64-bit words so that every input bit flips each output bit about half the time.

    Args:
        words: uint64, any shape.

    Returns:
        uint64 of the same shape. A bijection: different words stay different; 0 stays 0.

    Source:
        Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014 (the finalizer of
        splitmix64 with Stafford's constants "variant 13").
    """
    words = (words ^ (words >> np.uint64(30))) * _MULTIPLY_FIRST
    words = (words ^ (words >> np.uint64(27))) * _MULTIPLY_SECOND
    return words ^ (words >> np.uint64(31))


def key(*words: int) -> np.uint64:
    """One 64-bit key for a tuple of integers; their order matters and `(a, b + 1)` is unlike `(a + 1, b)`.

    Negative integers count as their two's complement.
    """
    state = np.uint64(0)
    for word in words:
        state = keys(state, np.array([word & _MASK], dtype=np.uint64))[0]
    return state


def keys(parent: np.uint64, children: NDArray[np.integer]) -> UInt64:
    """The key of every child of a key: `keys(key(a, b), array([c]))[0]` is `key(a, b, c)`."""
    # One-element arrays wrap around silently where numpy's scalars warn.
    return mix64(np.atleast_1d(parent) + _STEP + mix64(children.astype(np.uint64) + _STEP))


def uniforms(seed: int, epoch: int, sample_ids: NDArray[np.integer], count: int, stream: int) -> NDArray[np.float64]:
    """Uniform numbers that belong to samples.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        sample_ids: integers `(samples,)`.
        count: how many numbers each sample gets.
        stream: what the numbers are for; different streams of one sample are independent.

    Returns:
        float64 `(samples, count)` in [0, 1), multiples of 2**-53. Number `j` of a sample does not depend
        on `count`, nor on the other samples asked for.
    """
    of_sample = keys(key(seed, epoch, stream), np.asarray(sample_ids))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return (mix64(of_sample[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
