"""Fixtures that tests share: the real data, the golden values, small inputs, and one Ray for the whole session."""

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy.typing as npt
import pytest
import zarr
from xdist.scheduler import LoadScopeScheduling

from tests.browser import BrowserPage, open_pages
from tests.fault_proxy import FaultProxy, fault_proxy

# The clock of a busy machine must not fail a property.
hypothesis.settings.register_profile("unet_ray", deadline=None)
hypothesis.settings.load_profile("unet_ray")


class _ByFile(LoadScopeScheduling):
    """Tests of one file, which share what they set up, to one process; the test hosts exist once per machine."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "tests/cluster" if file.startswith("tests/cluster/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """Of ``pytest -n``. In the order of collection: the files with the longest tests come first."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)


SHARED = Path(__file__).resolve().parents[2] / "shared"


class Shard(NamedTuple):
    digest: str
    written: int  # mtime, ns


def _shared(name: str) -> Path:
    folder = Path(os.environ.get("UNET_RAY_SHARED", SHARED)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: its licence forbids shipping it (set UNET_RAY_SHARED to its parent)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real EM stacks."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of the metrics' golden values, the ISBI-derived ones included."""
    return _shared("golden")


@pytest.fixture
def nobody() -> Callable[[], AbstractContextManager[None]]:
    """``with nobody():`` without the rights of root, which no permission stops; modules must be loaded before."""

    @contextmanager
    def unprivileged() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        # The real one too, by which access() answers; the saved one leads back.
        os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)

    return unprivileged


@pytest.fixture
def make_pipe() -> Iterator[Callable[[Path], None]]:
    """make_pipe(path): a named pipe, whose writers have something for whoever reads: nobody waits for ever."""
    writers = []

    def make(path: Path) -> None:
        os.mkfifo(path)
        writers.append(subprocess.Popen(["sh", "-c", f"while echo text >'{path}'; do :; done"]))

    yield make
    for writer in writers:
        writer.kill()
        writer.wait()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """An embedded Ray with 4 CPUs' worth of slots, so that two workers run at once on any machine."""
    import unet_ray.engine  # noqa: F401  isort: skip  (sets Ray's environment before it is imported)
    import ray

    folder = tempfile.mkdtemp(prefix="unet_ray-test-", dir="/tmp")  # a socket's path must be short
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 * 1024**2,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=folder,
    )
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server of this session's own, with a bucket called ``volumes``."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: no S3 server to test against")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/volumes", method="PUT"), timeout=20).close()
    yield address
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """URL of an empty folder in an S3 bucket; the environment holds what reaching it takes."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://volumes/{abs(hash(request.node.nodeid))}"


@pytest.fixture
def s3_proxy(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What stands between this test and the S3 server; it counts requests, and fails those it is told to."""
    with fault_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store client that gives up a store after eight seconds, and makes no long pauses."""
    from unet_ray.storage import store_client

    monkeypatch.setattr(store_client, "REQUEST_SECONDS", 5.0)
    monkeypatch.setattr(store_client, "PATIENCE_SECONDS", 8.0)
    monkeypatch.setattr(store_client, "FIRST_PATIENCE_SECONDS", 8.0)
    monkeypatch.setattr(store_client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(store_client, "LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(store_client, "_reached", set())


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Callable[..., BrowserPage]]:
    """browser_page(url, width=1280, height=800, dark=False): a page in headless Chromium, for tests marked browser."""
    with open_pages() as open_page:
        yield open_page


@pytest.fixture(scope="session")
def write_model() -> Callable[..., str]:
    """write_model(path, preset, depth=3, base_channels=2, seed=0, in_channels=1, classes=None, members=1,
    **metadata) -> path."""

    def write(
        path: Path,
        preset: str = "default",
        *,
        depth: int = 3,
        base_channels: int = 2,
        in_channels: int = 1,
        seed: int = 0,
        classes: int | None = None,
        members: int = 1,
        **metadata: Any,
    ) -> str:
        from unet_ray.config.network import layers, network_config
        from unet_ray.geometry.receptive_field import halo_px, margin_px
        from unet_ray.network.model_file import ModelMetadata, Normalisation, encode
        from unet_ray.network.unet import new_network

        config = network_config(
            preset,
            base_channels=base_channels,
            depth=depth,
            in_channels=in_channels,
            classes=classes,
            members=members,
        )
        listed = layers(config)
        about = {
            "normalisation": Normalisation(low=0, high=255, dtype="uint8"),
            "halo_px": halo_px(listed),
            "margin_px": margin_px(listed),
            "context_sections": (in_channels - 1) // 2,
        }
        path.write_bytes(encode(new_network(config, seed), ModelMetadata(network=config, **about | metadata)))
        return str(path)

    return write


@pytest.fixture(scope="session")
def write_zarr() -> Callable[..., str]:
    """write_zarr(path, values, chunks=None) -> path of a plain zarr array, one chunk per section unless given."""

    def write(path: Path, values: npt.NDArray[Any], chunks: tuple[int, ...] | None = None) -> str:
        array = zarr.create_array(
            str(path), shape=values.shape, dtype=values.dtype, chunks=chunks or (1, *values.shape[1:])
        )
        array[...] = values
        return str(path)

    return write


@pytest.fixture(scope="session")
def shards() -> Callable[..., dict[str, Shard]]:
    """shards(path, below=""): digest and time of every shard below a folder, by key."""

    def of(path: Path | str, below: str = "") -> dict[str, Shard]:
        root = Path(path)
        found = {}
        for file in sorted((root / below).rglob("c/**/*")):
            if file.is_file() and file.name.isdigit():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                found[str(file.relative_to(root))] = Shard(digest, file.stat().st_mtime_ns)
        return found

    return of


@pytest.fixture(scope="session")
def by_plain_loop() -> Callable[..., Any]:
    """by_plain_loop(volume, model, output, tile_px, threshold, ...): a segmentation made without Ray; its job."""
    from unet_ray.engine.segment_plan import layout_for
    from unet_ray.engine.segment_worker import Job, SegmentWorker
    from unet_ray.network.model_file import decode
    from unet_ray.network.predict import Tta
    from unet_ray.numerics.intensity import IntensityMap
    from unet_ray.storage.mask_volume import open_mask
    from unet_ray.storage.probability import Dtype
    from unet_ray.storage.segmentation import Segmentation
    from unet_ray.storage.volume import open_volume

    def make(
        volume: str, model: str, output: Path, tile_px: int, threshold: float, intensity: IntensityMap | None = None,
        tta: Tta = "none", mask: str | None = None, dtype: Dtype = "uint8",
    ) -> Job:  # fmt: skip
        opened, data = open_volume(volume), Path(model).read_bytes()
        layout = layout_for(opened.shape, tile_px, decode(data)[0], None, dtype=dtype)
        grey = intensity or IntensityMap.identity()
        job = Job(
            opened, data, grey, Segmentation(str(output)), layout, threshold, threads=1, gpus_each=0, tta=tta,
            mask=open_mask(mask, opened) if mask else None,
        )  # fmt: skip
        job.output.create(layout, {"made_with": {}})
        worker = SegmentWorker(job, "float32")
        for block in range(layout.blocks.num_blocks):
            worker.write(block, worker.encode(block, worker.compute(block, worker.read(block))))
        return job

    return make


@pytest.fixture(scope="session")
def patches_by_plain_loop() -> Callable[..., Any]:
    """patches_by_plain_loop(AugmentConfig, backwards=False): the patch cache made block by block without Ray."""
    from unet_ray.config.augment import AugmentConfig
    from unet_ray.engine.augment_plan import prepare
    from unet_ray.engine.augment_worker import AugmentWorker
    from unet_ray.storage.patch_cache import PatchCache

    def make(config: AugmentConfig, backwards: bool = False) -> PatchCache:
        cache = PatchCache(config.cache)
        plan, made_with = prepare(config)
        cache.create_or_extend(plan.cache, made_with, plan.sources())
        worker, blocks = AugmentWorker(cache, plan), range(plan.cache.blocks)
        for block in reversed(blocks) if backwards else blocks:
            worker.write(block, worker.encode(block, worker.compute(block, worker.read(block))))
        return cache

    return make


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m names them."""
    if "slow" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
