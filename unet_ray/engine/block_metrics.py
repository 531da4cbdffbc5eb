"""Counts of a run over blocks for Prometheus; Ray exports them on the driver's node beside its own."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter


class BlockMetrics:
    """Counters that a dashboard takes rates of; each has the tag ``stage``, and Ray writes ray_ and _total around it.

    ``unet_ray_blocks_done``, ``unet_ray_blocks_failed`` (tried in vain in this run), and ``unet_ray_units_done``:
    voxels or patches. Where Ray has no metrics agent, which comes with ``ray[default]``, nothing is exported.

    Args:
        stage: such as "segment".
    """

    def __init__(self, stage: str) -> None:
        self._tags = {"stage": stage}
        self._done = Counter("unet_ray_blocks_done", "Blocks written.", ("stage",))
        self._failed = Counter("unet_ray_blocks_failed", "Blocks that failed at every try.", ("stage",))
        self._units = Counter("unet_ray_units_done", "Voxels or patches written.", ("stage",))

    def take(self, row: Mapping[str, Any]) -> None:
        """Count a block's row; see `unet_ray.engine.blocks.work_through`."""
        if not row["ok"]:
            self._failed.inc(1, self._tags)
            return
        self._done.inc(1, self._tags)
        if row["units"]:
            self._units.inc(int(row["units"]), self._tags)
