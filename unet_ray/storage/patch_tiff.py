"""One patch as a TIFF file, for a look at it and for other programs."""

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_ray.storage.patch_cache import PatchLike

_PAGE_NAME = 285  # TIFF tag
_ASCII = 2


def encode_patch(patch: PatchLike, description: str) -> bytes:
    """The bytes of a TIFF file of three series: ``image`` (c, y, x), ``label`` and ``weight`` (y, x).

    The image and the label are uint8 as they are in the cache, the weight float32, which holds each
    float16 exactly. Each page has its series' name in the tag PageName as well; where the network has a
    margin the image's pages are larger than the other two.

    Args:
        patch: one patch.
        description: ASCII; the first page's ImageDescription.

    >>> from unet_ray.storage.patch_cache import Patch
    >>> label = np.eye(4, dtype=np.uint8)
    >>> data = encode_patch(Patch(label[None] * 9, label, label.astype(np.float16)), '{"seed": 0}')
    >>> with tifffile.TiffFile(io.BytesIO(data)) as file:
    ...     [(series.name, series.shape, series.dtype.name) for series in file.series], file.pages[0].description
    ([('image', (1, 4, 4), 'uint8'), ('label', (4, 4), 'uint8'), ('weight', (4, 4), 'float32')], '{"seed": 0}')
    """
    parts: dict[str, NDArray[Any]] = {
        "image": patch.image,
        "label": patch.label,
        "weight": np.asarray(patch.weight, np.float32),
    }
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tif:
        for name, values in parts.items():
            tif.write(
                values,
                photometric="minisblack",
                compression="zlib",
                description=description if name == "image" else None,
                metadata={"axes": "CYX" if name == "image" else "YX", "name": name},
                extratags=[(_PAGE_NAME, _ASCII, 0, name, False)],
                software="unet_ray",
            )
    return file.getvalue()
