"""Defects of sections and of their imaging, drawn into the image alone.

Each is described by numbers that stand for themselves: where it lies relative to the centre of the patch's
label, in pixels (y, x), so that a larger margin only shows more of it. Only sums, products and square roots
make its pixels.

Source: Lee, Zung, Li, Jain, Seung 2017 trained with simulated defects (missing and blurred sections); shapes ours.
"""

import math

import numpy as np
from numpy.typing import NDArray

from unet_ray.config.base import Config
from unet_ray.numerics.compiled import compiled

# (1 - d**2)**2, which every line and bump is across, falls to 1/2 at this d.
_HALF_HEIGHT = math.sqrt(1 - math.sqrt(0.5))


class Defect(Config):
    """Something that happened to one section."""

    depth: float
    """Which section of the image's channels: floor(depth x channels), 0 <= depth < 1."""

    def channel(self, channels: int) -> int:
        """Number of the channel that it is in; the others, sections of their own, do not have it."""
        return int(self.depth * channels)


class Line(Defect):
    """A straight line across everything."""

    degrees: float
    """Direction across it: 0 for a line along x, 90 for one along y."""
    offset_px: float
    """Distance of its middle from the label's centre, in that direction."""
    width_px: float
    """Width where it has half its strength."""
    shift: int
    """Grey levels added in its middle."""

    def onto(self, grey: NDArray[np.float32], start: float) -> None:
        """Add the line to one channel, float32 (y, x), in place; ``start`` is the first pixel's y and x."""
        angle, reach = math.radians(self.degrees), self.width_px / 2 / _HALF_HEIGHT
        _add_line(grey, math.cos(angle) / reach, math.sin(angle) / reach, self.offset_px / reach, start, self.shift)


class Spot(Defect):
    """A ragged ellipse of one grey level, with a soft edge."""

    centre: tuple[float, float]
    """(y, x) from the label's centre."""
    sides_px: tuple[float, float]
    """Length and width before it became ragged."""
    degrees: float
    """How far it is turned."""
    outline: tuple[tuple[float, float], ...]
    """Cosine and sine shares of 2, 3, ... waves around, that its radius differs by; 0 for an ellipse."""
    edge_px: float
    """From all to nothing of it."""
    grey: int
    """Its grey level."""

    def onto(self, grey: NDArray[np.float32], start: float) -> None:
        """As `Line.onto`."""
        longest = 1 + sum(math.hypot(*share) for share in self.outline)
        reach = longest * max(self.sides_px) / 2 + self.edge_px
        first = [max(math.floor(place - reach - start), 0) for place in self.centre]
        last = [max(math.ceil(place + reach - start) + 1, 0) for place in self.centre]
        angle = math.radians(self.degrees)
        turn, halves = (math.cos(angle), math.sin(angle)), (self.sides_px[0] / 2, self.sides_px[1] / 2)
        outline = np.array(self.outline).reshape(-1, 2)
        _cover_spot(
            grey[first[0] : last[0], first[1] : last[1]], (start + first[0], start + first[1]),
            self.centre, turn, halves, outline, self.edge_px, self.grey,
        )  # fmt: skip


class Cloud(Defect):
    """A linear ramp plus a broad round bump."""

    slope: tuple[float, float]
    """Grey levels per pixel along y and x; none at the label's centre."""
    centre: tuple[float, float]
    """(y, x) of the bump from the label's centre."""
    bump_px: float
    """Its diameter where it has half its height."""
    bump: int
    """Its height, grey levels."""

    def onto(self, grey: NDArray[np.float32], start: float) -> None:
        """As `Line.onto`."""
        _add_cloud(grey, self.slope, self.centre, self.bump_px / 2 / _HALF_HEIGHT, self.bump, start)


class Rectangle(Defect):
    """Whole pixels of one grey level."""

    corner: tuple[int, int]
    """First pixel (y, x), counted from the label's first one."""
    sides_px: tuple[int, int]
    """(y, x)."""
    grey: int
    """Their grey level."""

    def blank(self, image: NDArray[np.uint8], start: int) -> None:
        """Overwrite the pixels in one channel, uint8 (y, x), in place; ``start`` is the first pixel's y and x."""
        y, x = (
            slice(max(corner - start, 0), max(corner + side - start, 0))
            for corner, side in zip(self.corner, self.sides_px, strict=True)
        )
        image[y, x] = self.grey


@compiled
def _add_line(grey: NDArray[np.float32], down: float, right: float, offset: float, start: float, shift: int) -> None:
    for i in range(grey.shape[0]):
        row = np.float32(down * (start + i) - offset)
        for j in range(grey.shape[1]):
            # Every term is one of the place alone, so that the margin changes no rounding.
            across = row + np.float32(right) * (np.float32(start) + np.float32(j))
            profile = max(np.float32(1) - across * across, np.float32(0))
            grey[i, j] += np.float32(shift) * profile * profile


@compiled
def _cover_spot(
    grey: NDArray[np.float32], start: tuple[float, float], centre: tuple[float, float], turn: tuple[float, float],
    halves: tuple[float, float], outline: NDArray[np.float64], edge: float, level: int,
) -> None:  # fmt: skip
    for i in range(grey.shape[0]):
        y = start[0] + i - centre[0]
        for j in range(grey.shape[1]):
            x = start[1] + j - centre[1]
            sine = (turn[0] * y + turn[1] * x) / halves[0]
            cosine = (turn[0] * x - turn[1] * y) / halves[1]
            radius = math.sqrt(sine * sine + cosine * cosine)
            if radius == 0:
                grey[i, j] = level
                continue
            sine, cosine = sine / radius, cosine / radius
            # The waves around by complex powers: an angle would need the libraries' arcs and sines.
            wave_cosine, wave_sine, border = cosine, sine, 1.0
            for k in range(outline.shape[0]):
                turned = wave_cosine * cosine - wave_sine * sine
                wave_sine = wave_cosine * sine + wave_sine * cosine
                wave_cosine = turned
                border += outline[k, 0] * wave_cosine + outline[k, 1] * wave_sine
            beyond = math.sqrt(y * y + x * x) * (1 - border / radius)  # pixels, along the ray
            cover = min(max(0.5 - beyond / edge, 0.0), 1.0)
            cover *= cover * (3 - 2 * cover)
            grey[i, j] += np.float32(cover * (level - grey[i, j]))


@compiled
def _add_cloud(
    grey: NDArray[np.float32], slope: tuple[float, float], centre: tuple[float, float], reach: float, bump: int,
    start: float,
) -> None:  # fmt: skip
    rise, middle, step = np.float32(slope[1]), np.float32(centre[1]), np.float32(1 / reach)
    for i in range(grey.shape[0]):
        ramp = np.float32(slope[0] * (start + i))
        down = (start + i - centre[0]) / reach
        top = np.float32(1 - down * down)
        for j in range(grey.shape[1]):
            x = np.float32(start) + np.float32(j)
            right = (x - middle) * step
            profile = max(top - right * right, np.float32(0))
            grey[i, j] += ramp + rise * x + np.float32(bump) * profile * profile
