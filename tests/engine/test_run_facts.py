"""What a report says of where and by what a run was made."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from unet_ray.engine import run_facts, same_code
from unet_ray.engine.same_code import own_code


def test_versions_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ray job submit --working-dir .` brings it: the package is there, its metadata are not."""

    def found(name: str) -> str:
        if name == "unet_ray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(same_code, "version", found)
    said = run_facts.versions()
    assert f"unet_ray without a version (code {own_code()})" in said
    assert f"numpy {version('numpy')}" in said
