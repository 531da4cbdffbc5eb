import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.config.sections import parse_roi, parse_sections, written
from unet_ray.errors import ConfigError
from unet_ray.geometry.box import Box

DEPTH = 30


@pytest.mark.parametrize(
    ("choices", "numbers"),
    [
        ((), ()),
        (("7",), (7,)),
        (("4:30:5",), (4, 9, 14, 19, 24, 29)),
        (("9", "0", "9", "2:4"), (0, 2, 3, 9)),
        (("29:30", "28"), (28, 29)),
        (("4:31:30",), (4,)),
    ],
)
def test_sections_ascending_each_once(choices, numbers):
    assert parse_sections(choices, DEPTH, "--sections") == numbers


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 12))
def test_the_same_as_pythons_range(first, stop, step):
    chosen = list(range(first, stop, step))
    if chosen and chosen[-1] < DEPTH:
        assert parse_sections([f"{first}:{stop}:{step}"], DEPTH, "--sections") == tuple(chosen)
    else:
        with pytest.raises(ConfigError, match="names no section" if not chosen else "asks for section"):
            parse_sections([f"{first}:{stop}:{step}"], DEPTH, "--sections")


@given(st.sets(st.integers(0, DEPTH - 1)))
def test_what_is_written_is_read_back(sections):
    assert parse_sections(written(sections).split(), DEPTH, "--sections") == tuple(sorted(sections))
    assert len(written(range(DEPTH))) == len("0:30")


@pytest.mark.parametrize("choice", ["", "a", "-1", "1:", ":3", "1:2:0", "1:2:3:4", "1.5", "1 2", "1-3"])
def test_what_is_no_choice(choice):
    with pytest.raises(ConfigError, match=r"--x was given '.*'; give section numbers, A:B or A:B:STEP"):
        parse_sections([choice], DEPTH, "--x")


def test_a_section_that_is_not_there():
    with pytest.raises(ConfigError, match=r"--x 28:31 asks for section 30, but the volume has 30 \(0 to 29\)"):
        parse_sections(["0", "28:31"], DEPTH, "--x")


@given(st.data())
def test_a_region_is_what_slices_of_the_volume_are(data):
    volume = data.draw(st.tuples(*[st.integers(1, 40)] * 3))
    box = [sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True))) for side in volume]
    roi = ",".join(f"{first}:{last}" for first, last in box)
    found = parse_roi(roi, volume, "--roi")
    assert (list(found.start), list(found.stop)) == ([first for first, _ in box], [last for _, last in box])


@pytest.mark.parametrize(
    ("roi", "expected"),
    [(None, ((0, 0, 0), (5, 6, 7))), (":,:,:", ((0, 0, 0), (5, 6, 7))), ("2:, :3,4:5", ((2, 0, 4), (5, 3, 5)))],
)
def test_an_empty_end_is_the_volumes(roi, expected):
    assert parse_roi(roi, (5, 6, 7), "--roi") == Box(*expected)


@pytest.mark.parametrize(
    ("roi", "words"),
    [
        ("1:2", "--roi was given '1:2'; give z0:z1,y0:y1,x0:x1"),
        ("0:1,0:1,0", "give z0:z1,y0:y1,x0:x1"),
        ("0:1,0:1,-1:2", "give z0:z1,y0:y1,x0:x1"),
        ("0:6,0:1,0:1", "asks for z 0:6, but the volume has z 0:5"),
        ("0:1,3:3,0:1", "asks for y 3:3"),
        ("0:1,0:1,5:4", "asks for x 5:4"),
    ],
)
def test_what_is_no_region(roi, words):
    with pytest.raises(ConfigError, match=words):
        parse_roi(roi, (5, 6, 7), "--roi")
