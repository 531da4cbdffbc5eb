"""Losses against their formulas in plain loops, how they split, and the cases where nothing counts."""

import math

import pytest
import torch

from unet_ray.network.loss import Loss, cross_entropy, dice_losses


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
    with pytest.raises(ValueError, match=r"labels \(1, 3, 4\) do not fit logits \(1, 1, 4, 4\)"):
        cross_entropy(draw(1, 1, 4, 4), torch.zeros(1, 3, 4))


def probabilities(logits):
    z = logits.tolist()
    z = [0.0, *z] if len(z) == 1 else z
    return [math.exp(v) / sum(math.exp(w) for w in z) for v in z]


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_dice_equals_the_plain_loop(classes):
    logits = draw(3, classes, 4, 5)
    labels = (draw(3, 4, 5, seed=2).abs() * 100).to(torch.uint8) % max(classes, 2)
    weights = (draw(3, 4, 5, seed=3) - 0.3).clamp_min(0)  # most pixels weigh nothing
    for n, found in enumerate(dice_losses(logits, labels, weights).tolist()):
        counted = [(y, x) for y in range(4) for x in range(5) if weights[n, y, x] > 0]
        scores = []
        for k in [1] if classes == 1 else range(classes):
            p = [probabilities(logits[n, :, y, x])[k] for y, x in counted]
            t = [float(labels[n, y, x] == k) for y, x in counted]
            scores.append((2 * sum(a * b for a, b in zip(p, t, strict=True)) + 1) / (sum(p) + sum(t) + 1))
        assert found == pytest.approx(1 - sum(scores) / len(scores), rel=1e-12)


def test_dice_ignores_what_has_no_weight_and_not_how_much():
    logits = draw(1, 3, 2, 4).requires_grad_()
    labels = torch.tensor([[[0, 1, 2, 1], [255, 0, 1, 2]]])
    weights = torch.tensor([[[1.0, 5.0, 0.1, 2.0], [0.0, 1.0, 1.0, 0.0]]])
    found = dice_losses(logits, labels, weights)
    found.sum().backward()
    assert not bool(logits.grad[0, :, 1, [0, 3]].any())
    assert torch.equal(found, dice_losses(logits, labels, (weights > 0).double()))
    assert dice_losses(draw(1, 1, 2, 4), labels, torch.zeros(1, 2, 4)).tolist() == [0.0]
    assert dice_losses(draw(1, 2, 2, 4), labels, torch.zeros(1, 2, 4)).tolist() == [0.0]


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_label_smoothing_spreads_the_label(classes):
    logits, weights = draw(1, classes, 3, 3), draw(1, 3, 3, seed=5).abs()
    labels = (draw(1, 3, 3, seed=4).abs() * 100).to(torch.uint8) % max(classes, 2)
    kinds = max(classes, 2)
    every = [cross_entropy(logits, torch.full((1, 3, 3), k), weights).loss for k in range(kinds)]
    expected = 0.8 * cross_entropy(logits, labels, weights).loss + 0.2 * sum(every) / kinds
    smooth = cross_entropy(logits, labels, weights, label_smoothing=0.2).loss
    assert float(smooth) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("loss", [Loss(), Loss(0.0, 2.0), Loss(0.5, 1.5, 0.1), Loss(0.5, 1.5, 0.0, 3.0)])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_parts_of_a_batch_add_up_to_it(loss, cut):
    logits, labels = draw(4, 2, 9, 9), (draw(4, 9, 9, seed=2) > 0.5).to(torch.uint8)
    weights = draw(4, 9, 9, seed=3).abs()
    telling, described = draw(4, 6, 9, 9, seed=4), draw(4, 7, 2, 2, seed=5).sigmoid()
    described[:, -1] = (described[:, -1] > 0.5).double()
    described[1, -1] = 0  # a sample without a cell
    weights[2] = 0  # a sample that nobody labelled is no sample of the Dice loss

    def both(rows):
        given = labels[rows], weights[rows], described[rows] if loss.descriptors else None
        wider = torch.cat((logits, telling), dim=1) if loss.descriptors else logits
        return loss.per_sample(wider[rows], *given).sum(0), loss.denominators(*given)

    sums, denominators = both(slice(None))
    parts = [both(slice(0, cut)), both(slice(cut, None))]
    assert torch.allclose(sum(part[0] for part in parts), sums, rtol=1e-13)
    assert torch.allclose(sum(part[1] for part in parts), denominators, rtol=1e-13)
    expected = 0.0
    if loss.cross_entropy:
        pair = cross_entropy(logits, labels, weights, label_smoothing=loss.label_smoothing)
        expected += loss.cross_entropy * float(pair.mean)
    if loss.dice:
        expected += loss.dice * float(dice_losses(logits, labels, weights).sum()) / 3
    if loss.descriptors:
        cells = described[:, -1] == 1
        told = telling[..., :8, :8].unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5)).sigmoid()
        errors = (told - described[:, :-1]).square().movedim(1, -1)[cells]
        assert len(errors) not in (0, 16)
        expected += loss.descriptors * float(errors.mean())
    assert float(sums @ loss.shares(denominators)) == pytest.approx(expected, rel=1e-12)


def test_the_notebooks_loss_is_binary_cross_entropy():
    logits, labels = draw(2, 1, 4, 4), (draw(2, 4, 4, seed=2) > 0).to(torch.uint8)
    found = Loss().per_sample(logits, labels).sum() / Loss().denominators(labels)[0]
    expected = torch.nn.functional.binary_cross_entropy(torch.sigmoid(logits[:, 0]), labels.double())
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_nothing_known_has_share_0():
    loss = Loss(1.0, 1.0)
    assert loss.shares(loss.denominators(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))).tolist() == [0, 0]


def test_no_term_is_no_loss():
    with pytest.raises(AssertionError, match="above 0"):
        Loss(0.0, 0.0)
    with pytest.raises(AssertionError):
        Loss(-1.0, 2.0)
