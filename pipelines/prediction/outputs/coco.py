"""COCO results, and the COCO file whose image ids they refer to."""

import json
from collections.abc import Iterator
from typing import Any

import torch

from data_shards.storage.store import Store
from pipelines.evaluation.coco_metrics import results_from_detections
from pipelines.evaluation.evaluate import describe_in_3d
from pipelines.prediction.outputs.output import Output, large_file, write_list
from pipelines.prediction.records import ImageRecord, Records

RESULTS, IMAGES = "coco/results.json", "coco/images.json"


class Coco(Output):
    """`coco/results.json`, a list of detections, and `coco/images.json`, which names images and categories.

    Images of shards keep their ids, so that the results can be compared with the annotations of the shards.
    """

    def finish(self, store: Store, records: Records) -> list[str]:
        """Write both files."""
        with large_file(store, RESULTS) as file:
            write_list(file, self._results(records))
        with large_file(store, IMAGES) as file:
            file.write('{"images": ')
            write_list(file, (json.dumps(coco_image(one)) for one in records))
            file.write(f',\n"annotations": [],\n"categories": {json.dumps(self.subject.coco_categories())}}}\n')
        return [RESULTS, IMAGES]

    def _results(self, records: Records) -> Iterator[str]:
        category_ids = [one.id for one in self.subject.classes]
        for one in records:
            for result in coco_results(one, category_ids):
                yield json.dumps(result)


def coco_image(record: ImageRecord) -> dict[str, Any]:
    """Return COCO's entry of an image."""
    return {"id": record.image_id, "file_name": record.name, "width": record.width, "height": record.height}


def coco_results(record: ImageRecord, category_ids: list[int]) -> list[dict[str, Any]]:
    """Return COCO's results of an image, as `aweigh evaluate --detections` writes them."""
    further: list[dict[str, Any]] = []
    if record.box3d is not None:
        camera = None if record.camera is None else torch.from_numpy(record.camera)
        further = describe_in_3d(torch.from_numpy(record.box3d), camera)
    return results_from_detections(
        [record.image_id] * len(record.scores),
        record.boxes,
        record.scores,
        record.labels,
        category_ids,
        keypoints=None if record.keypoints is None else record.keypoints[..., :2],
        further=further,
    )
