"""The chain of page directories of a TIFF or BigTIFF."""

import struct

from unet_ray.errors import VolumeError
from unet_ray.storage.byte_source import ByteSource


def page_directories(path: str, source: ByteSource, size: int) -> list[int]:
    """Offsets of the page directories in the file's order.

    Walked here and not by tifffile, which stops in silence at a bad one.

    Args:
        path: how errors name the file.
        source: its bytes.
        size: how many there are.

    Raises:
        VolumeError: truncated, without pages, or with pages in a circle.

    Source: TIFF 6.0, section 2; BigTIFF (version 43, 8-byte offsets).
    """
    head = source.read_at(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = len(head) == 16 and struct.unpack(order + "H", head[2:4])[0] == 43
    count_format, tag_bytes, next_format = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    count_bytes, next_bytes = struct.calcsize(count_format), struct.calcsize(next_format)
    first = head[8:16] if big else head[4:8]
    if len(first) < next_bytes:
        raise VolumeError(truncated(path, 0, size, 16 if big else 8))
    offset = struct.unpack(next_format, first)[0]
    offsets: list[int] = []
    seen: set[int] = set()
    while offset:
        page = len(offsets)
        count = source.read_at(offset, count_bytes)
        if len(count) < count_bytes:
            raise VolumeError(truncated(path, page, size, offset + count_bytes))
        end = offset + count_bytes + struct.unpack(count_format, count)[0] * tag_bytes
        following = source.read_at(end, next_bytes)
        if len(following) < next_bytes:
            raise VolumeError(truncated(path, page, size, end + next_bytes))
        if offset in seen:
            raise VolumeError(
                f"{path} is a damaged TIFF: its pages form a circle after page {page - 1}; get an undamaged copy"
            )
        seen.add(offset)
        offsets.append(offset)
        offset = struct.unpack(next_format, following)[0]
    if not offsets:
        raise VolumeError(f"{path} is a TIFF without pages; write it again")
    return offsets


def truncated(path: str, page: int, size: int, needed: int) -> str:
    """The sentence for a file that ends before what a page needs."""
    return (
        f"{path} is truncated: page {page} needs bytes up to {needed} and the file ends at {size}; "
        "copy or download it again"
    )
