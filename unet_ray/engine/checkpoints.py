"""The checkpoints of a run as Ray Train lists them, and which of them can be gone on from."""

import io
import json
from typing import Any

import ray
import torch

from unet_ray.errors import ModelFileError
from unet_ray.storage.failure import reason
from unet_ray.storage.objects import Objects

CHECKPOINTS = "checkpoints"
STATE = "state.pt"
PARTS = frozenset({"network", "optimizer", "schedule", "average", "scaler", "at"})
# Ray Train's own list, oldest first; it goes on from the last one, and gives up where one that is listed is missing.
LIST = f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"


def loaded_state(data: bytes | None, where: str) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Args:
        data: its file; None where that is missing.
        where: its name in messages.

    Raises:
        ModelFileError: it is missing or damaged, or holds more than tensors and plain values, which is never loaded.
    """
    if data is None:
        raise ModelFileError(f"checkpoint {where} is missing")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        absent = PARTS - state.keys()
    except Exception as error:  # torch and pickle raise many kinds; all mean that the bytes are bad
        raise ModelFileError(f"checkpoint {where} is damaged or not one of ours ({reason(error)})") from error
    if absent:
        raise ModelFileError(f"checkpoint {where} is not one of ours (it has no {', '.join(sorted(absent))})")
    return state


def take_off_unusable(run: Objects, name: str) -> list[str]:
    """Take what cannot be gone on from off the list of a run's checkpoints, so that its last one can.

    A power cut leaves files that were cut off, and a full disk a list that was.

    Args:
        run: the run directory.
        name: its name in messages.

    Returns:
        Sentences that tell what was taken off; none where all is well.

    Raises:
        ModelFileError: there were checkpoints, and none is left.
    """
    stored = run.get(LIST)
    if stored is None:
        return []
    there = sorted(info.key.split("/")[1] for info in run.list(f"{CHECKPOINTS}/") if info.key.endswith(f"/{STATE}"))
    said = list[str]()
    try:
        listed: list[dict[str, Any]] = json.loads(stored)["checkpoint_results"]
    except (ValueError, KeyError, TypeError):
        said.append("their list is damaged")
        listed = [{"version": 0, "checkpoint_dir_name": folder, "metrics": {}} for folder in there]
    kept = list[dict[str, Any]]()
    for result in listed:
        if result["checkpoint_dir_name"] in there:
            kept.append(result)
        else:
            said.append(f"checkpoint {result['checkpoint_dir_name']} is missing")
    step = 0
    while kept:
        folder = kept[-1]["checkpoint_dir_name"]
        try:
            step = loaded_state(run.get(f"{CHECKPOINTS}/{folder}/{STATE}"), folder)["at"]["step"]
            break
        except ModelFileError as error:
            kept.pop()
            said.append(str(error))
    if not said:
        return []
    if not kept:
        raise ModelFileError(
            f"run {name} has no checkpoint that can be gone on from ({'; '.join(said)}); choose a new --run, with this "
            "one's model.safetensors as --initial-model if there is one, or pass --overwrite"
        )
    run.put(LIST, json.dumps(_list_of(kept)).encode())
    return [f"of the checkpoints of {name}, {'; '.join(said)}; going on from step {step}, {folder}"]


def _list_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Ray Train's list, of checkpoints that wait for nothing."""
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
