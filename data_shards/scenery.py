"""Still lifes for the demonstration set: things on a table, lit, shaded and photographed.

Everything is procedural and computed in linear light, from 0 to 1 and beyond: a surface with a texture, things
with normals that a lamp shades, shadows they cast, and a camera that adds blur, vignetting, noise and its
response curve. Axes are x to the right, y down, z towards the viewer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Generator = np.random.Generator


@dataclass(frozen=True)
class Thing:
    """One drawn thing, not yet in a scene."""

    colours: Floats
    """`(side, side, 3)`, linear RGB as the lamp shows them."""
    alpha: Floats
    """`(side, side)`: how much of each pixel it covers."""
    height: float
    """How far it rises over the table, in pixels: the length of its shadow."""


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
    albedo, normals = _single(albedo), _single(normals)
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
    rise_y, rise_x = np.gradient(_single(relief))
    return _unit(np.stack([-rise_x, -rise_y, np.ones_like(rise_x)], axis=-1))


def _oversampling(size: float) -> int:
    # Edges are smooth by themselves; only the texture of small things needs the finer canvas.
    return 2 if size < 64 else 1


def _canvas(size: float) -> tuple[int, Floats, Floats]:
    """Side of an oversampled canvas for a thing of `size` pixels, and x, y from -1 to 1 over the thing."""
    side = (int(np.ceil(size)) + 4) * _oversampling(size)
    axis = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / (size * _oversampling(size) / 2)
    x, y = np.meshgrid(axis, axis)
    return side, x, y


def _turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _inside(distance: NDArray[Any], size: float) -> Floats:
    """Coverage from a signed distance (negative inside) in units of half the thing's size."""
    return _single(np.clip(0.5 - distance * (size * _oversampling(size) / 2), 0, 1))


def _finished(size: float, colours: Floats, alpha: Floats, height: float) -> Thing:
    if _oversampling(size) == 1:
        return Thing(colours, alpha, height)
    side = len(alpha) // _oversampling(size)
    # Averaged with their coverage, or the rim would take up the colour of the empty canvas.
    covered = cv2.resize(colours * alpha[..., None], (side, side), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA)
    return Thing(covered / np.maximum(alpha, 1e-4)[..., None], alpha, height)


def _painted(shape: tuple[int, ...], colour: Any) -> Floats:
    painted = np.empty((*shape, 3), dtype=np.float32)
    painted[:] = colour
    return painted


def _single(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32, copy=False)


def _unit(vectors: NDArray[Any]) -> Floats:
    """Vectors along the last axis at length 1; zero stays zero."""
    squared = np.einsum("...i,...i", vectors, vectors)
    return _single(vectors / np.sqrt(np.maximum(squared, 1e-6))[..., None])


def _blend(below: NDArray[Any], above: Any, coverage: NDArray[Any]) -> Floats:
    blended = np.asarray(above, dtype=np.float32) - _single(below)
    blended *= _single(coverage)[..., None]
    blended += below
    return blended


def orange(random: Generator, size: float, lamp: Lamp) -> Thing:
    """An orange: a ball with pores and the mark of its stalk."""
    side, x, y = _canvas(size)
    squared = x**2 + y**2
    z = np.sqrt(np.clip(1 - squared, 0, None))
    pores = noise(random, side, side, (12, 12), 2) * (size / 130)
    normals = np.stack([x, y, z], axis=-1) + 0.35 * (normals_of(pores) - np.array([0, 0, 1], dtype=np.float32))
    normals = _unit(normals)
    hue = random.uniform(-0.04, 0.06)
    albedo = _painted((side, side), (0.95, 0.34 + hue, 0.015))
    albedo *= 1 + 0.07 * noise(random, side, side, (2, 2), 3)[..., None]
    towards = random.uniform(0, 2 * np.pi)
    tilt = random.uniform(0.15, 0.75)
    stalk = np.array([tilt * np.cos(towards), tilt * np.sin(towards), np.sqrt(1 - tilt**2)], dtype=np.float32)
    nearness = np.stack([x, y, z], axis=-1) @ stalk
    albedo *= (1 - 0.35 * np.clip((nearness - 0.965) / 0.035, 0, 1))[..., None]
    albedo = _blend(albedo, (0.14, 0.16, 0.03), np.clip((nearness - 0.991) * 300, 0, 1))
    return _finished(size, shade(albedo, normals, lamp, 0.22, 18), _inside(np.sqrt(squared) - 1, size), 0.35 * size)


def lemon(random: Generator, size: float, lamp: Lamp) -> Thing:
    """A lemon: longer than wide, with a point at both ends."""
    side, x, y = _canvas(size)
    along, across = _turned(x, y, random.uniform(0, 2 * np.pi))
    width = random.uniform(0.6, 0.68)
    body = 1 - (along / 0.86) ** 2 - (across / width) ** 2
    point = 1 - ((np.abs(along) - 0.8) / 0.2) ** 2 - (across / 0.2) ** 2
    thickness = np.maximum(width * np.sqrt(np.clip(body, 0, None)), 0.2 * np.sqrt(np.clip(point, 0, None)))
    thickness = _single(cv2.GaussianBlur(thickness, (0, 0), 0.02 * side))
    pores = noise(random, side, side, (9, 9), 2) * (size / 110)
    normals = normals_of(thickness * size * _oversampling(size) / 2 + pores)
    albedo = _painted((side, side), (0.93, random.uniform(0.68, 0.78), 0.03))
    albedo *= 1 + 0.06 * noise(random, side, side, (2, 2), 3)[..., None]
    greenish = 0.5 * np.clip((np.abs(along) - 0.7) * 4, 0, 1)
    albedo = _blend(albedo, (0.5, 0.6, 0.05), greenish)
    distance = np.minimum(
        (np.sqrt((along / 0.86) ** 2 + (across / width) ** 2) - 1) * width,
        (np.sqrt(((np.abs(along) - 0.8) / 0.2) ** 2 + (across / 0.2) ** 2) - 1) * 0.2,
    )
    return _finished(size, shade(albedo, normals, lamp, 0.3, 26), _inside(distance, size), 0.24 * size)


_GLAZES = ((0.03, 0.14, 0.55), (0.02, 0.33, 0.42), (0.78, 0.8, 0.82), (0.05, 0.07, 0.22), (0.2, 0.42, 0.72))


def mug(random: Generator, size: float, lamp: Lamp) -> Thing:
    """A mug seen from the side and a little from above, handle left or right, with or without coffee."""
    side, x, y = _canvas(size)
    x, y = _turned(x, y, random.uniform(-0.12, 0.12))
    x = x * random.choice((-1.0, 1.0)).astype(np.float32) + np.float32(0.2)
    glaze = np.array(_GLAZES[random.integers(len(_GLAZES))]) * random.uniform(0.85, 1.1)
    radius, top, bottom = 0.66, -0.66, 0.72
    squash = random.uniform(0.24, 0.34)
    u = np.clip(x / radius, -0.999, 0.999)
    round_bottom = bottom + squash * radius * np.sqrt(1 - u**2) * 0.8
    body = _inside(np.maximum(np.maximum(np.abs(x) - radius, top - y), y - round_bottom), size)
    rim_distance = (np.sqrt((x / radius) ** 2 + ((y - top) / (radius * squash)) ** 2) - 1) * radius * squash
    mouth_distance = (np.sqrt((x / (radius * 0.9)) ** 2 + ((y - top) / (radius * squash * 0.86)) ** 2) - 1) * (
        radius * squash * 0.86
    )
    # The handle is a piece of a ring whose tube has the width 0.13.
    ring_x, ring_y = (x - radius) / 0.42, (y - 0.02) / 0.46
    ring = np.sqrt(ring_x**2 + ring_y**2)
    tube = (ring - 0.78) * 0.44
    handle = _inside(np.abs(tube) - 0.075, size) * (x > radius * 0.9)

    across = np.clip(tube / 0.075, -1, 1)
    handle_normals = np.stack(
        [across * ring_x / np.maximum(ring, 0.1), across * ring_y / np.maximum(ring, 0.1), np.sqrt(1 - across**2)],
        axis=-1,
    )
    body_normals = np.stack([u, np.full_like(u, -0.08), np.sqrt(1 - u**2)], axis=-1)
    body_albedo = _painted((side, side), glaze)
    if random.random() < 0.5:
        band = random.uniform(-0.1, 0.4)
        height_on_body = y - squash * radius * np.sqrt(1 - u**2) * 0.8
        stripe = _inside(np.abs(height_on_body - band) - random.uniform(0.06, 0.14), size)
        body_albedo = _blend(body_albedo, random.uniform(0.6, 0.9) * np.ones(3), stripe)
    gloss, sharpness = 0.45, 45.0
    colours = shade(_painted((side, side), glaze), handle_normals, lamp, gloss, sharpness)
    colours = _blend(colours, shade(body_albedo, body_normals, lamp, gloss, sharpness), body)
    upwards = _painted((side, side), (0.0, -0.55, 0.83))
    rim = _inside(rim_distance, size)
    colours = _blend(colours, shade(_painted((side, side), glaze * 1.1), upwards, lamp, 0.2), rim)
    inner = 0.35 + 0.4 * np.clip((y - top) / (radius * squash) * 0.5 + 0.5, 0, 1)
    inside = _painted((side, side), np.minimum(glaze + 0.25, 0.85)) * inner[..., None]
    if random.random() < 0.6:
        inside = _blend(inside, (0.06, 0.028, 0.012), (y > top - radius * squash * 0.25).astype(np.float32))
    colours = _blend(colours, inside * (lamp.ambient + 0.55), _inside(mouth_distance, size))
    return _finished(size, colours.astype(np.float32), np.maximum(np.maximum(body, rim), handle), 0.42 * size)


_COVERS = ((0.55, 0.03, 0.03), (0.32, 0.02, 0.2), (0.6, 0.05, 0.16), (0.24, 0.04, 0.34), (0.38, 0.02, 0.02))


def book(random: Generator, size: float, lamp: Lamp) -> Thing:
    """A book lying flat: cover with frame, title and a plate, and the edge of its pages."""
    side, x, y = _canvas(size)
    angle = random.uniform(0, 2 * np.pi)
    half_width, half_height = 0.56, 0.78
    thickness = random.uniform(0.1, 0.17)
    cover_colour = np.array(_COVERS[random.integers(len(_COVERS))]) * random.uniform(0.8, 1.2)

    def slab(lift: float) -> tuple[Floats, Floats, Floats]:
        across, along = _turned(x, (y + np.float32(lift - thickness / 2)) / np.float32(0.9), angle)
        outside = np.maximum(np.abs(across) - half_width, np.abs(along) - half_height)
        return across, along, _inside(outside, size)

    lower, alpha = slab(0.0)[2], slab(0.0)[2]
    paper = noise(random, side, side, (40, 4), 2)
    colours = shade(_painted((side, side), cover_colour * 0.6), _painted((side, side), (0, 0.9, 0.43)), lamp)
    layers = int(np.clip(thickness * size, 4, 9))
    for layer in range(1, layers):
        lower = slab(thickness * layer / layers)[2]
        page = 0.74 + 0.14 * (layer % 2) + 0.05 * paper
        colours = _blend(colours, page[..., None] * np.array([0.62, 0.58, 0.5]) * (lamp.ambient + 0.45), lower)
        alpha = np.maximum(alpha, lower)
    across, along, upper = slab(thickness)
    albedo = _painted((side, side), cover_colour) * (1 + 0.08 * noise(random, side, side, (30, 30), 2)[..., None])
    gold = np.array([0.72, 0.55, 0.22])
    frame = _inside(
        np.abs(np.maximum(np.abs(across) - half_width * 0.8, np.abs(along) - half_height * 0.84)) - 0.018, size
    )
    albedo = _blend(albedo, gold, frame)
    for line, reach in ((-0.42, 0.3), (-0.26, random.uniform(0.12, 0.26))):
        albedo = _blend(albedo, gold, _inside(np.maximum(np.abs(along - line) - 0.045, np.abs(across) - reach), size))
    plate = _inside(np.maximum(np.abs(along - 0.25) - 0.2, np.abs(across) - 0.24), size)
    albedo = _blend(albedo, random.uniform(0.25, 0.8, 3), plate)
    hinge = np.exp(-(((across + half_width * 0.9) / 0.03) ** 2))
    albedo *= (1 - 0.4 * hinge)[..., None]
    flat = _painted((side, side), (0, 0, 1)) + 0.05 * noise(random, side, side, (3, 3), 2)[..., None]
    colours = _blend(colours, shade(albedo, _unit(flat), lamp, 0.05, 12), upper)
    return _finished(size, colours, np.maximum(alpha, upper), 0.16 * size)


def leaf(random: Generator, size: float, lamp: Lamp) -> Thing:
    """A fallen leaf: pointed, notched, bent, with veins and a stalk."""
    side, x, y = _canvas(size)
    along, across = _turned(x, y, random.uniform(0, 2 * np.pi))
    bend = random.uniform(-0.18, 0.18)
    across = across - np.float32(bend) * (1 - along**2)
    width = random.uniform(0.42, 0.52)
    blade = np.clip((along + 0.68) / 1.66, 0, 1)
    notches = 1 + 0.05 * np.sin(along * random.uniform(28, 40))
    outline = width * np.clip(np.sin(np.pi * blade**0.85), 0, None) ** 0.8 * notches
    distance = np.maximum(np.abs(across) - outline, np.abs(along - 0.15) - 0.83)
    stalk = np.maximum(np.abs(across) - 0.028, np.abs(along + 0.8) - 0.19)
    alpha = np.maximum(_inside(distance, size), _inside(stalk, size))
    tone = random.uniform(0, 1)
    albedo = _painted((side, side), np.array([0.05, 0.26, 0.02]) * (1 - tone) + np.array([0.16, 0.42, 0.04]) * tone)
    albedo *= 1 + 0.15 * noise(random, side, side, (4, 4), 3)[..., None]
    slanted = (along - 0.8 * np.abs(across)) * 5.5
    veins = np.exp(-(((slanted - np.round(slanted)) / 0.09) ** 2)) * 0.5
    veins = np.maximum(veins, np.exp(-((across / 0.022) ** 2)))
    albedo = _blend(albedo, np.array([0.4, 0.55, 0.18]) * (0.6 + 0.4 * tone), veins.astype(np.float32) * 0.75)
    fold = 0.35 * np.sign(across) * np.exp(-np.abs(across) * 2)
    relief = _single(noise(random, side, side, (4, 4), 3) * side * 0.008 - veins * side * 0.006)
    normals = normals_of(relief)
    turned = np.stack([-fold * (across - x), fold, np.zeros_like(fold)], axis=-1)
    normals = _unit(normals + 0.6 * turned)
    return _finished(size, shade(albedo, normals, lamp, 0.05, 14), alpha, 0.05 * size)


def plate(random: Generator, size: float, lamp: Lamp) -> Thing:
    """A plate, which no class is about."""
    _, x, y = _canvas(size)
    radius = np.sqrt(x**2 + (y / np.float32(0.82)) ** 2)
    relief = 0.06 * np.clip((radius - 0.62) / 0.1, 0, 1) + 0.05 * np.clip(radius - 0.72, 0, 1)
    normals = normals_of(relief * size)
    albedo = _painted(x.shape, np.array([0.72, 0.71, 0.68]) * random.uniform(0.8, 1.05))
    albedo = _blend(albedo, random.uniform(0.1, 0.6, 3), _inside(np.abs(radius - 0.9) - 0.015, size) * 0.7)
    return _finished(size, shade(albedo, normals, lamp, 0.12, 40), _inside(radius - 1, size), 0.04 * size)


def pencil(random: Generator, size: float, lamp: Lamp) -> Thing:
    """A pencil, which no class is about."""
    _, x, y = _canvas(size)
    along, across = _turned(x, y, random.uniform(0, 2 * np.pi))
    half = np.float32(0.035)
    tip = np.clip((0.98 - along) / 0.16, 0, 1)
    alpha = _inside(np.maximum(np.abs(across) - half * tip, np.abs(along) - 0.98), size)
    facet = np.round(np.clip(across / half, -1, 1) * 1.2) / 1.6
    normals = np.stack([-facet * (across - x), facet, np.sqrt(np.clip(1 - facet**2, 0.1, 1))], axis=-1)
    normals = _unit(normals)
    albedo = _painted(x.shape, random.uniform(0.05, 0.5, 3))
    albedo = _blend(albedo, (0.6, 0.42, 0.22), (along > 0.8).astype(np.float32))
    albedo = _blend(albedo, (0.05, 0.05, 0.05), (along > 0.92).astype(np.float32))
    return _finished(size, shade(albedo, normals, lamp, 0.2, 20), alpha, 0.03 * size)


Drawing = Callable[[Generator, float, Lamp], Thing]


def surface(random: Generator, height: int, width: int, lamp: Lamp) -> Floats:
    """A lit table top `(height, width, 3)`: wood, cloth, stone or concrete, brighter towards the lamp."""
    kind = _SURFACES[random.integers(len(_SURFACES))]
    albedo, relief = kind(random, height, width)
    lit = shade(albedo, normals_of(relief), lamp, 0.03, 10)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    falloff = 1 + random.uniform(0.12, 0.35) * (lamp.direction[0] * x + lamp.direction[1] * y)
    return lit * _single(falloff)[..., None]


def _wood(random: Generator, height: int, width: int) -> tuple[Floats, Floats]:
    planks = int(random.integers(2, 6))
    tones = random.uniform(0.75, 1.15, planks + 1)
    position = np.linspace(0, planks, height, endpoint=False, dtype=np.float32)[:, None] + random.uniform(0, 1)
    position = np.broadcast_to(position, (height, width))
    number = np.floor(position).astype(np.int64) % (planks + 1)
    rings = noise(random, height, width, (3 * planks, 1.2), 3)
    fibre = noise(random, height, width, (height / 3, 3), 2)
    grain = np.sin((position * 9 + rings * 3 + number * 2.3) * 2)
    base = np.array(_WOODS[random.integers(len(_WOODS))])
    tone = tones[number] * (1 + 0.1 * grain + 0.09 * fibre + 0.08 * rings)
    gap = np.exp(-(((position - np.round(position)) * height / planks / 1.3) ** 2))
    albedo = base * (tone * (1 - 0.65 * gap))[..., None]
    return albedo.astype(np.float32), (fibre * 0.12 - gap * 1.0).astype(np.float32)


_WOODS = ((0.36, 0.2, 0.1), (0.5, 0.33, 0.19), (0.2, 0.11, 0.065), (0.42, 0.34, 0.26))


def _cloth(random: Generator, height: int, width: int) -> tuple[Floats, Floats]:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = _turned(x, y, random.uniform(-0.5, 0.5))
    weave = np.sin(x * 2.1) * np.sin(y * 2.1)
    base = np.array(_CLOTHS[random.integers(len(_CLOTHS))])
    albedo = _painted((height, width), base)
    if random.random() < 0.6:
        period = random.uniform(18, 50)
        stripes = (np.sin(x * 2 * np.pi / period) > random.uniform(0.1, 0.6)).astype(np.float32)
        if random.random() < 0.5:
            stripes = (stripes + (np.sin(y * 2 * np.pi / period) > 0.4)) / 2
        albedo = _blend(albedo, base * random.uniform(0.35, 0.65) + 0.05, cv2.GaussianBlur(stripes, (0, 0), 0.8))
    albedo *= (1 + 0.07 * weave + 0.05 * noise(random, height, width, (30, 30), 2))[..., None]
    folds = noise(random, height, width, (2.0, 2.6), 2) * random.uniform(3, 9)
    return albedo.astype(np.float32), (folds + weave * 0.12).astype(np.float32)


_CLOTHS = ((0.55, 0.52, 0.46), (0.24, 0.3, 0.42), (0.5, 0.34, 0.34), (0.3, 0.3, 0.31), (0.62, 0.6, 0.58))


def _stone(random: Generator, height: int, width: int) -> tuple[Floats, Floats]:
    clouds = noise(random, height, width, (3, 4), 5)
    veins = np.exp(-((noise(random, height, width, (2, 3), 4) / 0.06) ** 2))
    speckle = random.standard_normal((height, width), dtype=np.float32)
    base = np.array(_STONES[random.integers(len(_STONES))])
    tone = 1 + 0.14 * clouds + 0.05 * speckle - 0.3 * veins * random.uniform(0.2, 1)
    return (base * tone[..., None]).astype(np.float32), (clouds * 0.15).astype(np.float32)


_STONES = ((0.6, 0.59, 0.57), (0.16, 0.17, 0.18), (0.42, 0.38, 0.34), (0.35, 0.39, 0.42))


def _concrete(random: Generator, height: int, width: int) -> tuple[Floats, Floats]:
    stains = noise(random, height, width, (3, 4), 5)
    grit = cv2.GaussianBlur(random.standard_normal((height, width), dtype=np.float32), (0, 0), 0.9) * 2
    pits = (noise(random, height, width, (26, 34), 2) > 1.25).astype(np.float32)
    base = np.array([0.34, 0.33, 0.31]) * random.uniform(0.7, 1.3)
    tone = 1 + 0.12 * stains + 0.07 * grit - 0.35 * cv2.GaussianBlur(pits, (0, 0), 0.8)
    return (base * tone[..., None]).astype(np.float32), (grit * 0.25 - pits).astype(np.float32)


_SURFACES = (_wood, _wood, _cloth, _cloth, _stone, _concrete)


def put(scene: Floats, thing: Thing, x: float, y: float, lamp: Lamp) -> Floats:
    """Put a thing with its shadow into a scene, in place, and give its coverage of the scene.

    Args:
        scene: `(height, width, 3)`, linear.
        thing: what is put there.
        x, y: its middle, in pixels of the scene; parts outside are cut off.
        lamp: throws the shadow.

    Returns:
        float32 `(height, width)`.
    """
    height, width = scene.shape[:2]
    half = len(thing.alpha) / 2
    slope_x, slope_y, up = lamp.direction
    reach = thing.height / up
    softness = 1 + 0.2 * thing.height
    # Only the window that the thing and its shadow can touch.
    margin = half + reach + 3 * softness
    left, upper = max(0, int(x - margin)), max(0, int(y - margin))
    window = scene[upper : max(upper, int(y + margin) + 1), left : max(left, int(x + margin) + 1)]
    of_scene = np.zeros((height, width), dtype=np.float32)
    if window.size == 0:
        return of_scene

    def placed(values: Floats, dx: float, dy: float) -> Floats:
        move = np.array([[1, 0, x - left - half + dx], [0, 1, y - upper - half + dy]], dtype=np.float64)
        return _single(cv2.warpAffine(values, move, window.shape[1::-1], flags=cv2.INTER_LINEAR))

    shadow = placed(thing.alpha, -slope_x * reach, -slope_y * reach * 0.6)
    shadow = cv2.GaussianBlur(shadow, (0, 0), softness)
    contact = cv2.GaussianBlur(placed(thing.alpha, 0, 1 + 0.1 * thing.height), (0, 0), 1 + 0.06 * thing.height)
    coverage = placed(thing.alpha, 0, 0)
    window *= ((1 - 0.58 * shadow) * (1 - 0.4 * contact) * (1 - coverage))[..., None]
    window += placed(thing.colours * thing.alpha[..., None], 0, 0)
    of_scene[upper : upper + len(coverage), left : left + coverage.shape[1]] = coverage
    return of_scene


def photograph(random: Generator, scene: Floats) -> NDArray[np.uint8]:
    """What a small camera makes of a scene: uint8 `(height, width, 3)`, RGB."""
    height, width = scene.shape[:2]
    image = cv2.GaussianBlur(scene, (0, 0), random.uniform(0.45, 0.95))
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    image *= _single(1 - random.uniform(0.08, 0.3) * (x**2 + y**2))[..., None]
    image *= _single(random.uniform(0.7, 1.1) * random.uniform(0.95, 1.05, 3))
    grain = random.standard_normal(image.shape, dtype=np.float32)
    grain *= cv2.sqrt(np.clip(image, 0, None) * 0.0006 + 0.00002) * random.uniform(0.5, 1.6)
    image = np.clip(image + grain, 0, None)
    # A shoulder keeps highlights from burning out, then the response of sRGB.
    image *= (1 + image / 2.2) / (1 + image)
    image = 290 * cv2.pow(image, 1 / 2.2)
    # A little more contrast about the middle, as cameras like to add.
    image += 0.12 * (image - 120)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
