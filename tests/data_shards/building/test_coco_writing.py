from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.building.voc import import_voc
from data_shards.building.yolo import import_yolo
from tests.data_shards.building.sources import boxes_of, write_images, write_voc

CORNERS = st.tuples(
    st.sampled_from(["dog", "cat"]), st.integers(0, 39), st.integers(0, 19), st.integers(1, 40), st.integers(1, 20)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(CORNERS, min_size=1, max_size=5))
def test_boxes_survive_the_way_through_both_formats(tmp_path: Path, boxes: list[Any]) -> None:
    images = write_images(tmp_path / "images", ["a.jpg"])
    truth = [(name, float(x), float(y), float(x + width), float(y + height)) for name, x, y, width, height in boxes]
    write_voc(tmp_path / "xml", "a.jpg", truth)
    names = ["dog", "cat"]
    import_voc(tmp_path / "xml", images, tmp_path / "voc.json", classes=names, overwrite=True)
    assert boxes_of(tmp_path / "voc.json")["a.jpg"] == truth
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "a.txt").write_text(
        "\n".join(
            f"{names.index(name)} {(x1 + x2) / 160:.6f} {(y1 + y2) / 80:.6f} {(x2 - x1) / 80:.6f} {(y2 - y1) / 40:.6f}"
            for name, x1, y1, x2, y2 in truth
        )
    )
    (tmp_path / "names.txt").write_text("\n".join(names))
    import_yolo(None, images, tmp_path / "yolo.json", names=tmp_path / "names.txt", overwrite=True)
    for found, expected in zip(boxes_of(tmp_path / "yolo.json")["a.jpg"], truth, strict=True):
        assert found[0] == expected[0]
        assert found[1:] == pytest.approx(expected[1:], abs=1e-4)  # six digits of 80 pixels
