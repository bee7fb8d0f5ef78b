"""COCO's ground truth from the shards, in the form that pycocotools compares detections with."""

from typing import Any

from data_shards.reading.split import DataSplit


def coco_ground_truth(
    split: DataSplit,
) -> dict[str, Any]:
    """Rebuild COCO's images, annotations and categories from the shards, for pycocotools.

    Annotations are those of the file, without those dropped or left out at building. A missing `iscrowd` becomes 0, a
    missing `area` that of the box. Boxes of an ignored category come last, as crowds of the class they may be taken
    for, or of every class: a detection there counts neither as found nor as wrong.

    Raises:
        DataError: a shard cannot be read, or differs from its manifest.
    """
    manifest, shards = split.manifest, split.shards()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ignored: list[dict[str, Any]] = []
    class_ids = [item.id for item in manifest.classes]
    crowd_of = {item.id: class_ids if item.label < 0 else [class_ids[item.label]] for item in manifest.ignored}
    for number, shard in enumerate(manifest.shards):
        for row in range(shard.samples):
            sample = shards.read_json(number, row)
            for annotation in sample.pop("annotations"):
                box = annotation["bbox"]
                annotation = {"iscrowd": 0, "area": box[2] * box[3]} | annotation
                if annotation["category_id"] not in crowd_of:
                    annotations.append(annotation)
                for category in crowd_of.get(annotation["category_id"], ()):
                    ignored.append(annotation | {"category_id": category, "iscrowd": 1})
            images.append({"id": sample.pop("image_id")} | sample)
    shards.close()
    # Annotation ids must be unique, and a box that every class ignores is listed once for each of them.
    first_free = 1 + max((annotation["id"] for annotation in annotations), default=0)
    ignored = [annotation | {"id": first_free + number} for number, annotation in enumerate(ignored)]
    joints = {
        item.id: {"keypoints": list(item.keypoints), "skeleton": list(map(list, item.skeleton))}
        for item in manifest.classes
        if item.keypoints
    }
    return {
        "images": images,
        "annotations": [*annotations, *ignored],
        "categories": [{"id": item.id, "name": item.name, **joints.get(item.id, {})} for item in manifest.classes],
    }
