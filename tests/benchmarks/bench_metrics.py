"""Time the metrics of one section on one core; prints a JSON record.

Run ``python tests/benchmarks/bench_metrics.py``. Beside our times stand scikit-image's, where it is
installed and has the metric (its watershed is a stand-in for border thinning, not equal to it), and those
of the reference's Java code for a 512 x 512 section: seconds for all thresholds, wall clock on another
machine with two shared cores, the smallest and largest of several stacks.
"""

import argparse
import json
import resource
import sys
from typing import Any

import numpy as np
import tifffile
from record import commit, machine, timed, version, versions
from scipy import ndimage, spatial

from unet_ray.numerics.border_thinning import thin_borders
from unet_ray.numerics.contingency import label_cells, overlap_sums, segments_of
from unet_ray.numerics.metrics import score_section
from unet_ray.numerics.thresholds import THRESHOLDS, cell_probability, threshold_levels
from unet_ray.numerics.warping import warping_px

JAVA_SECONDS = {"v_rand_and_v_info_thinned": [2.3, 3.7], "warping": [0.6, 26.0]}


def a_section(side: int, kind: str, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return cell probability and truth of cells between membranes about 6 px wide, 900 to a megapixel."""
    rng = np.random.default_rng([side, seed])
    centres = rng.random((max(2, side * side // 1100), 2)) * side
    places = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    near = spatial.cKDTree(centres).query(places, k=2)[0]
    truth = (near[:, 1] - near[:, 0] > 5).reshape(side, side)
    if kind == "noise":
        grey = rng.random(truth.shape)
    elif kind == "binary":
        grey = np.roll(truth, 2, axis=1).astype(float)
    else:
        waves = ndimage.gaussian_filter(rng.normal(size=truth.shape), 1.5)
        grey = ndimage.gaussian_filter(truth.astype(float), 2) + 0.15 * waves / waves.std()
    quantised = np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return cell_probability(quantised, "interior"), truth


def thinned_at_all_thresholds(probability: np.ndarray, truth: np.ndarray) -> None:
    """All that V_rand and V_info after thinning need, without the shortcut for masks that do not change."""
    segments = segments_of(label_cells(truth))
    levels = threshold_levels(probability)
    for k in range(THRESHOLDS.size):
        overlap_sums(segments, thin_borders(label_cells(levels > k)))


def scikit_image_at_all_thresholds(probability: np.ndarray, truth: np.ndarray) -> None:
    """The same scores by watershed with lines, adapted Rand error and variation of information."""
    from skimage.measure import label
    from skimage.metrics import adapted_rand_error, variation_of_information
    from skimage.segmentation import watershed

    true_labels = label(truth, connectivity=1)
    for threshold in THRESHOLDS.tolist():
        cell = probability > np.float64(threshold)
        markers = label(cell, connectivity=1)
        thinned = watershed(~cell, markers, connectivity=1, watershed_line=True) if cell.any() else markers + 1
        adapted_rand_error(true_labels, thinned)
        variation_of_information(true_labels, thinned, ignore_labels=(0,))


def measure(probability: np.ndarray, truth: np.ndarray, repeats: int) -> dict[str, Any]:
    """Return seconds of every repeat, and megapixels per second of the fastest, by what was measured."""
    works = {
        "v_rand_and_v_info_thinned": lambda: thinned_at_all_thresholds(probability, truth),
        "warping": lambda: warping_px(probability, truth),
        "everything": lambda: score_section(probability, truth),
    }
    if version("scikit-image"):
        works["scikit_image_stand_in"] = lambda: scikit_image_at_all_thresholds(probability, truth)
    times = {name: timed(work, repeats) for name, work in works.items()}
    return {
        name: {**repeat, "megapixels_per_second": truth.size / min(repeat["seconds"]) / 1e6}
        for name, repeat in times.items()
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="side of the synthetic section, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels", help="TIFF stack, 0 = membrane, in place of the synthetic section")
    parser.add_argument("--prediction", help="TIFF stack, bright = cell interior")
    parser.add_argument("--section", type=int, default=0, help="page of the two stacks")
    config = parser.parse_args(arguments)
    if config.labels and config.prediction:
        truth = tifffile.imread(config.labels, key=config.section) > 0
        stored = tifffile.imread(config.prediction, key=config.section)
        pairs = {"given": (cell_probability(stored, "interior"), truth)}
    else:
        pairs = {kind: a_section(config.side, kind) for kind in ("binary", "blurred", "noise")}
    return {
        "benchmark": "metrics of one section, all thresholds, one core",
        "commit": commit(),
        "config": vars(config),
        "machine": machine(),
        "versions": versions(["numpy", "scipy", "numba", "scikit-image"]),
        "results": {name: measure(*pair, config.repeats) for name, pair in pairs.items()},
        "java_seconds": JAVA_SECONDS,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
