"""Train a U-Net on a patch cache."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.train import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: TrainConfig) -> Summary:
        from unet_ray.engine.train import train  # Ray and the rest load after --help

        return train(config)

    return run(TrainConfig, engine, argv, "train")


if __name__ == "__main__":
    sys.exit(main())
