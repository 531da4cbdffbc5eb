"""The training step alone: it learns, it clips, and it never goes on silently with what is not finite."""

import copy
import io

import pytest
import torch

from unet_ray.config.network import network_config
from unet_ray.errors import TrainingDivergedError
from unet_ray.network.batch_norm import BatchNorm, set_reduce
from unet_ray.network.loss import Loss
from unet_ray.network.step import Batch, make_optimizer, make_scaler, train_step
from unet_ray.network.unet import new_network

SMALL = network_config("default", base_channels=2, depth=2)


def unchanged(model, before):
    return all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_batch_norm_with_a_sum_equals_torch():
    generator = torch.Generator().manual_seed(3)
    images = 5 + torch.randn(4, 3, 6, 6, generator=generator)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    set_reduce(ours, lambda value: value)
    one, two = images.clone().requires_grad_(), images.clone().requires_grad_()
    (ours(one) ** 3).sum().backward()
    (theirs(two) ** 3).sum().backward()
    assert torch.allclose(one.grad, two.grad, atol=1e-3)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-6)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-6)


@pytest.mark.parametrize("loss", [Loss(), Loss(1.0, 1.0)], ids=["cross-entropy", "one term of two"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(patches, loss):
    model = new_network(SMALL, seed=1)
    optimizer = make_optimizer(model, "adamw", 0.1)
    batch = patches(3, 8)._replace(number=torch.tensor([5, 0, 7]))
    train_step(model, batch, optimizer, step=0, loss=loss)
    before = copy.deepcopy(model.state_dict())
    batch.weight[1, 7, 0] = float("inf")
    batch.weight[2, 7, 0] = float("nan")
    said = r"^training step 17: the loss is nan, not a finite number \(patches 0, 7\); begin a new --run .*rate$"
    with pytest.raises(TrainingDivergedError, match=said) as caught:
        train_step(model, batch, optimizer, step=17, loss=loss)
    assert "\n" not in str(caught.value)
    assert unchanged(model, before)
    with pytest.raises(TrainingDivergedError, match="not a finite number; begin"):
        train_step(model, batch._replace(number=None), optimizer, step=17, loss=loss)


def test_an_infinite_loss_stops_though_its_gradient_is_finite(patches):
    model = new_network(SMALL, seed=1)
    with torch.no_grad():
        model.out.bias.fill_(3e38)  # the loss of some pixels together is beyond float32, its slope is 1
    with pytest.raises(TrainingDivergedError, match=r"step 5: the loss is inf, not a finite number \(patches 100\)"):
        train_step(model, patches(1, 8), make_optimizer(model, "sgd", 0.1), step=5)


def test_a_gradient_that_is_not_finite_stops_too(patches):
    model = new_network(SMALL, seed=1)
    optimizer = make_optimizer(model, "adamw", 0.1)
    train_step(model, patches(2, 8), optimizer, step=0)
    before = copy.deepcopy(model.state_dict())
    handle = model.out.weight.register_hook(lambda gradient: gradient * float("inf"))
    said = r"step 3: the norm of the gradient is (inf|nan), not a finite number \(patches 100, 101\); begin a new"
    with pytest.raises(TrainingDivergedError, match=said):
        train_step(model, patches(2, 8), optimizer, step=3, max_gradient_norm=1.0)
    assert unchanged(model, before)
    handle.remove()
    assert train_step(model, patches(2, 8), optimizer, step=3).stepped


def test_a_batch_without_weight_is_no_step(patches):
    model = new_network(network_config("keras", base_channels=2, depth=2), seed=1)
    optimizer = make_optimizer(model, "adam", 0.1)
    batch = patches(1, 8)
    assert train_step(model, batch, optimizer, step=0).stepped  # from now on Adam's momentum would move the weights
    before = copy.deepcopy(model.state_dict())
    unlabelled = batch._replace(weight=torch.zeros(1, 8, 8))
    for loss in (Loss(), Loss(1.0, 1.0)):
        result = train_step(model, unlabelled, optimizer, step=1, loss=loss)
        assert (result.loss, result.gradient_norm, result.stepped) == (0, 0, False)
        assert set(result.terms.values()) == {0}
        assert unchanged(model, before)
    with pytest.raises(AssertionError, match="needs a patch"):
        train_step(model, patches(0, 8), optimizer, step=1)


@pytest.mark.parametrize("most", [0.01, 0.2, 100.0])
def test_the_gradient_is_cut_down_to_its_largest_norm(patches, most):
    """Plain gradient descent moves by rate x gradient, so the weights tell the gradient."""
    config = network_config("keras", base_channels=2, depth=2)
    moves, norms = [], []
    for limit in (None, most):
        model = new_network(config, seed=1).double()
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer = make_optimizer(model, "sgd", 1.0, momentum=0.0)
        norms.append(train_step(model, patches(2, 8), optimizer, step=0, max_gradient_norm=limit).gradient_norm)
        moves.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before)
    assert norms[0] == norms[1] == pytest.approx(float(moves[0].norm()), rel=1e-9)
    assert 0.2 < norms[0] < 100
    assert torch.allclose(moves[1], moves[0] * min(1.0, most / norms[0]), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loss", [Loss(), Loss(0.0, 1.0)], ids=["cross-entropy", "dice"])
def test_it_learns(patches, precision, loss):
    model = new_network(network_config("default", base_channels=4, depth=3), seed=1)
    optimizer = make_optimizer(model, "adamw", 0.01)
    scaler = make_scaler(precision, "cpu")
    image = patches(2, 32).image
    batch = Batch(image, (image[:, 0] > 128).to(torch.uint8)).to("cpu")
    results = [
        train_step(model, batch, optimizer, step=i, precision=precision, loss=loss, scaler=scaler) for i in range(30)
    ]
    assert results[-1].loss < 0.5 * results[0].loss
    assert {result.samples for result in results} == {2}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_is_in_its_precision_and_in_training_mode(patches, precision):
    model, seen = new_network(SMALL, seed=1).eval(), []
    model.register_forward_hook(lambda module, _, logits: seen.append((logits.dtype, module.training)))
    scaler = make_scaler(precision, "cpu")
    optimizer = make_optimizer(model, "adam", 0.01)
    train_step(model, patches(2, 8), optimizer, step=0, precision=precision, scaler=scaler)
    assert seen == [(getattr(torch, precision), True)]


def test_terms_are_told_apart(patches):
    model = new_network(network_config("default", base_channels=2, depth=2), seed=1).double()
    found = []
    for loss in (Loss(), Loss(0, 1), Loss(2.0, 3.0, 0.0)):
        fresh = copy.deepcopy(model)
        found.append(train_step(fresh, patches(2, 8), make_optimizer(fresh, "sgd", 0.1), step=0, loss=loss))
    assert found[2].terms == pytest.approx({"cross_entropy": found[0].loss, "dice": found[1].loss}, rel=1e-12)
    assert found[2].loss == pytest.approx(2 * found[0].loss + 3 * found[1].loss, rel=1e-12)


def test_scaled_gradients_are_the_same_gradients(patches):
    """In float64 the scaler's factor, a power of 2, leaves no trace: clipped step for clipped step."""
    states = []
    for precision in ("float32", "float16"):
        model = new_network(SMALL, seed=1).double()
        optimizer, scaler = make_optimizer(model, "adamw", 0.01), make_scaler(precision, "cpu")
        assert (scaler is None) == (precision == "float32")
        for step in range(3):
            result = train_step(
                InItsOwnDtype(model), patches(2, 8, seed=step), optimizer, step=step,
                precision=precision, scaler=scaler, max_gradient_norm=0.5,
            )  # fmt: skip
            assert result.stepped
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


class InItsOwnDtype(torch.nn.Module):
    """A network that computes in its own dtype whatever autocast says."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        with torch.autocast("cpu", enabled=False):
            return self.model(images)


def test_an_overflow_is_skipped_and_a_divergence_is_not(patches):
    model = new_network(SMALL, seed=1)
    optimizer, scaler = make_optimizer(model, "adamw", 0.01), make_scaler("float16", "cpu")
    how = {"precision": "float16", "scaler": scaler}
    assert train_step(model, patches(2, 8), optimizer, step=0, **how).stepped
    before, scale = copy.deepcopy(model.state_dict()), scaler.get_scale()
    model.out.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert not train_step(model, patches(2, 8), optimizer, step=1, **how).stepped
    assert unchanged(model, before)
    assert scaler.get_scale() == scale / 2
    stored = io.BytesIO()
    torch.save(scaler.state_dict(), stored)
    stored.seek(0)
    again = make_scaler("float16", "cpu")
    again.load_state_dict(torch.load(stored, weights_only=True))
    assert again.get_scale() == scale / 2
    while scaler.get_scale() >= 1:
        assert not train_step(model, patches(2, 8), optimizer, step=2, **how).stepped
    with pytest.raises(TrainingDivergedError, match="step 3: the norm of the gradient"):
        train_step(model, patches(2, 8), optimizer, step=3, **how)
    assert unchanged(model, before)


def test_float16_without_a_scaler_is_a_mistake(patches):
    model = new_network(SMALL, seed=1)
    with pytest.raises(AssertionError, match="float16 goes with a scaler"):
        train_step(model, patches(1, 8), make_optimizer(model, "adam", 0.1), step=0, precision="float16")


def test_the_step_decides_the_dropout_and_the_global_random_state_does_not(patches):
    model = new_network(network_config("keras", base_channels=2, depth=2), seed=1).double()

    def loss_of(random_state, batch, **how):
        torch.manual_seed(random_state)
        return train_step(copy.deepcopy(model), batch, make_optimizer(model, "sgd", 0.0), **how).loss

    batch = patches(2, 8)
    first = loss_of(1, batch, step=4, seed=9)
    assert loss_of(2, batch, step=4, seed=9) == first
    assert loss_of(2, batch._replace(position=None), step=4, seed=9) == first  # one rank: positions are 0, 1, ...
    others = [loss_of(1, batch, step=5, seed=9), loss_of(1, batch, step=4, seed=8)]
    others.append(loss_of(1, batch._replace(position=torch.tensor([1, 0])), step=4, seed=9))
    assert len({first, *others}) == 4


@pytest.mark.parametrize(("count", "pieces", "sizes"), [(5, 2, [3, 2]), (2, 3, [1, 1, 0]), (0, 2, [0, 0])])
def test_pieces_in_order(patches, count, pieces, sizes):
    batch = patches(count, 8)._replace(weight=None)
    parts = list(batch.split(pieces))
    assert [len(part.image) for part in parts] == sizes
    assert torch.cat([part.number for part in parts]).tolist() == batch.number.tolist()
    assert all(part.weight is None for part in parts)


def test_optimizers_are_what_they_are_called():
    model = new_network(network_config("default", base_channels=2, depth=2), seed=1)
    paper = make_optimizer(model, "sgd", 0.1).param_groups[0]
    assert (type(make_optimizer(model, "adam", 0.1)), paper["momentum"]) == (torch.optim.Adam, 0.99)
    decayed, free = make_optimizer(model, "adamw", 0.1, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in free["params"]} == {1}
