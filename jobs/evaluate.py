"""Score a segmentation against labels."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.evaluate import EvaluateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: EvaluateConfig) -> Summary:
        from unet_ray.engine.evaluate import evaluate  # Ray and the rest load after --help

        return evaluate(config)

    return run(EvaluateConfig, engine, argv, "evaluate")


if __name__ == "__main__":
    sys.exit(main())
