"""Draws synthetic street scenes, for the dataset scenes and for generated Cityscapes trees.

A scene is painted from back to front on a ground plane in perspective. It uses only exact operations of IEEE arithmetic
(no sine, no exponential), so that the pixels are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.files import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

CLASSES = ("sky", "building", "vegetation", "road", "pavement", "car", "person", "sign")
SKY, BUILDING, VEGETATION, ROAD, PAVEMENT, CAR, PERSON, SIGN = range(8)

AIRS = ((0.35, 0.55, 0.85), (0.6, 0.63, 0.68), (0.75, 0.78, 0.82))
LEAVES = ((0.2, 0.36, 0.12), (0.16, 0.3, 0.14), (0.3, 0.36, 0.14), (0.45, 0.34, 0.12), (0.5, 0.26, 0.1))
WALLS = ((0.62, 0.45, 0.36), (0.7, 0.66, 0.56), (0.5, 0.5, 0.52), (0.66, 0.56, 0.42), (0.42, 0.34, 0.32))
PAINTS = ((0.75, 0.1, 0.1), (0.1, 0.2, 0.6), (0.85, 0.85, 0.87), (0.1, 0.1, 0.12), (0.5, 0.52, 0.55), (0.2, 0.4, 0.25))
PLATES = ((0.85, 0.1, 0.1), (0.1, 0.25, 0.8), (0.95, 0.8, 0.1), (0.9, 0.9, 0.9))


@dataclass(frozen=True)
class Kind:
    """A kind of street: its share of the scenes, and what a scene contains."""

    share: float
    things: dict[int, int]
    """Class -> largest number of objects in a scene."""
    built: float
    """Fraction of the roadside with buildings."""
    light: float = 1.0
    """Brightness."""


KINDS = (
    Kind(0.50, {VEGETATION: 3, CAR: 5, PERSON: 5, SIGN: 2}, built=0.9),  # a town
    Kind(0.22, {VEGETATION: 8, CAR: 4, PERSON: 4, SIGN: 2}, built=0.45),  # an avenue
    Kind(0.16, {VEGETATION: 7, CAR: 2, PERSON: 1, SIGN: 2}, built=0.12),  # the country
    Kind(0.12, {VEGETATION: 3, CAR: 4, PERSON: 3, SIGN: 2}, built=0.85, light=0.34),  # a town at night
)
DEPTHS = {VEGETATION: (0.12, 0.8), CAR: (0.12, 0.75), PERSON: (0.22, 0.75), SIGN: (0.2, 0.7)}
"""Range of depths of a class's objects: 0 is the horizon, 1 the bottom of the image."""


def draw(split: int, index: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image [H, W, 3] and label map [H, W] (indices of CLASSES, or IGNORED), determined by the arguments."""
    scene = _Scene(np.random.Generator(np.random.Philox(key=np.array([split, index], dtype=np.uint64))), height, width)
    scene.paint_sky()
    scene.paint_ground()
    scene.paint_buildings()
    things = [
        (scene.between(*DEPTHS[label]), label)
        for label, most in scene.kind.things.items()
        for _ in range(int(scene.random.integers(most + 1)))
    ]
    for depth, label in sorted(things):  # far things first
        {VEGETATION: _tree, CAR: _car, PERSON: _person, SIGN: _sign}[label](scene, depth)
    scene.shine()
    pixels = (scene.colours.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), scene.labels


def _fraction(values: Array) -> Array:
    return values - np.floor(values)  # much faster than % 1


def _colour(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], dtype=np.float32)[:, None, None]


class _Scene:
    """A canvas and the ground plan. The unit of length is the image's height; x grows to the right, y downwards."""

    def __init__(self, random: np.random.Generator, height: int, width: int) -> None:
        self.random, self.height, self.width = random, height, width
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None]
        self.colours = np.empty((3, height, width), dtype=np.float32)
        self.labels = np.empty((height, width), dtype=np.uint8)
        self.kind = KINDS[np.searchsorted(np.cumsum([kind.share for kind in KINDS[:-1]]), random.random())]
        self.aspect = aspect = width / height
        self.horizon, self.vanish = self.between(0.34, 0.5), aspect * self.between(0.3, 0.7)
        self.middle, self.bend = aspect * self.between(0.35, 0.65), aspect * self.between(-0.25, 0.25)
        self.half = aspect * self.between(0.28, 0.42)  # half of the road's width at depth 1
        self.kerb = aspect * self.between(0.1, 0.3)  # width of the pavement at depth 1
        self.fine, self.coarse = random.random((height, width), dtype=np.float32), self.noise(6, 9)
        self.green, self.mist = self.tint(LEAVES[:4], 0.06), self.between(0.6, 0.9)
        self.depth = np.maximum((self.y - self.horizon) / (1 - self.horizon), 0)
        self.ground = self.y > self.horizon

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def tint(self, colours: Any, spread: float) -> Array:
        """Return a random colour of ``colours`` [3, 1, 1], shifted by up to ``spread`` in each channel."""
        colour = np.asarray(colours[self.random.integers(len(colours))])
        return (colour + spread * (2 * self.random.random(3) - 1)).astype(np.float32)[:, None, None]

    def noise(self, rows: int, columns: int) -> Array:
        """Return smooth noise [H, W] in 0..1: linear interpolation between the points of a coarse grid."""
        grid: Array = self.random.random((rows + 1, columns + 1), dtype=np.float32)
        for axis, length, steps in ((0, self.height, rows), (1, self.width, columns)):
            position = (np.arange(length, dtype=np.float32) + 0.5) * (steps / length)
            before = position.astype(np.int64)
            after = np.expand_dims(position - before.astype(np.float32), 1 - axis)
            low, high = np.take(grid, before, axis), np.take(grid, before + 1, axis)
            grid = low + (high - low) * after
        return grid

    def axis(self, depth: Any) -> Any:
        """Return the x coordinate of the road's middle at a depth."""
        return self.vanish + (self.middle - self.vanish) * depth + self.bend * depth * (1 - depth)

    def paint(self, where: Any, label: int, colour: Any) -> None:
        """Set the label and the colour [3, H, W] of the pixels in the mask ``where`` [H, W]."""
        np.copyto(self.labels, label, where=where)
        np.copyto(self.colours, colour, where=where)

    def paint_sky(self) -> None:
        """Fill the canvas with sky and clouds, and with hills below the ridge near the horizon."""
        top = self.tint(AIRS, 0.08)
        clouds = np.maximum(self.coarse - self.between(0.35, 0.8), 0)
        self.paint(True, SKY, top + (self.mist - top) * np.minimum(self.y / self.horizon, 1) + clouds)
        hills = self.green * (0.55 + 0.9 * self.fine)
        ridge = self.horizon - 0.09 * self.noise(1, 5)[:1] * self.between(0, 1.4)
        self.paint(self.y > ridge, VEGETATION, hills + (self.mist - hills) * 0.35)

    def paint_ground(self) -> None:
        """Paint meadows, the pavement (in towns up to the buildings) and the road with its lines."""
        fine, coarse, depth, half = self.fine, self.coarse, self.depth, self.half
        aside = np.abs(self.x - self.axis(depth))
        grey = self.between(0.24, 0.5)
        stone = (grey + self.between(-0.04, 0.16)) * self.tint(((1, 1, 1), (1.05, 0.98, 0.9)), 0.03)
        slabs = (0.9 + 0.2 * fine) * np.where(_fraction(depth * 23) > 0.2, np.float32(1.05), np.float32(0.95))
        wide = half + self.kerb * (5 if self.kind.built > 0.3 else 1)
        self.paint(self.ground, VEGETATION, self.green * ((0.9 + 0.5 * coarse) * (0.8 + 0.4 * fine)))
        self.paint(self.ground & (aside < wide * depth), PAVEMENT, stone * slabs)
        lines = (aside < 0.02 * self.aspect * depth) & (_fraction(depth * 9) > 0.5)
        lines |= np.abs(aside - 0.93 * half * depth) < 0.012 * depth
        asphalt = grey * (0.85 + 0.3 * coarse) * (0.9 + 0.2 * fine)
        asphalt = np.where(lines, np.float32(self.between(0.5, 0.95)), asphalt)
        self.paint(self.ground & (aside < half * depth), ROAD, asphalt * _colour(1, 1, 1.03))

    def paint_buildings(self) -> None:
        """Paint up to ten houses side by side. They are larger the farther they are from the vanishing point."""
        random, houses = self.random, 10
        which = np.searchsorted(np.sort(random.random(houses - 1)) * self.aspect, self.x[0])
        tall = np.where(random.random(houses) < self.kind.built, 0.1 + 0.6 * random.random(houses), 0)
        storeys = tall.astype(np.float32)[which]
        walls = np.concatenate([self.tint(WALLS, 0.07) for _ in range(houses)], axis=2)[..., which]
        away = np.abs(self.x - self.vanish) / self.aspect
        roof = self.horizon - storeys * (0.25 + 1.3 * away)
        foot = self.horizon + (1 - self.horizon) * np.minimum(away * self.aspect / (self.half + self.kerb), 0.7)
        panes = _fraction(self.x * (9 + 6 * which % 7).astype(np.float32)) > 0.45
        panes = panes & (_fraction((self.y - roof) * 14 / (0.4 + 1.2 * away)) > 0.5)
        lit = (self.kind.light < 0.5) & (self.coarse > 0.55)
        walls = walls * (0.8 + 0.25 * self.fine)
        walls = np.where(panes, np.where(lit, _colour(2.2, 1.9, 1.1), walls * 0.45), walls)
        self.paint((self.y > roof) & (self.y < foot) & (storeys > 0), BUILDING, walls)

    def shine(self) -> None:
        """Add shadows on the ground, haze, lighting and sensor noise, then the bonnet of the camera's car."""
        shadow = (self.noise(5, 5) > self.between(0.55, 0.85)) & self.ground
        colours = self.colours * np.where(shadow, np.float32(self.between(0.5, 0.8)), np.float32(1))
        colours += (self.mist - colours) * (1 - self.depth) * (0.5 * self.random.random() * self.random.random())
        colours *= self.kind.light * self.between(0.75, 1.2) * self.tint(((1, 1, 1),), 0.12)
        grain = self.random.random(colours.shape, dtype=np.float32) - np.float32(0.5)
        self.colours = colours + grain * self.between(0.03, 0.1)
        aside = (self.x - self.aspect / 2) / self.aspect
        rim = 1 - self.between(0.03, 0.06) * (1.6 - 2.4 * aside * aside)
        self.paint(self.y > rim, IGNORED, self.tint(PAINTS, 0.05) * (0.5 + 0.3 * self.coarse))


class _Thing:
    """An object on the ground at (x, feet). Coordinates of its parts are in its widths and heights from that point."""

    def __init__(self, scene: _Scene, label: int, depth: float, aside: float, wide: float, tall: float) -> None:
        self.scene, self.label, self.wide, self.tall = scene, label, wide, tall
        self.x = scene.axis(depth) + aside * depth
        self.feet = scene.horizon + depth * (1 - scene.horizon)

    def block(self, left: float, right: float, low: float, high: float, colour: Array) -> None:
        """Paint a rectangle."""
        rows = self._pixels(self.feet - high * self.tall, self.feet - low * self.tall)
        columns = self._pixels(self.x + left * self.wide, self.x + right * self.wide)
        self.scene.labels[rows, columns] = self.label
        self.scene.colours[:, rows, columns] = colour

    def disc(self, high: float, across: float, down: float, colour: Array, rough: Array | None = None) -> None:
        """Paint an ellipse with radii ``across`` and ``down``; the noise ``rough`` varies its border and its colour."""
        scene, y, across, down = self.scene, self.feet - high * self.tall, across * self.wide, down * self.tall
        window = self._pixels(y - down, y + down), self._pixels(self.x - across, self.x + across)
        aside, above = (scene.x[:, window[1]] - self.x) / across, (scene.y[window[0]] - y) / down
        distance = aside * aside + above * above
        if rough is not None:
            distance = distance + rough[window]
            colour = colour * (0.6 + 0.8 * rough[window])
        np.copyto(scene.labels[window], self.label, where=distance < 1)
        np.copyto(scene.colours[:, *window], colour, where=distance < 1)

    def _pixels(self, low: float, high: float) -> slice:
        return slice(*(max(0, int(end * self.scene.height + 0.5)) for end in (low, high)))


def _side(scene: _Scene) -> int:
    return 1 if scene.random.random() < 0.5 else -1


def _tree(scene: _Scene, depth: float) -> None:
    aside, size = _side(scene) * (scene.half + scene.kerb * scene.between(0.5, 1.6)), depth * scene.between(0.6, 1.1)
    tree = _Thing(scene, VEGETATION, depth, aside, size, size)
    tree.block(-0.04, 0.04, 0, 0.5, scene.green * 0.6)
    tree.disc(0.8, 0.38, 0.48, scene.tint(LEAVES, 0.06), 0.75 * scene.fine + 0.25 * scene.coarse - 0.2)


def _car(scene: _Scene, depth: float) -> None:
    side, paint = _side(scene), scene.tint(PAINTS, 0.07)
    aside, wide = side * scene.half * scene.between(0.35, 0.85), depth * scene.between(0.34, 0.5) * scene.aspect / 1.5
    tall = depth * scene.between(0.24, 0.34)
    _Thing(scene, ROAD, depth, aside, wide, tall).disc(0, 0.6, 0.12, _colour(0.08, 0.08, 0.08))  # its shadow
    car = _Thing(scene, CAR, depth, aside, wide, tall)
    for wheel in (-0.44, 0.24):
        car.block(wheel, wheel + 0.2, 0, 0.25, _colour(0.05, 0.05, 0.06))
    car.block(-0.38, 0.38, 0.5, 1, paint)
    car.block(-0.32, 0.32, 0.62, 0.92, paint * 0.3 + 0.1)
    car.block(-0.5, 0.5, 0.12, 0.6, paint)
    for lamp in (-0.46, 0.36):  # seen from behind on the right, from the front on the left
        car.block(lamp, lamp + 0.1, 0.36, 0.5, _colour(1.6, 0.2, 0.1) if side == 1 else _colour(1.9, 1.8, 1.5))


def _person(scene: _Scene, depth: float) -> None:
    aside = scene.half + scene.kerb * scene.between(0.15, 0.8)
    if scene.random.random() < 0.2:  # on the road
        aside = scene.half * scene.between(0, 0.9)
    tall, skin = depth * scene.between(0.36, 0.48), scene.between(0.35, 0.85)
    person = _Thing(scene, PERSON, depth, _side(scene) * aside, 0.32 * tall, tall)
    person.block(-0.4, 0.4, 0, 0.5, scene.tint(PAINTS, 0.1))
    person.block(-0.5, 0.5, 0.45, 0.85, scene.tint(PAINTS + WALLS, 0.1))
    person.disc(0.92, max(0.27, 0.6 / scene.height / person.wide), 0.09, _colour(skin, 0.78 * skin, 0.66 * skin))


def _sign(scene: _Scene, depth: float) -> None:
    aside = _side(scene) * (scene.half + scene.kerb * scene.between(0.1, 0.3))
    tall, plate = depth * scene.between(0.5, 0.7), scene.tint(PLATES, 0.05)
    sign = _Thing(scene, SIGN, depth, aside, tall, tall)
    thin = 0.6 / scene.height / tall
    sign.block(-thin, thin, 0, 1, _colour(0.4, 0.4, 0.42))
    if scene.random.random() < 0.5:
        sign.disc(1, 0.17, 0.17, plate)
        sign.disc(1, 0.09, 0.09, plate * 0.3 + 0.6)
    else:
        sign.block(-0.15, 0.15, 0.85, 1.15, plate)
