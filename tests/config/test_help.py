"""``--help`` of every job as a real process: complete, quick, and without Ray or PyTorch."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Fails the process after --help when something heavy has been imported.
HEAVY = """
import runpy, sys
sys.argv = [{path!r}, "--help"]
sys.path.insert(0, {root!r})
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as leave:
    assert not leave.code, leave.code
found = {{"ray", "torch", "numpy", "scipy", "zarr", "numba"}} & set(sys.modules)
assert not found, found
"""


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("augment", ["--recipe.elastic.sigma-px", "--for-preset {default,paper,keras}", "--variants INT"]),
        ("train", ["--preset {default,paper,keras}", "--use-gpu, --no-use-gpu", "Highest learning rate"]),
        ("segment", ["--tile-px", "--sections", "--accept-voxel-size", "(default: 0.5)"]),
        ("evaluate", ["--prediction-kind [{membrane,interior}", "--label-kind"]),
        ("view", ["--volume", "--segmentation", "--port INT"]),
        ("pipeline", ["--train.epochs", "--augment.recipe.flip.y-probability", "--segment.threshold"]),
    ],
)
def test_help_is_complete_quick_and_light(job, says):
    path = str(ROOT / "jobs" / f"{job}.py")
    command = [sys.executable, "-c", HEAVY.format(path=path, root=str(ROOT))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "200"}, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert [word for word in ["--config", "--print-config", *says] if word not in done.stdout] == []
    # CPU seconds: on a busy machine the clock would measure the neighbours.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_a_reader_that_has_had_enough_of_the_help_is_no_error():
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "augment.py"), "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert job.stdout
    assert job.stderr
    job.stdout.close()  # as `| head` does, before anything comes
    said = job.stderr.read()
    job.stderr.close()
    assert (job.wait(), said) == (0, "")
