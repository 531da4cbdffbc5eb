"""The published scores are plain data, in words that the evaluation knows."""

import json
from dataclasses import fields

from unet_ray.numerics.stack_scores import StackScores
from unet_ray.report.published import PUBLISHED


def test_every_score_has_our_name_and_a_source():
    assert json.loads(json.dumps(PUBLISHED)) == PUBLISHED
    ours = {field.name for field in fields(StackScores)}
    for table in PUBLISHED["tables"]:
        assert table["source"]
        for row in table["rows"]:
            assert row.keys() - {"name"} <= ours
    assert "never published" in PUBLISHED["note"]


def test_the_paper_itself():
    ranking, later = ({row["name"]: row for row in table["rows"]} for table in PUBLISHED["tables"])
    u_net = ranking["U-Net"]
    assert (u_net["warping_error"], u_net["rand_error"], u_net["pixel_error"]) == (0.000353, 0.0382, 0.0611)
    human = ranking["human, second observer"]
    assert (human["warping_error"], human["rand_error"], human["pixel_error"]) == (0.000005, 0.0021, 0.0010)
    assert (later["U-Net"]["v_rand"], later["U-Net"]["v_info"]) == (0.97276, 0.98662)
    # As it was sorted.
    assert [row["warping_error"] for row in ranking.values()] == sorted(
        row["warping_error"] for row in ranking.values()
    )
