"""The figures of a training set that the numbers of a fine-tuning are derived from."""

from dataclasses import dataclass

import numpy as np

from data_shards.reading.split import DataSplit


@dataclass(frozen=True)
class DataFacts:
    """Sizes and counts of a split. Objects are boxes that are neither crowds nor ignored."""

    images: int
    objects: int
    longer_side: int
    """Median of the images' longer sides, in pixels."""
    small_object: float
    """Side (the square root of the area) that a tenth of the objects is below, as a fraction of its image's longer
    side; 0 without objects."""
    small_object_of_shorter: float
    """The same as a fraction of the shorter side."""
    most_objects: int
    """Boxes of the image that has most of them."""


def data_facts(split: DataSplit) -> DataFacts:
    """Measure a split by its indexes alone."""
    longer, of_longer, of_shorter, most = [], [], [], 0
    shards = split.shards()
    try:
        for number in range(len(split.manifest.shards)):
            index = shards.index(number)
            counts = np.diff(index.row_splits)
            most = max(most, int(counts.max(initial=0)))
            sides = np.stack([index.heights, index.widths])
            longer.append(sides.max(axis=0))
            is_object = ~index.iscrowd & (index.labels >= 0)
            spans = np.maximum(index.boxes[:, 2:] - index.boxes[:, :2], 0).astype(np.float64)
            objects = np.sqrt(spans.prod(axis=1))[is_object]
            rows = np.repeat(np.arange(len(index)), counts)[is_object]
            of_longer.append(objects / sides.max(axis=0)[rows])
            of_shorter.append(objects / sides.min(axis=0)[rows])
    finally:
        shards.close()
    return DataFacts(
        images=split.manifest.num_samples,
        objects=sum(map(len, of_longer)),
        longer_side=int(np.median(np.concatenate(longer))),
        small_object=_tenth(np.concatenate(of_longer)),
        small_object_of_shorter=_tenth(np.concatenate(of_shorter)),
        most_objects=most,
    )


def _tenth(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.1)) if len(values) else 0.0
