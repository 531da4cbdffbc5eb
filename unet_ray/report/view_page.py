"""The viewer's page: one file, which asks for nothing of another host."""

from importlib.resources import files


def page_html() -> bytes:
    """The page as it is shipped with the package.

    >>> page_html()[:15]
    b'<!doctype html>'
    """
    return files("unet_ray.report").joinpath("view_page.html").read_bytes()
