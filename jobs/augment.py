"""Make a patch cache of augmented training patches from labelled sections, or one patch of it again."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.augment import AugmentConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: AugmentConfig) -> Summary:
        # Ray and the rest load after --help, and Ray not at all for one patch.
        if config.replay is not None or config.out is not None:
            from unet_ray.engine.augment_replay import replay

            return replay(config)
        from unet_ray.engine.augment import augment

        return augment(config)

    return run(AugmentConfig, engine, argv, "augment")


if __name__ == "__main__":
    sys.exit(main())
