import copy
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from unet_ray.report.layers import class_layers, section_layers
from unet_ray.report.page import Certificate, Report, Training, ranked_sections, report_html
from unet_ray.report.pictures import contact_sheet_png

CURVES = {
    "thresholds": [0.0, 0.5, 1.0],
    "v_rand": [0.2, 0.97279, 0.5],
    "v_info": [0.1, 0.98042, 0.6],
    "pixel_mismatch": [0.3, 0.09, 0.4],
    "warping_thresholds": [0.0, 0.5],
    "warping_error": [0.01, 0.00126],
}
PREDICTION = {
    "name": "segmentation",
    "warnings": [],
    "holdout": {"status": "held out", "sentence": "held out"},
    "interval": {"v_rand": [0.95, 0.99]},
    "v_rand": 0.97279, "v_rand_threshold": 0.7, "v_info": 0.98042, "v_info_threshold": 0.5,
    "v_rand_unthinned": 0.9, "v_info_unthinned": 0.91, "rand_error": 0.07, "pixel_error": 0.05,
    "pixel_mismatch": 0.09131, "adapted_rand_error": 0.16, "dice": 0.8, "voi": 0.68, "voi_split": 0.25,
    "voi_merge": 0.43, "voi_threshold": 0.2, "warping_error": 0.0012557, "warping_threshold": 0.6,
    "curves": CURVES,
    "sections": [
        {"section": 4, "v_rand": 0.94, "v_info": 0.97, "pixel_mismatch": 0.09},
        {"section": 9, "v_rand": 0.99, "v_info": 0.99, "pixel_mismatch": 0.08},
    ],
}  # fmt: skip
PUBLISHED = {
    "note": "The test labels were never published.",
    "tables": [{"name": "challenge", "source": "a paper", "rows": [{"name": "U-Net", "v_rand": 0.973}]}],
}


def metrics(*predictions):
    return {"sections": [4, 9], "predictions": copy.deepcopy(list(predictions)), "published": PUBLISHED}


def pictures(section):
    rng = np.random.default_rng(section)
    raw = rng.integers(0, 255, (64, 64), dtype=np.uint8)
    errors = np.zeros(raw.shape, np.uint8)
    errors[20:30, 20:30] = 3
    return section_layers(section, raw=raw, truth=raw > 200, probability=raw / 255, errors=errors)


def a_report(**changed):
    sheet = contact_sheet_png([np.zeros((8, 8), np.uint8)], [np.eye(8, dtype=np.uint8)], None, ["section 0"])
    rows = [{"event": "step", "step": k, "epoch": 0, "loss": 1 / (k + 1), "learning_rate": 1e-3} for k in range(5)]
    given = {
        "title": "demo", "made": "26 November 2026", "metrics": metrics(PREDICTION),
        "sections": [pictures(4), pictures(9)], "command": "python jobs/pipeline.py", "facts": [("Python", "3.11")],
        "settings": "output: demo\n", "next_steps": [("Segment another volume", "python jobs/segment.py --volume P")],
        "training": Training([("epochs", "3")], rows, 0, sheet),
        "certificate": Certificate(
            [("voxels", "4.2 M")],
            {"seam_max_abs_diff": 3e-7, "mask_change_share": 0.0, "precision": "float32", "note": ""},
            "compute-bound: more workers", {"compute": 0.9},
        ),
    }  # fmt: skip
    return Report(**given | changed)


class Reader(HTMLParser):
    """Addresses, ids and text of a page, and the elements left open."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.ids, self.text, self.open = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "img", "br", "input", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_beside_it():
    page = report_html(a_report())
    reader = Reader(page)
    assert reader.open == []
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp", page)
    assert len(reader.addresses) > 10


def test_it_says_what_a_reader_asks():
    text = Reader(report_html(a_report())).text
    for asked in (
        "0.9728", "0.9804", "0.00126", "0.9500 to 0.9900", "segmentation: held out", "a paper",
        "3e-07", "compute-bound: more workers", "python jobs/pipeline.py", "python jobs/segment.py --volume P",
        "output: demo", "U-Net", "0.973", "never published", "splits a cell", "Seam certificate",
    ):  # fmt: skip
        assert asked in text, asked


def test_what_users_name_is_escaped():
    evil = "<script>alert(1)</script>"
    prediction = PREDICTION | {"name": evil, "warnings": [evil]}
    page = report_html(a_report(title=evil, command=evil, settings=evil, metrics=metrics(prediction, PREDICTION)))
    assert evil not in page
    assert page.count("<script>") == 1


def test_training_sections_are_marked_loudly():
    seen = {"status": "trained", "sentence": "trained on sections 4 9"}
    page = report_html(a_report(metrics=metrics(PREDICTION | {"holdout": seen, "warnings": ["it was TRAINED on 2"]})))
    assert re.search(r'class="note bad">segmentation: <b>trained on sections 4 9', page)
    assert re.search(r'class="note bad">it was TRAINED on 2', page)
    assert 'class="note good">segmentation' not in page
    assert 'class="note good">segmentation' in report_html(a_report())


def test_several_predictions_stand_side_by_side():
    other = PREDICTION | {"name": "other", "v_rand": 0.5}
    text = Reader(report_html(a_report(metrics=metrics(PREDICTION, other)))).text
    assert "0.5000" in text
    assert text.count("other") > 2


@pytest.mark.parametrize("part", ["training", "certificate"])
def test_parts_that_are_not_there_are_left_out(part):
    assert part in Reader(report_html(a_report())).ids
    assert part not in Reader(report_html(a_report(**{part: None}))).ids


def test_scores_that_are_not_defined():
    nothing = {key: None for key, value in PREDICTION.items() if isinstance(value, float)}
    row = {"section": 4, "v_rand": None, "v_info": None, "pixel_mismatch": 0.1}
    curves = {**CURVES, "v_rand": [None] * 3, "warping_error": [None] * 2}
    prediction = PREDICTION | nothing | {"sections": [row], "interval": {}, "curves": curves}
    report = a_report(metrics=metrics(prediction), sections=[])
    assert "not defined" in Reader(report_html(report)).text


def test_best_and_worst_section():
    assert ranked_sections(PREDICTION["sections"]) == [9, 4]
    page = report_html(a_report())
    assert re.search(r'id="section-4".*?<figcaption><b>Section 4</b>\s*<span class="mark">worst', page, re.S)
    assert re.search(r'id="section-9".*?<figcaption><b>Section 9</b>\s*<span class="mark">best', page, re.S)


def of_classes():
    """A report on three classes, one of which neither truth nor prediction has."""
    scores = {"pixel_mismatch": 0.1, "mean_dice": 0.8, "mean_iou": 0.7, "dice_0": 0.9, "iou_0": 0.85, "dice_1": None}
    rows = [
        {"section": 4, "pixel_mismatch": 0.1, "mean_dice": 0.8},
        {"section": 9, "pixel_mismatch": 0.2, "mean_dice": 0.7},
    ]
    about = {"name": "s", "warnings": [], "holdout": {"status": "unknown", "sentence": "unknown: not ours"}}
    found = {"sections": [4, 9], "predictions": [about | scores | {"interval": {}, "curves": {}, "sections": rows}]}
    colours = [(153, 153, 153), (230, 159, 0), (86, 180, 233)]
    rng = np.random.default_rng(0)
    raw, truth, predicted = (rng.integers(0, top, (64, 64), dtype=np.uint8) for top in (255, 3, 3))
    layers = [class_layers(z, raw=raw, truth=truth, predicted=predicted, ignore=None, colours=colours) for z in (4, 9)]
    return a_report(metrics=found | {"published": {}}, sections=layers, classes=colours)


def test_classes_have_dice_and_no_thresholds():
    page = Reader(report_html(of_classes()))
    assert {"thresholds", "published"}.isdisjoint(page.ids)
    assert all(said in page.text for said in ("Mean Dice", "0.8000", "IoU, class 0", "0.8500", "unknown: not ours"))


def test_sections_of_classes_have_a_legend_and_layers_of_their_own():
    page = report_html(of_classes())
    assert re.search(r"background:rgb\(86, 180, 233\)\"></span> class 2<", page)
    assert "splits a cell" not in page
    assert "class 2" not in report_html(a_report())
    assert re.findall(r'name="layer" value="(\w+)"', page) == ["raw", "truth", "prediction", "errors"]
    assert re.search(
        r'section-9".*?Section 9</b> <span class="mark">worst</span>\s*<span class="soft">Mean Dice 0.7', page, re.S
    )


def test_one_section_has_no_interval_and_is_not_told_of_one():
    several = report_html(a_report())
    assert "2 sections scored" in several
    assert "its 95 % interval" in several
    alone = PREDICTION | {"interval": {"v_rand": None}, "sections": PREDICTION["sections"][:1]}
    one = report_html(a_report(metrics=metrics(alone) | {"sections": [4]}, sections=[pictures(4)]))
    assert "1 section scored" in one
    assert "interval" not in one
    assert "Best thresholds are chosen on the scored sections themselves" in one
