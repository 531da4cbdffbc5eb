"""Pairing, choosing and reading labelled stacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_ray.engine import labelled_stacks
from unet_ray.engine.labelled_stacks import LabelledStacks, SectionMemory, SectionPlace, stack_names
from unet_ray.errors import ConfigError, LabelError
from unet_ray.numerics.intensity import IntensityMap

Write = Callable[..., str]


@pytest.fixture
def stacks(tmp_path_factory: pytest.TempPathFactory, write_zarr: Write) -> Callable[..., LabelledStacks]:
    """stacks(shape, ..., masks=None): image stacks of these shapes whose voxels hold their own number, with labels."""

    def open_them(*shapes: tuple[int, int, int], masks: list[Any] | None = None, **settings: Any) -> LabelledStacks:
        folder = tmp_path_factory.mktemp("stacks")
        images, labels, paths = [], [], []
        for n, shape in enumerate(shapes):
            values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) + 1000 * n
            images.append(write_zarr(folder / f"i{n}.zarr", values))
            labels.append(write_zarr(folder / f"l{n}.zarr", (values % 3).astype(np.uint8)))
            if masks is not None:
                paths.append(write_zarr(folder / f"m{n}.zarr", np.asarray(masks[n])))
        return LabelledStacks.open(images, labels, "classes", **{"ignore_masks": paths, **settings})

    return open_them


def test_names_are_unique_and_tell_the_file() -> None:
    paths = [
        "a/raw.tif",
        "b/raw.tif",
        "c/raw-2.tif",
        "d/raw.ome.zarr",
        "v1.0.tif",
        "v1.1.tif",
        "/d/s*.png",
        "s3://b/x/",
    ]
    assert stack_names(paths) == ["raw", "raw-2", "raw-2-2", "raw-3", "v1.0", "v1.1", "s*", "x"]


def test_each_stack_has_sides_of_its_own(stacks: Callable[..., LabelledStacks]) -> None:
    found = stacks((2, 4, 5), (1, 7, 3))
    assert [found.section_px(n) for n in range(2)] == [(4, 5), (7, 3)]
    assert found.places == (SectionPlace(0, 0), SectionPlace(0, 1), SectionPlace(1, 0))
    training, validation = found.choose(("2",), ())
    assert (training, validation) == ([SectionPlace(0, 0), SectionPlace(0, 1)], [SectionPlace(1, 0)])
    with pytest.raises(ConfigError, match=r"section 1 of .*i0.*\(4, 5\).*section 2 of .*i1.*\(7, 3\).* one size"):
        found.choose(("1:3",), ())


def test_masks_and_labels_ignore_together(stacks: Callable[..., LabelledStacks]) -> None:
    mask = np.zeros((1, 3, 4), np.float32)
    mask[0, 0, 1], mask[0, 1, 0] = 0.25, -1  # above 0 only
    found = stacks((1, 3, 4), masks=[mask], ignore_label=2)
    labels = found.read_labels(SectionPlace(0, 0))
    given = np.arange(12).reshape(3, 4) % 3
    ignored = given == 2
    ignored[0, 1] = True
    np.testing.assert_array_equal(labels.ignore, ignored)
    np.testing.assert_array_equal(labels.class_map, np.where(ignored, 0, given))
    classes, ignore = found.read_class_map(SectionPlace(0, 0))
    np.testing.assert_array_equal(classes, labels.class_map)
    np.testing.assert_array_equal(ignore, ignored)
    assert found.digests(SectionPlace(0, 0)).keys() == {"image", "label", "mask"}
    assert stacks((1, 3, 4)).digests(SectionPlace(0, 0)).keys() == {"image", "label"}


def test_unpaired_stacks_are_refused(stacks: Callable[..., LabelledStacks], tmp_path: Path, write_zarr: Write) -> None:
    with pytest.raises(LabelError, match=r"ignore masks .*m0.* have shape \(1, 3, 5\) but images .*\(1, 3, 4\)"):
        stacks((1, 3, 4), masks=[np.zeros((1, 3, 5), bool)])
    mask = write_zarr(tmp_path / "mask.zarr", np.zeros((1, 3, 4), np.uint8))
    with pytest.raises(ConfigError, match="--images names 2 stacks and --ignore-masks 1; name one mask stack per"):
        stacks((1, 3, 4), (1, 3, 4), ignore_masks=[mask])
    with pytest.raises(LabelError, match=r"labels .* have shape"):
        LabelledStacks.open([stacks((1, 3, 4)).images[0].path], [stacks((1, 3, 3)).labels[0].path], "classes")


def test_each_stack_has_grey_levels_of_its_own(stacks: Callable[..., LabelledStacks]) -> None:
    found = stacks((2, 2, 2), (1, 2, 2))
    maps = {0: IntensityMap(low=0, high=7, dtype="uint16"), 1: IntensityMap(low=1000, high=1003, dtype="uint16")}
    np.testing.assert_array_equal(found.read_image(SectionPlace(1, 0), maps, 0), [[[0, 85], [170, 255]]])
    # Context is mirrored at the stack's ends, and never another stack's.
    image = found.read_image(SectionPlace(0, 1), maps, 1)
    np.testing.assert_array_equal(image[:, 0, 0], [0, 146, 0])


def test_a_worker_keeps_what_fits(stacks: Callable[..., LabelledStacks], monkeypatch: pytest.MonkeyPatch) -> None:
    found = stacks((6, 8, 8), (1, 64, 64))
    maps = {n: IntensityMap(low=0, high=5000, dtype="uint16") for n in range(2)}
    reads: list[SectionPlace] = []
    read_labels = LabelledStacks.read_labels
    monkeypatch.setattr(LabelledStacks, "read_labels", lambda s, place: reads.append(place) or read_labels(s, place))
    monkeypatch.setattr(labelled_stacks, "KEPT_BYTES", 3 * 8 * 8 * (1 + 1 + 4))
    memory = SectionMemory(found, maps, 0)
    small, large = [SectionPlace(0, n) for n in range(6)], SectionPlace(1, 0)
    for place in [*small[:3], *small[:3]]:
        memory.read(place)
    assert reads == small[:3]
    memory.read(small[3])  # in place of 0, which was used longest ago
    memory.read(small[1])
    assert reads == small[:4]
    memory.read(small[0])  # in place of 2
    memory.read(small[1])
    assert reads == [*small[:4], small[0]]
    memory.read(large)  # alone is more than fits, and is kept all the same
    memory.read(large)
    memory.read(small[1])
    assert reads == [*small[:4], small[0], large, small[1]]
    image, labels = memory.read(small[1])
    np.testing.assert_array_equal(image, found.read_image(small[1], maps, 0))
    np.testing.assert_array_equal(labels.class_map, found.read_labels(small[1]).class_map)
