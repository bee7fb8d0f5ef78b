"""Splits without near-duplicates on both sides, with every class on the training side."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.checking.duplicates import Fingerprint, fingerprint
from data_shards.checking.grouped_split import near_duplicate_groups, split_groups
from data_shards.errors import DataError
from tests.data_shards.samples import jpeg, photo


@st.composite
def _sets(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]], list[str]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=25))
    images = list(range(sum(sizes)))
    ends = np.cumsum([0, *sizes])
    groups = [images[first:end] for first, end in itertools.pairwise(ends)]
    classes = draw(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=len(images), max_size=len(images)))
    return groups, classes, [f"{number}.jpg" for number in images]


@settings(max_examples=150, deadline=None)
@given(_sets(), st.floats(0.05, 0.5), st.integers(0, 5))
def test_a_split_keeps_groups_whole_and_every_class_in_training(
    given_set: tuple[list[list[int]], list[set[int]], list[str]], share: float, seed: int
) -> None:
    groups, classes, names = given_set
    own = [set().union(*(classes[index] for index in group)) for group in groups]
    if all(one - set().union(*(other for other in own if other is not one)) for one in own):
        # Every group has a class that no other has.
        with pytest.raises(DataError, match="can be spared for validation"):
            split_groups(groups, classes, names, share=share, seed=seed)
        return
    chosen = split_groups(groups, classes, names, share=share, seed=seed)
    validation, training = set(chosen), set(range(len(names))) - set(chosen)
    assert chosen == sorted(validation)
    assert validation
    assert training
    assert all(set(group) <= validation or set(group) <= training for group in groups)
    assert set().union(*classes) == set().union(*(classes[index] for index in training))
    largest = max(map(len, groups))
    assert len(validation) <= max(1, share * len(names)) + largest


@settings(max_examples=100, deadline=None)
@given(_sets(), st.floats(0.05, 0.5), st.integers(0, 5))
def test_a_split_of_images_of_one_class_has_the_share_up_to_a_group(
    given_set: tuple[list[list[int]], list[set[int]], list[str]], share: float, seed: int
) -> None:
    groups, _, names = given_set
    chosen = split_groups(groups, [{0}] * len(names), names, share=share, seed=seed)
    assert abs(len(chosen) - max(1, share * len(names))) <= max(map(len, groups))


@settings(max_examples=50, deadline=None)
@given(_sets(), st.integers(0, 3))
def test_a_split_does_not_depend_on_the_order_of_the_images(
    given_set: tuple[list[list[int]], list[set[int]], list[str]], seed: int
) -> None:
    groups, classes, names = given_set
    order = list(range(len(names)))
    random.Random(seed).shuffle(order)
    place_of = {index: place for place, index in enumerate(order)}
    moved = [[place_of[index] for index in group] for group in reversed(groups)]

    def chosen(*arguments: list) -> set[str] | None:  # type: ignore[type-arg]
        try:
            return {arguments[2][index] for index in split_groups(*arguments, share=0.2, seed=seed)}
        except DataError:
            return None

    assert chosen(groups, classes, names) == chosen(
        moved, [classes[index] for index in order], [names[index] for index in order]
    )


def test_a_split_has_about_the_share_of_each_class() -> None:
    classes = [{0} if number % 10 else {0, 1} for number in range(200)]
    names = [f"{number}.jpg" for number in range(200)]
    chosen = split_groups([[number] for number in range(200)], classes, names, share=0.2, seed=0)
    assert len(chosen) == 40
    assert sum(1 in classes[index] for index in chosen) == 4  # of 20
    other = split_groups([[number] for number in range(200)], classes, names, share=0.2, seed=1)
    assert other != chosen


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (5, 1), (10, 2)])
def test_few_images_leave_at_least_one_to_validate_on(count: int, held_out: int) -> None:
    names = [f"{number}.jpg" for number in range(count)]
    chosen = split_groups([[number] for number in range(count)], [{0}] * count, names, share=0.2, seed=0)
    assert len(chosen) == held_out


def test_a_class_of_one_image_is_trained_on() -> None:
    classes = [{0}, {0}, {0, 1}, {0}]
    for seed in range(20):
        assert 2 not in split_groups([[0], [1], [2], [3]], classes, list("abcd"), share=0.5, seed=seed)


def test_images_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(DataError, match="all 3 images are near-duplicates of each other, so they cannot be split"):
        split_groups([[0, 1, 2]], [{0}] * 3, list("abc"), share=0.2, seed=0)
    with pytest.raises(DataError, match="none of the 2 images can be spared for validation"):
        split_groups([[0], [1]], [{0}, {1}], list("ab"), share=0.2, seed=0)


def _print(number: int, quality: int = 95) -> Fingerprint:
    image = photo(number)
    return fingerprint(jpeg(image, quality), image)


def test_copies_are_one_group_by_bytes_by_picture_and_by_source() -> None:
    prints = [_print(0), _print(1), _print(0), _print(0, quality=80), _print(2), _print(3), _print(4)]
    names = ["a.jpg", "b.jpg", "sub/c.jpg", "d.jpg", "x_png.rf.0a1b.jpg", "other/x_png.rf.77ff.jpg", "e.rf.jpg"]
    assert near_duplicate_groups(prints, names) == [[0, 2, 3], [1], [4, 5], [6]]
