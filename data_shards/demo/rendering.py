"""Light, normals, noise and paint: what drawings of things and of surfaces share.

Everything is computed in linear light, from 0 to 1 and beyond. Axes are x to the right, y down, z towards the viewer.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Generator = np.random.Generator


@dataclass(frozen=True)
class Lamp:
    """One lamp far away, and the light that comes from everywhere."""

    direction: tuple[float, float, float]
    """Unit vector from the table to the lamp."""
    ambient: float
    colour: tuple[float, float, float]

    @classmethod
    def draw(cls, random: Generator) -> "Lamp":
        """A lamp above the far edge of the table, warm or cold."""
        direction = np.array([random.uniform(-0.7, 0.7), random.uniform(-0.75, -0.2), random.uniform(0.6, 0.9)])
        x, y, z = direction / np.linalg.norm(direction)
        warmth = random.uniform(-0.12, 0.12)
        return cls((x, y, z), random.uniform(0.24, 0.4), (1 + warmth, 1.0, 1 - warmth))


def noise(random: Generator, height: int, width: int, cells: tuple[float, float], octaves: int = 4) -> Floats:
    """Smooth noise `(height, width)` around 0, mostly within ±1: octaves of random grids, each twice as fine."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        rows, columns = (max(2, round(count * 2**octave)) for count in cells)
        grid = random.standard_normal((min(rows, height) + 1, min(columns, width) + 1), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total * np.float32(0.6)


def shade(
    albedo: NDArray[Any], normals: NDArray[Any], lamp: Lamp, gloss: float = 0.0, sharpness: float = 20.0
) -> Floats:
    """Linear colours of a surface: diffuse and ambient light, and a highlight.

    Args:
        albedo: `(height, width, 3)`, the share of light each colour throws back.
        normals: `(height, width, 3)`, unit vectors.
        lamp: the light.
        gloss: strength of the highlight.
        sharpness: exponent of the highlight.

    Source:
        Blinn, Models of Light Reflection for Computer Synthesized Pictures, 1977.
    """
    albedo, normals = single(albedo), single(normals)
    direction = np.array(lamp.direction, dtype=np.float32)
    diffuse = np.clip(normals @ direction, 0, None)
    # Surfaces that look up see the ceiling, those that look down the table.
    ambient = lamp.ambient * (0.75 - 0.25 * normals[..., 1])
    light = (1.15 * diffuse + ambient)[..., None] * np.array(lamp.colour, dtype=np.float32)
    halfway = direction + np.array([0, 0, 1], dtype=np.float32)
    halfway /= np.linalg.norm(halfway)
    light *= albedo
    if gloss:
        light += (gloss * cv2.pow(np.clip(normals @ halfway, 0, None), sharpness))[..., None]
    return light


def normals_of(relief: NDArray[Any]) -> Floats:
    """Unit normals `(height, width, 3)` of a height field in pixels."""
    rise_y, rise_x = np.gradient(single(relief))
    return unit(np.stack([-rise_x, -rise_y, np.ones_like(rise_x)], axis=-1))


def turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Coordinates along axes that are turned by an angle, in radians."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def painted(shape: tuple[int, ...], colour: Any) -> Floats:
    """One colour everywhere: float32 `(*shape, 3)`."""
    values = np.empty((*shape, 3), dtype=np.float32)
    values[:] = colour
    return values


def single(values: NDArray[Any]) -> Floats:
    """The same values in float32."""
    return values.astype(np.float32, copy=False)


def unit(vectors: NDArray[Any]) -> Floats:
    """Vectors along the last axis at length 1; zero stays zero."""
    squared = np.einsum("...i,...i", vectors, vectors)
    return single(vectors / np.sqrt(np.maximum(squared, 1e-6))[..., None])


def blend(below: NDArray[Any], above: Any, coverage: NDArray[Any]) -> Floats:
    """What is seen where something above covers something below in part."""
    blended = np.asarray(above, dtype=np.float32) - single(below)
    blended *= single(coverage)[..., None]
    blended += below
    return blended
