"""The training job as a process with cache and run in an object store: checkpoints go there by Ray's own client."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.fault_proxy import Fault, FaultProxy, at_random
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.open_objects import open_objects

pytestmark = pytest.mark.slow


@pytest.fixture
def cache(s3: str, tmp_path: Path, call_job: Callable[..., Any]) -> str:
    """A small patch cache in the store."""
    image = phantom_block(Box.of_shape((3, 128, 128)), 0).image
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack")
    tifffile.imwrite(tmp_path / "label.tif", (image < 90).astype(np.uint8) * 255, photometric="minisblack")
    ended = call_job(
        "augment", "--images", tmp_path / "image.tif", "--labels", tmp_path / "label.tif", "--label-kind", "membrane",
        "--cache", f"{s3}/cache.zarr", "--variants", 6, "--patch-px", 64, "--validation-sections", "2", "--workers", 1,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return f"{s3}/cache.zarr"


def test_a_training_whose_store_fails_and_is_away_for_a_while_has_the_same_weights(
    s3: str, s3_proxy: FaultProxy, cache: str, run_job: Callable[..., Any]
) -> None:
    """In three minutes: a run without faults, one in which a fifth of the requests fail, and one with an outage."""

    def trained(run: str) -> tuple[dict[str, Any], bytes]:
        ended = run_job(
            "train", "--cache", cache, "--run", f"{s3}/{run}", "--base-channels", 2, "--depth", 2, "--epochs", 3,
            "--batch-size", 4, "--threads", 1, "--precision", "float32", "--checkpoint-every-steps", 2,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        model = open_objects(f"{s3}/{run}").get("model.safetensors")
        assert model is not None
        return json.loads(ended.out.splitlines()[-1]), model

    summary, model = trained("whole")
    began: list[float] = []

    def away(kind: str, key: str) -> Fault | None:
        """From the second checkpoint's first request on, for twenty seconds."""
        if "/checkpoint_" in key and sum(r.kind == "PUT" and "/checkpoint_" in r.key for r in s3_proxy.requests) > 1:
            began.append(time.monotonic())
        return "reset" if began and time.monotonic() - began[0] < 20 else None

    for run, choose, least in (("faulty", at_random(0.2, seed=7), 15), ("away", away, 2)):
        s3_proxy.requests.clear()
        s3_proxy.choose = choose
        again, same = trained(run)
        s3_proxy.choose = None
        assert sum(s3_proxy.faults().values()) > least, run
        assert again["steps"] == summary["steps"]
        assert same == model, run
