"""Make a patch cache of augmented training patches from labelled sections."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.augment import AugmentConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: AugmentConfig) -> Summary:
        from unet_ray.engine.augment import augment  # Ray and the rest load after --help

        return augment(config)

    return run(AugmentConfig, engine, argv, "augment")


if __name__ == "__main__":
    sys.exit(main())
