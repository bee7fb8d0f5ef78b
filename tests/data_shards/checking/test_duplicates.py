import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.checking.duplicates import Fingerprint, fingerprint, same_bytes, same_picture
from tests.data_shards.samples import jpeg, photo


def of(image: np.ndarray, quality: int = 95) -> Fingerprint:
    return fingerprint(jpeg(image, quality), image)


def test_the_hash_says_where_it_gets_brighter() -> None:
    # Nine columns: brighter to the right but for the last step, in all eight rows.
    ramp = np.repeat(np.array([[10, 20, 30, 40, 50, 60, 70, 80, 5]], dtype=np.uint8), 8, axis=0)
    image = np.repeat(ramp[..., None], 3, axis=2)
    assert fingerprint(b"", image).bits == 0xFEFEFEFEFEFEFEFE  # 1111 1110 a row


def test_copies_are_found_resized_and_recompressed_and_others_are_not() -> None:
    pictures = [photo(seed, 120, 160) for seed in range(40)]
    prints = [of(picture) for picture in pictures]
    assert same_picture(prints) == []
    assert same_bytes(prints) == []
    smaller = cv2.resize(pictures[3], (100, 75), interpolation=cv2.INTER_AREA)
    recompressed = cv2.imdecode(np.frombuffer(jpeg(pictures[7], 40), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    prints += [of(smaller), fingerprint(jpeg(pictures[7], 40), np.ascontiguousarray(recompressed)), of(pictures[11])]
    assert same_picture(prints) == [[3, 40], [7, 41]]
    assert same_bytes(prints) == [[11, 42]]


def test_plain_pictures_are_only_the_same_in_the_same_bytes() -> None:
    plain = np.full((40, 40, 3), 120, dtype=np.uint8)
    prints = [of(plain, 95), of(plain, 50), of(plain, 95)]
    assert same_picture(prints) == []
    assert same_bytes(prints) == [[0, 2]]


def test_pictures_with_one_hash_but_other_thumbnails_are_told_apart() -> None:
    one, other = (np.full((16, 16), level, dtype=np.uint8) for level in (60, 90))
    one[:, ::2] += 20
    other[:, ::2] += 20
    assert same_picture([Fingerprint(b"a", 5, one), Fingerprint(b"b", 5, other)]) == []
    assert same_picture([Fingerprint(b"a", 5, one), Fingerprint(b"b", 5, one + 4)]) == [[0, 1]]
    assert same_picture([Fingerprint(b"a", 5, one), Fingerprint(b"b", 5, one + 5)]) == []


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), flips=st.lists(st.integers(0, 63), max_size=6))
def test_hashes_of_three_other_bits_are_found_wherever_the_bits_are(seed: int, flips: list[int]) -> None:
    numbers = np.random.default_rng(seed)
    bits = [int(value) for value in numbers.integers(0, 1 << 63, 20, dtype=np.int64)]
    changed = bits[4]
    for flip in set(flips):
        changed ^= 1 << flip
    thumbnail = np.tile(np.array([0, 100], dtype=np.uint8), (16, 8))
    prints = [Fingerprint(str(place).encode(), value, thumbnail) for place, value in enumerate([*bits, changed])]
    assert same_picture(prints) == ([[4, 20]] if len(set(flips)) <= 3 else [])
