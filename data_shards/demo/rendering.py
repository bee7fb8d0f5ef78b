"""Light, normals, noise and paint for drawings of things and of surfaces.

Colours are linear light, from 0 to 1 and beyond. Axes are x to the right, y down, z towards the viewer.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Shaped
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Generator = np.random.Generator


@dataclass(frozen=True)
class Lamp:
    """One distant lamp, and light from everywhere."""

    direction: tuple[float, float, float]
    """Unit vector from the table to the lamp."""
    ambient: float
    """Strength of the light from everywhere."""
    colour: tuple[float, float, float]

    @classmethod
    def draw(cls, random: Generator) -> "Lamp":
        """Draw a lamp above the far edge of the table, warm or cold."""
        direction = np.array([random.uniform(-0.7, 0.7), random.uniform(-0.75, -0.2), random.uniform(0.6, 0.9)])
        x, y, z = direction / np.linalg.norm(direction)
        warmth = random.uniform(-0.12, 0.12)
        return cls((x, y, z), random.uniform(0.24, 0.4), (1 + warmth, 1.0, 1 - warmth))


def noise(
    random: Generator, height: int, width: int, cells: tuple[float, float], octaves: int = 4
) -> Float32[Floats, "height width"]:
    """Draw smooth noise around 0, mostly within ±1: octaves of random grids, each twice as fine and half as strong.

    Args:
        random: the source of the grids.
        height: of the result, in pixels.
        width: of the result, in pixels.
        cells: rows and columns of the coarsest grid.
        octaves: how many grids are summed.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        rows, columns = (max(2, round(count * 2**octave)) for count in cells)
        grid = random.standard_normal((min(rows, height) + 1, min(columns, width) + 1), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total * np.float32(0.6)


def shade(
    albedo: Shaped[NDArray[Any], "height width 3"],
    normals: Shaped[NDArray[Any], "height width 3"],
    lamp: Lamp,
    gloss: float = 0.0,
    sharpness: float = 20.0,
) -> Float32[Floats, "height width 3"]:
    """Compute the linear colours of a surface: diffuse and ambient light, and a highlight.

    Args:
        albedo: the share of each colour that the surface reflects.
        normals: unit vectors.
        lamp: the light.
        gloss: strength of the highlight.
        sharpness: exponent of the highlight; a larger one makes it smaller.

    Source:
        Blinn, Models of Light Reflection for Computer Synthesized Pictures, 1977.
    """
    albedo, normals = single(albedo), single(normals)
    direction = np.array(lamp.direction, dtype=np.float32)
    diffuse = np.clip(normals @ direction, 0, None)
    # Surfaces that face up reflect the bright ceiling, those that face down the darker table.
    ambient = lamp.ambient * (0.75 - 0.25 * normals[..., 1])
    light = (1.15 * diffuse + ambient)[..., None] * np.array(lamp.colour, dtype=np.float32)
    halfway = direction + np.array([0, 0, 1], dtype=np.float32)
    halfway /= np.linalg.norm(halfway)
    light *= albedo
    if gloss:
        light += (gloss * cv2.pow(np.clip(normals @ halfway, 0, None), sharpness))[..., None]
    return light


def normals_of(relief: Shaped[NDArray[Any], "height width"]) -> Float32[Floats, "height width 3"]:
    """Return the unit normals of a height field in pixels."""
    rise_y, rise_x = np.gradient(single(relief))
    return unit(np.stack([-rise_x, -rise_y, np.ones_like(rise_x)], axis=-1))


def turned(
    x: Float32[Floats, "height width"], y: Float32[Floats, "height width"], angle: float
) -> tuple[Float32[Floats, "height width"], Float32[Floats, "height width"]]:
    """Return the coordinates along axes that are turned by an angle, in radians."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def painted(shape: tuple[int, ...], colour: Any) -> Float32[Floats, "... 3"]:
    """Return one colour everywhere, `(*shape, 3)`."""
    values = np.empty((*shape, 3), dtype=np.float32)
    values[:] = colour
    return values


def single(values: Shaped[NDArray[Any], "..."]) -> Float32[Floats, "..."]:
    """Convert to float32, without a copy if the values are float32 already."""
    return values.astype(np.float32, copy=False)


def unit(vectors: Shaped[NDArray[Any], "*axes"]) -> Float32[Floats, "*axes"]:
    """Scale vectors along the last axis to length 1; zero stays zero."""
    squared = np.einsum("...i,...i", vectors, vectors)
    return single(vectors / np.sqrt(np.maximum(squared, 1e-6))[..., None])


def blend(
    below: Shaped[NDArray[Any], "height width 3"], above: Any, coverage: Shaped[NDArray[Any], "height width"]
) -> Float32[Floats, "height width 3"]:
    """Mix two layers of colours.

    Args:
        below: the lower layer.
        above: the upper layer, or one colour for all of it.
        coverage: the share of each pixel that the upper layer covers, 0 to 1.
    """
    blended = np.asarray(above, dtype=np.float32) - single(below)
    blended *= single(coverage)[..., None]
    blended += below
    return blended
