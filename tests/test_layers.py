"""Imports point down only; read from the import statements, and held by fresh processes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unet_ray"
MIDDLE = ("network", "numerics", "storage", "report")
EVERYWHERE = {"errors", "geometry", "config"}
# One palette: what is drawn, and the metadata that viewers draw by.
COLOURED = {"storage", "report", "engine"}
# What each floor may import of unet_ray, itself included.
MAY_IMPORT = {
    "errors": set(),
    "colours": set(),
    "geometry": {"geometry", "errors"},
    "config": {"config", "errors", "geometry"},
    "command": {"config", "errors"},
    **{floor: {floor} | EVERYWHERE for floor in MIDDLE},
    "engine": {"engine", "command", *MIDDLE} | EVERYWHERE,
}
for coloured in COLOURED:
    MAY_IMPORT[coloured] |= {"colours"}
LIBRARIES_NOT_FOR = {
    "ray": set(MAY_IMPORT) - {"engine"},
    "torch": {"geometry", "config", "command", "errors", "colours", "report", "numerics", "storage"},
    "zarr": {"geometry", "config", "command", "errors", "colours", "report", "numerics", "network"},
    "numpy": {"geometry", "config", "command", "errors", "colours"},
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it; ``from a import b`` gives a.b, which may be a module."""
    place = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*place[: -node.level or None], *filter(None, [node.module])]) if node.level else node.module
            )
            yield from (f"{base}.{alias.name}" for alias in node.names)


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    floor = floor_of(path)
    assert floor in MAY_IMPORT, f"{floor} is on no floor of the architecture"
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "unet_ray":
            assert rest.partition(".")[0] in MAY_IMPORT[floor], f"{path.name} imports {name}"
        elif floor in ("geometry", "errors"):
            assert top in sys.stdlib_module_names, f"{path.name} imports {name}"
        assert floor not in LIBRARIES_NOT_FOR.get(top, ()), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_only_parse_call_and_print(path):
    floors = {name.split(".")[1] for name in imported(path) if name.startswith("unet_ray.")}
    assert floors == {"command", "config", "engine"}
    assert len(path.read_text().splitlines()) <= 60


def test_packages_name_what_they_offer_and_do_nothing_else():
    for path in PACKAGE.glob("*/__init__.py"):
        if path.parent.name != "engine":  # sets Ray's environment
            statements = ast.parse(path.read_text()).body
            assert [type(node) for node in statements] == [ast.Expr], path


def test_the_reader_of_import_statements_sees_them(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "unet_ray" / "geometry" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("import ray.data as r\ndef f():\n    from ..storage import volume\n    from . import box\n")
    assert set(imported(path)) == {"ray.data", "unet_ray.storage.volume", "unet_ray.geometry.box"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("unet_ray.geometry.tiles unet_ray.geometry.receptive_field", "ray torch numpy pydantic"),
        ("unet_ray.config.pipeline unet_ray.config.parse unet_ray.command", "ray torch numpy tyro"),
        ("unet_ray.report.progress unet_ray.report.pictures unet_ray.report.curves", "ray torch zarr"),
        ("unet_ray.storage.patch_cache unet_ray.storage.segmentation unet_ray.storage.volume", "ray torch numba"),
        ("unet_ray.numerics.augment unet_ray.numerics.metrics", "ray torch zarr"),
        ("unet_ray.engine.view", "ray torch numba matplotlib"),
        # While Ray starts there is time for the rest.
        ("unet_ray.engine.evaluate", "ray.data torch numba matplotlib"),
        # On workers.
        ("unet_ray.engine.section_scoring unet_ray.engine.section_pictures", "ray.data torch matplotlib"),
        ("unet_ray.network.step unet_ray.network.predict", "ray zarr numba"),
    ],
)
def test_what_importing_loads(modules, absent):
    code = f"import sys, {modules.replace(' ', ', ')}\nprint(*({set(absent.split())!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
