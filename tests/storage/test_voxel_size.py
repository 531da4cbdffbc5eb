"""Sizes that metadata tell: in any spelling of a unit, and none where they are no lengths."""

import pytest

from unet_ray.storage.voxel_size import from_imagej, from_ome_xml, from_resolution, from_scale, unit_nm


@pytest.mark.parametrize(
    ("unit", "nm"),
    [("Micron", 1e3), ("microns", 1e3), (" NM ", 1), ("nanometres", 1), ("s", None), ("", None)],
)
def test_units_in_any_spelling(unit, nm):
    assert unit_nm(unit) == nm


@pytest.mark.parametrize("resolution", [0, -250])
def test_resolutions_that_are_none(resolution):
    for x, y in ((resolution, 250), (250, resolution)):
        assert from_imagej({"unit": "um", "spacing": 0.05}, x, y) == (None, None)
        assert from_resolution(1e4 * x, 1e4 * y, 3) is None


def test_a_resolution_for_printing_in_one_direction_is_no_size():
    assert from_resolution(2_500_000, 300, 3) is None
    assert from_resolution(300, 2_500_000, 3) is None
    assert from_resolution(1_000, 2_000, 3) == (5_000, 10_000)


@pytest.mark.parametrize("size", ["0", "-5", "nan", "inf", "wide"])
def test_lengths_that_are_none(size):
    xml = '<OME xmlns="x"><Pixels PhysicalSizeZ="{}" PhysicalSizeY="{}" PhysicalSizeX="0.004"/></OME>'
    assert from_ome_xml(xml.format(size, "0.005")) == (None, (5, 4))
    assert from_ome_xml(xml.format("0.05", size)) == (None, None)


@pytest.mark.parametrize("xml", ["<OME", "<OME/>", "no XML"])
def test_texts_without_an_image(xml):
    assert from_ome_xml(xml) == (None, None)


def test_a_scale_may_have_more_axes_or_two():
    assert from_scale((2, 3, 50, 5, 4), (None, None, "nm", "nm", "nm")) == ((50, 5, 4), (5, 4))
    assert from_scale((5, 4), ("nm", "nm")) == (None, (5, 4))
    assert from_scale((50, 5, 4), ("second", "nm", "nm")) == (None, (5, 4))
