"""Show a volume with its segmentation in a browser, neuroglancer or napari."""

import sys
from collections.abc import Sequence

from unet_ray.command import Summary, run
from unet_ray.config.view import ViewConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""

    def engine(config: ViewConfig) -> Summary:
        from unet_ray.engine.view import view  # zarr and the rest load after --help

        return view(config)

    return run(ViewConfig, engine, argv, "view", interrupted="stopped serving")


if __name__ == "__main__":
    sys.exit(main())
