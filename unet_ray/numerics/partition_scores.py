"""Rand and information scores from the sums of a contingency table.

Every function takes the sums of one section, or of many along the first axis, and returns arrays of the
same shape. A section without any true cell has nothing to compare: its scores are NaN.

Source: Arganda-Carreras et al., Front. Neuroanat. 2015 (foreground-restricted V_Rand and V_Info);
normalisation and singletons as in the organisers' Java classes (fiji/Trainable_Segmentation).
"""

import numpy as np
import numpy.typing as npt

from unet_ray.numerics.contingency import OverlapSums

Floats = npt.NDArray[np.float64]


def precision_recall(tp: Floats, fp: Floats, fn: Floats) -> tuple[Floats, Floats]:
    """TP/(TP+FP) and TP/(TP+FN); 1 where nothing is false.

    >>> precision_recall(np.array([6.0]), np.array([2.0]), np.array([0.0]))
    (array([0.75]), array([1.]))
    """
    with np.errstate(invalid="ignore"):
        precision = np.where(fp == 0, 1.0, tp / (tp + fp))
        recall = np.where(fn == 0, 1.0, tp / (tp + fn))
    return precision, recall


def f_score(tp: Floats, fp: Floats, fn: Floats) -> Floats:
    """Harmonic mean of precision and recall; 0 where both are 0, 1 where nothing is false.

    >>> f_score(np.array([6.0, 0.0]), np.array([2.0, 0.0]), np.array([2.0, 0.0]))
    array([0.75, 1.  ])
    """
    return _harmonic_mean(*precision_recall(tp, fp, fn))


def _harmonic_mean(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.where(a + b > 0, 2 * a * b / (a + b), 0.0)


def rand_pairs(sums: OverlapSums, choose_2: bool = False) -> tuple[Floats, Floats, Floats]:
    """Pairs of pixels that are together in both, in the prediction only, in the truth only.

    Precision falls with mergers, recall with splits. scikit-image exchanges the two names.

    Args:
        sums: of one section or several.
        choose_2: leave out the pair of a pixel with itself, as the challenge did from 2012 to 2014.
            By default it counts (N^2 normalisation, since 2015).

    Returns:
        TP, FP, FN as float64; those of several sections may be added.

    >>> from unet_ray.numerics.contingency import overlap_sums, segments_of
    >>> truth = segments_of(np.array([[1, 1, 2, 2]], np.int32))
    >>> merged = overlap_sums(truth, np.ones((1, 4), np.int32))
    >>> [float(x) for x in rand_pairs(merged)], [float(x) for x in rand_pairs(merged, choose_2=True)]
    ([8.0, 8.0, 0.0], [2.0, 4.0, 0.0])
    """
    tp = sums.joint_sq + sums.membrane  # a singleton is together with itself
    fp = sums.predicted_sq - sums.joint_sq
    fn = sums.true_sq - tp
    if choose_2:
        tp, fp, fn = (tp - sums.pixels) // 2, fp // 2, fn // 2
    return np.asarray(tp, np.float64), np.asarray(fp, np.float64), np.asarray(fn, np.float64)


def rand_score(sums: OverlapSums, choose_2: bool = False) -> Floats:
    """Foreground-restricted Rand F-score; V_Rand if the prediction's borders were thinned before.

    0 to 1, 1 is best. Definition in `rand_pairs`.
    """
    return np.where(sums.pixels > 0, f_score(*rand_pairs(sums, choose_2)), np.nan)


def adapted_rand_error(sums: OverlapSums) -> Floats:
    """Adapted Rand error as scikit-image defines it: membrane of the prediction is *one* segment.

    0 to 1, 0 is best: 1 - F over pairs of different pixels of true cells. 0 where neither side has a pair.
    Source: ``skimage.metrics.adapted_rand_error`` with its default of dropping true label 0.
    """
    n = sums.pixels
    together = sums.joint_sq + sums.membrane_sq - n
    pairs = (sums.true_sq - n) + (sums.predicted_sq + sums.membrane**2 - n)
    with np.errstate(invalid="ignore"):
        error = np.where(pairs > 0, 1 - 2 * together / pairs, 0.0)
    return np.where(n > 0, error, np.nan)


def split_merge_entropy(sums: OverlapSums) -> tuple[Floats, Floats]:
    """The two parts of the foreground-restricted variation of information, in nats.

    Returns:
        (H(S|T), H(T|S)): what splits and what mergers cost, 0 is best. Their sum is the VOI.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        # A singleton adds nothing to a sum of c ln c. Rounding may leave -1e-17.
        split = np.maximum((sums.true_log - sums.joint_log) / sums.pixels, 0.0)
        merge = np.maximum((sums.predicted_log - sums.joint_log) / sums.pixels, 0.0)
    return split, merge


def info_score(sums: OverlapSums) -> Floats:
    """Foreground-restricted information F-score; V_Info if the prediction's borders were thinned before.

    0 to 1, 1 is best: harmonic mean of 1 - H(T|S)/H(T) and 1 - H(S|T)/H(S). Where an entropy is 0
    (one segment covers everything) the reference gives 0; here it is 1 if both are 0, the segmentation
    then being perfect, and 0 as in the reference if one is.
    """
    split, merge = split_merge_entropy(sums)
    n = sums.pixels
    with np.errstate(invalid="ignore", divide="ignore"):
        true_entropy = np.log(n) - sums.true_log / n
        predicted_entropy = np.log(n) - sums.predicted_log / n
        score = _harmonic_mean(np.clip(1 - merge / true_entropy, 0, 1), np.clip(1 - split / predicted_entropy, 0, 1))
    # In whole numbers: rounding would hide the zero.
    one_true = sums.true_sq == n * n
    one_predicted = sums.predicted_sq + sums.membrane == n * n
    score = np.where(one_true | one_predicted, (one_true & one_predicted).astype(np.float64), score)
    return np.where(n > 0, score, np.nan)
