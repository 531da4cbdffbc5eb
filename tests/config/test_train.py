"""What the train job refuses before anything starts, and what its presets take from their sources."""

import pytest

from unet_ray.config.parse import parse
from unet_ray.config.train import PRESET_TRAINING, TrainConfig
from unet_ray.errors import ConfigError

TRAIN = ["--cache", "cache.zarr", "--run", "run"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cross-entropy-weight", "0"], "cross_entropy_weight and dice_weight are both 0, so there is no loss"),
        (["--precision", "float16"], "precision float16 needs a GPU; add --use-gpu, or take bfloat16 or float32"),
        (["--ema-decay", "1"], "--ema-decay was given 1.0: .* less than 1"),
        (["--label-smoothing", "-0.1"], "--label-smoothing was given -0.1: .* greater than or equal to 0"),
        (["--max-gradient-norm", "0"], "--max-gradient-norm was given 0.0: .* greater than 0"),
        (["--micro-batch", "0"], "--micro-batch was given 0: .* greater than or equal to 1"),
        (["--momentum", "1"], "--momentum was given 1.0: .* less than 1"),
        (["--base-channels", "100000000"], "--base-channels was given 100000000: .* less than or equal to 4096"),
        (["--best-by", "rand"], "'rand' for argument '--best-by'"),
        (["--schedule", "cosin"], "'cosin' for argument '--schedule'"),
    ],
)
def test_what_is_no_recipe_is_one_sentence(flags, said):
    with pytest.raises(ConfigError, match=said) as refused:
        parse(TrainConfig, [*TRAIN, *flags], "train")
    assert "\n" not in str(refused.value)


def test_float16_with_a_gpu_and_dice_alone_are_taken():
    flags = ["--precision", "float16", "--use-gpu", "--cross-entropy-weight", "0", "--dice-weight", "1"]
    assert parse(TrainConfig, [*TRAIN, *flags], "train").dice_weight == 1


def test_presets_hold_their_sources_numbers():
    paper, keras = PRESET_TRAINING["paper"], PRESET_TRAINING["keras"]
    # Ronneberger et al. 2015, section 3: one large tile, high momentum, weighted cross-entropy.
    assert (paper["optimizer"], paper["momentum"], paper["batch_size"], paper["weighted"]) == ("sgd", 0.99, 1, True)
    # The notebook: model.compile, fit and its callbacks.
    assert (keras["optimizer"], keras["learning_rate"], keras["batch_size"]) == ("adam", 1e-4, 2)
    assert (keras["schedule"], keras["early_stop_epochs"], keras["epochs"]) == ("plateau", 10, 30)
    assert not keras["weighted"]
    config = parse(TrainConfig, [*TRAIN, "--preset", "keras"], "train")
    assert (config.cross_entropy_weight, config.dice_weight, config.label_smoothing) == (1, 0, 0)  # plain BCE
    assert (config.max_gradient_norm, config.micro_batch, config.ema_decay, config.compile) == (None, None, 0, False)
