"""The things on the table: a drawing is a function of a random generator, a size in pixels and a lamp."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from data_shards.demo.rendering import (
    Floats,
    Generator,
    Lamp,
    blend,
    noise,
    normals_of,
    painted,
    shade,
    single,
    turned,
    unit,
)


@dataclass(frozen=True)
class Thing:
    """One drawn thing, not yet in a scene."""

    colours: Float32[Floats, "side side 3"]
    """Linear RGB under the lamp."""
    alpha: Float32[Floats, "side side"]
    """The share of each pixel that it covers, 0 to 1."""
    height: float
    """Its height above the table, in pixels; decides the length of its shadow."""


Drawing = Callable[[Generator, float, Lamp], Thing]


def orange(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw an orange: a ball with pores and the mark of its stalk."""
    side, x, y = _canvas(size)
    squared = x**2 + y**2
    z = np.sqrt(np.clip(1 - squared, 0, None))
    pores = noise(random, side, side, (12, 12), 2) * (size / 130)
    normals = np.stack([x, y, z], axis=-1) + 0.35 * (normals_of(pores) - np.array([0, 0, 1], dtype=np.float32))
    normals = unit(normals)
    hue = random.uniform(-0.04, 0.06)
    albedo = painted((side, side), (0.95, 0.34 + hue, 0.015))
    albedo *= 1 + 0.07 * noise(random, side, side, (2, 2), 3)[..., None]
    towards = random.uniform(0, 2 * np.pi)
    tilt = random.uniform(0.15, 0.75)
    stalk = np.array([tilt * np.cos(towards), tilt * np.sin(towards), np.sqrt(1 - tilt**2)], dtype=np.float32)
    nearness = np.stack([x, y, z], axis=-1) @ stalk
    albedo *= (1 - 0.35 * np.clip((nearness - 0.965) / 0.035, 0, 1))[..., None]
    albedo = blend(albedo, (0.14, 0.16, 0.03), np.clip((nearness - 0.991) * 300, 0, 1))
    return _finished(size, shade(albedo, normals, lamp, 0.22, 18), _inside(np.sqrt(squared) - 1, size), 0.35 * size)


def lemon(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw a lemon: longer than wide, with a point at both ends."""
    side, x, y = _canvas(size)
    along, across = turned(x, y, random.uniform(0, 2 * np.pi))
    width = random.uniform(0.6, 0.68)
    body = 1 - (along / 0.86) ** 2 - (across / width) ** 2
    point = 1 - ((np.abs(along) - 0.8) / 0.2) ** 2 - (across / 0.2) ** 2
    thickness = np.maximum(width * np.sqrt(np.clip(body, 0, None)), 0.2 * np.sqrt(np.clip(point, 0, None)))
    thickness = single(cv2.GaussianBlur(thickness, (0, 0), 0.02 * side))
    pores = noise(random, side, side, (9, 9), 2) * (size / 110)
    normals = normals_of(thickness * size * _oversampling(size) / 2 + pores)
    albedo = painted((side, side), (0.93, random.uniform(0.68, 0.78), 0.03))
    albedo *= 1 + 0.06 * noise(random, side, side, (2, 2), 3)[..., None]
    greenish = 0.5 * np.clip((np.abs(along) - 0.7) * 4, 0, 1)
    albedo = blend(albedo, (0.5, 0.6, 0.05), greenish)
    distance = np.minimum(
        (np.sqrt((along / 0.86) ** 2 + (across / width) ** 2) - 1) * width,
        (np.sqrt(((np.abs(along) - 0.8) / 0.2) ** 2 + (across / 0.2) ** 2) - 1) * 0.2,
    )
    return _finished(size, shade(albedo, normals, lamp, 0.3, 26), _inside(distance, size), 0.24 * size)


_GLAZES = ((0.03, 0.14, 0.55), (0.02, 0.33, 0.42), (0.78, 0.8, 0.82), (0.05, 0.07, 0.22), (0.2, 0.42, 0.72))


def mug(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw a mug, seen from the side and a little from above, handle left or right, with or without coffee."""
    side, x, y = _canvas(size)
    x, y = turned(x, y, random.uniform(-0.12, 0.12))
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
    # The handle is the part of a slightly oval ring to the right of the body.
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
    body_albedo = painted((side, side), glaze)
    if random.random() < 0.5:
        band = random.uniform(-0.1, 0.4)
        height_on_body = y - squash * radius * np.sqrt(1 - u**2) * 0.8
        stripe = _inside(np.abs(height_on_body - band) - random.uniform(0.06, 0.14), size)
        body_albedo = blend(body_albedo, random.uniform(0.6, 0.9) * np.ones(3), stripe)
    gloss, sharpness = 0.45, 45.0
    colours = shade(painted((side, side), glaze), handle_normals, lamp, gloss, sharpness)
    colours = blend(colours, shade(body_albedo, body_normals, lamp, gloss, sharpness), body)
    upwards = painted((side, side), (0.0, -0.55, 0.83))
    rim = _inside(rim_distance, size)
    colours = blend(colours, shade(painted((side, side), glaze * 1.1), upwards, lamp, 0.2), rim)
    inner = 0.35 + 0.4 * np.clip((y - top) / (radius * squash) * 0.5 + 0.5, 0, 1)
    inside = painted((side, side), np.minimum(glaze + 0.25, 0.85)) * inner[..., None]
    if random.random() < 0.6:
        inside = blend(inside, (0.06, 0.028, 0.012), (y > top - radius * squash * 0.25).astype(np.float32))
    colours = blend(colours, inside * (lamp.ambient + 0.55), _inside(mouth_distance, size))
    return _finished(size, colours.astype(np.float32), np.maximum(np.maximum(body, rim), handle), 0.42 * size)


_COVERS = ((0.55, 0.03, 0.03), (0.32, 0.02, 0.2), (0.6, 0.05, 0.16), (0.24, 0.04, 0.34), (0.38, 0.02, 0.02))


def book(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw a book flat on the table: cover with frame, title and picture, and the edges of its pages."""
    side, x, y = _canvas(size)
    angle = random.uniform(0, 2 * np.pi)
    half_width, half_height = 0.56, 0.78
    thickness = random.uniform(0.1, 0.17)
    cover_colour = np.array(_COVERS[random.integers(len(_COVERS))]) * random.uniform(0.8, 1.2)

    def slab(lift: float) -> tuple[Floats, Floats, Floats]:
        across, along = turned(x, (y + np.float32(lift - thickness / 2)) / np.float32(0.9), angle)
        outside = np.maximum(np.abs(across) - half_width, np.abs(along) - half_height)
        return across, along, _inside(outside, size)

    lower, alpha = slab(0.0)[2], slab(0.0)[2]
    paper = noise(random, side, side, (40, 4), 2)
    colours = shade(painted((side, side), cover_colour * 0.6), painted((side, side), (0, 0.9, 0.43)), lamp)
    layers = int(np.clip(thickness * size, 4, 9))
    for layer in range(1, layers):
        lower = slab(thickness * layer / layers)[2]
        page = 0.74 + 0.14 * (layer % 2) + 0.05 * paper
        colours = blend(colours, page[..., None] * np.array([0.62, 0.58, 0.5]) * (lamp.ambient + 0.45), lower)
        alpha = np.maximum(alpha, lower)
    across, along, upper = slab(thickness)
    albedo = painted((side, side), cover_colour) * (1 + 0.08 * noise(random, side, side, (30, 30), 2)[..., None])
    gold = np.array([0.72, 0.55, 0.22])
    frame = _inside(
        np.abs(np.maximum(np.abs(across) - half_width * 0.8, np.abs(along) - half_height * 0.84)) - 0.018, size
    )
    albedo = blend(albedo, gold, frame)
    for line, reach in ((-0.42, 0.3), (-0.26, random.uniform(0.12, 0.26))):
        albedo = blend(albedo, gold, _inside(np.maximum(np.abs(along - line) - 0.045, np.abs(across) - reach), size))
    plate = _inside(np.maximum(np.abs(along - 0.25) - 0.2, np.abs(across) - 0.24), size)
    albedo = blend(albedo, random.uniform(0.25, 0.8, 3), plate)
    hinge = np.exp(-(((across + half_width * 0.9) / 0.03) ** 2))
    albedo *= (1 - 0.4 * hinge)[..., None]
    flat = painted((side, side), (0, 0, 1)) + 0.05 * noise(random, side, side, (3, 3), 2)[..., None]
    colours = blend(colours, shade(albedo, unit(flat), lamp, 0.05, 12), upper)
    return _finished(size, colours, np.maximum(alpha, upper), 0.16 * size)


def leaf(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw a fallen leaf: pointed, notched, bent, with veins and a stalk."""
    side, x, y = _canvas(size)
    along, across = turned(x, y, random.uniform(0, 2 * np.pi))
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
    albedo = painted((side, side), np.array([0.05, 0.26, 0.02]) * (1 - tone) + np.array([0.16, 0.42, 0.04]) * tone)
    albedo *= 1 + 0.15 * noise(random, side, side, (4, 4), 3)[..., None]
    slanted = (along - 0.8 * np.abs(across)) * 5.5
    veins = np.exp(-(((slanted - np.round(slanted)) / 0.09) ** 2)) * 0.5
    veins = np.maximum(veins, np.exp(-((across / 0.022) ** 2)))
    albedo = blend(albedo, np.array([0.4, 0.55, 0.18]) * (0.6 + 0.4 * tone), veins.astype(np.float32) * 0.75)
    fold = 0.35 * np.sign(across) * np.exp(-np.abs(across) * 2)
    relief = single(noise(random, side, side, (4, 4), 3) * side * 0.008 - veins * side * 0.006)
    normals = normals_of(relief)
    halves = np.stack([-fold * (across - x), fold, np.zeros_like(fold)], axis=-1)
    normals = unit(normals + 0.6 * halves)
    return _finished(size, shade(albedo, normals, lamp, 0.05, 14), alpha, 0.05 * size)


def plate(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw a plate; it belongs to no class, so a detector must learn to ignore it."""
    _, x, y = _canvas(size)
    radius = np.sqrt(x**2 + (y / np.float32(0.82)) ** 2)
    relief = 0.06 * np.clip((radius - 0.62) / 0.1, 0, 1) + 0.05 * np.clip(radius - 0.72, 0, 1)
    normals = normals_of(relief * size)
    albedo = painted(x.shape, np.array([0.72, 0.71, 0.68]) * random.uniform(0.8, 1.05))
    albedo = blend(albedo, random.uniform(0.1, 0.6, 3), _inside(np.abs(radius - 0.9) - 0.015, size) * 0.7)
    return _finished(size, shade(albedo, normals, lamp, 0.12, 40), _inside(radius - 1, size), 0.04 * size)


def pencil(random: Generator, size: float, lamp: Lamp) -> Thing:
    """Draw a pencil; it belongs to no class."""
    _, x, y = _canvas(size)
    along, across = turned(x, y, random.uniform(0, 2 * np.pi))
    half = np.float32(0.035)
    tip = np.clip((0.98 - along) / 0.16, 0, 1)
    alpha = _inside(np.maximum(np.abs(across) - half * tip, np.abs(along) - 0.98), size)
    facet = np.round(np.clip(across / half, -1, 1) * 1.2) / 1.6
    normals = np.stack([-facet * (across - x), facet, np.sqrt(np.clip(1 - facet**2, 0.1, 1))], axis=-1)
    normals = unit(normals)
    albedo = painted(x.shape, random.uniform(0.05, 0.5, 3))
    albedo = blend(albedo, (0.6, 0.42, 0.22), (along > 0.8).astype(np.float32))
    albedo = blend(albedo, (0.05, 0.05, 0.05), (along > 0.92).astype(np.float32))
    return _finished(size, shade(albedo, normals, lamp, 0.2, 20), alpha, 0.03 * size)


def _oversampling(size: float) -> int:
    # Edges are anti-aliased by `_inside` anyway; only the texture of small things needs the finer canvas.
    return 2 if size < 64 else 1


def _canvas(size: float) -> tuple[int, Floats, Floats]:
    """Return the side of an oversampled canvas for a thing of `size` pixels, and x, y from -1 to 1 over the thing."""
    side = (int(np.ceil(size)) + 4) * _oversampling(size)
    axis = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / (size * _oversampling(size) / 2)
    x, y = np.meshgrid(axis, axis)
    return side, x, y


def _inside(distance: NDArray[Any], size: float) -> Floats:
    """Turn a signed distance (negative inside, in units of half the thing's size) into coverage."""
    return single(np.clip(0.5 - distance * (size * _oversampling(size) / 2), 0, 1))


def _finished(size: float, colours: Floats, alpha: Floats, height: float) -> Thing:
    if _oversampling(size) == 1:
        return Thing(colours, alpha, height)
    side = len(alpha) // _oversampling(size)
    # Weighted by coverage: a plain average would mix the colour of the empty canvas into the rim.
    covered = cv2.resize(colours * alpha[..., None], (side, side), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA)
    return Thing(covered / np.maximum(alpha, 1e-4)[..., None], alpha, height)
