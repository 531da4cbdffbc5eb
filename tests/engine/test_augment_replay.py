"""One patch again, alone: from the cache's own record, the same bytes as the cache holds."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from unet_ray.config.augment import WEIGHTING, AugmentConfig
from unet_ray.config.recipe import RECIPES
from unet_ray.engine.augment_plan import prepare
from unet_ray.engine.augment_replay import replay
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.errors import CacheMismatchError, ConfigError, TargetError, VolumeError
from unet_ray.geometry.box import Box
from unet_ray.numerics.draw import Drawn
from unet_ray.numerics.phantom import phantom_block
from unet_ray.storage.patch_cache import Patch, PatchCache

ROOT = Path(__file__).resolve().parents[2]
# Of sections 0 to 4 of the first stack and 5 to 7 of the second.
TRAINING, HELD_OUT, EXCLUDED = (0, 2, 3, 5, 7), (1, 6), 4
VARIANTS = 6


def asked(folder: Path) -> dict[str, Any]:
    return {
        "images": (f"{folder}/images0.tif", f"{folder}/images1.tif"),
        "labels": (f"{folder}/labels0.tif", f"{folder}/labels1.tif"),
        "label_kind": "membrane",
        "seed": 3,
        "variants": VARIANTS,
        "for_preset": "paper",
        "patch_px": 68,
        "context_sections": 1,
        "patches_per_shard": 7,
        "validation_sections": tuple(str(n) for n in HELD_OUT),
        "exclude_sections": (str(EXCLUDED),),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, patches_by_plain_loop: Callable[..., PatchCache]) -> Path:
    """Two stacks of 8 and 16 bits, and a cache of theirs."""
    folder = tmp_path_factory.mktemp("replay")
    for stack, depth in enumerate((5, 3)):
        made = phantom_block(Box((20 * stack, 0, 0), (20 * stack + depth, 96, 112)), 4)
        image: npt.NDArray[Any] = made.image if stack == 0 else made.image.astype(np.uint16) * 200 + 500
        tifffile.imwrite(folder / f"images{stack}.tif", image, photometric="minisblack")
        tifffile.imwrite(folder / f"labels{stack}.tif", made.membrane * np.uint8(255), photometric="minisblack")
    patches_by_plain_loop(
        AugmentConfig(
            **asked(folder), recipe=RECIPES["default"], weighting=WEIGHTING["paper"], cache=str(folder / "cache")
        )
    )
    return folder


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "cache", tmp_path / "cache")
    return tmp_path / "cache"


def again(cache: Path, section: int, variant: int, out: Path, **more: Any) -> dict[str, Any]:
    return replay(AugmentConfig(cache=str(cache), replay=(section, variant), out=str(out), **more))


def test_every_patch_is_that_of_the_cache(folder: Path, tmp_path: Path) -> None:
    plan, _ = prepare(AugmentConfig(**asked(folder), recipe=RECIPES["default"], cache=str(tmp_path)))
    stored = PatchCache(str(folder / "cache"))
    for section, variant in ((0, 0), (3, 5), (5, 2), (7, 5)):
        out = tmp_path / f"{section}-{variant}.tif"
        summary = again(folder / "cache", section, variant, out)
        number = variant * len(TRAINING) + TRAINING.index(section)
        wanted = {"status": "complete", "patch": number, "section": section, "variant": variant, "in_cache": True}
        wanted |= {"equal": True, "out": str(out), "stack": int(section >= 5)}
        assert {key: summary[key] for key in wanted} == wanted
        patch = stored.read("train", number)
        with tifffile.TiffFile(out) as file:
            assert [series.name for series in file.series] == ["image", "label", "weight"]
            pages = [page.aspage() for page in file.pages]
            assert [page.tags["PageName"].value for page in pages] == [*3 * ["image"], "label", "weight"]
            image, label, weight = (series.asarray() for series in file.series)
            drawn = Drawn.model_validate_json(pages[0].description)
        assert image.shape == (3, 252, 252)
        assert (image.dtype, label.dtype, weight.dtype) == (np.uint8, np.uint8, np.float32)
        np.testing.assert_array_equal(image, patch.image)
        np.testing.assert_array_equal(label, patch.label)
        np.testing.assert_array_equal(weight, patch.weight)
        assert drawn == plan.drawn(number) == Drawn(**summary["drawn"])
        assert (drawn.stack, drawn.section) == ((0, section) if section < 5 else (1, section - 5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0.tif", "3-5.tif", "5-2.tif", "7-5.tif"]


def test_a_variant_that_the_cache_has_not(folder: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "p.tif"
    summary = again(cache, 2, VARIANTS, out)
    assert [summary[key] for key in ("status", "patch", "in_cache", "equal")] == ["complete", None, False, None]
    # It is the one that a larger cache would hold.
    plan, _ = prepare(
        AugmentConfig(**asked(folder) | {"variants": 9}, recipe=RECIPES["default"], cache=str(tmp_path / "c"))
    )
    made = AugmentWorker(PatchCache(str(tmp_path / "c")), plan).patch(plan.drawn(VARIANTS * len(TRAINING) + 1))
    np.testing.assert_array_equal(tifffile.imread(out, series=0), made.image)
    # Not done yet, in a cache that was interrupted.
    (cache / "train/image/c/0/0/0/0").unlink()
    summary = again(cache, 2, 0, out)
    assert [summary[key] for key in ("status", "patch", "in_cache", "equal")] == ["complete", 1, False, None]


@pytest.mark.parametrize("name", ["image", "label", "weight"])
def test_other_bytes_in_the_cache_are_told(cache: Path, tmp_path: Path, name: str, call: Callable[..., Any]) -> None:
    stored = PatchCache(str(cache))
    plan = stored.plan()
    patches = [stored.read("train", number) for number in plan.patches_of(1)]
    getattr(patches[2], name)[..., 5, 7] += 1
    stored.put(plan, "train", 1, Patch.stack(patches))
    flags = ["--cache", cache, "--replay", 7, 1, "--out", tmp_path / "p.tif"]  # patch 9 = 7 + 2
    code, out, err = call(*flags)
    assert code == 3
    summary = json.loads(out)
    assert [summary[key] for key in ("status", "patch", "in_cache", "equal")] == ["incomplete", 9, True, False]
    (line,) = err.splitlines()
    assert line.startswith(f"augment: {tmp_path}/p.tif was written, but its {name} differs from what cache {cache}")
    assert (tmp_path / "p.tif").exists()


def test_a_damaged_shard_is_told(cache: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    (cache / "train/weight/c/2/0/0").unlink()
    code, out, err = call("--cache", cache, "--replay", 7, 3, "--out", tmp_path / "p.tif")
    assert (code, json.loads(out)["equal"], (tmp_path / "p.tif").exists()) == (3, False, True)
    assert "was written, but train shard 2 of" in err
    assert "is damaged (its weight is missing); run its jobs/augment.py command again with --verify" in err


def test_moved_stacks_are_named_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    root = tmp_path / "moved" / "cache" / "zarr.json"
    root.write_text(root.read_text().replace(str(folder), str(tmp_path / "gone")))
    moved, out = tmp_path / "moved", tmp_path / "p.tif"
    with pytest.raises(VolumeError, match=r"gone/images0.tif.*name them with --images, --labels"):
        again(moved / "cache", 5, 1, out)
    given = {key: asked(moved)[key] for key in ("images", "labels")}
    assert again(moved / "cache", 5, 1, out, **given)["equal"] is True
    out.unlink()
    # A section that changed is refused, and so is its neighbour, which has it for context; others are not.
    changed = tifffile.imread(moved / "images0.tif")
    changed[2, 50, 50] ^= 1
    tifffile.imwrite(moved / "images0.tif", changed, photometric="minisblack")
    for section in (2, 3):
        with pytest.raises(CacheMismatchError, match=r"image of section 2 of .*made with"):
            again(moved / "cache", section, 1, out, **given)
    assert not out.exists()
    assert again(moved / "cache", 0, 1, out, **given)["equal"] is True


def test_the_job_starts_no_ray(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from jobs.augment import main; code = main(sys.argv[1:]); sys.exit(code + ('ray' in sys.modules))"
    )
    flags = ["--cache", folder / "cache", "--replay", 3, 4, "--out", tmp_path / "p.tif"]
    words = [sys.executable, "-c", program, *(str(flag) for flag in flags)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["equal"] is True


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """call(*flags): exit code, stdout and stderr of the job in this process."""
    sys.path.insert(0, str(ROOT))
    from jobs.augment import main

    sys.path.remove(str(ROOT))

    def run(*flags: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(flag) for flag in flags])
        return code, *capsys.readouterr()

    return run


def test_bad_input_is_one_sentence(folder: Path, cache: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    out = tmp_path / "p.tif"
    before = {path: path.read_bytes() for path in (*folder.rglob("*"), *cache.rglob("*")) if path.is_file()}

    def refused(words: str, *flags: object, cache: Path = cache) -> None:
        code, printed, err = call("--cache", cache, *flags)
        assert (code, printed) == (2, ""), err
        assert len(err.splitlines()) == 1
        assert words in err

    refused("go together", "--replay", 0, 0)
    refused("go together", "--out", out)
    refused("--replay and --overwrite exclude each other", "--replay", 0, 0, "--out", out, "--overwrite")
    refused("--replay and --verify exclude each other", "--replay", 0, 0, "--out", out, "--verify")
    refused("there is no patch cache at", "--replay", 0, 0, "--out", out, cache=tmp_path / "none")
    refused("is not a patch cache", "--replay", 0, 0, "--out", out, cache=folder)
    refused("asks for section 8, but the stacks of cache", "--replay", 8, 0, "--out", out)
    refused("is stored whole, for validation; name a training section", "--replay", 6, 0, "--out", out)
    refused("is excluded; name a training section", "--replay", EXCLUDED, 0, "--out", out)
    refused("is a folder; choose a file name in it", "--replay", 0, 0, "--out", tmp_path)
    refused("would replace an input", "--replay", 0, 0, "--out", folder / "images1.tif")
    refused("or lie in the cache", "--replay", 0, 0, "--out", cache / "p.tif")
    refused("a file is where a folder is needed", "--replay", 0, 0, "--out", folder / "images1.tif" / "p.tif")
    refused("was made with seed 3 (now 4); leave these settings out", "--replay", 0, 0, "--out", out, "--seed", 4)
    refused("recipe.rotation.probability", "--replay", 0, 0, "--out", out, "--recipe.rotation.probability", 0.123)
    refused("names 1 stacks but the cache was made with 2", "--replay", 0, 0, "--out", out, "--images", "a.tif")
    with pytest.raises(ConfigError, match="given variant -1"):
        again(cache, 0, -1, out)
    with pytest.raises(ConfigError, match="asks for section -1"):
        again(cache, -1, 0, out)
    with pytest.raises(TargetError, match="would replace an input"):
        again(cache, 0, 0, folder / "cache" / ".." / "labels0.tif")
    assert not out.exists()
    # The settings that it was made with may be given, and how many variants does not matter.
    flags = ["--seed", 3, "--patch-px", 68, "--for-preset", "paper", "--context-sections", 1, "--variants", 99]
    code, _, err = call("--cache", cache, "--replay", 0, 0, "--out", out, "--label-kind", "membrane", *flags)
    assert code == 0, err
    assert {path: path.read_bytes() for path in before} == before


def test_a_cache_that_cannot_be_trusted(cache: Path, tmp_path: Path) -> None:
    root, out = cache / "zarr.json", tmp_path / "p.tif"
    text = root.read_text()
    root.write_text(text.replace('"seed": 3', '"seed": 4'))
    with pytest.raises(CacheMismatchError, match="does not say any more what made it"):
        again(cache, 0, 0, out)
    document = json.loads(text)
    del document["attributes"]["unet_ray_patch_cache"]["sources"]
    root.write_text(json.dumps(document))
    with pytest.raises(
        VolumeError, match=r"does not say where its sections are; run its jobs/augment.py command again"
    ):
        again(cache, 0, 0, out)
