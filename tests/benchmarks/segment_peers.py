"""MONAI's inferers on the sections of an array: a program of its own, for an interpreter that has MONAI.

It needs torch, MONAI, zarr and what `unet_ray.network.model_file` imports (pydantic, safetensors). The network is
ours, with the same weights. Windows of 512 px that overlap by a quarter, as MONAI's examples have them: unlike ours
their results depend on the grid. Sections are float tensors in memory before the clock runs, on the device, in their
favour; what comes out is uint8 in memory, or MONAI's zarr array of float32 logits.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OVERLAP = 0.25
# "fast" is everything of theirs that the hardware gains from; batch: windows of a forward pass.
PEERS: dict[str, dict[str, Any]] = {
    "monai_sliding_window": {"kind": "sliding"},
    "monai_sliding_window_fast": {"kind": "sliding", "fast": True},
    "monai_sliding_window_fast_batch_4": {"kind": "sliding", "fast": True, "batch": 4},
    "monai_patches_zarr": {"kind": "patches"},
    "monai_patches_zarr_fast": {"kind": "patches", "fast": True},
    "monai_patches_zarr_fast_batch_4": {"kind": "patches", "fast": True, "batch": 4},
}
NOTES = {
    "monai_sliding_window": "SlidingWindowInferer, Gaussian blending, all else its defaults, float32.",
    "monai_sliding_window_fast": "The weight map is kept; bfloat16 autocast and channels_last where the device "
    "computes with bfloat16.",
    "monai_patches_zarr": "PatchInferer with SlidingWindowSplitter and ZarrAvgMerger, all else their defaults, float32."
    " The merger takes nothing but float32 in the CPU's memory, so the network's output is brought there.",
    "monai_patches_zarr_fast": "Sums and counts in memory, no locks, no compression, chunks of a window's side (as "
    "fast as any tried); precision as above.",
}


def sliding(options: dict[str, Any], roi: tuple[int, int], *, device: str) -> Callable[[Any, Any], Any]:
    """Inferer of one section; returns (y, x) uint8 probability in memory."""
    from monai.inferers import SlidingWindowInferer

    from unet_ray.network.unet import membrane_probability

    inferer = SlidingWindowInferer(
        roi, sw_batch_size=options.get("batch", 1), overlap=OVERLAP, mode="gaussian",
        **({"cache_roi_weight_map": True, "device": device} if options.get("fast") else {}),
    )  # fmt: skip

    def infer(section: Any, network: Any) -> Any:
        return (membrane_probability(inferer(section, network))[0] * 255).round().byte().cpu().numpy()

    return infer


def patches(options: dict[str, Any], roi: tuple[int, int], *, folder: str) -> Callable[[Any, Any], Any]:
    """Inferer of one section; returns MONAI's zarr array of logits."""
    import zarr
    from monai.inferers import PatchInferer, SlidingWindowSplitter, ZarrAvgMerger

    def infer(section: Any, network: Any) -> Any:
        shutil.rmtree(f"{folder}/merged.zarr", ignore_errors=True)
        fast: dict[str, Any] = {}
        if options.get("fast"):
            fast = {
                "value_store": zarr.storage.MemoryStore(), "count_store": zarr.storage.MemoryStore(),
                "thread_locking": False, "chunks": (1, 1, *roi),
                **{name: [zarr.codecs.BytesCodec()] for name in ("codecs", "value_codecs", "count_codecs")},
            }  # fmt: skip
        inferer = PatchInferer(
            SlidingWindowSplitter(roi, OVERLAP), ZarrAvgMerger, batch_size=options.get("batch", 1),
            postprocessing=lambda logits: logits.float().cpu(), store=f"{folder}/merged.zarr", **fast,
        )  # fmt: skip
        return inferer(section, network)

    return infer


def main() -> dict[str, Any]:
    """Time one contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--grey", required=True, help=".npy of sections, uint8")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--roi", type=int, required=True)
    parser.add_argument("--device", required=True)
    config = parser.parse_args()

    import monai
    import numpy as np
    import torch

    from unet_ray.engine.process_memory import peak_rss_bytes
    from unet_ray.network.model_file import decode
    from unet_ray.network.predict import hardware_precision
    from unet_ray.network.unet import network_from_state, network_input

    torch.set_num_threads(config.threads)
    options, gpu = PEERS[config.name], config.device == "cuda"
    settings, state, _ = decode(Path(config.model).read_bytes())
    network = network_from_state(settings, state).to(config.device)
    half = bool(options.get("fast")) and hardware_precision(config.device) == "bfloat16"
    if half:
        network = network.to(memory_format=torch.channels_last)
    grey = np.load(config.grey)
    sections = [network_input(torch.from_numpy(section[None, None])).to(config.device) for section in grey]

    def forward(windows: Any) -> Any:
        if not half:
            return network(windows)
        with torch.autocast(config.device, torch.bfloat16):
            return network(windows.contiguous(memory_format=torch.channels_last)).float()

    # They take a window that is larger than the section, but pad for it.
    roi = tuple(min(config.roi, side) for side in grey.shape[1:])
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if options["kind"] == "sliding":
            infer = sliding(options, roi, device=config.device)
        else:
            infer = patches(options, roi, folder=folder)
        corner = tuple(slice(0, min(2 * side, whole)) for side, whole in zip(roi, grey.shape[1:], strict=True))
        infer(sections[0][(..., *corner)], forward)
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for section in sections:
            found = infer(section, forward)
            assert found.shape[-2:] == grey.shape[1:], found.shape
        seconds = time.perf_counter() - start
    return {
        "voxels_per_second": grey.size / seconds,
        "precision": "bfloat16" if half else "float32",
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else peak_rss_bytes(),
        "versions": {"monai": monai.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    print(json.dumps(main()))
