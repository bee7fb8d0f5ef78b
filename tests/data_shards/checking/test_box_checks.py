import numpy as np

from data_shards.checking.box_checks import box_findings


def found_in(boxes: list[list[float]], labels: list[int] | None = None, crowd: int = -1, **changed: int) -> list[str]:
    """Kinds found in an image of 64 x 48 pixels, which an input of 512 x 512 shows 8 times as large."""
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return [
        kind
        for kind, _ in box_findings(
            array,
            np.array(labels or [0] * len(array), dtype=np.int64),
            np.arange(len(array)) == crowd,
            (48, 64),
            stride=changed.get("stride", 4),
            input_size=(512, 512),
            max_objects=changed.get("max_objects", 128),
        )
    ]


def test_boxes_are_judged_one_by_one() -> None:
    assert found_in([[5, 5, 20, 20]]) == []
    assert found_in([]) == ["no_objects"]
    assert found_in([[5, 5, 5, 20]]) == ["no_area"]
    assert found_in([[64, 5, 70, 20]]) == ["outside"]
    assert found_in([[-1, -1, 65, 49]]) == []  # a pixel is what rounding makes
    assert found_in([[-1.5, 5, 20, 20]]) == ["partly_outside"]
    assert found_in([[5, 5, 20, 49.5]]) == ["partly_outside"]
    assert found_in([[5, 5, 20, 20], [30, 5, 40, 20]], max_objects=1) == ["too_many"]
    assert found_in([[5, 5, 20, 20]], crowd=0) == ["crowd"]


def test_sizes_and_cells_are_those_of_the_input() -> None:
    # Half a pixel is 4 in the input: a cell wide, and not smaller.
    assert found_in([[5, 5, 5.5, 20]]) == []
    assert found_in([[5, 5, 5.46875, 20]]) == ["below_stride"]
    assert found_in([[5, 5, 5.46875, 20]], crowd=0) == ["crowd"]
    # Centres at x 10 and 10.25 are 80 and 82 in the input, both in cell 20 of stride 4; 10.5 is 84, in cell 21.
    assert found_in([[5, 5, 15, 15], [8.25, 8, 12.25, 12]]) == ["same_cell"]
    assert found_in([[5, 5, 15, 15], [8.5, 8, 12.5, 12]]) == []
    assert found_in([[5, 5, 15, 15], [8.5, 8, 12.5, 12]], stride=8) == ["same_cell"]
    assert found_in([[5, 5, 15, 15], [8.25, 8, 12.25, 12]], labels=[0, 1]) == []


def test_an_object_drawn_twice_is_found_by_its_overlap() -> None:
    # 10 x 10 boxes, 0.5 apart: 95 / 105 = 0.905; 0.6 apart: 94 / 106 = 0.887
    assert "same_box" in found_in([[5, 5, 15, 15], [5.5, 5, 15.5, 15]])
    assert "same_box" not in found_in([[5, 5, 15, 15], [5.6, 5, 15.6, 15]])
    assert "same_box" not in found_in([[5, 5, 15, 15], [5, 5, 15, 15]], labels=[0, 1])
    assert "same_box" not in found_in([[5, 5, 15, 15], [5, 5, 15, 15]], crowd=1)
