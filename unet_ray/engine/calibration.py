"""Side of a tile, and tiles of one forward pass, by a short measurement on the hardware that will compute."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unet_ray.config.network import NetworkConfig, layers
from unet_ray.engine.segment_plan import LARGEST_TILE_PX, computed_px, tile_sides
from unet_ray.geometry.box import Triple
from unet_ray.geometry.receptive_field import halo_px, pooling_factor
from unet_ray.network.out_of_memory import is_out_of_memory

Windows = npt.NDArray[np.uint8]
# Sides that are timed; what lies between is interpolated. One above them is timed where it promises to be the best.
SIDES_PX = (256, 512, 768, 1024)
# A CPU is as fast with one tile as with several; a GPU is idle between small ones.
TILES_AT_ONCE = {"cpu": (1,), "cuda": (1, 4, 16)}
# Pixels of the windows of one pass, at most: they are what fills a device's memory.
LARGEST_PASS_PX = 4 * 1024**2
# A segmentation that takes less time is not worth the measurement.
WORTH_SECONDS = 300.0
LEAST_SECONDS = 0.2
# Of large windows the first passes also find out how the allocator lays out memory, which is then mapped page by page.
LEAST_PASSES, MOST_SECONDS = 4, 6.0


@dataclass(frozen=True)
class Calibration:
    """What a measurement decided.

    Attributes:
        tile_px: side of a tile.
        tiles_at_once: tiles of one forward pass.
        pixels_per_second: of the windows, halo included, by "side x tiles"; what was measured.
    """

    tile_px: int
    tiles_at_once: int
    pixels_per_second: Mapping[str, int]


def calibrate(
    predict: Callable[[Windows], object],
    volume: Triple,
    network: NetworkConfig,
    device: str,
    *,
    tile_px: int | None = None,
    tiles_at_once: int | None = None,
    largest_px: int = LARGEST_TILE_PX,
) -> Calibration:
    """Time forward passes, the smallest side first, and choose what a volume takes the least time with.

    A volume that the smallest side says to be done in less than `WORTH_SECONDS` by this one device keeps the
    side with the fewest pixels to compute. A count of tiles that does not fit into memory is left out, and so is
    every side above one that does not.

    Args:
        predict: the forward pass of windows (n, c, side, side), uint8.
        volume: its sides, (z, y, x) voxels.
        network: that predicts.
        device: "cpu" or "cuda".
        tile_px: the side, where it is not to be chosen.
        tiles_at_once: the tiles of a pass, where they are not to be chosen.
        largest_px: the largest side to choose.
    """
    factor, halo = pooling_factor(layers(network)), halo_px(layers(network))
    possible = tile_sides(volume, factor, largest_px)
    sides = dict.fromkeys(side // factor * factor for side in SIDES_PX if factor <= side <= possible[-1])
    counts = TILES_AT_ONCE[device] if tiles_at_once is None else (tiles_at_once,)
    least = min(computed_px(volume, side, halo) for side in possible) * volume[0]
    measured: dict[tuple[int, int], float] = {}

    def fits(side: int) -> bool:
        for tiles in counts:
            shape = (tiles, network.in_channels, side + 2 * halo, side + 2 * halo)
            pixels = tiles * shape[2] * shape[3]
            if tiles > 1 and pixels > LARGEST_PASS_PX and tiles_at_once is None:
                break
            try:
                measured[side, tiles] = pixels / _seconds(predict, np.full(shape, 127, np.uint8))
            except Exception as error:
                if not measured or not is_out_of_memory(error):
                    raise
                break
        return any(timed == side for timed, _ in measured)

    side = 0
    for side in [tile_px] if tile_px is not None else list(sides) or [possible[-1]]:
        if not fits(side):
            possible = [smaller for smaller in possible if smaller < side]
            break
        if least / max(measured.values()) < WORTH_SECONDS:
            break
    else:
        above = choose(measured, volume, possible, halo).tile_px
        if tile_px is None and above > side and not fits(above):
            possible = [smaller for smaller in possible if smaller <= side]
    if tile_px is not None:
        possible = [tile_px]
    found = choose(measured, volume, possible, halo)
    return found if tiles_at_once is None else replace(found, tiles_at_once=tiles_at_once)


def choose(
    measured: Mapping[tuple[int, int], float], volume: Triple, possible: Sequence[int], halo: int
) -> Calibration:
    """The side and tiles at once with the least time for the volume.

    Args:
        measured: pixels of windows per second by (side, tiles at once); of one side alone: all are as fast.
        volume: its sides, (z, y, x) voxels.
        possible: sides to choose from.
        halo: pixels around a tile.

    >>> choose({(256, 1): 2e6, (512, 1): 1e6}, (1, 512, 512), (256, 512), 96).tile_px
    256
    """
    sides = sorted({side for side, _ in measured})
    best = {side: max((rate, -tiles) for (s, tiles), rate in measured.items() if s == side) for side in sides}

    def seconds(side: int) -> float:
        return computed_px(volume, side, halo) / float(np.interp(side, sides, [best[s][0] for s in sides]))

    chosen = min(possible, key=lambda side: (seconds(side), side))
    tiles = -best[next((side for side in sides if side >= chosen), sides[-1])][1]
    if chosen not in sides:  # as many pixels at once as were tried
        most = max(count * (side + 2 * halo) ** 2 for side, count in measured)
        tiles = max(1, min(tiles, most // (chosen + 2 * halo) ** 2))
    rates = {f"{side} x {count}": round(rate) for (side, count), rate in sorted(measured.items())}
    return Calibration(chosen, tiles, rates)


def _seconds(predict: Callable[[Windows], object], windows: Windows) -> float:
    """Of one pass, the fastest of some: the first one also loads and compiles."""
    taken: list[float] = []
    while len(taken) < 2 or sum(taken[1:]) < LEAST_SECONDS or (len(taken) < LEAST_PASSES and sum(taken) < MOST_SECONDS):
        start = time.perf_counter()
        predict(windows)
        taken.append(time.perf_counter() - start)
    return min(taken)
