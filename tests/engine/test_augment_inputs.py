"""What the augment job takes: label kinds, masks, stacks of several sizes and dtypes."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from tests.engine.augment_inputs import DEPTH, HEIGHT, WIDTH, Inputs, Write, grid, noise, patches, planned
from unet_ray.config.augment import AugmentConfig
from unet_ray.config.recipe import RECIPES, WeightMap
from unet_ray.config.train import TrainConfig
from unet_ray.engine.augment_plan import from_cache, prepare
from unet_ray.engine.augment_worker import AugmentWorker
from unet_ray.engine.labelled_stacks import SectionPlace
from unet_ray.engine.train_request import require_network
from unet_ray.errors import CacheMismatchError, ConfigError, VolumeError
from unet_ray.numerics.weight_map import class_weights
from unet_ray.storage.patch_cache import PatchCache


def attributes(asked: dict[str, Any]) -> dict[str, Any]:
    """What a cache of these inputs says of itself, after its way through JSON."""
    plan, made_with = prepare(AugmentConfig(**asked))
    sides = {name: getattr(plan.cache, name) for name in type(plan.cache).__slots__}
    found: dict[str, Any] = json.loads(json.dumps({"plan": sides, "made_with": made_with, "sources": plan.sources()}))
    return found


# Label kinds


def test_classes_are_balanced_and_have_no_borders(inputs: Inputs) -> None:
    label = np.zeros((DEPTH, HEIGHT, WIDTH), np.uint8)
    label[:, :, 8:20], label[:2, 30:] = 1, 3  # 2 is a gap
    label[3] = 9  # not used, so it counts for nothing
    asked = inputs(
        label=label, label_kind="classes", validation_sections=("1",), exclude_sections=("3",), ignore_label=1,
        recipe=RECIPES["default"], weighting=WeightMap(),
    )  # fmt: skip
    plan, made_with = prepare(AugmentConfig(**asked))
    counts = [np.count_nonzero(label[[0, 2]] == index) for index in range(4)]
    counts[1] = 0
    assert made_with["classes"] == 4
    assert plan.class_weights == class_weights(counts, WeightMap())
    assert made_with["weighting"]["border_weight"] == 0
    training, held_out = patches(plan)
    balance = np.asarray(plan.class_weights).astype(np.float16)
    assert set(np.unique(training.label)) == {0, 3}
    # Of the ignored pixels, which read as class 0, weight 0 alone is left; all others weigh what their class does.
    assert ((training.weight == balance[training.label]) | ((training.weight == 0) & (training.label == 0))).all()
    assert (training.weight == 0).any()
    np.testing.assert_array_equal(held_out.label[0], np.where(label[1] == 1, 0, label[1]))
    np.testing.assert_array_equal(held_out.weight[0], np.where(label[1] == 1, 0, balance[held_out.label[0]]))


@pytest.mark.parametrize(("largest", "classes"), [(1, 2), (2, 3), (31, 32)])
def test_as_many_classes_as_indices(inputs: Inputs, largest: int, classes: int) -> None:
    label = grid() // 255
    label[0, 0, :3] = largest
    assert prepare(AugmentConfig(**inputs(label=label, label_kind="classes")))[1]["classes"] == classes


def test_a_class_of_validation_alone_counts_as_one(inputs: Inputs) -> None:
    label = grid() // 255
    label[2, :5] = 4
    plan = planned(inputs(label=label, label_kind="classes", validation_sections=("2",)))
    assert len(plan.class_weights) == 5
    assert plan.class_weights[4] == 1
    assert "classes in validation sections that no training section holds: 4" in plan.warnings[0]


def test_kinds_of_one_truth_make_one_cache(inputs: Inputs) -> None:
    # Cells two pixels apart from one another: their ids, their inside and the membrane tell the same.
    ids = np.zeros((DEPTH, HEIGHT, WIDTH), np.int32)
    for n, x in enumerate(range(0, WIDTH, 8)):
        ids[:, :, x : x + 6] = n + 1
    given = {
        "instances": ids,
        "interior": (ids > 0) * np.uint8(7),
        "membrane": (ids == 0).astype(np.float32),
        "classes": (ids == 0).astype(np.uint16),
    }
    weighting = {"classes": WeightMap()}
    made = {
        kind: patches(planned(inputs(label=label, label_kind=kind, weighting=weighting.get(kind, WeightMap()))))[0]
        for kind, label in given.items()
    }
    for kind in ("interior", "membrane"):
        for name in ("image", "label", "weight"):
            np.testing.assert_array_equal(getattr(made[kind], name), getattr(made["instances"], name))
    np.testing.assert_array_equal(made["classes"].label, made["instances"].label)
    assert (made["classes"].weight < made["instances"].weight)[made["instances"].label == 1].all()


def test_training_takes_the_classes_of_the_cache(inputs: Inputs, tmp_path: Path) -> None:
    label = grid() // 255

    def network(label: npt.NDArray[Any]) -> Any:
        asked = inputs(label=label, label_kind="classes", validation_sections=("1",))
        plan, made_with = prepare(AugmentConfig(**asked))
        cache = PatchCache(str(tmp_path / str(label.max())))
        cache.create_or_extend(plan.cache, made_with)
        return require_network(TrainConfig(cache=cache.path, run="unused", depth=3), cache)

    assert network(label).classes == 1
    label[0, 0, 0] = 2
    assert network(label).classes == 3


# Ignored regions


def test_masks_weigh_nothing_and_count_nothing(inputs: Inputs) -> None:
    label, mask = grid(), np.zeros((DEPTH, HEIGHT, WIDTH), np.uint8)
    label[:, :4], mask[:, 10:30, 20:40] = 9, 200
    label[:, 12:20, 22:30] = 77  # what lies under the mask need not be a label
    asked = inputs(label=label, mask=mask, ignore_label=9, validation_sections=("1",), weighting=WeightMap())
    plan = planned(asked)
    ignored = (mask > 0) | (label == 9)
    training = np.asarray([0, 2, 3])
    known = label[training][~ignored[training]]
    assert plan.class_weights == class_weights(np.bincount(known // 255), WeightMap())
    found, held_out = patches(plan)
    assert ((held_out.weight[0] == 0) == ignored[1]).all()
    assert (held_out.label[0] == ((label[1] == 255) & ~ignored[1])).all()
    # The plain recipe crops and nothing else: each patch is a window of its section.
    for number in range(plan.cache.patches):
        drawn = plan.drawn(number)
        y, x = drawn.corner
        window = (drawn.section, slice(y, y + 32), slice(x, x + 32))
        np.testing.assert_array_equal(found.weight[number] == 0, ignored[window])


def test_a_masks_edge_is_no_membrane(inputs: Inputs) -> None:
    # A cell on either side of a membrane, and a mask that cuts the left one through.
    label, mask = np.zeros((1, 40, 48), np.uint8), np.zeros((1, 40, 48), bool)
    label[:, :, 40:44], mask[:, 18:22, :40] = 255, True
    plan = planned(inputs(noise(shape=label.shape), label, mask))
    worker = AugmentWorker(PatchCache("unused"), plan)
    _, labels = worker.memory.read(SectionPlace(0, 0))
    np.testing.assert_array_equal(labels.class_map, label[0] // 255)
    assert [int(labels.cell_ids[y, x]) for y, x in ((0, 0), (0, 47), (20, 0), (39, 0))] == [1, 2, 0, 3]
    patch = worker.patch(plan.drawn(0))
    assert set(np.unique(patch.weight[patch.label == 0])) == {0, np.float16(plan.class_weights[0])}


def test_masks_are_in_the_fingerprint(inputs: Inputs) -> None:
    mask = np.zeros((DEPTH, HEIGHT, WIDTH), np.uint8)

    def sections(mask: Any) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = prepare(AugmentConfig(**inputs(mask=mask)))[1]["sections"]
        return found

    assert sections(None)["train/0/0"].keys() == {"image", "label"}
    before = sections(mask)
    mask[2, 0, 0] = 1
    after = sections(mask)
    assert [key for key in after if after[key] != before[key]] == ["train/0/2"]


# Several stacks


def test_stacks_of_any_size_and_dtype_go_into_one_cache(several: dict[str, Any]) -> None:
    plan, made_with = prepare(AugmentConfig(**several))
    volumes = [tifffile.imread(path) for path in several["images"]]
    low, high = np.percentile(volumes[1], [0.1, 99.9], method="nearest")
    assert made_with["stack_intensity"]["1"] == {"low": low, "high": high, "dtype": "uint16"}
    # Of the float stack section 6 (its second) alone is for training, so it alone is stretched.
    low, high = np.percentile(volumes[2][1], [0.1, 99.9], method="nearest")
    assert made_with["stack_intensity"]["2"] == {"low": low, "high": high, "dtype": "float32"}
    assert made_with["intensity"] == made_with["stack_intensity"]["0"] == {"low": 0, "high": 255, "dtype": "uint8"}
    assert plan.cache.section_px == (56, 36)
    found, held_out = patches(plan)
    assert held_out.label.shape == (2, 56, 36)
    np.testing.assert_array_equal(held_out.image[1, 0], plan.intensity[2].apply(volumes[2][2]))
    assert plan.cache.patches == 3 * 6
    for number in range(plan.cache.patches):
        drawn = plan.drawn(number)
        assert drawn.section_shape == volumes[drawn.stack].shape[1:]
        y, x = drawn.corner
        window = (drawn.section, slice(y, y + 32), slice(x, x + 32))
        np.testing.assert_array_equal(
            found.image[number, 0], plan.intensity[drawn.stack].apply(volumes[drawn.stack][window])
        )
        np.testing.assert_array_equal(found.label[number], grid(shape=volumes[drawn.stack].shape)[window] // 255)


def test_stacks_without_training_sections(several: dict[str, Any]) -> None:
    plan, made_with = prepare(AugmentConfig(**several | {"exclude_sections": ("0:5", "8")}))
    assert made_with["stack_intensity"].keys() == {"2"}
    assert made_with["intensity"] == made_with["stack_intensity"]["2"]
    held_out = planned(several | {"validation_sections": ("3:5",)})
    assert (held_out.intensity[1], held_out.cache.section_px) == (planned(several).intensity[1], (33, 64))
    assert plan.training == (SectionPlace(2, 1),)


def test_validation_sections_of_two_sizes_are_refused(several: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"section 1 of .*raw0.tif, \(40, 48\) px .* section 5 of .*raw2.tif, \(56, 36\)"
    ):
        prepare(AugmentConfig(**several | {"validation_sections": ("1", "5")}))


def test_context_is_in_the_fingerprint(inputs: Inputs) -> None:
    image = noise()
    asked = {"exclude_sections": ("2",), "context_sections": 1}
    made = prepare(AugmentConfig(**inputs(image, **asked)))[1]
    assert made["context"].keys() == {"0/2"}
    image[2, 0, 0] ^= 1  # used beside sections 1 and 3 only
    changed = prepare(AugmentConfig(**inputs(image, **asked)))[1]
    assert changed["context"] != made["context"]
    assert changed | {"context": 0} == made | {"context": 0}
    assert prepare(AugmentConfig(**inputs(image, exclude_sections=("2",))))[1]["context"] == {}


# A plan made again from its cache


def test_a_cache_tells_how_to_make_it_again(several: dict[str, Any], write: Write) -> None:
    masks = tuple(write(np.zeros(tifffile.imread(path).shape, bool), "mask.tif") for path in several["labels"])
    asked = several | {"ignore_masks": masks, "recipe": RECIPES["default"], "seed": 7, "context_sections": 1}
    asked |= {"exclude_sections": ("5", "7", "8"), "validation_sections": ("3",)}
    plan = planned(asked)
    again = from_cache(attributes(asked))
    for name in ("training", "validation", "intensity", "class_weights", "cache", "fingerprints"):
        assert getattr(again, name) == getattr(plan, name), name
    assert again.settings == plan.settings.model_copy(update={"validation_sections": (), "exclude_sections": ()})
    for made, wanted in zip(patches(again), patches(plan), strict=True):
        for name in ("image", "label", "weight"):
            np.testing.assert_array_equal(getattr(made, name), getattr(wanted, name))
    for place in (*again.training, *again.validation):
        again.check_section(place)
    assert [stack["name"] for stack in again.sources()["stacks"]] == ["raw0", "raw1", "raw2"]
    assert again.sources() == plan.sources()


def test_paths_do_not_decide(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = inputs(mask=np.zeros((DEPTH, HEIGHT, WIDTH), bool))
    before = attributes(asked)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    moved = {}
    for key in ("images", "labels", "ignore_masks"):
        os.rename(asked[key][0], folder / f"{key}.tif")
        moved[key] = (f"{key}.tif",)
    monkeypatch.chdir(folder)
    after = attributes(asked | moved)
    assert after["made_with"] == before["made_with"]
    (stack,) = after["sources"]["stacks"]
    assert stack == {
        "name": "images", "image": f"{folder}/images.tif", "label": f"{folder}/labels.tif",
        "mask": f"{folder}/ignore_masks.tif",
    }  # fmt: skip
    with pytest.raises(VolumeError, match=r"cannot find .*raw.tif.*; where stacks have moved, name them with --images"):
        from_cache(before)
    found = from_cache(before, moved["images"], moved["labels"], moved["ignore_masks"])
    found.check_section(SectionPlace(0, 1))
    with pytest.raises(ConfigError, match="--labels names 2 stacks but the cache was made with 1"):
        from_cache(before, moved["images"], moved["labels"] * 2)


@pytest.mark.parametrize("changed", ["image", "label", "mask", "context", "shorter"])
def test_sections_that_changed_are_noticed(inputs: Inputs, changed: str) -> None:
    made = {"image": noise(), "label": grid(), "mask": np.zeros((DEPTH, HEIGHT, WIDTH), np.uint8)}
    cache = attributes(inputs(**made, context_sections=1, exclude_sections=("0",)))
    if changed == "context":
        made["image"][0, 5, 5] ^= 1
    elif changed == "shorter":
        made = {key: values[:1] for key, values in made.items()}
    else:
        made[changed][1, 5, 5] ^= 1
    now = inputs(**made)
    plan = from_cache(cache, now["images"], now["labels"], now["ignore_masks"])
    role, section = {"context": ("image", 0), "shorter": ("image", 1)}.get(changed, (changed, 1))
    with pytest.raises(CacheMismatchError, match=f"the {role} of section {section} of .* is not the one"):
        plan.check_section(SectionPlace(0, 1))
    if changed != "shorter":
        plan.check_section(SectionPlace(0, 3))


def test_a_cache_without_masks_takes_none(inputs: Inputs) -> None:
    asked = inputs()
    with pytest.raises(ConfigError, match="--ignore-masks names 1 stacks but the cache was made with 0"):
        from_cache(attributes(asked), ignore_masks=asked["labels"])


@pytest.mark.real_data
def test_planning_takes_no_time(shared_data: Path) -> None:
    folder = shared_data / "isbi2012"
    asked = {"images": (f"{folder}/train-volume.tif",), "labels": (f"{folder}/train-labels.tif",), "cache": "unused"}
    began = time.process_time()  # of all threads, and whatever else the machine does
    plan, made_with = prepare(AugmentConfig(**asked, validation_sections=("4:30:5",)))
    assert time.process_time() - began < 2
    assert (len(plan.training), plan.warnings) == (24, ())
    assert made_with["intensity"] == {"low": 0, "high": 255, "dtype": "uint8"}
