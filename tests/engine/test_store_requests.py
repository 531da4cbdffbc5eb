"""How often the object store is asked: no more than a block needs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from zarr.storage import ObjectStore

from tests.fault_proxy import FaultProxy, at_random
from tests.shipped import shipped
from unet_ray.config.augment import AugmentConfig
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.engine.block_work import work_through
from unet_ray.engine.pyramid_worker import MaskWorker, PyramidWorker
from unet_ray.engine.segment_plan import layout_for
from unet_ray.engine.segment_worker import Job, SegmentWorker
from unet_ray.network.model_file import decode
from unet_ray.numerics.intensity import IntensityMap
from unet_ray.storage.objects import Objects
from unet_ray.storage.patch_cache import PatchCache
from unet_ray.storage.segmentation import Segmentation
from unet_ray.storage.store_client import open_store
from unet_ray.storage.volume import open_volume

SHAPE, TILE = (3, 100, 100), 64
BLOCKS = 3 * 2 * 2
CHUNKS = {
    "sections": ((1, 100, 100), None, {"GET": 3}),
    "chunks": ((1, 32, 32), None, {"GET": 3 * 4 * 4}),
    # The first read box of a layer has a whole shard, which comes by one request; the others take an index and chunks.
    "shards": ((1, 32, 32), (1, 64, 64), {"GET": 3 * 4, "GET range": 3 * 16}),
}


@pytest.fixture
def make_job(
    s3: str,
    tmp_path: Path,
    write_model: Callable[..., str],
    phantom_image: Callable[..., npt.NDArray[np.uint8]],
) -> Callable[..., Job]:
    """make_job(chunks, shards, output): a segmentation's job as an actor gets it; its volume and claim are there."""
    model = Path(write_model(tmp_path / "model", depth=2)).read_bytes()

    def make(chunks: tuple[int, ...], shards: tuple[int, ...] | None = None, output: str = "o.zarr") -> Job:
        store = ObjectStore(open_store(f"{s3}/v.zarr"))
        zarr.create_array(store, data=phantom_image(SHAPE, 2), chunks=chunks, shards=shards, overwrite=True)
        layout = layout_for(SHAPE, TILE, decode(model)[0], (30.0, 4.0, 4.0), ((1, 2, 2),))
        job = Job(
            open_volume(f"{s3}/v.zarr"), model, IntensityMap.identity(), Segmentation(f"{s3}/{output}"), layout, 0.5,
            threads=1, gpus_each=0,
        )  # fmt: skip
        job.output.claim(layout, {"made_with": {}})
        return shipped(job)

    return make


def done(worker: Any, blocks: range) -> None:
    rows = list(work_through(worker, blocks))
    assert [row["error"] for row in rows] == [""] * len(blocks)


def contents(objects: Objects) -> dict[str, bytes | None]:
    return {info.key: objects.get(info.key) for info in objects.list()}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_segmentation_reads_each_chunk_once_and_puts_each_shard_once(
    make_job: Callable[..., Job], s3_proxy: FaultProxy, kind: str
) -> None:
    chunks, shards, reads = CHUNKS[kind]
    job = make_job(chunks, shards)
    assert job.layout.blocks.num_blocks == BLOCKS
    s3_proxy.requests.clear()
    done(SegmentWorker(job, "float32"), range(BLOCKS))
    # Per run of blocks: is the first one done? Per worker: the volume's metadata. Per block: mask and probability.
    wanted = Counter(reads) + Counter({"HEAD": 1, "GET": 1, "PUT": 2 * BLOCKS})
    assert s3_proxy.counts() == wanted
    assert max(Counter(r.key for r in s3_proxy.requests if r.kind == "PUT").values()) == 1

    s3_proxy.requests.clear()
    done(PyramidWorker(job.output, job.layout, 0.5, 1), range(3))
    assert s3_proxy.counts() == {"HEAD": 1, "GET": BLOCKS, "PUT": 2 * 3}
    s3_proxy.requests.clear()
    done(MaskWorker(job.output, job.layout, 0.6, 0), range(BLOCKS))
    assert s3_proxy.counts() == {"GET": BLOCKS, "PUT": BLOCKS}


def test_a_segmentation_is_claimed_and_listed(make_job: Callable[..., Job], s3_proxy: FaultProxy) -> None:
    job = make_job((1, 100, 100))
    objects, blocks = job.output.objects, job.layout.blocks
    s3_proxy.requests.clear()
    Segmentation(f"{objects.url}-2").claim(job.layout, {"made_with": {}})
    # Two groups of labels, and probability and mask of two levels.
    assert s3_proxy.counts() == {"PUT new": 1, "PUT": 6}
    for block in range(BLOCKS):
        objects.put(job.layout.record(0, block), b"shard")
    s3_proxy.requests.clear()
    s3_proxy.page_keys = 5  # of the 1000 of a store
    assert len(job.output.done(blocks)) == BLOCKS
    assert s3_proxy.counts() == {"LIST": 3}


def test_a_patch_cache_puts_each_shard_once(
    s3: str, s3_proxy: FaultProxy, tmp_path: Path, phantom_image: Callable[..., npt.NDArray[np.uint8]]
) -> None:
    images = phantom_image((3, 64, 64), 2)
    for name, values in (("images", images), ("labels", (images < np.median(images)) * np.uint8(255))):
        zarr.create_array(ObjectStore(open_store(f"{s3}/{name}.zarr")), data=values, chunks=(1, 64, 64))
    config = AugmentConfig(
        images=(f"{s3}/images.zarr",), labels=(f"{s3}/labels.zarr",), cache=f"{s3}/cache.zarr",
        label_kind="membrane", variants=12, patch_px=32, validation_sections=("1",), for_preset="default",
    )  # fmt: skip
    plan, made_with = prepare(config)
    cache = PatchCache(config.cache)
    s3_proxy.requests.clear()
    cache.create_or_extend(plan.cache, made_with)
    blocks = plan.cache.blocks
    assert blocks >= 3
    worker = shipped(AugmentWorker(cache, plan))
    s3_proxy.requests.clear()
    done(worker, range(blocks))
    # Image, label and weight of each block; each section's chunk of images and labels; their metadata.
    assert s3_proxy.counts() == {"HEAD": 1, "GET": 2 * 3 + 2, "PUT": 3 * blocks}
    s3_proxy.requests.clear()
    assert len(cache.done_blocks(plan.cache)) == blocks
    assert s3_proxy.counts() == {"LIST": 2, "GET": 2}


@pytest.mark.usefixtures("impatient")
def test_a_segmentation_has_the_same_bytes_where_requests_fail_at_random(
    make_job: Callable[..., Job], s3_proxy: FaultProxy
) -> None:
    plain = make_job((1, 32, 32))
    done(SegmentWorker(plain, "float32"), range(BLOCKS))
    job = make_job((1, 32, 32), output="faulty.zarr")
    s3_proxy.choose = at_random(0.3, seed=1)
    job.output.overwrite()
    job.output.claim(job.layout, {"made_with": {}})
    done(SegmentWorker(job, "float32"), range(BLOCKS))
    s3_proxy.choose = None
    assert sum(s3_proxy.faults().values()) > 12
    found = contents(job.output.objects)
    assert len(found) == 2 * BLOCKS + 7
    assert found == contents(plain.output.objects)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("of", ["PUT", "GET", "HEAD"])
def test_blocks_are_given_up_at_once_where_the_store_stays_away(
    make_job: Callable[..., Job], s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """Not three times for each block: the store was asked for as long as one waits for it."""
    from unet_ray.storage import store_client

    job = make_job((1, 100, 100))
    monkeypatch.setattr(store_client, "PATIENCE_SECONDS", 0.7)
    monkeypatch.setattr(store_client, "FIRST_PATIENCE_SECONDS", 0.4)
    s3_proxy.requests.clear()
    s3_proxy.choose = lambda kind, key: "error" if kind == of else None
    rows = list(work_through(SegmentWorker(job, "float32"), range(BLOCKS)))
    assert len(rows) == BLOCKS
    assert all(row["away"] and "gives no whole answer" in row["error"] for row in rows)
    failed = {request.key for request in s3_proxy.requests if request.fault}
    assert len(failed) <= 2
