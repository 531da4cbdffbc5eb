"""The segment job as a process with all its paths in an object store: what it asks, and what it must not tell."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import zarr
from zarr.storage import ObjectStore

from tests.fault_proxy import Fault, FaultProxy, always, at_random, fault_proxy
from unet_ray.config.parse import parse
from unet_ray.config.segment import SegmentConfig
from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.open_objects import open_objects
from unet_ray.storage.store_client import open_store

ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET, TOKEN = "AKIAOURACCESSKEY", "OURSECRETKEY+do/not=tell", "OURSESSIONTOKEN+do/not=tell"
SHAPE, BLOCKS = (4, 100, 100), 16
# The job, but Ray's folder stays, with all that was logged.
JOB = """
import runpy, sys, types
import unet_ray.engine.cluster as cluster
cluster.shutil = types.SimpleNamespace(rmtree=lambda *a, **k: None)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Ran(NamedTuple):
    flags: list[str]
    summary: dict[str, Any]
    said: str
    folder: Path
    counts: dict[str, int]
    environment: dict[str, str]


def run(flags: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", JOB, str(ROOT / "jobs" / "segment.py"), *flags],
        capture_output=True, text=True, timeout=560, cwd=folder,
        env={
            "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "HOME": str(folder), **environment,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(s3_endpoint: str, model_file: Path) -> Iterator[Ran]:
    """The job's run, with credentials to look for."""
    folder = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp"))  # short: Ray's sockets lie below it
    with fault_proxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        environment = {
            "AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN,
        }  # fmt: skip
        for name, value in environment.items():
            patch.setenv(name, value)
        grey = phantom_block(Box.of_shape(SHAPE), 3).image
        zarr.create_array(ObjectStore(open_store("s3://volumes/job/v.zarr")), data=grey, chunks=(1, 100, 100))
        open_objects("s3://volumes/job").put("model.safetensors", model_file.read_bytes())
        flags = [
            "--volume", "s3://volumes/job/v.zarr", "--model", "s3://volumes/job/model.safetensors", "--output",
            "s3://volumes/job/o.zarr", "--tile-px", "64", "--threads", "1", "--workers", "1", "--precision", "float32",
            "--tiff", str(folder / "mask.tif"),
        ]  # fmt: skip
        proxy.requests.clear()
        ended = run(flags, folder, environment)
        assert ended.returncode == 0, ended.stderr
        counts = dict(proxy.counts())
    yield Ran(
        flags, json.loads(ended.stdout.splitlines()[-1]), ended.stdout + ended.stderr, folder, counts, environment
    )
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def proxy(ran: Ran, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy for another run, in this process."""
    with fault_proxy(s3_endpoint) as proxy:
        for name, value in (ran.environment | {"AWS_ENDPOINT_URL": proxy.url}).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import unet_ray.engine.segment

    monkeypatch.setattr(unet_ray.engine.segment, "cluster", lambda: pytest.fail("a cluster was started"))


def test_the_whole_run_asks_little_beside_its_blocks(ran: Ran) -> None:
    assert (ran.summary["status"], ran.summary["blocks"]) == ("complete", BLOCKS)
    wanted = Counter({
        # The volume's metadata for the driver, the probe and the actor; a chunk for the probe; model, output's root.
        "GET": 5 + 1 + 2,
        # Is a finished output there, what of it, and what of it now; the volume's fingerprint.
        "LIST": 5, "PUT": 1, "POST delete": 1,
        # Claim and metadata.
        "PUT new": 1,
    }) + Counter({
        # What the run took, beside those before it.
        "GET": 1, "PUT": 1,
    }) + Counter({
        "PUT": 4,
        # Blocks: runs are of one block here; sections of one chunk.
        "HEAD": BLOCKS, "GET": SHAPE[0],
    }) + Counter({
        "PUT": 2 * BLOCKS,
        # The mask as TIFF: a shard's index, and its one chunk.
        "GET range": 2 * BLOCKS,
    })  # fmt: skip
    assert ran.counts == wanted


@pytest.mark.usefixtures("no_cluster")
def test_a_finished_run_is_known_by_a_few_listings(ran: Ran, proxy: FaultProxy, call_job: Callable[..., Any]) -> None:
    ended = call_job("segment", *ran.flags[:-2])
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["blocks_skipped"] == BLOCKS
    # One listing per thousand blocks of probability (twice) and mask, and one of the volume; nothing per block. Whether
    # the arrays' and groups' metadata are there.
    assert proxy.counts() == {"GET": 6, "LIST": 4, "HEAD": 4}


@pytest.mark.usefixtures("no_cluster")
def test_who_may_not_write_is_told_before_the_cluster_starts(
    ran: Ran, proxy: FaultProxy, call_job: Callable[..., Any]
) -> None:
    proxy.choose = always("forbidden", "PUT", "PUT new")
    flags = [word.replace("o.zarr", "new.zarr") for word in ran.flags[:-2]]
    ended = call_job("segment", *flags)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "segment: s3://volumes/job/new.zarr cannot be written (403 AccessDenied: Access Denied); check bucket, "
        "endpoint and credentials\n"
    )


def holding(secrets: tuple[str, ...], written: dict[str, bytes]) -> list[tuple[str, str]]:
    """Names of what holds a secret as it is, or as it stands in a URL."""
    forms = {form for secret in secrets for form in (secret, quote(secret), quote(secret, safe=""))}
    return [(name, form) for name, data in written.items() for form in forms if form.encode() in data]


def test_no_secret_is_in_anything_written(ran: Ran, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]) -> None:
    """Logs of the job and of Ray, the output and its metadata, the summary, the settings as they are printed."""
    objects = open_objects("s3://volumes/job")
    written = {info.key: objects.get(info.key) or b"" for info in objects.list()}
    files = [path for path in ran.folder.rglob("*") if path.is_file()]
    written |= {str(path): path.read_bytes() for path in files}
    with pytest.raises(SystemExit):
        parse(SegmentConfig, [*ran.flags, "--print-config"], "segment")
    written |= {"said": ran.said.encode(), "settings": capsys.readouterr().out.encode()}
    # Not trivial: these are the places, and what is looked for in them is found.
    assert sum(".log" in path.name or path.suffix in (".out", ".err") for path in files) > 5
    assert {str(ran.folder / "mask.tif"), "o.zarr/zarr.json"} <= written.keys()
    assert len(holding(("s3://volumes/job/v.zarr",), written)) >= 2
    assert holding((SECRET, TOKEN), written) == []


@pytest.mark.parametrize("flag", ["--volume", "--volume=", "--config"])
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"s3://{KEY}:OURSECRET@bucket/v.zarr", "s3://***@..."),
        ("https://OURSECRET@host/v.zarr", "https://***@..."),
        ("s3://bucket/v.zarr?region=x&secret_access_key=OURSECRET", "s3://bucket/v.zarr?***"),
        ("https://host/v.tif?X-Amz-Signature=OURSECRET&x=y", "https://host/v.tif?***"),
    ],
)
def test_a_url_with_credentials_is_refused_unread(
    call_job: Callable[..., Any], tmp_path: Path, flag: str, url: str, shown: str
) -> None:
    given = [f"{flag}{url}"] if flag.endswith("=") else [flag, url]
    if flag == "--config":
        (tmp_path / "run.yaml").write_text(json.dumps({"volume": url, "no_such_key": {"a": url}}))
        given = ["--config", str(tmp_path / "run.yaml")]
    ended = call_job("segment", *given, "--model", "m", "--output", "o.zarr", "--print-config")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"segment: the URL {shown} holds credentials; give them by the environment")
    assert "OURSECRET" not in ended.err


@pytest.mark.parametrize("url", ["s3://bucket/a@b/c.zarr", "s3://bucket/v.zarr?versionId=5", "/data/a@b?key=c"])
def test_other_signs_in_a_path_are_no_credentials(url: str) -> None:
    assert parse(SegmentConfig, ["--volume", url, "--model", "m", "--output", "o"], "segment").volume == url


@pytest.mark.slow
def test_a_run_while_requests_fail_at_random_has_the_same_bytes(ran: Ran, proxy: FaultProxy) -> None:
    """In half a minute, on a cluster of its own."""
    proxy.choose = at_random(0.2, seed=4)
    flags = [word.replace("o.zarr", "faulty.zarr") for word in ran.flags[:-2]]
    ended = run(flags, ran.folder, ran.environment | {"AWS_ENDPOINT_URL": proxy.url})
    assert ended.returncode == 0, ended.stderr
    proxy.choose = None
    assert sum(proxy.faults().values()) > 15
    objects = open_objects("s3://volumes/job")

    def shards(below: str) -> dict[str, bytes | None]:
        return {
            info.key.removeprefix(below): objects.get(info.key) for info in objects.list(below) if "/c/" in info.key
        }

    assert len(shards("faulty.zarr/")) == 2 * BLOCKS
    assert shards("faulty.zarr/") == shards("o.zarr/")


@pytest.mark.slow
def test_a_store_that_goes_away_for_good_ends_the_run(ran: Ran, proxy: FaultProxy) -> None:
    """In about five minutes: a worker waits for two, and then this machine does."""
    puts = iter(range(10))
    flags = [word.replace("o.zarr", "lost.zarr") for word in ran.flags[:-2]]
    gone: list[float] = []

    def choose(kind: str, key: str) -> Fault | None:
        if "lost.zarr/0/c/" in key and kind == "PUT" and next(puts, None) is None:
            gone.append(time.monotonic())
        return "reset" if gone else None

    proxy.choose = choose
    ended = run(flags, ran.folder, ran.environment | {"AWS_ENDPOINT_URL": proxy.url})
    assert ended.returncode == 2, ended.stderr
    assert time.monotonic() - gone[0] < 480
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("segment: s3://volumes/job/lost.zarr cannot be written: its store gives no whole answer")
    assert "Traceback" not in ended.stderr
