"""A labelled stack and a prediction of it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from tests.engine.evaluate.scored import SHAPE
from unet_ray.engine import evaluation as engine
from unet_ray.engine import section_pictures, section_scoring
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block


@pytest.fixture(scope="module")
def membrane() -> npt.NDArray[np.uint8]:
    """The truth, 1 = membrane."""
    return phantom_block(Box.of_shape(SHAPE), 6).membrane


@pytest.fixture(scope="module")
def probability(membrane: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Membrane probability, 0..255: the truth, shifted and noisy, so that no score is 0 or 1."""
    noise = np.random.default_rng(1).normal(0, 60, SHAPE)
    return np.clip(np.roll(membrane, 2, axis=2) * 150.0 + 50 + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def labels(membrane: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the form of the challenge: 255 = interior."""
    path = tmp_path_factory.mktemp("labels") / "labels.tif"
    tifffile.imwrite(path, (1 - membrane) * np.uint8(255), photometric="minisblack")
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections are scored in this process: what differs between inputs needs no cluster again."""

    def in_tasks(function: Any, calls: Any, workers: Any) -> Any:
        return ((number, function(*call)) for number, call in enumerate(calls))

    monkeypatch.setattr(section_scoring, "in_tasks", in_tasks)
    monkeypatch.setattr(section_pictures, "in_tasks", in_tasks)
    monkeypatch.setattr(section_pictures, "pictures", lambda *_: ())
    monkeypatch.setattr(engine, "hardware", lambda: "here")
