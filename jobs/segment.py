"""Segment a volume with a trained model."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.segment import SegmentConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: SegmentConfig) -> Summary:
        from unet_ray.engine.segment import segment  # Ray and the rest load after --help

        return segment(config)

    return run(SegmentConfig, engine, argv, "segment")


if __name__ == "__main__":
    sys.exit(main())
