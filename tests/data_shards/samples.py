"""Small COCO sets written for a test, and the errors they should give."""

import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_shards.format.manifest import Manifest, load_manifest
from data_shards.format.shard_index import ShardIndex

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}]


def photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth random image, uint8 RGB, so that JPEG and resampling change it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """JPEG bytes of an RGB or gray image, by OpenCV."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def document(count: int = 6, sizes: tuple[tuple[int, int], ...] = ((48, 64), (64, 48), (40, 40))) -> dict[str, Any]:
    """A COCO file of `count` images: image i has i % 4 boxes, the third of which is a crowd."""
    images, annotations = [], []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        image_id = 100 + 7 * number
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "width": width, "height": height})
        for box in range(number % 4):
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": image_id,
                    "category_id": CATEGORIES[(number + box) % 3]["id"],
                    "bbox": [2.5 + 3 * box, 4.25, 12.0 + number, 9.5],
                    "area": (12.0 + number) * 9.5,
                    "iscrowd": int(box == 2),
                    "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
                    "keypoints": [1, 2, 2],
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_coco(folder: Path, content: dict[str, Any]) -> tuple[Path, Path]:
    """Write a COCO file and a JPEG for each of its images; give the paths of both."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        (images / image["file_name"]).write_bytes(jpeg(photo(image["id"], image["height"], image["width"])))
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps(content))
    return annotations, images


def spoil(folder: Path, shard: int, row: int) -> tuple[Manifest, int]:
    """Make an image of shards one that no decoder reads, as manifest and index then say; its manifest and image id."""
    manifest = load_manifest(str(folder))
    record = manifest.shards[shard]
    index = ShardIndex.from_bytes((folder / record.index).read_bytes(), record.index)
    tar = bytearray((folder / record.name).read_bytes())
    first, size = int(index.image_offsets[row]), int(index.image_sizes[row])
    tar[first : first + size] = bytes(size)
    index.image_crc32[row] = zlib.crc32(bytes(size))
    (folder / record.name).write_bytes(tar)
    (folder / record.index).write_bytes(index.to_bytes())
    changed = replace(
        record,
        sha256=hashlib.sha256(tar).hexdigest(),
        index_sha256=hashlib.sha256(index.to_bytes()).hexdigest(),
    )
    shards = (*manifest.shards[:shard], changed, *manifest.shards[shard + 1 :])
    manifest = replace(manifest, shards=shards)
    (folder / "manifest.json").write_text(json.dumps(manifest.as_json()))
    return manifest, int(index.image_ids[row])
