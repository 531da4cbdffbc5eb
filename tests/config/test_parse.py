"""Flags over YAML, the five jobs' configs, and what is refused, in one sentence each."""

import os

import pytest
import yaml

from unet_ray.config.augment import WEIGHTING, AugmentConfig
from unet_ray.config.evaluate import EvaluateConfig
from unet_ray.config.parse import parse, to_yaml
from unet_ray.config.pipeline import DEMO_AUGMENT, DEMO_TRAIN, PipelineConfig
from unet_ray.config.recipe import RECIPES, WeightMap
from unet_ray.config.segment import SegmentConfig
from unet_ray.config.train import PRESET_TRAINING, TrainConfig
from unet_ray.errors import ConfigError

AUGMENT = ["--images", "a.tif", "b.tif", "--labels", "c.tif", "d.tif", "--cache", "cache.zarr"]
TRAIN = ["--cache", "cache.zarr", "--run", "run"]
SEGMENT = ["--volume", "v.tif", "--model", "model.safetensors", "--output", "out.zarr"]
EVALUATE = ["--prediction", "p.zarr", "--labels", "l.tif"]


def written(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def segment(*flags):
    return parse(SegmentConfig, [*SEGMENT, *flags], "segment")


def test_flags_of_every_shape():
    config = segment(
        "--tile-px", "384", "--threshold=0.25", "--sections", "4:30:5", "0", "--use-gpu", "--no-verify",
        "--workers", "3",
    )  # fmt: skip
    assert (config.tile_px, config.threshold, config.sections) == (384, 0.25, ("4:30:5", "0"))
    assert (config.use_gpu, config.verify, config.workers) == (True, False, 3)
    changed = {"tile_px", "threshold", "sections", "use_gpu", "workers"}
    assert config.model_dump(exclude=changed) == segment().model_dump(exclude=changed)


def test_nested_flags_replace_single_settings_of_the_recipe():
    flags = ["--recipe.rotation.degrees", "-20", "5", "--weighting.class-balance"]
    config = parse(AugmentConfig, [*AUGMENT, *flags], "augment")
    assert config.recipe.rotation.degrees == (-20.0, 5.0)
    assert config.recipe.rotation.probability == RECIPES["default"].rotation.probability
    assert config.recipe.model_copy(update={"rotation": RECIPES["default"].rotation}) == RECIPES["default"]
    assert (config.weighting.class_balance, config.weighting.border_weight) == (
        True,
        WEIGHTING["default"].border_weight,
    )


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = written(
        tmp_path,
        "volume: v.tif\nmodel: m\noutput: o\nthreshold: 0.25\nsections: [3, '5:9']\nuse_gpu: true\nverify: true\n"
        "tile_px: auto\nworkers: null\n",
    )
    config = parse(SegmentConfig, ["--threshold", "0.75", *file, "--no-use-gpu", "--sections", "8"], "segment")
    assert (config.volume, config.threshold, config.sections) == ("v.tif", 0.75, ("8",))
    assert (config.use_gpu, config.verify, config.tile_px, config.workers) == (False, True, "auto", None)


def test_nested_keys_of_the_file(tmp_path):
    file = written(
        tmp_path,
        "images: [i.tif]\nlabels: l.tif\ncache: c\nrecipe:\n  elastic: {alpha: [1, 2.5], probability: 1}\n"
        "weighting:\n  class_balance: true\n",
    )
    config = parse(AugmentConfig, [*file, "--recipe.elastic.probability", "0.5"], "augment")
    assert (config.images, config.labels) == (("i.tif",), ("l.tif",))
    assert (config.recipe.elastic.alpha, config.recipe.elastic.probability) == ((1.0, 2.5), 0.5)
    assert config.weighting.class_balance is True
    assert config.recipe.elastic.sigma_px == RECIPES["default"].elastic.sigma_px


@pytest.mark.parametrize("preset", PRESET_TRAINING)
def test_a_preset_sets_its_recipe_and_an_explicit_flag_wins(preset, tmp_path):
    config = parse(TrainConfig, [*TRAIN, "--preset", preset], "train")
    assert {key: getattr(config, key) for key in PRESET_TRAINING[preset]} == PRESET_TRAINING[preset]
    # Explicit values win even where they are the general default, from flags and from the file.
    general = PRESET_TRAINING["default"]
    flags = ["--epochs", str(general["epochs"]), "--optimizer", general["optimizer"], "--preset", preset]
    config = parse(TrainConfig, [*TRAIN, *flags], "train")
    assert (config.epochs, config.optimizer) == (general["epochs"], general["optimizer"])
    assert config.batch_size == PRESET_TRAINING[preset]["batch_size"]
    file = written(tmp_path, f"preset: {preset}\nbatch_size: 7\n")
    assert parse(TrainConfig, [*TRAIN, *file], "train").batch_size == 7


def test_a_recipe_and_a_preset_of_augmentation():
    flags = ["--recipe-name", "paper", "--for-preset", "paper", "--recipe.contrast.factor", "0.5", "0.6"]
    config = parse(AugmentConfig, [*AUGMENT, *flags], "augment")
    assert config.recipe.coarse_elastic == RECIPES["paper"].coarse_elastic
    assert (config.recipe.contrast.factor, config.patch_px) == ((0.5, 0.6), 388)
    assert config.weighting == WeightMap()  # the paper's numbers
    assert parse(AugmentConfig, [*AUGMENT, "--for-preset", "paper", "--patch-px", "372"], "augment").patch_px == 372


def test_the_pipelines_patches_are_made_for_its_network():
    for data in ([], ["--images", "i.tif", "--labels", "l.tif"]):
        config = parse(PipelineConfig, [*data, "--train.preset", "paper", "--train.batch-size", "3"], "pipeline")
        assert (config.augment.for_preset, config.augment.patch_px) == ("paper", 388)
        assert (config.train.optimizer, config.train.batch_size) == ("sgd", 3)


def test_the_demo_is_the_pipeline_without_data():
    demo = parse(PipelineConfig, [], "pipeline")
    assert {key: getattr(demo.augment, key) for key in DEMO_AUGMENT} == DEMO_AUGMENT
    assert {key: getattr(demo.train, key) for key in DEMO_TRAIN} == DEMO_TRAIN
    assert parse(PipelineConfig, ["--train.epochs", "5"], "pipeline").train.epochs == 5
    real = parse(PipelineConfig, ["--images", "i.tif", "--labels", "l.tif"], "pipeline")
    assert (real.augment.label_kind, real.train.base_channels, real.train.epochs) == ("interior", None, 10)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (AugmentConfig, [*AUGMENT, "--recipe-name", "notebook", "--validation-sections", "4", "9:12", "--overwrite"]),
        (TrainConfig, [*TRAIN, "--preset", "keras", "--no-random-dihedral", "--depth", "3", "--learning-rate", "3e-7"]),
        (SegmentConfig, [*SEGMENT, "--sections", "0", "--tiff", "o.tif", "--precision", "bfloat16", "--verify"]),
        (EvaluateConfig, [*EVALUATE, "--report", "ue: b#r", "--sections", "4:30:5"]),
        (PipelineConfig, []),
        (PipelineConfig, ["--images", "i", "--labels", "l", "--train.preset", "paper", "--augment.ignore-label", "0"]),
    ],
)
def test_what_print_config_prints_gives_the_same_settings(kind, flags, capsys, tmp_path):
    expected = parse(kind, flags, "job")
    with pytest.raises(SystemExit) as left:
        parse(kind, [*flags, "--print-config"], "job")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed == to_yaml(expected)
    assert set(yaml.safe_load(printed)) == set(kind.model_fields)
    assert parse(kind, written(tmp_path, printed), "job") == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--treshold", "0.4"], "--treshold is not an option of segment; the nearest option is --threshold"),
        (["--no-verfy"], "--no-verfy is not an option of segment; the nearest option is --no-verify"),
        (["--zzzz=1"], "--zzzz is not an option of segment; see --help for every option"),
        (["--threshold", "1.5"], "--threshold was given 1.5: .* less than 1; see --help"),
        (["--threshold", "nan"], "--threshold was given nan: .* finite"),
        (["--threshold", "high"], "--threshold: could not convert string to float: 'high'"),
        (["--threshold"], "Missing value for argument '--threshold'"),
        (["--tile-px", "0"], "--tile-px was given 0: .* greater than or equal to 1"),
        (["--tile-px", "big"], r"--tile-px: .*INT\|\{auto\}.*'big'\]; see"),
        (["--precision", "float16"], "'float16' for argument '--precision'. Expected one of .*'bfloat16'"),
        (["--workers", "2", "3"], "segment was given '3', which no option takes"),
        (["--workers-per-gpu", "2"], "workers_per_gpu 2 has no effect without a GPU; add --use-gpu, or .* --workers"),
        (["--config"], "--config was given no file"),
        (["--config", "--verify"], "--config was given no file"),
        (["--config", "a.yaml", "--config=b.yaml"], "--config was given twice, a.yaml and b.yaml; put what both say"),
        (["--config", "/nowhere/c.yaml"], r"--config /nowhere/c.yaml cannot be read \(No such file or directory\)"),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags, said):
    with pytest.raises(ConfigError, match=f"^.{{0,60}}{said}") as refused:
        segment(*flags)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3:/bucket/o.zarr", "a URL has two slashes after its first word; write s3://bucket/o.zarr; see"),
        ("gs:bucket/o.zarr", ".*write gs://bucket/o.zarr; see"),
        ("file:/data/o.zarr", ".*write file:///data/o.zarr; see"),
        ("s3://", "the URL names no bucket"),
        ("s3:///o.zarr", "the URL names no bucket"),
        ("http://h/o.zarr", "http:// is read and written by nothing here; give a local path, or s3://, gs:// or az://"),
        ("HTTPS://h/o.zarr", "HTTPS:// is read"),
        ("ftp:///o.zarr", "ftp:// is read"),
        ("", "it names no place; give a path or a URL, and look whether a variable in it is set"),
    ],
)
def test_a_place_that_nobody_means_is_refused(place, said):
    with pytest.raises(ConfigError, match=f"^--output was given '{place}': {said}"):
        segment("--output", place)
    with pytest.raises(ConfigError, match=f"^--images was given '{place}': {said}"):
        parse(AugmentConfig, [*AUGMENT, "--images", "a.tif", place], "augment")


@pytest.mark.parametrize(
    "place", ["s3://bucket/o.zarr", "file:///data/o", "C:/o.zarr", "./s3:/o", "a:b/o", "./http://h/o", "az://c/o"]
)
def test_other_places_stay_as_they_are(place):
    assert segment("--output", place, "--tiff", place).output == place


def test_a_home_folder_is_one_wherever_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/lab")
    config = segment(*written(tmp_path, "mask: ~/mask.tif\n"), "--output=~/o.zarr")
    assert (config.mask, config.output) == ("/home/lab/mask.tif", "/home/lab/o.zarr")
    images = parse(AugmentConfig, [*AUGMENT, "--images", "~/a/*.png", "b~.tif"], "augment").images
    assert images == ("/home/lab/a/*.png", "b~.tif")


@pytest.mark.parametrize("sides", [("0", "64", "64"), ("16", "-1", "64"), ("16", "64", "1000001")])
def test_a_phantom_has_voxels_and_not_too_many(sides):
    with pytest.raises(ConfigError, match=r"^--phantom\.shape was given (0|-1|1000001): .* than or equal to"):
        parse(PipelineConfig, ["--phantom.shape", *sides], "pipeline")


def test_a_misspelt_required_option_is_named_and_not_called_missing():
    with pytest.raises(ConfigError, match="--volum is not an option of segment; the nearest option is --volume"):
        parse(SegmentConfig, ["--volum", *SEGMENT[1:]], "segment")


def test_every_missing_option_is_named():
    with pytest.raises(ConfigError, match="segment was not given --model and --output; see --help"):
        parse(SegmentConfig, SEGMENT[:2], "segment")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--variants", "1000001"], "^--variants was given 1000001: .* less than or equal to 1000000"),
        (["--patch-px", "1000000"], "^--patch-px was given 1000000: .* less than or equal to 16384"),
        (["--recipe.rotaton.degrees", "1", "2"], "the nearest option is --recipe.rotation.degrees"),
        (["--recipe.rotation.degrees", "20", "-20"], r"^--recipe.rotation.degrees was given .*20 to -20 is empty"),
        (["--recipe.uniform-noise.low", "-5", "5"], "^--recipe.uniform-noise: low may reach 5, above the least high"),
        (["--recipe.uniform-noise.probability", "0.9"], "^--recipe: gaussian_noise and uniform_noise exclude each"),
    ],
)
def test_a_wrong_nested_flag_is_named_whole(flags, said):
    with pytest.raises(ConfigError, match=said):
        parse(AugmentConfig, [*AUGMENT, *flags], "augment")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("treshold: 0.4", "has the unknown key treshold; the nearest key is threshold"),
        ("tile-px: 384", "has the unknown key tile-px; the nearest key is tile_px"),
        ("17: 4", "has the unknown key 17; see --help for every key"),
        ("threshold: 1.5", "--threshold was given 1.5"),
        ("threshold: {a: 1}", r"gives threshold \{'a': '1'\}; it takes a value$"),
        ("threshold: [0.3, 0.4]", r"gives threshold \['0.3', '0.4'\]; it takes a value$"),
        ("threshold:", "gives threshold nothing; it takes a value$"),
        ("output:", "gives output nothing; it takes a value$"),
        ("sections: null", "gives sections nothing; it takes a value or a list$"),
        ("use_gpu: maybe", "gives use_gpu maybe; it takes true or false$"),
        ("use_gpu: 1", "gives use_gpu 1; it takes true or false$"),
        ("tta: no", "gives tta false; it takes a value, and a word such as no or on only in quotes$"),
        ("threads: true", "gives threads true; it takes a value, and a word"),
        ("- threshold", "holds a list; it must hold keys and values"),
        ("threshold: 1\ntta: none\nthreshold: 2", "is not YAML .the key threshold is there twice .*line 3, column 1"),
        ("threshold: [", r"is not YAML \(.*line 1.*\); mend the file"),
        ("a: !!python/object/apply:os.system [exit]", r"is not YAML \(could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_one_sentence(text, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as refused:
        segment(*written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_file_that_may_never_end_is_refused_and_one_that_a_shell_hands_over_is_read(tmp_path, make_pipe):
    make_pipe(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ConfigError, match=f"^--config {path} is a pipe or a device and no file; save what"):
            segment("--config", str(path))
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write("threshold: 0.25")
    assert segment("--config", f"/dev/fd/{reader}").threshold == 0.25
    os.close(reader)


def test_sections_of_the_file_need_no_quotes(tmp_path):
    # In YAML 1.1 these are numbers to the base of sixty: 63, 16205 and 30.
    file = written(tmp_path, "sections: [1:3, 4:30:5, 030]\nroi: 1:2,0:8,8:9\nthreshold: .5\ntile_px: 1_024\n")
    config = segment(*file)
    assert config.sections == ("1:3", "4:30:5", "030")
    assert (config.roi, config.threshold, config.tile_px) == ("1:2,0:8,8:9", 0.5, 1024)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 3}", "has the unknown key train.epoch; the nearest key is epochs"),
        ("train: 3", "gives train 3; it takes keys and values below it"),
    ],
)
def test_wrong_nested_keys(text, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        parse(PipelineConfig, written(tmp_path, text), "pipeline")


def test_an_empty_file_says_nothing(tmp_path):
    assert segment(*written(tmp_path, "# nothing\n")) == segment()


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        (SegmentConfig, [*SEGMENT, "--tiles-at-once", "1000000000000"], "--tiles-at-once .*1000000000000"),
        (TrainConfig, [*TRAIN, "--batch-size", "1000000000000"], "--batch-size was given .* less"),
    ],
)
def test_more_than_any_memory_holds_is_refused(kind, flags, said):
    with pytest.raises(ConfigError, match=said):
        parse(kind, flags, "job")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        segment().threshold = 0.1
