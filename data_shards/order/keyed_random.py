"""Random numbers without a generator: every number is a function of its purpose.

There is no state to seed, fork, save or restore. The numbers of a sample depend only on the seed, the epoch and the
sample, so any worker, thread or restart draws the same ones. numpy does not promise that the streams of its generators
survive a new release; these few lines do, and tests pin their values.
"""

import numpy as np
from jaxtyping import Float64, Integer, UInt64

# 2**64 / golden ratio, the odd step of splitmix64: it moves successive counters far apart.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_SECOND = np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1


def mix64(words: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Scramble 64-bit words so that every input bit flips each output bit about half the time.

    This is a bijection: different words stay different. 0 stays 0.

    Source:
        Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014 (the finalizer of
        splitmix64 with Stafford's constants "variant 13").
    """
    words = (words ^ (words >> np.uint64(30))) * _MULTIPLY_FIRST
    words = (words ^ (words >> np.uint64(27))) * _MULTIPLY_SECOND
    return words ^ (words >> np.uint64(31))


def key(*words: int) -> np.uint64:
    """Make a 64-bit key of a tuple of integers. Their order matters, and `(a, b + 1)` is unlike `(a + 1, b)`.

    Negative integers count as their two's complement.
    """
    state = np.uint64(0)
    for word in words:
        state = keys(state, np.array([word & _MASK], dtype=np.uint64))[0]
    return state


def keys(parent: np.uint64, children: Integer[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Make the key of every child of a key: `keys(key(a, b), array([c]))[0]` is `key(a, b, c)`."""
    # Arrays wrap around silently; numpy's scalars warn.
    return mix64(np.atleast_1d(parent) + _STEP + mix64(children.astype(np.uint64) + _STEP))


def uniforms(
    seed: int, epoch: int, sample_ids: Integer[np.ndarray, " samples"], count: int, stream: int
) -> Float64[np.ndarray, "samples count"]:
    """Make uniform numbers that belong to samples.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        sample_ids: the samples.
        count: numbers for each sample.
        stream: the purpose of the numbers; different streams of one sample are independent.

    Returns:
        Numbers in [0, 1), multiples of 2**-53. Number `j` of a sample depends neither on `count` nor on the other
        samples.
    """
    of_sample = keys(key(seed, epoch, stream), np.asarray(sample_ids))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return (mix64(of_sample[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
