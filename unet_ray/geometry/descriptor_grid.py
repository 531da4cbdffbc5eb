"""Where shape descriptors lie: what `unet_ray.numerics.shape_descriptors` makes and the loss compares."""

STEP_PX = 4
"""Pixels of the label between two descriptors: they change slowly."""
DESCRIPTORS = 6
"""Numbers that describe the cell around a pixel."""


def descriptor_sides(height: int, width: int) -> tuple[int, int, int]:
    """Sides of the descriptors of a label (height, width); the last channel tells where there are any.

    >>> descriptor_sides(256, 390)
    (7, 64, 97)
    """
    return DESCRIPTORS + 1, height // STEP_PX, width // STEP_PX
