"""Small inputs for the engines, and what tells of a run what it did."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from tests.engine.augment_inputs import Inputs, Write, grid, noise
from unet_ray.config.recipe import Recipe


@pytest.fixture(scope="session")
def phantom_image() -> Callable[..., npt.NDArray[np.uint8]]:
    """phantom_image(shape, seed=0): grey levels of the phantom."""
    from unet_ray.geometry.box import Box
    from unet_ray.numerics.phantom import phantom_block

    return lambda shape, seed=0: phantom_block(Box.of_shape(shape), seed).image


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
def read_all() -> Callable[[Path | str], npt.NDArray[Any]]:
    """read_all(path): every voxel of a volume."""
    from unet_ray.geometry.box import Box
    from unet_ray.storage.volume import open_volume

    def read(path: Path | str) -> npt.NDArray[Any]:
        stored = open_volume(str(path))
        return stored.read(Box.of_shape(stored.shape))

    return read


@pytest.fixture
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """write(values, name="stack.tif") -> path of a TIFF in a new folder."""

    def to(values: Any, name: str = "stack.tif") -> str:
        path = tmp_path_factory.mktemp("inputs") / name
        tifffile.imwrite(path, np.asarray(values), photometric="minisblack")
        return str(path)

    return to


@pytest.fixture
def inputs(write: Write) -> Inputs:
    """inputs(image, label, mask, **settings): settings of a small job on one stack."""

    def of(image: Any = None, label: Any = None, mask: Any = None, **settings: Any) -> dict[str, Any]:
        image = noise() if image is None else image
        label = grid(shape=image.shape) if label is None else label
        masks = {} if mask is None else {"ignore_masks": (write(mask, "mask.tif"),)}
        paths = {"images": (write(image, "raw.tif"),), "labels": (write(label, "labels.tif"),)}
        return {
            **paths, **masks, "label_kind": "membrane", "patch_px": 32, "variants": 2, "patches_per_shard": 4,
            "recipe": Recipe(), "cache": "unused", **settings,
        }  # fmt: skip

    return of


@pytest.fixture
def several(write: Write) -> dict[str, Any]:
    """An 8-bit, a 16-bit and a float stack, each of its own sides; the float one has a damaged last section."""
    images = [
        noise(shape=(3, 40, 48)),
        noise("uint16", seed=1, shape=(2, 33, 64)) * 100 + 5000,
        noise("float32", seed=2, shape=(4, 56, 36)) - 1e4,
    ]
    images[2][3, 0, 0] = np.nan
    return {
        "images": tuple(write(image, f"raw{n}.tif") for n, image in enumerate(images)),
        "labels": tuple(write(grid(shape=image.shape), "labels.tif") for image in images),
        "label_kind": "membrane",
        "patch_px": 32,
        "variants": 3,
        "patches_per_shard": 4,
        "recipe": Recipe(),
        "validation_sections": ("5", "7"),
        "exclude_sections": ("8",),
        "cache": "unused",
    }


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache to train on, as all tests leave it."""
    from tests.engine.training import make_cache

    return make_cache(str(tmp_path_factory.mktemp("train") / "cache.zarr"))


@pytest.fixture(scope="session")
def finished(cache: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of one worker that nobody disturbed."""
    from tests.engine.training import config
    from unet_ray.engine.train import train

    run = tmp_path_factory.mktemp("runs") / "one"
    return run, train(config(cache, run))
