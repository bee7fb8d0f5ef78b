"""Memory that decoding and resampling use again for every image."""

import threading

import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "_ _ 3"]
"""RGB pixels, `(height, width, 3)`."""


class Scratch(threading.local):
    """Memory that a thread uses again for every image: touching fresh pages costs a tenth of a decode.

    Each image overwrites what the same thread decoded or resampled before.
    """

    def __init__(self) -> None:
        self._memory: dict[str, UInt8[np.ndarray, " bytes"]] = {}
        self._canvas: Image | None = None
        # Rows and columns of the canvas that may hold something other than black.
        self._used = (0, 0, 0, 0)

    def bytes(self, use: str, size: int) -> UInt8[np.ndarray, " bytes"]:
        """Return `size` bytes for one use, with whatever they held before."""
        memory = self._memory.get(use)
        if memory is None or len(memory) < size:
            memory = self._memory[use] = np.empty(size, dtype=np.uint8)
        return memory[:size]

    def image(self, use: str, height: int, width: int) -> Image:
        """Return the same as an image."""
        return self.bytes(use, height * width * 3).reshape(height, width, 3)

    def canvas(self, height: int, width: int, top: int, bottom: int, left: int, right: int) -> Image:
        """Return an image that is black outside these rows and columns; the caller fills the inside."""
        canvas = self.image("canvas", height, width)
        known = self._canvas
        if known is None or known.shape != canvas.shape or known.ctypes.data != canvas.ctypes.data:
            self._used = (0, height, 0, width)
        self._canvas = canvas
        # Blacken only what the last image left there: writing the whole border costs a fiftieth of a decode.
        was_top, was_bottom, was_left, was_right = self._used
        canvas[was_top:top] = 0
        canvas[max(was_top, bottom) : was_bottom] = 0
        canvas[top:bottom, was_left:left] = 0
        canvas[top:bottom, max(was_left, right) : was_right] = 0
        self._used = (top, bottom, left, right)
        return canvas
