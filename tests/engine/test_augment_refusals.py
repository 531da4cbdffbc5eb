"""What the augment job refuses, and what it says of inputs that it takes."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from tests.engine.augment_inputs import Inputs, Write, grid, noise, patches, planned
from unet_ray.config.augment import AugmentConfig
from unet_ray.engine.augment_plan import prepare
from unet_ray.errors import ConfigError, InputError, LabelError, VolumeError

# What is refused


def with_value(values: npt.NDArray[Any], value: Any, section: int = 2) -> npt.NDArray[Any]:
    changed = values.copy()
    changed[section, 3, 3] = value
    return changed


MEMBRANE = grid()
REFUSED: dict[str, tuple[dict[str, Any], type[InputError], str]] = {
    "NaN": (
        {"image": with_value(noise("float32"), np.nan)},
        VolumeError,
        r"section 2 of .*raw\.tif has NaN or infinite voxels",
    ),
    "infinity": (
        {"image": with_value(noise("float64"), -np.inf), "validation_sections": ("2",)},
        VolumeError,
        r"section 2 of .*raw\.tif has NaN or infinite voxels",
    ),
    "a third value": (
        {"label": with_value(MEMBRANE, 7)},
        LabelError,
        r"labels\.tif, section 2, hold 3 different values",
    ),
    "a third value of interior": (
        {"label": with_value(MEMBRANE, 7), "label_kind": "interior"},
        LabelError,
        r"labels\.tif, section 2, hold 3 different values",
    ),
    "no dark value": (
        {"label": np.where(MEMBRANE > 0, 2, 1)},
        LabelError,
        r"section 0, hold the values 1 and 2, .* change 1 to 0",
    ),
    "negative ids": (
        {"label": with_value(MEMBRANE.astype(np.int32), -4), "label_kind": "instances"},
        LabelError,
        r"section 2, hold the value -4, but labels start at 0; .*--ignore-label -4",
    ),
    "many classes": (
        {"label": np.arange(40 * 48).reshape(1, 40, 48), "image": noise(shape=(1, 40, 48)), "label_kind": "classes"},
        LabelError,
        r"section 0, hold the value 1919, but label kind 'classes' means class indices from 0 to at most 31",
    ),
    "fractions": (
        {"label": with_value(MEMBRANE.astype(np.float32), 0.5)},
        LabelError,
        r"section 2, hold float32 values that are not whole numbers",
    ),
    "fractional classes": (
        {"label": with_value(MEMBRANE / np.float32(255), 0.5), "label_kind": "classes"},
        LabelError,
        r"section 2, hold float32 values that are not whole numbers",
    ),
    "one class": (
        {"label": np.full_like(MEMBRANE, 3), "label_kind": "classes"},
        LabelError,
        "4 training sections hold no class but 3 under --label-kind classes",
    ),
    "no membrane": (
        {"label": np.zeros_like(MEMBRANE)},
        LabelError,
        "4 training sections hold no membrane under --label-kind membrane",
    ),
    "no interior": (
        {"label": np.full_like(MEMBRANE, 255)},
        LabelError,
        "hold no cell interior under --label-kind membrane",
    ),
    "all ignored": (
        {"mask": np.ones_like(MEMBRANE)},
        LabelError,
        "hold no pixel that counts under .* what is ignored",
    ),
    "a short mask": (
        {"mask": MEMBRANE[:2]},
        LabelError,
        r"ignore masks .*mask\.tif have shape \(2, 40, 48\) but images .*raw\.tif \(4, 40, 48\)",
    ),
    "two masks": (
        {"ignore_masks": ("a.tif", "b.tif")},
        ConfigError,
        "--images names 1 stacks and --ignore-masks 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_inputs_are_refused(inputs: Inputs, case: str) -> None:
    given, kind, said = REFUSED[case]
    with pytest.raises(kind, match=said) as found:
        prepare(AugmentConfig(**inputs(**given)))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("which", ["images", "labels"])
def test_a_damaged_section_is_named(inputs: Inputs, which: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.tif"
    values = noise() if which == "images" else grid()
    tifffile.imwrite(path, values, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as file:
        start = file.pages[2].dataoffsets[0]
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\0" * 20)
    with pytest.raises(VolumeError, match=r"section 2 of .*packed\.tif cannot be decoded"):
        prepare(AugmentConfig(**inputs(validation_sections=("2",)) | {which: (str(path),)}))
    # What is not used may be damaged.
    prepare(AugmentConfig(**inputs(exclude_sections=("2",)) | {which: (str(path),)}))


# What is said


def test_nothing_to_say_of_good_inputs(inputs: Inputs) -> None:
    assert planned(inputs(validation_sections=("1",))).warnings == ()


def test_one_sided_sections_are_named(inputs: Inputs) -> None:
    image, label = noise(shape=(9, 40, 48)), grid(shape=(9, 40, 48))
    label[[0, 1, 2, 5]], label[4], label[7] = 0, 255, 0
    mask = np.zeros(label.shape, np.uint8)
    mask[8] = 1
    found = planned(inputs(image, label, mask, validation_sections=("6", "7"))).warnings
    advice = "; leave out what is labelled wrongly with --exclude-sections"
    assert found == (
        f"training sections without any membrane: 0-2, 5{advice}",
        f"training sections without any cell interior: 4{advice}",
        f"training sections without any pixel that counts: 8{advice}",
        f"validation sections without any membrane: 7{advice}",
    )
    found = planned(inputs(image, label // 255, label_kind="classes", exclude_sections=("2",))).warnings
    assert found == (f"training sections without more than one class: 0-1, 4-5, 7{advice}",)


def test_sections_are_counted_through_all_stacks(several: dict[str, Any], write: Write) -> None:
    dark = write(np.zeros((2, 33, 64), np.uint8))
    labels = (several["labels"][0], dark, several["labels"][2])
    assert "without any membrane: 3-4;" in planned(several | {"labels": labels}).warnings[0]


def test_many_sections_are_not_all_named(inputs: Inputs) -> None:
    shape = (60, 8, 8)
    label = grid(shape=shape)
    label[::2] = 0
    (said, _) = planned(inputs(noise(shape=shape), label)).warnings
    assert "20, 22, ... (30 in all);" in said


def test_patches_larger_than_sections_are_told(several: dict[str, Any]) -> None:
    (said,) = planned(several | {"patch_px": 48}).warnings
    assert said == (
        "patches of 48 px are larger than sections, which are mirrored to fill them: "
        "sections 0-2 of 40 x 48 px (y, x) by 8 and 0 px; sections 3-4 of 33 x 64 px (y, x) by 15 and 0 px; "
        "sections 6 of 56 x 36 px (y, x) by 0 and 12 px"
    )
    found, _ = patches(planned(several | {"patch_px": 64, "exclude_sections": ("0:5", "8")}))
    plain = planned(several | {"patch_px": 64, "exclude_sections": ("0:5", "8")})
    y, x = plain.drawn(0).corner
    rows, columns = (np.pad(np.arange(side), 64, mode="reflect")[64 + at :][:64] for side, at in ((56, y), (36, x)))
    section = plain.intensity[2].apply(tifffile.imread(several["images"][2])[1])
    np.testing.assert_array_equal(found.image[0, 0], section[rows][:, columns])


def test_an_ignore_label_that_nothing_has_is_told(inputs: Inputs) -> None:
    (said,) = planned(inputs(ignore_label=3)).warnings
    assert said == "no pixel has the value of --ignore-label 3, so nothing is ignored"


def test_voxel_sizes_that_differ_are_told(several: dict[str, Any], write_zarr: Write, tmp_path: Path) -> None:
    images = []
    for n, path in enumerate(several["images"]):
        size = {"PhysicalSizeZ": 40, "PhysicalSizeY": 4 + n, "PhysicalSizeX": 4}
        units = {f"PhysicalSize{axis}Unit": "nm" for axis in "ZYX"}
        images.append(str(tmp_path / f"{n}.ome.tif"))
        tifffile.imwrite(images[-1], tifffile.imread(path), metadata={"axes": "ZYX", **size, **units})
    (first, second) = planned(several | {"images": tuple(images)}).warnings
    assert "1.ome.tif has voxels of (40.0, 5.0, 4.0) nm (z, y, x) but" in first
    assert "2.ome.tif has voxels of (40.0, 6.0, 4.0) nm" in second
