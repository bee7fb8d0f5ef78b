"""`aweigh bench loader`: every loader runs; only that memory does not grow is checked."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.building.build import build_shards
from data_shards.loading.random_draws import draw
from data_shards.reading.decode import decode_jpeg
from data_shards.reading.geometry import crop_resize
from data_shards.settings import AugmentationSettings
from pipelines.bench.floor import crop_of, read_all
from pipelines.bench.published_loader import Example, PublishedDataset
from pipelines.cli import main
from tests.data_shards.samples import document, jpeg, photo, write_coco


def test_the_floor_does_what_the_loader_does() -> None:
    """The floor puts the same parts of the same images at the same places; otherwise it would not be a floor."""
    sizes = np.array([[120, 160], [160, 120], [90, 90]])
    files = [jpeg(photo(number, height, width)) for number, (height, width) in enumerate(sizes.tolist())]
    draws = draw(AugmentationSettings(), 0, 0, np.arange(3), sizes)
    matrices = [draws.matrix(row, (128, 128)) for row in range(3)]
    crops = [crop_of(matrix, (int(size[0]), int(size[1])), 128) for matrix, size in zip(matrices, sizes, strict=True)]
    for number in range(3):
        batch = np.zeros((1, 3, 128, 128), np.uint8)
        read_all(files[number : number + 1], crops[number : number + 1], batch, np.empty(160 * 120 * 3, np.uint8))
        expected = crop_resize(decode_jpeg(files[number]), matrices[number], (128, 128))
        # To whole pixels on either side, of smooth pictures.
        assert np.abs(batch[0].transpose(1, 2, 0).astype(int) - expected).mean() < 4
        assert (batch.any(axis=1)[0] ^ expected.any(axis=2)).mean() < 0.05


def test_the_authors_data_set_yields_what_the_authors_train_on(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(jpeg(photo(0, 300, 400)))
    boxes, labels = np.array([[150, 100, 250, 200]], np.float32), np.array([2])
    item = PublishedDataset([Example(tmp_path / "image.jpg", boxes, labels)], 3, 256)[0]
    assert item["input"].shape == (3, 256, 256)
    assert item["input"].dtype == np.float32
    assert item["hm"].shape == (3, 64, 64)
    assert item["reg_mask"].sum() == 1
    assert item["hm"][2].max() == 1
    assert np.argmax(item["hm"][2]) == item["ind"][0]
    assert not item["hm"][:2].any()
    # A square box of a quarter to a half of the crop's side, in cells.
    assert 64 * 100 / (1.3 * 400) - 1 < item["wh"][0].min() <= item["wh"][0].max() < 64 * 100 / (0.6 * 400) + 1


@pytest.mark.slow
def test_every_loader_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, images = write_coco(tmp_path, document(64, sizes=((120, 160), (160, 120))))
    report = build_shards(annotations, images, str(tmp_path / "out"), split="train", shard_bytes=100_000)
    main(["bench", "loader", "--data", report.location, "--rounds", "1", "--images", "64", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 10
    assert all(row["measured"] > 0 for row in rows)
    assert all((row["ratio"] is None) == (row["against"] == "") for row in rows)
    memory = rows[-1]
    assert memory["what"] == "memory of 2 ranks after 20 epochs"
    assert memory["reached"], memory


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--images", "63"]])
def test_too_little_to_measure_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "loader", *words])
    assert "give 1 or more, and 64 or more" in capsys.readouterr().err
