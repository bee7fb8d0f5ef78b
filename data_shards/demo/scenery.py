"""The table, the shadows of the things on it, and the camera."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
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
)
from data_shards.demo.things import Thing


def surface(random: Generator, height: int, width: int, lamp: Lamp) -> Float32[Floats, "height width 3"]:
    """Draw a lit table top of wood, cloth, stone or concrete, brighter towards the lamp."""
    kind = _SURFACES[random.integers(len(_SURFACES))]
    albedo, relief = kind(random, height, width)
    lit = shade(albedo, normals_of(relief), lamp, 0.03, 10)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    falloff = 1 + random.uniform(0.12, 0.35) * (lamp.direction[0] * x + lamp.direction[1] * y)
    return lit * single(falloff)[..., None]


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
    x, y = turned(x, y, random.uniform(-0.5, 0.5))
    weave = np.sin(x * 2.1) * np.sin(y * 2.1)
    base = np.array(_CLOTHS[random.integers(len(_CLOTHS))])
    albedo = painted((height, width), base)
    if random.random() < 0.6:
        period = random.uniform(18, 50)
        stripes = (np.sin(x * 2 * np.pi / period) > random.uniform(0.1, 0.6)).astype(np.float32)
        if random.random() < 0.5:
            stripes = (stripes + (np.sin(y * 2 * np.pi / period) > 0.4)) / 2
        albedo = blend(albedo, base * random.uniform(0.35, 0.65) + 0.05, cv2.GaussianBlur(stripes, (0, 0), 0.8))
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


# Listed twice, wood and cloth are drawn twice as often.
_SURFACES = (_wood, _wood, _cloth, _cloth, _stone, _concrete)


def put(
    scene: Float32[Floats, "height width 3"], thing: Thing, x: float, y: float, lamp: Lamp
) -> Float32[Floats, "height width"]:
    """Put a thing with its shadow into a scene, in place.

    Args:
        scene: linear colours, changed in place.
        thing: the drawn thing.
        x: horizontal position of its middle, in pixels of the scene; parts outside are cut off.
        y: vertical position of its middle.
        lamp: the light that casts the shadow.

    Returns:
        The share of each pixel of the scene that the thing covers, 0 to 1.
    """
    height, width = scene.shape[:2]
    half = len(thing.alpha) / 2
    slope_x, slope_y, up = lamp.direction
    reach = thing.height / up
    softness = 1 + 0.2 * thing.height
    # Work only in the window that the thing and its shadow can touch: most scenes are much larger.
    margin = half + reach + 3 * softness
    left, upper = max(0, int(x - margin)), max(0, int(y - margin))
    window = scene[upper : max(upper, int(y + margin) + 1), left : max(left, int(x + margin) + 1)]
    of_scene = np.zeros((height, width), dtype=np.float32)
    if window.size == 0:
        return of_scene

    def placed(values: Floats, dx: float, dy: float) -> Floats:
        move = np.array([[1, 0, x - left - half + dx], [0, 1, y - upper - half + dy]], dtype=np.float64)
        return single(cv2.warpAffine(values, move, window.shape[1::-1], flags=cv2.INTER_LINEAR))

    # A cast shadow away from the lamp, and a dark line of contact that keeps the thing from floating.
    shadow = placed(thing.alpha, -slope_x * reach, -slope_y * reach * 0.6)
    shadow = cv2.GaussianBlur(shadow, (0, 0), softness)
    contact = cv2.GaussianBlur(placed(thing.alpha, 0, 1 + 0.1 * thing.height), (0, 0), 1 + 0.06 * thing.height)
    coverage = placed(thing.alpha, 0, 0)
    window *= ((1 - 0.58 * shadow) * (1 - 0.4 * contact) * (1 - coverage))[..., None]
    window += placed(thing.colours * thing.alpha[..., None], 0, 0)
    of_scene[upper : upper + len(coverage), left : left + coverage.shape[1]] = coverage
    return of_scene


def photograph(
    random: Generator, scene: Float32[Floats, "height width 3"]
) -> UInt8[NDArray[np.uint8], "height width 3"]:
    """Photograph a scene as a small camera would, with blur, vignetting, white balance and grain, in RGB."""
    height, width = scene.shape[:2]
    image = cv2.GaussianBlur(scene, (0, 0), random.uniform(0.45, 0.95))
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    image *= single(1 - random.uniform(0.08, 0.3) * (x**2 + y**2))[..., None]
    image *= single(random.uniform(0.7, 1.1) * random.uniform(0.95, 1.05, 3))
    grain = random.standard_normal(image.shape, dtype=np.float32)
    grain *= cv2.sqrt(np.clip(image, 0, None) * 0.0006 + 0.00002) * random.uniform(0.5, 1.6)
    image = np.clip(image + grain, 0, None)
    # A shoulder keeps highlights from burning out; then comes the response of sRGB.
    image *= (1 + image / 2.2) / (1 + image)
    image = 290 * cv2.pow(image, 1 / 2.2)
    # A little more contrast around the middle gray, as cameras add it.
    image += 0.12 * (image - 120)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
