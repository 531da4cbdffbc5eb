"""Augment, train, segment and evaluate from one config; with no arguments, the demo."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.pipeline import PipelineConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: PipelineConfig) -> Summary:
        from unet_ray.engine.pipeline import pipeline  # Ray and the rest load after --help

        return pipeline(config)

    return run(PipelineConfig, engine, argv, "pipeline")


if __name__ == "__main__":
    sys.exit(main())
