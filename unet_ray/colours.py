"""The colours of everything that is drawn: pictures, pages, and the metadata that viewers colour by.

Source: Okabe and Ito 2008, told apart with any kind of colour vision.
"""

from colorsys import hsv_to_rgb

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"

Colour = tuple[int, int, int]
# Grey for class 0, which is mostly what surrounds the others; orange is also the membrane's.
_CLASSES = ("#999999", ORANGE, "#56B4E9", GREEN, "#F0E442", BLUE, RED, "#CC79A7")
_GOLDEN_TURN = 0.618034


def rgb(colour: str) -> Colour:
    """Red, green and blue of ``#RRGGBB``, 0 to 255 each.

    >>> rgb(ORANGE)
    (230, 159, 0)
    """
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def class_colour(index: int) -> Colour:
    """Red, green and blue of a class, 0 to 255 each; no two classes share them.

    >>> class_colour(1), class_colour(8)
    ((230, 159, 0), (178, 0, 59))
    """
    if index < len(_CLASSES):
        return rgb(_CLASSES[index])
    # Golden angles never come back to a hue that was there.
    red, green, blue = hsv_to_rgb((index * _GOLDEN_TURN) % 1.0, 1.0, 0.7)
    return int(255 * red), int(255 * green), int(255 * blue)
