"""The pipeline on the challenge's own stack, for a few minutes: far from the best, but unmistakably learning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def run(job: str, *flags: object) -> dict[str, object]:
    command = [sys.executable, str(JOBS / f"{job}.py"), *(str(flag) for flag in flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    summary: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return summary


@pytest.mark.slow
@pytest.mark.real_data
def test_four_hundred_steps(shared_data: Path, tmp_path: Path) -> None:
    isbi = shared_data / "isbi2012"
    config = tmp_path / "isbi.yaml"
    config.write_text(
        f"""
        output: {tmp_path / "run"}
        images: {isbi / "train-volume.tif"}
        labels: {isbi / "train-labels.tif"}
        augment:
          variants: 40
          exclude_sections: ["4:30:5"]
          validation_sections: [2, 7, 17, 22]
        train:
          epochs: 2
        """
    )
    summary = run("pipeline", "--config", config)
    scores = summary["evaluate"]
    assert isinstance(scores, dict)
    assert scores["sections"] == [4, 9, 14, 19, 24, 29]
    # 400 steps reached 0.966, 0.978 and 0.087 on the validation sections.
    assert scores["v_rand"] > 0.90
    assert scores["v_info"] > 0.95
    assert scores["pixel_mismatch"] < 0.12
    mask = tmp_path / "mask.tif"
    model = tmp_path / "run" / "run" / "model.safetensors"
    volume = isbi / "test-volume.tif"
    run("segment", "--volume", volume, "--model", model, "--output", tmp_path / "test.zarr", "--tiff", mask)
    found = tifffile.imread(mask)
    assert found.shape == tifffile.imread(volume).shape == (30, 512, 512)
    assert 0.1 < (found == 255).mean() < 0.4
