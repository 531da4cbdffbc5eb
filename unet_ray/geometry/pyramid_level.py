"""A level of lower resolution: by what it divides a volume, and which of its voxels a box is made of."""

from collections.abc import Sequence

from unet_ray.geometry.box import Box, triple


def factors_between(side: int, coarser: int) -> range:
    """Whole factors that divide ``side`` voxels into ``coarser`` ones, the last of them perhaps a part.

    Where one voxel is all there is, every large enough factor says the same, and the least one stands for them.

    Returns:
        All f >= 1 with ceil(side / f) == coarser; empty where there is none.

    >>> factors_between(1001, 251), factors_between(30, 4), factors_between(30, 1), len(factors_between(30, 17))
    (range(4, 5), range(8, 10), range(30, 31), 0)
    """
    if coarser == 1:
        return range(side, side + 1)
    return range(-(-side // coarser), (side - 1) // (coarser - 1) + 1)


def coarser_box(box: Box, factor: Sequence[int]) -> Box:
    """Voxels of the level that share a voxel of the volume with ``box``, which is inside the volume.

    Args:
        box: (z, y, x) voxels of the volume.
        factor: voxel v of the volume is in voxel v // factor of the level, by axis (z, y, x).

    >>> coarser_box(Box((0, 3, 4), (1, 5, 9)), (1, 4, 4))
    Box(start=(0, 0, 1), stop=(1, 2, 3))
    """
    return Box(
        triple([a // f for a, f in zip(box.start, factor, strict=True)]),
        triple([-(-b // f) for b, f in zip(box.stop, factor, strict=True)]),
    )
