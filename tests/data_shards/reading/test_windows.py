import cv2
import numpy as np
import pytest

from data_shards.reading import windows
from data_shards.reading.scratch import Scratch
from data_shards.reading.windows import Window, cut
from tests.data_shards.samples import photo


def pasted_and_resized(image: np.ndarray, window: Window, input_size: tuple[int, int]) -> np.ndarray:
    """The same by slicing an image with a black border around it."""
    if window.zoom != 1:
        sides = (int(image.shape[1] * window.zoom), int(image.shape[0] * window.zoom))
        image = cv2.resize(image, sides, interpolation=cv2.INTER_LINEAR)
    border = 2000
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    crop = np.zeros((window.height, window.width, 3), dtype=np.uint8)
    rows, columns = window.height // 2 * 2, window.width // 2 * 2
    top, left = border + window.top, border + window.left
    crop[:rows, :columns] = padded[top : top + rows, left : left + columns]
    return cv2.resize(crop, (input_size[1], input_size[0]))


@pytest.mark.parametrize(
    "window",
    [
        Window(1.0, -40, 30, 306, 306),
        Window(1.0, 60, 70, 357, 357),
        Window(1.0, -100, -90, 613, 613),  # larger than the image
        Window(1.0, 10, 20, 127, 127),  # as large as the input
        Window(1.7, 100, 60, 127, 127),
        Window(0.4, -8, 5, 127, 127),
        Window(1.0, 500, 0, 100, 100),  # beyond the image
        Window(1.0, 20, 10, 90, 151),
    ],
)
def test_a_window_is_cut_and_resized_with_its_padding(window: Window) -> None:
    image = np.random.default_rng(3).integers(1, 256, (240, 320, 3), dtype=np.uint8)
    scratch = Scratch()
    for _ in range(2):  # the second time over what the first left in memory
        assert np.array_equal(cut(image, window, (127, 127), scratch), pasted_and_resized(image, window, (127, 127)))


def test_the_last_row_and_column_of_an_odd_window_are_black_even_inside_the_image() -> None:
    image = np.full((400, 400, 3), 200, dtype=np.uint8)
    found = cut(image, Window(1.0, 50, 60, 255, 255), (255, 255), Scratch())
    assert (found[:254, :254] == 200).all()
    assert (found[254] == 0).all()
    assert (found[:, 254] == 0).all()


def test_boxes_move_as_edges() -> None:
    # A crop of 306 pixels whose first column is 10 fills an input of 511: the edge at 10 becomes 0, that at 316, 511.
    matrix = Window(1.0, 10, 20, 306, 306).matrix((511, 511))
    corners = matrix @ np.array([[10.0, 316.0], [20.0, 326.0], [1.0, 1.0]])
    np.testing.assert_allclose(corners, [[0, 511], [0, 511]], atol=1e-12)
    # Twice as large, then moved: 2 x 100 - 60 = 140.
    assert (Window(2.0, 60, -10, 255, 255).matrix((255, 255)) @ [100.0, 5.0, 1.0]).tolist() == [140.0, 20.0]


@pytest.mark.parametrize("zoom", [2.0, 3.7, 9.3])
def test_a_much_enlarged_image_is_resized_only_where_the_window_is(
    monkeypatch: pytest.MonkeyPatch, zoom: float
) -> None:
    image, input_size = photo(8, 96, 120), (255, 255)
    for left, top in ((-30, 40), (int(60 * zoom) - 100, int(50 * zoom) - 120)):
        window = Window(zoom, left, top, *input_size)
        expected = pasted_and_resized(image, window, input_size).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(windows, "_LARGEST_RESIZED_PIXELS", 0)
            found = cut(image, window, input_size, Scratch()).astype(int)
        # warpAffine rounds places to a 32nd of a pixel.
        assert np.abs(found - expected).max() <= 3
        assert np.array_equal(found.any(axis=2), expected.any(axis=2))


def test_a_box_of_one_pixel_does_not_enlarge_the_whole_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(5, 1200, 1600)
    monkeypatch.delattr(cv2, "resize")
    # 32-fold, the photograph would have 2 gigapixels.
    found = cut(image, Window(32.0, 20_000, 9_000, 255, 255), (255, 255), Scratch())
    assert found[:254, :254].any(axis=2).all()


def test_an_image_that_is_shrunk_to_nothing_keeps_a_pixel() -> None:
    found = cut(photo(1, 2, 1000), Window(0.1, 0, -60, 127, 127), (127, 127), Scratch())
    assert found.any(axis=2).sum() == 100
