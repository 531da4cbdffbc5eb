"""The notebook's list of augmentations on image/label pairs, by its own algorithm, by others' libraries, and by ours.

Each contestant is called with the sections of a stack, images uint8 and labels uint8 with 1 = membrane, and a seed,
and returns ``pair(number)``: image uint8 and label of another augmented pair of section ``number % sections``. The
list, in this order: flip in y and x, each with probability 1/2; Gaussian (sd 0 to 20) or uniform noise (bounds -20 to
0 and 0 to 20); brightness -20 to 20; elastic deformation (per-pixel noise even in [-1, 1], Gaussian of 6 to 12 px,
times 34); 62 mirrored pixels on each side, and a crop of the section's size. All make labels from the same field as
the image and put noise on the image alone. Where a contestant departs from the list its ``NOTES`` say so; what they
hold ready before the clock runs (floats where they want floats) is in their favour.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_ray.config.recipe import RECIPES, WeightMap
from unet_ray.numerics import augment
from unet_ray.numerics.draw import draw
from unet_ray.numerics.labels import membrane_and_cells

Sections = list[npt.NDArray[np.uint8]]
PairMaker = Callable[[int], tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]]

NOISE, SHIFT, ALPHA, SIGMA_PX, PAD_PX = 20, 20, 34, (6, 12), 62
NO_WEIGHTS = WeightMap(border_weight=0, class_balance=False)


def notebook(images: Sections, labels: Sections, seed: int) -> PairMaker:
    rng, elastic_pad = np.random.default_rng(seed), 20
    stretched = [label * np.uint8(255) for label in labels]  # the notebook's labels are grey, and sampled like images

    def pair(number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        image, label = images[number % len(images)], stretched[number % len(images)]
        side = image.shape[0]
        axes = [axis for axis in (0, 1) if rng.random() < 0.5]
        image, label = np.flip(image, axes), np.flip(label, axes)
        if rng.random() < 0.5:
            noise = rng.normal(0, rng.integers(0, NOISE, endpoint=True), image.shape)
        else:
            low, high = rng.integers(-NOISE, 0, endpoint=True), rng.integers(0, NOISE, endpoint=True)
            noise = rng.uniform(low, high, image.shape)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        shift = rng.integers(-SHIFT, SHIFT, endpoint=True)
        image = np.clip(image.astype(np.int16) + shift, 0, 255).astype(np.uint8)
        image, label = (np.pad(a, elastic_pad, mode="symmetric") for a in (image, label))
        sigma = rng.uniform(*SIGMA_PX)
        displacement = [
            ndimage.gaussian_filter(rng.random(image.shape) * 2 - 1, sigma, mode="constant") * ALPHA for _ in range(2)
        ]
        places = np.indices(image.shape) + np.stack(displacement)
        image, label = (ndimage.map_coordinates(a, places, order=1) for a in (image, label))
        inside = slice(elastic_pad, -elastic_pad)
        image, label = (np.pad(a[inside, inside], PAD_PX, mode="symmetric") for a in (image, label))
        y, x = rng.integers(0, 2 * PAD_PX, size=2, endpoint=True)
        crop = slice(y, y + side), slice(x, x + side)
        return image[crop].copy(), (label[crop] > 127).view(np.uint8)

    return pair


def _albumentations(approximate: bool) -> Callable[[Sections, Sections, int], PairMaker]:
    def contestant(images: Sections, labels: Sections, seed: int) -> PairMaker:
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)
        side, grey = images[0].shape[0], NOISE / 255
        elastic = [
            A.ElasticTransform(
                alpha=ALPHA, sigma=sigma, approximate=approximate, noise_distribution="uniform", p=1,
                interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_REFLECT_101,
            )
            for sigma in range(SIGMA_PX[0], SIGMA_PX[1] + 1)
        ]  # fmt: skip
        noise = [
            A.GaussNoise(std_range=(0, grey), mean_range=(0, 0), p=1),
            A.AdditiveNoise(noise_type="uniform", spatial_mode="per_pixel", noise_params={"ranges": [(-grey, grey)]},
                            p=1),
        ]  # fmt: skip
        shift = A.RandomBrightnessContrast(
            brightness_limit=SHIFT / 255, contrast_limit=0, brightness_by_max=True, ensure_safe_range=False, p=1
        )
        padded = side + 2 * PAD_PX
        listed = A.Compose(
            [
                A.VerticalFlip(p=0.5),
                A.HorizontalFlip(p=0.5),
                A.OneOf(noise, p=1),
                shift,
                A.OneOf(elastic, p=1),
                A.PadIfNeeded(padded, padded, border_mode=cv2.BORDER_REFLECT),
                A.RandomCrop(side, side),
            ],
            seed=seed,
        )

        def pair(number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
            section = number % len(images)
            made = listed(image=images[section], mask=labels[section])
            return made["image"], made["mask"]

        return pair

    return contestant


def monai(images: Sections, labels: Sections, seed: int) -> PairMaker:
    import monai.data
    import monai.transforms as M
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    monai.data.set_track_meta(False)
    side, both = images[0].shape[0], ["image", "label"]
    held = [
        {"image": torch.from_numpy(image[None]).float(), "label": torch.from_numpy(label[None]).float()}
        for image, label in zip(images, labels, strict=True)
    ]

    def uniform_noise(image: Any) -> Any:
        low, high = -torch.randint(NOISE + 1, ()).item(), torch.randint(NOISE + 1, ()).item()
        return image + torch.empty_like(image).uniform_(low, high)

    listed = M.Compose(
        [
            M.RandFlipd(both, prob=0.5, spatial_axis=0),
            M.RandFlipd(both, prob=0.5, spatial_axis=1),
            M.OneOf([M.RandGaussianNoised(["image"], prob=1, std=NOISE), M.Lambdad(["image"], uniform_noise)]),
            M.RandShiftIntensityd(["image"], offsets=SHIFT, prob=1),
            M.Rand2DElasticd(
                both, spacing=(24, 24), magnitude_range=(0.5, 1.1), prob=1,
                mode=("bilinear", "nearest"), padding_mode="reflection",
            ),
            M.BorderPadd(both, PAD_PX, mode="reflect"),
            M.RandSpatialCropd(both, (side, side), random_size=False),
        ]
    ).set_random_state(seed)  # fmt: skip

    def pair(number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        with torch.inference_mode():
            made = listed(held[number % len(held)])
            image = made["image"].clamp(0, 255).to(torch.uint8)
            return image[0].numpy(), made["label"][0].to(torch.uint8).numpy()

    return pair


def batchgeneratorsv2(images: Sections, labels: Sections, seed: int) -> PairMaker:
    import torch
    from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import OneOfTransform

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  what the library draws from
    held = [
        (torch.from_numpy(image[None]).float(), torch.from_numpy(label[None].astype(np.int16)))
        for image, label in zip(images, labels, strict=True)
    ]
    side = images[0].shape[0]

    class UniformNoise(ImageOnlyTransform):
        def _apply_to_image(self, img: Any, **params: Any) -> Any:
            low, high = -torch.randint(NOISE + 1, ()).item(), torch.randint(NOISE + 1, ()).item()
            return img.add_(torch.empty_like(img).uniform_(low, high))

    class Brightness(ImageOnlyTransform):
        def _apply_to_image(self, img: Any, **params: Any) -> Any:
            return img.add_(torch.randint(-SHIFT, SHIFT + 1, ()).item())

    listed = ComposeTransforms(
        [
            MirrorTransform((0, 1)),
            OneOfTransform([GaussianNoiseTransform(noise_variance=(0, NOISE)), UniformNoise()]),
            Brightness(),
            # The mean of the largest of 512 x 512 displacements of the list is 4.3 times their standard deviation.
            SpatialTransform(
                (side, side), patch_center_dist_from_border=side // 2 - PAD_PX, random_crop=True,
                p_elastic_deform=1, p_synchronize_def_scale_across_axes=1,
                elastic_deform_scale=(SIGMA_PX[0] / side, SIGMA_PX[1] / side), elastic_deform_magnitude=(2.0, 4.0),
                mode_seg="nearest", border_mode_seg="reflection", padding_mode_image="reflection",
            ),
        ]
    )  # fmt: skip

    def pair(number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        image, label = held[number % len(held)]
        with torch.inference_mode():
            made = listed(image=image.clone(), segmentation=label)  # its transforms work in place
            image = made["image"].clamp(0, 255).to(torch.uint8)
            return image[0].numpy(), made["segmentation"][0].to(torch.uint8).numpy()

    return pair


def _ours(weighting: WeightMap) -> Callable[[Sections, Sections, int], PairMaker]:
    def contestant(images: Sections, labels: Sections, seed: int) -> PairMaker:
        recipe, side = RECIPES["notebook"], images[0].shape[0]
        held = [
            (image[None], membrane_and_cells(label, "membrane")) for image, label in zip(images, labels, strict=True)
        ]

        def pair(number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
            variant, section = divmod(number, len(held))
            image, its_labels = held[section]
            drawn = draw(
                recipe, seed=seed, stack=0, section=section, variant=variant, section_shape=(side, side), patch_px=side
            )
            patch = augment.apply(drawn, image, its_labels, weighting=weighting)
            return patch.image[0], patch.label

        return pair

    return contestant


CONTESTANTS: dict[str, Callable[[Sections, Sections, int], PairMaker]] = {
    "notebook": notebook,
    "albumentations": _albumentations(approximate=False),
    "albumentations_approximate": _albumentations(approximate=True),
    "monai": monai,
    "batchgeneratorsv2": batchgeneratorsv2,
    "ours": _ours(NO_WEIGHTS),
    "ours_with_weight_map": _ours(WeightMap()),
}
PEERS = {
    "albumentations": "albumentations",
    "albumentations_approximate": "albumentations",
    "monai": "monai",
    "batchgeneratorsv2": "batchgeneratorsv2",
}
"""Contestant -> the module it needs."""

NOTES = {
    "notebook": "NumPy and SciPy as in the notebook, with its errors mended in its favour: one field for image and "
    "label, no noise on labels. Float64 field and noise (Generator, not the slower RandomState); linear for both.",
    "albumentations": "Sigma a whole number; uniform noise always between -20 and 20; labels nearest. Draws the "
    "field in float64, smooths it in float32 up to 4 sigma; cv2.remap of uint8. OpenCV's threads off.",
    "albumentations_approximate": "As albumentations, with approximate=True: the Gaussian is cut off at 8 px, less "
    "than one sigma for most of the list's, so the field is rougher and larger than the list says.",
    "monai": "It has no smoothed per-pixel field in 2-D: Rand2DElastic, normal numbers on a grid of 24 px, bicubic "
    "in between, of about the list's displacement. No uniform noise of its own: a Lambda. Float32; track_meta off.",
    "batchgeneratorsv2": "Displacements normal, smoothed by FFT (periodic), scaled to a largest one of 2 to 4 px. "
    "Pad and crop are one with the sampling. No uniform noise nor shift of its own: two small transforms. Float32.",
    "ours": "The recipe `notebook`: pad and crop are one with the sampling, and noise and shift come after it, so "
    "that the noise is not smoothed by interpolation. The field from a lattice (see numerics/elastic.py). Labels "
    "nearest. The weight map is left out as far as settings allow (no border term, no class balance).",
    "ours_with_weight_map": "As ours, with the weight map that a cache holds by default.",
}


def available(wanted: list[str]) -> list[str]:
    """Return those of ``wanted`` whose library is installed."""
    return [name for name in wanted if name not in PEERS or importlib.util.find_spec(PEERS[name])]
