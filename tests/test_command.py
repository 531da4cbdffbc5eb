"""What all commands share, as a process has it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOB = """
import sys
from unet_ray.command import run
from unet_ray.config.base import Config

sys.exit(run(Config, lambda config: {"status": sys.argv.pop()}, [], "job"))
"""


@pytest.mark.parametrize(("status", "code"), [("complete", 0), ("incomplete", 3)])
def test_a_job_is_done_where_nobody_reads_its_summary(status: str, code: int) -> None:
    """Neither an exit code of failure nor a traceback after hours of work that is whole."""
    job, told = [sys.executable, "-c", JOB, status], f'which is {{"status": "{status}"}}\n'
    with subprocess.Popen(job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        said = child.stderr.read()
        assert (child.wait(), said) == (code, f"job: stdout does not take the summary (Broken pipe), {told}")
    with open("/dev/full", "w") as full:
        done = subprocess.run(job, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    said = f"job: stdout does not take the summary (No space left on device), {told}"
    assert (done.returncode, done.stderr) == (code, said)
