"""The viewer in a thread of the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from unet_ray.config.view import ViewConfig
from unet_ray.engine.view import open_server
from unet_ray.engine.view_scene import open_scene


@contextmanager
def served(**settings: object) -> Iterator[str]:
    """Address, without a slash at its end, of a viewer with these settings at a free port."""
    config = ViewConfig.model_validate({"port": 0, **{key: _text(value) for key, value in settings.items()}})
    with open_server(config, open_scene(config))[0] as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
