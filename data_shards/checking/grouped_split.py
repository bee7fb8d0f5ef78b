"""Splitting one set of images in two, with near-duplicates on one side and every class on the training side.

Copies of a picture on both sides would raise the AP without measuring anything. Classes are spread as evenly as whole
groups allow, the rarest first (after Sechidis et al., On the Stratification of Multi-Label Data, 2011).
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

from data_shards.checking.duplicates import Fingerprint, same_bytes, same_picture
from data_shards.errors import DataError


def near_duplicate_groups(prints: Sequence[Fingerprint], names: Sequence[str]) -> list[list[int]]:
    """Group images that are, or may be, the same picture: by their bytes, their thumbnails and their source.

    Args:
        prints: of all images.
        names: their file names. Roboflow's augmented copies share the name in front of `.rf.`.

    Returns:
        Groups of indexes into `prints`, in the order of their first; every image is in exactly one.
    """
    leader = list(range(len(prints)))

    def find(item: int) -> int:
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    of_source: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if copy := re.search(r"([^/]+)\.rf\.[0-9A-Za-z]+\.\w+$", name):
            of_source[copy[1]].append(index)
    for group in (*same_bytes(prints), *same_picture(prints), *of_source.values()):
        for other in group[1:]:
            leader[find(other)] = find(group[0])
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(prints)):
        groups[find(index)].append(index)
    return list(groups.values())


def split_groups(
    groups: Sequence[Sequence[int]],
    classes: Sequence[Set[int]],
    names: Sequence[str],
    *,
    share: float,
    seed: int,
) -> list[int]:
    """Choose the images to validate on: whole groups, about `share` of all images and of the images of each class.

    The same images, share and seed always have the same split, in whatever order they come.

    Args:
        groups: indexes of images that must stay together; every image is in exactly one.
        classes: the classes of the objects in each image.
        names: a name for each image, which decides the order of chance.
        share: of the images to validate on, above 0 and below 1.
        seed: another one has another split.

    Returns:
        Ascending indexes. Every class that has objects keeps some outside of them. Their number differs from the
        wanted one by at most the largest group, unless that would take a class from training.

    Raises:
        DataError: no group can be spared.
    """
    total, wanted = len(classes), max(1.0, share * len(classes))
    split = _Split([_Group.of(group, classes) for group in groups], Counter(c for item in classes for c in item))
    split.groups.sort(key=lambda group: _draw(seed, min(names[index] for index in group.images)))
    if len(groups) < 2:
        raise DataError(
            f"all {total:,} images are near-duplicates of each other, so they cannot be split. Add other images."
        )
    _stratify(split, share)
    _correct(split, wanted)
    if not split.chosen:
        raise DataError(
            f"none of the {total:,} images can be spared for validation: each group of near-duplicates has the only "
            "objects of some class. Add images."
        )
    return sorted(index for place in split.chosen for index in split.groups[place].images)


@dataclass(frozen=True)
class _Group:
    images: tuple[int, ...]
    counts: Counter[int]
    """Images with objects of each class."""

    @classmethod
    def of(cls, images: Sequence[int], classes: Sequence[Set[int]]) -> "_Group":
        return cls(tuple(images), Counter(label for index in images for label in classes[index]))


class _Split:
    """The groups that were chosen so far, and the images of each class that are left for training."""

    def __init__(self, groups: list[_Group], images_of_class: Counter[int]) -> None:
        self.groups = groups
        self.images_of_class = images_of_class
        self.left = Counter(images_of_class)
        self.chosen: set[int] = set()
        self.size = 0

    def can_choose(self, place: int) -> bool:
        """True if every class of a group has images elsewhere, and so has the training side."""
        counts = self.groups[place].counts
        return len(self.chosen) + 1 < len(self.groups) and all(
            self.left[label] > number for label, number in counts.items()
        )

    def choose(self, place: int) -> None:
        self.chosen.add(place)
        self.size += len(self.groups[place].images)
        self.left.subtract(self.groups[place].counts)

    def give_back(self, place: int) -> None:
        self.chosen.remove(place)
        self.size -= len(self.groups[place].images)
        self.left.update(self.groups[place].counts)


def _draw(seed: int, name: str) -> bytes:
    """Return bytes to sort by, which nobody but the seed and the name decides."""
    return hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _stratify(split: _Split, share: float) -> None:
    """Choose groups until each class has about its share, the rarest class first, images without objects last."""
    places_of: dict[int, list[int]] = defaultdict(list)
    empty = [place for place, group in enumerate(split.groups) if not group.counts]
    for place, group in enumerate(split.groups):
        for label in group.counts:
            places_of[label].append(place)
    decided: set[int] = set()
    for label in sorted(places_of, key=lambda one: (split.images_of_class[one], one)):
        wanted = share * split.images_of_class[label]
        has = split.images_of_class[label] - split.left[label]
        for place in places_of[label]:
            number = split.groups[place].counts[label]
            if place not in decided and abs(has + number - wanted) < abs(has - wanted) and split.can_choose(place):
                split.choose(place)
                has += number
        decided.update(places_of[label])
    wanted, has = share * sum(len(split.groups[place].images) for place in empty), 0
    for place in empty:
        number = len(split.groups[place].images)
        if abs(has + number - wanted) < abs(has - wanted) and split.can_choose(place):
            split.choose(place)
            has += number


def _correct(split: _Split, wanted: float) -> None:
    """Move groups across until no move brings the number of images closer to the wanted one."""

    def improves(change: int) -> bool:
        return abs(split.size + change - wanted) < abs(split.size - wanted)

    for place in sorted(split.chosen):
        if improves(-len(split.groups[place].images)):
            split.give_back(place)
    for place in range(len(split.groups)):
        if place not in split.chosen and improves(len(split.groups[place].images)) and split.can_choose(place):
            split.choose(place)
    # Whatever the ratio, there has to be something to validate on.
    if not split.chosen:
        smallest = sorted(range(len(split.groups)), key=lambda place: len(split.groups[place].images))
        for place in smallest:
            if split.can_choose(place):
                split.choose(place)
                return
