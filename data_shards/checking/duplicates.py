"""Finding images that are in a data set more than once: the same bytes, or the same picture in different bytes.

A picture's hash has one bit for each of 64 places of a 9 by 8 thumbnail: whether the picture gets brighter to the right
there. Scaling and recompressing change few of the bits. Two hashes that differ in at most 3 bits agree in at least one
of four 16-bit quarters, so only images that share a quarter are compared. A second, larger thumbnail must agree as
well: plain pictures (microscopy, documents) share hashes without being the same.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8, UInt64
from numpy.typing import NDArray

_MOST_BITS = 3
_THUMBNAIL = 16
_MOST_DIFFERENCE = 4.0
"""Mean absolute difference of two thumbnails, in gray levels, up to which they show the same picture."""
_LEAST_CONTRAST = 4.0
"""Standard deviation of a thumbnail, in gray levels, below which it is too plain to tell it from others."""


@dataclass(frozen=True)
class Fingerprint:
    """The 300 bytes by which an image is recognised."""

    digest: bytes
    """BLAKE2b of the encoded bytes, 16 bytes long."""
    bits: int
    """The 64-bit picture hash."""
    thumbnail: UInt8[NDArray[np.uint8], "16 16"]
    """Gray."""


def fingerprint(data: bytes, image: UInt8[NDArray[np.uint8], "height width 3"]) -> Fingerprint:
    """Take the fingerprint of an encoded image and its decoded RGB pixels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    # INTER_AREA averages all pixels, so the thumbnails of a picture and of its resized copy agree.
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    brighter = (small[:, 1:] > small[:, :-1]).ravel()
    return Fingerprint(
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        bits=int.from_bytes(np.packbits(brighter).tobytes()),
        thumbnail=cv2.resize(gray, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.uint8),
    )


def same_bytes(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Group images with the same bytes; return the groups of two or more, as ascending indexes into `prints`."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, item in enumerate(prints):
        groups[item.digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def same_picture(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Group images that show the same picture in different bytes.

    Only the first of several images with the same bytes takes part. A group holds all images that are connected by
    pairs, even if its first and last differ more than a pair may.

    Returns:
        Groups of two or more, as ascending indexes into `prints`.
    """
    first_of: dict[bytes, int] = {}
    for index, item in enumerate(prints):
        first_of.setdefault(item.digest, index)
    chosen = [index for index in first_of.values() if prints[index].thumbnail.std() >= _LEAST_CONTRAST]
    if len(chosen) < 2:
        return []
    bits = np.array([prints[index].bits for index in chosen], dtype=np.uint64)
    thumbnails = np.stack([prints[index].thumbnail for index in chosen])
    leader = list(range(len(chosen)))

    def find(item: int) -> int:
        # Union-find: halving the path keeps chains of copies short.
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    for one, others in _candidates(bits):
        difference = np.abs(thumbnails[others].astype(np.int16) - thumbnails[one]).mean(axis=(1, 2))
        for other in others[difference <= _MOST_DIFFERENCE]:
            leader[find(int(other))] = find(one)
    groups: dict[int, list[int]] = defaultdict(list)
    for place, index in enumerate(chosen):
        groups[find(place)].append(index)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _candidates(bits: UInt64[NDArray[np.uint64], " images"]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each image with others whose hashes differ in at most 3 bits; a pair may come up to four times."""
    for quarter in range(4):
        part = (bits >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        # Sorted by one quarter, images that share it are neighbours, so no other pairs are compared.
        order = np.argsort(part, kind="stable")
        ends = np.searchsorted(part[order], part[order], side="right")
        for place, end in enumerate(ends):
            others = order[place + 1 : end]
            if len(others):
                distances = np.bitwise_count(bits[others] ^ bits[order[place]])
                if np.any(near := distances <= _MOST_BITS):
                    yield int(order[place]), others[near]
