"""Small inputs for the engines, and what tells of a run what it did."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import zarr


class Shard(NamedTuple):
    digest: str
    written: int  # mtime, ns


@pytest.fixture(scope="session")
def write_model() -> Callable[..., str]:
    """write_model(path, preset, depth=3, base_channels=2, seed=0, in_channels=1, classes=None, **metadata) -> path."""

    def write(
        path: Path,
        preset: str = "default",
        *,
        depth: int = 3,
        base_channels: int = 2,
        in_channels: int = 1,
        seed: int = 0,
        classes: int | None = None,
        **metadata: Any,
    ) -> str:
        from unet_ray.config.network import layers, network_config
        from unet_ray.geometry.receptive_field import halo_px, margin_px
        from unet_ray.network.model_file import ModelMetadata, Normalisation, encode
        from unet_ray.network.unet import new_network

        config = network_config(
            preset, base_channels=base_channels, depth=depth, in_channels=in_channels, classes=classes
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
def phantom_image() -> Callable[..., npt.NDArray[np.uint8]]:
    """phantom_image(shape, seed=0): grey levels of the phantom."""
    from unet_ray.geometry.box import Box
    from unet_ray.numerics.phantom import phantom_block

    return lambda shape, seed=0: phantom_block(Box.of_shape(shape), seed).image


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


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    from unet_ray.engine import blocks

    seen: list[dict[str, Any]] = []
    stream = blocks._stream

    def spy(*arguments: Any) -> Iterator[dict[str, Any]]:
        for row in stream(*arguments):
            seen.append(row)
            yield row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_stream", spy)
        yield seen


@pytest.fixture
def rows() -> Iterator[list[dict[str, Any]]]:
    """Every row that comes back from the cluster while the test runs."""
    with recorded() as seen:
        yield seen


@pytest.fixture(scope="module")
def module_rows() -> Callable[[], AbstractContextManager[list[dict[str, Any]]]]:
    """The same for module fixtures: ``with module_rows() as rows``."""
    return recorded


@pytest.fixture(scope="session")
def ray_actors() -> Callable[[], list[int]]:
    """ray_actors(): process ids of the Ray actors that this very process's cluster runs."""

    def parent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parent(pid)
        return pid == os.getpid()

    def found() -> list[int]:
        if not Path("/proc/self/cmdline").exists():
            pytest.skip("finds Ray's processes in /proc")
        actors = []
        for folder in Path("/proc").iterdir():
            try:
                # Idle workers are called ray::IDLE; Ray Data's actors after the operator they run.
                named = folder.name.isdigit() and b"ray::MapWorker" in (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if named and ours(int(folder.name)):
                actors.append(int(folder.name))
        return sorted(actors)

    return found


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
            opened, data, grey, Segmentation(str(output)), layout, threshold, threads=1, use_gpu=False, tta=tta,
            mask=open_mask(mask, opened) if mask else None,
        )  # fmt: skip
        job.output.create(layout, {"made_with": {}})
        worker = SegmentWorker(job, "float32")
        for block in range(layout.blocks.num_blocks):
            worker.write(block, worker.encode(block, worker.compute(block, worker.read(block))))
        return job

    return make


@pytest.fixture(scope="session")
def read_all() -> Callable[[Path | str], npt.NDArray[Any]]:
    """read_all(path): every voxel of a volume."""
    from unet_ray.geometry.box import Box
    from unet_ray.storage.volume import open_volume

    def read(path: Path | str) -> npt.NDArray[Any]:
        stored = open_volume(str(path))
        return stored.read(Box.of_shape(stored.shape))

    return read
