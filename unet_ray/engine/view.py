"""A volume and its segmentation for people to look at: a page of ours, neuroglancer and napari."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from unet_ray.command import Summary
from unet_ray.config.view import ViewConfig
from unet_ray.engine.view_layers import TILE_PX
from unet_ray.engine.view_scene import Scene, open_scene
from unet_ray.engine.view_server import Answer, ViewServer
from unet_ray.report.neuroglancer import link
from unet_ray.report.view_page import page_html

_PNG, _JSON, _HTML = "image/png", "application/json", "text/html; charset=utf-8"
# The page is whole in itself; the browser holds it to that.
_POLICY = (
    "Content-Security-Policy",
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


def view(config: ViewConfig) -> Summary:
    """Serve until interrupted.

    Returns:
        The summary of the contract, with the addresses that were served; its status is "interrupted".

    Raises:
        InputError: nothing to show, or it cannot be opened, or the port is taken.
    """
    began = time.time()
    scene = open_scene(config)
    server, addresses = open_server(config, scene)
    started = round(time.time() - began, 2)
    with server:
        for name, address in addresses.items():
            _say(f"{name:13} {address}")
        for remark in scene.remarks:
            _say(remark)
        _say("serving until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return {
        "status": "interrupted",
        "seconds": round(time.time() - began, 2),
        "startup_seconds": started,
        **addresses,
    }


def open_server(config: ViewConfig, scene: Scene) -> tuple[ViewServer, dict[str, str]]:
    """The server, bound but not serving yet, and what to open: page, neuroglancer, and the command for napari.

    Raises:
        ConfigError: the port is taken.
    """
    shown: dict[str, Any] = {}

    def answers(parts: Sequence[str]) -> Answer | None:
        return _answer(scene, shown, parts)

    site = urlsplit(config.neuroglancer)
    server = ViewServer(config.port, scene.groups, answers, [f"{site.scheme}://{site.netloc}"])
    linked = [replace(layer, url=f"{server.url}/{layer.url}") for layer in scene.linked]
    shape = scene.layers[0].image.volumes[0].shape
    addresses = {
        "page": f"{server.url}/",
        "neuroglancer": link(config.neuroglancer, linked, shape, scene.voxel_size_nm),
        "napari": " ".join(["napari --plugin napari-ome-zarr", *(f"{server.url}/{name}" for name in scene.groups)]),
    }
    # Only here, because the link names the port.
    shown |= _description(scene, config, addresses["neuroglancer"])
    return server, addresses


def _say(line: str) -> None:
    print(f"view: {line}", file=sys.stderr, flush=True)


def _description(scene: Scene, config: ViewConfig, neuroglancer: str) -> dict[str, Any]:
    """What the page asks for first."""
    first = scene.layers[0].image.volumes[0]
    size: tuple[float | None, ...] | None = scene.voxel_size_nm
    if size is None and first.pixel_size_nm is not None:
        size = (None, *first.pixel_size_nm)
    return {
        "title": str(config.volume if config.volume is not None else config.segmentation),
        "shape": first.shape,
        "voxel_size_nm": size,
        "tile_px": TILE_PX,
        "layers": [layer.describe() for layer in scene.layers],
        "neuroglancer": neuroglancer,
    }


def _answer(scene: Scene, shown: dict[str, Any], parts: Sequence[str]) -> Answer | None:
    """The page and what it asks for."""
    match list(parts):
        case [""]:
            return Answer(page_html(), _HTML, (_POLICY,))
        case ["layers.json"]:
            return Answer(json.dumps(shown).encode(), _JSON)
        case ["tile", *numbers, name] if name.endswith(".png"):
            place = _numbers([*numbers, name.removesuffix(".png")], 5)
            if place is None or place[0] >= len(scene.layers):
                return None
            png = scene.layers[place[0]].tile(*place[1:])
            return None if png is None else Answer(png, _PNG)
        case ["values", z, y, name] if name.endswith(".json"):
            place = _numbers([z, y, name.removesuffix(".json")], 3)
            shape = scene.layers[0].image.volumes[0].shape
            if place is None or any(p >= n for p, n in zip(place, shape, strict=True)):
                return None
            values = {layer.name: layer.value(*place) for layer in scene.layers}
            return Answer(json.dumps(values).encode(), _JSON)
    return None


def _numbers(parts: Sequence[str], count: int) -> list[int] | None:
    """``count`` whole numbers from 0 on, or None where the parts are none."""
    if len(parts) != count or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        return None
    return [int(p) for p in parts]
