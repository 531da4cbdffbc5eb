"""Wrong input: exit code 2, one sentence on stderr, nothing started, nothing harmed."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

Job = Callable[..., Any]
Stack = Callable[..., Path]

# Whoever tried to join or start a cluster would fail otherwise than with exit code 2.
NO_CLUSTER = "no-such-host.invalid:1"


def assert_refused(ended: Any, program: str, *words: str) -> None:
    assert ended.code == 2, ended
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    (line,) = lines
    assert line.startswith(f"{program}: ")
    assert "Traceback" not in line
    assert len(line) < 400, (len(line), line)
    for word in words:
        assert word in line


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import unet_ray.engine  # noqa: F401  isort: skip  (sets Ray's environment before it is imported)
    import ray

    monkeypatch.setattr(ray, "init", lambda *a, **k: pytest.fail("a cluster was started"))


@pytest.fixture
def labels(stack: Stack) -> Path:
    values = np.zeros((3, 64, 72), np.uint8)
    values[:, ::8] = 255
    return stack("labels.tif", values)


@pytest.fixture
def augment(call_job: Job, stack: Stack, labels: Path, tmp_path: Path) -> Job:
    """augment(*flags): the job with good settings but for the flags; a later flag wins."""
    images = stack("images.tif")

    def call(*flags: object, images: Path = images, labels: Path = labels, cache: object = tmp_path / "c") -> Any:
        given = ["--images", images, "--labels", labels, "--cache", cache, "--label-kind", "membrane"]
        return call_job("augment", *given, "--patch-px", "32", *flags)

    return call


@pytest.fixture
def segment(call_job: Job, stack: Stack, model_file: Path, tmp_path: Path) -> Job:
    """segment(*flags): likewise."""
    volume = stack("volume.tif")

    def call(
        *flags: object, volume: Path = volume, model: Path = model_file, output: object = tmp_path / "o.zarr"
    ) -> Any:
        return call_job("segment", "--volume", volume, "--model", model, "--output", output, *flags)

    return call


def test_augment(augment: Job, stack: Stack, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.tif").write_text("no image at all")
    whole = (tmp_path / "images.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "file").write_text("x")
    ramp = np.arange(3 * 64 * 72, dtype=np.uint8).reshape(3, 64, 72)

    def refused(*words: str, flags: tuple[str, ...] = (), **given: Any) -> None:
        assert_refused(augment(*flags, **given), "augment", *words)

    refused("cannot find", "did you mean", images=tmp_path / "image.tif")
    refused("is not an image", "notes.tif", images=tmp_path / "notes.tif")
    refused("cut.tif", images=tmp_path / "cut.tif")
    refused("have shape (2, 64, 72)", "(3, 64, 72)", labels=stack("short.tif", np.zeros((2, 64, 72), np.uint8)))
    refused("256 different values", "--label-kind instances", labels=stack("ramp.tif", ramp))
    refused("hold no membrane", labels=stack("empty.tif", np.zeros((3, 64, 72), np.uint8)))
    refused("asks for section 4", flags=("--validation-sections", "1:5"))
    refused("4:", "--validation-sections", flags=("--validation-sections", "4:"))
    refused("no side that a keras network can make", "16 and 32", flags=("--for-preset", "keras", "--patch-px", "30"))
    refused("--varients", "--variants", flags=("--varients", "3"))
    refused("variants", "greater than or equal to 1", flags=("--variants", "0"))
    nan = np.full((3, 64, 72), np.nan, np.float32)
    refused("NaN", images=stack("nan.tif", nan))
    refused("file", "cannot be written", cache=tmp_path / "file" / "cache")
    pictures = tmp_path / "**" / "*.png"
    refused("would become a part of --images", flags=("--images", str(pictures)), cache=tmp_path / "new")
    assert (tmp_path / "file").read_text() == "x"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("x")
    refused("not a patch cache", "photo.jpg", cache=tmp_path / "mine")
    refused("not a patch cache", "photo.jpg", cache=tmp_path / "mine", flags=("--overwrite",))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["photo.jpg"]


def test_segment(segment: Job, stack: Stack, model_file: Path, class_model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "half.safetensors").write_bytes(model_file.read_bytes()[:5000])
    (tmp_path / "file").write_text("x")
    zarr.create_group(str(tmp_path / "other.zarr"))
    zarr.create_group(str(tmp_path / "empty.zarr"))

    def refused(*words: str, flags: tuple[str, ...] = (), **given: Any) -> None:
        assert_refused(segment(*flags, **given), "segment", *words)

    refused("cannot find", volume=tmp_path / "no.tif")
    refused("empty.zarr", volume=tmp_path / "empty.zarr")
    refused("no model file", model=tmp_path / "no.safetensors")
    refused("is a folder; give the model.safetensors", model=tmp_path)
    refused("not a model that unet_ray has saved", model=tmp_path / "foreign.safetensors")
    refused("half.safetensors", model=tmp_path / "half.safetensors")
    refused("not a model that unet_ray has saved", model=tmp_path / "volume.tif")
    refused("not a multiple of the pooling factor 4", "28 and 32", flags=("--tile-px", "30"))
    refused("asks for section 7", "the volume has 3", flags=("--sections", "1", "5:8"))
    refused("uint16", "--normalise volume", volume=stack("wide.tif", np.zeros((1, 8, 8), np.uint16)))
    refused("cannot be written", output=tmp_path / "file")
    refused("zarr but not a segmentation", output=tmp_path / "other.zarr")
    refused("threshold", "less than 1", flags=("--threshold", "1.5"))
    refused("cannot find", "no.tif", flags=("--mask", f"{tmp_path}/no.tif"))
    (tmp_path / "notes.tif").write_text("no image at all")
    refused("is not an image", "notes.tif", flags=("--mask", f"{tmp_path}/notes.tif"))
    for name, shape, *words in (
        ("larger.tif", (3, 64, 73), "no whole factor makes 73 of 72 voxels along x"),
        ("odd.tif", (3, 50, 72), "no whole factor makes 50 of 64 voxels along y"),
        ("short.tif", (4, 64, 72), "no whole factor makes 4 of 3 voxels along z"),
        ("coarse.tif", (3, 64, 8), "along x", "a factor of 9 as well as of 10"),
    ):
        mask = stack(name, np.ones(shape, np.uint8))
        refused(name, str(shape), "(3, 64, 72)", *words, flags=("--mask", str(mask)))
    refused("leave --threshold out", "3 classes", flags=("--threshold", "0.4"), model=class_model_file)
    challenge = ("--tiff-format", "challenge", "--tiff", f"{tmp_path}/m.tif")
    refused("that of --probability-tiff", "leave --tiff-format out", flags=challenge)
    challenge += ("--probability-tiff", f"{tmp_path}/p.tif")
    refused("leave it out", "3 classes", flags=challenge, model=class_model_file)
    raw, weights = (tmp_path / "volume.tif").read_bytes(), model_file.read_bytes()
    refused("--tiff", "would replace --volume", flags=("--tiff", f"{tmp_path}/./volume.tif"))
    refused("would replace --mask", flags=("--mask", str(mask), "--tiff", str(mask)))
    refused("would replace --model", flags=("--probability-tiff", str(model_file)))
    refused("in the way of output", flags=("--tiff", f"{tmp_path}/o.zarr/0/mask.tif"))
    refused("--tiff", "new/ is a folder", flags=("--tiff", f"{tmp_path}/new/"))
    refused("local file", flags=("--probability-tiff", "s3://bucket/p.tif"))
    refused("--tiff and --probability-tiff", flags=("--tiff", "a.tif", "--probability-tiff", "./a.tif"))
    zarr.create_array(str(tmp_path / "volume.zarr"), shape=(3, 64, 72), dtype="u1")
    inside = tmp_path / "volume.zarr" / "o.zarr"
    refused("--output", "would become a part of --volume", volume=tmp_path / "volume.zarr", output=inside)
    assert not inside.exists()
    assert (raw, weights) == ((tmp_path / "volume.tif").read_bytes(), model_file.read_bytes())
    assert not (tmp_path / "o.zarr").exists()
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_that_may_not_be_read(segment: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, opened = tmp_path / "locked" / "o.zarr", os.open

    def refuse(path: Any, *how: Any, **where: Any) -> int:
        if isinstance(path, str | Path) and Path(path).is_relative_to(output):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *how, **where)

    monkeypatch.setattr(os, "open", refuse)
    assert_refused(segment(output=output), "segment", f"{output}/zarr.json cannot be read (Permission denied); check")


def test_evaluate(call_job: Job, stack: Stack, labels: Path, tmp_path: Path) -> None:
    good = stack("prediction.tif", np.zeros((3, 64, 72), np.uint8))
    (tmp_path / "file").write_text("x")

    def refused(*words: str, flags: tuple[object, ...] = (), prediction: Path = good, labels: Path = labels) -> None:
        ended = call_job("evaluate", "--prediction", prediction, "--labels", labels, *flags)
        assert_refused(ended, "evaluate", *words)

    refused("cannot find", prediction=tmp_path / "no.tif")
    refused("(2, 64, 72)", "(3, 64, 72)", prediction=stack("short.tif", np.zeros((2, 64, 72), np.uint8)))
    refused("asks for section 4", flags=("--sections", "4"))
    refused("cannot be written", flags=("--report", tmp_path / "file" / "report"))
    refused("--images", flags=("--images", stack("small.tif", np.zeros((3, 8, 8), np.uint8))))
    refused("cannot find", flags=("--prediction", good, tmp_path / "no.tif"))
    refused("short.tif has shape (2, 64, 72)", flags=("--prediction", good, tmp_path / "short.tif"))
    refused(
        "--prediction-kind is given 2 times for 3 predictions",
        flags=("--prediction", good, good, good, "--prediction-kind", "membrane", "interior"),
    )
    refused("no model file", flags=("--model", tmp_path / "no.safetensors"))
    refused("is not a model", flags=("--model", good))
    refused("bootstrap", "greater than or equal to 0", flags=("--bootstrap", "-1"))
    refused("bootstrap", "less than or equal to 1000000", flags=("--bootstrap", "99999999999"))
    # Its pictures would be sections from then on.
    for z in range(3):
        Image.fromarray(np.zeros((64, 72), np.uint8)).save(tmp_path / f"{z}.png")
    pictures = f"{tmp_path}/*.png"
    for given, flag, target in (
        ({"labels": Path(pictures)}, "--labels", tmp_path),
        ({"prediction": Path(pictures)}, "--prediction", f"{tmp_path}/."),
        ({"flags": ("--images", pictures)}, "--images", tmp_path),
        ({"flags": ("--ignore-masks", pictures)}, "--ignore-masks", tmp_path),
    ):
        flags = (*given.pop("flags", ()), "--report", target)
        refused(f"would become a part of {flag}", flags=flags, **given)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_train(call_job: Job, labels: Path, tmp_path: Path) -> None:
    given = ["--cache", tmp_path / "cache", "--run", tmp_path / "run"]
    assert_refused(call_job("train", *given), "train", "no patch cache", "jobs/augment.py")
    for target, *words in (
        (tmp_path, "is a folder; choose a file name in it", "model.onnx"),
        (f"{tmp_path}/new/", "is a folder"),
        (labels / "model.onnx", "is a file"),
        (tmp_path / "run" / "model.safetensors", "might replace a part of --run", ".onnx"),
    ):
        assert_refused(call_job("train", *given, "--export-onnx", target), "train", "--export-onnx", *words)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.txt").write_text("x")
    assert_refused(call_job("train", *given), "train", "not a patch cache")
    assert_refused(call_job("train", "--run", "r"), "train", "--cache")


def test_pipeline(call_job: Job, stack: Stack, labels: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"

    def refused(*words: str, flags: tuple[object, ...] = ()) -> None:
        assert_refused(call_job("pipeline", "--config", config, "--output", tmp_path / "p", *flags), "pipeline", *words)

    config.write_text("augment:\n  variant: 3\n")
    refused("unknown key augment.variant", "variants")
    config.write_text("augment: [1\n")
    refused("is not YAML")
    config.write_text("- a\n")
    refused("holds a list")
    config.write_text("train:\n  epochs: many\n")
    refused("epochs", "many")
    config.write_text("{}\n")
    refused("--mask is for --volume", "give --volume", flags=("--mask", labels))
    refused("--images and --labels go together", flags=("--images", labels))
    refused("is a folder; choose a file name", flags=("--tiff", tmp_path))
    refused("in the way of output", flags=("--tiff", tmp_path / "p" / "run" / "mask.tif"))
    given = ("--images", stack("i.tif"), "--labels", labels)
    others = [(f"--{name}", stack(f"{name}.tif")) for name in ("ignore-masks", "volume", "mask")]
    for flag, path in (*zip(given[::2], given[1::2], strict=True), *others):
        everything = (*given, *(word for pair in others for word in pair))
        refused("--tiff", f"would replace {flag}", flags=(*everything, "--tiff", path))
    refused("no membrane", "one after the other", flags=("--augment.label-kind", "classes"))
    refused("no sections are set apart", flags=given)
    refused("no validation sections are named", flags=(*given, "--augment.exclude-sections", "2"))
    # What a later stage would refuse, hours later.
    given += ("--augment.validation-sections", "2", "--augment.patch-px", "32")
    refused("(2, 64, 72)", "(3, 64, 72)", flags=(*given, "--labels", stack("s.tif", np.zeros((2, 64, 72), np.uint8))))
    refused("cannot find", "no.tif", flags=(*given, "--volume", tmp_path / "no.tif"))
    refused("cannot find", "no.tif", flags=(*given, "--volume", labels, "--mask", tmp_path / "no.tif"))
    refused(
        "patches of 24 px", "16 and 32", "--depth", flags=(*given, "--train.depth", "5", "--augment.patch-px", "24")
    )
    refused("margin of 0 px", "paper", flags=(*given, "--train.preset", "paper", "--augment.for-preset", "keras"))
    refused("tile side 30 is not a multiple", flags=(*given, "--segment.tile-px", "30"))
    assert_refused(call_job("pipeline", "--config", tmp_path / "no.yaml"), "pipeline", "cannot be read")
    deep = ("--images", f"{tmp_path}/**/*.png", "--labels", labels)
    refused("--output", "would become a part of --images", flags=deep)
    assert not (tmp_path / "p").exists()
    # What a later stage would find in its place.
    for name, said in (
        ("cache.zarr", "is not a patch cache (it holds photo.jpg)"),
        ("run", "is not a run directory (it holds photo.jpg)"),
        ("segmentation.zarr", "is not a segmentation (it holds photo.jpg)"),
        ("scored.zarr", "is not a segmentation (it holds photo.jpg)"),
    ):
        (tmp_path / "p" / name).mkdir(parents=True)
        (tmp_path / "p" / name / "photo.jpg").write_text("x")
        for flags in ((), ("--overwrite",)):
            refused(name, said, flags=flags)
        shutil.rmtree(tmp_path / "p")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "report").write_text("x")
    refused("report cannot be written", "a file is where a folder is needed")
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["report"]


@pytest.mark.parametrize(
    ("job", "flags", "words"),
    [
        ("augment", ["--images", "no.tif", "--labels", "no.tif", "--cache", "c"], ["cannot find no.tif"]),
        ("segment", ["--volume", "MODEL", "--model", "MODEL", "--output", "o.zarr"], ["is not an image"]),
        ("segment", ["--volume", "STACK", "--model", "STACK", "--output", "o.zarr"], ["is not a model"]),
        ("segment", ["--volume", "STACK", "--model", "MODEL", "--output", "STACK"], ["cannot be written"]),
        ("evaluate", ["--prediction", "STACK", "--labels", "STACK", "--sections", "9"], ["asks for section 9"]),
        ("train", ["--cache", "no", "--run", "r", "--epocs", "3"], ["--epocs", "--epochs"]),
        ("pipeline", ["--config", "no.yaml"], ["no.yaml cannot be read"]),
    ],
)
def test_processes(job: str, flags: list[str], words: list[str], run_job: Job, stack: Stack, model_file: Path) -> None:
    named = {"MODEL": str(model_file), "STACK": str(stack("stack.tif"))}
    ended = run_job(job, *(named.get(flag, flag) for flag in flags), RAY_ADDRESS=NO_CLUSTER)
    assert_refused(ended, job, *words)
