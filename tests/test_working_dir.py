"""What `ray job submit --working-dir .` sends to the cluster: the code and settings, never data or runs."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The code alone is 1 MB, as it is sent: what else lay in a checkout was twice that.
MOST_BYTES = 1_500_000


def sent(folder: Path, package: Path) -> dict[str, int]:
    """Files that Ray would send, and their compressed bytes."""
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    constants = pytest.importorskip("ray._private.ray_constants")
    excludes = constants.get_runtime_env_default_excludes()
    packaging.create_package(str(folder), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as opened:
        return {info.filename: info.compress_size for info in opened.infolist()}


def test_the_checkout_is_small_and_whole(tmp_path: Path) -> None:
    found = sent(ROOT, tmp_path / "package.zip")
    assert sum(found.values()) < MOST_BYTES
    assert {path.partition("/")[0] for path in found if "/" in path} == {"unet_ray", "jobs"}
    modules = {str(path.relative_to(ROOT)) for place in ("unet_ray", "jobs") for path in (ROOT / place).rglob("*.py")}
    assert modules <= found.keys()


def test_data_and_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkout"
    stay = [
        "stack.tif", "patches.zarr/train/image/c/0/0/0/0", "run/model.safetensors", "runs/a/checkpoints/0/state.pt",
        "data/raw.mrc", "demo/report/sections.png", "model.safetensors", "tests/test_x.py", ".venv/lib/x.py",
        ".git/objects/pack/x.pack",
    ]  # fmt: skip
    go = ["unet_ray/engine/segment.py", "jobs/segment.py", "isbi2012.yaml"]
    for name in stay + go:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    # A zarr may have a million files: its folder must not even be looked into.
    looked: list[str] = []
    iterate = Path.iterdir

    def spy(path: Path) -> object:
        looked.append(os.path.relpath(path, folder))
        return iterate(path)

    monkeypatch.setattr(Path, "iterdir", spy)
    assert sent(folder, tmp_path / "package.zip").keys() == set(go)
    assert set(looked) == {".", "unet_ray", "unet_ray/engine", "jobs"}
