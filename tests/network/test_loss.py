"""Cross-entropy sums against the formula, and the cases where nothing counts."""

import math

import pytest
import torch

from unet_ray.network.loss import cross_entropy


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_loop(logits, labels, weights):
    total = 0.0
    for (n, y, x), label in ((tuple(i), int(labels[tuple(i)])) for i in (labels >= 0).nonzero().tolist()):
        z = logits[n, :, y, x].tolist()
        z = [0.0, *z] if len(z) == 1 else z
        total -= float(weights[n, y, x]) * (z[label] - math.log(sum(math.exp(v) for v in z)))
    return total


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_equals_the_plain_loop(classes):
    logits = draw(2, classes, 3, 5)
    labels = (draw(2, 3, 5, seed=2).abs() * 100).to(torch.uint8) % max(classes, 2)
    weights = draw(2, 3, 5, seed=3).abs().half()
    pair = cross_entropy(logits, labels, weights)
    assert float(pair.loss) == pytest.approx(plain_loop(logits, labels, weights), rel=1e-12)
    assert float(pair.weight) == pytest.approx(float(weights.double().sum()), rel=1e-12)


def test_one_and_two_logits_are_one_function():
    logits = draw(1, 2, 4, 4)
    labels = (draw(1, 4, 4, seed=4) > 0).to(torch.uint8)
    two = cross_entropy(logits, labels)
    one = cross_entropy(logits[:, 1:] - logits[:, :1], labels)
    assert float(two.loss) == pytest.approx(float(one.loss), rel=1e-12)
    assert float(two.weight) == 16


def test_ignored_pixels_may_hold_anything():
    logits = draw(1, 3, 1, 2).requires_grad_()
    pair = cross_entropy(logits, torch.tensor([[[2, 255]]]), torch.tensor([[[1.0, 0.0]]]))
    pair.mean.backward()
    assert float(pair.weight) == 1
    assert not bool(logits.grad[..., 1].any())


def test_low_precision_logits_are_summed_in_float32():
    logits = torch.full((4, 1, 64, 64), 0.01, dtype=torch.bfloat16)
    labels = torch.zeros(4, 64, 64, dtype=torch.uint8)
    pair = cross_entropy(logits, labels, torch.ones(4, 64, 64, dtype=torch.float16))
    assert pair.loss.dtype == torch.float32
    assert float(pair.weight) == 16384
    assert float(pair.mean) == pytest.approx(math.log(1 + math.exp(float(logits[0, 0, 0, 0]))), rel=1e-5)


def test_no_weight_is_no_loss():
    assert float(cross_entropy(draw(1, 1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).mean) == 0


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy(draw(1, 1, 4, 4), torch.zeros(1, 3, 4))
