"""What the viewer serves, read in a browser by zarrita, a zarr reader that shares nothing with ours."""

import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import tifffile
import zarr

from tests.scenes import raw_values, write_segmentation
from tests.viewer import served

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><title>zarrita</title><link rel="icon" href="data:,">
<script type="importmap">{"imports": {
  "zarrita": "/node_modules/zarrita/dist/src/index.js",
  "@zarrita/storage/fetch": "/node_modules/@zarrita/storage/dist/src/fetch.js",
  "numcodecs/zstd": "/node_modules/numcodecs/dist/zstd.js"
}}</script>
<script type="module">
  import * as zarr from "zarrita";
  window.read = async ([url, suffix, box]) => {
    const store = new zarr.FetchStore(url, {useSuffixRequest: suffix});
    const array = await zarr.open.v3(store, {kind: "array"});
    const region = await zarr.get(array, box.map(([start, stop]) => zarr.slice(start, stop)));
    return {dtype: array.dtype, shape: region.shape, values: Array.from(region.data)};
  };
</script>
"""
BOX = [[1, 4], [50, 150], [30, 170]]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Address of a page, of another origin than the viewer's, with zarrita."""
    folder = tmp_path_factory.mktemp("zarrita")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: zarrita cannot be fetched")
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "zarrita@0.7.5"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch zarrita: {done.stderr.strip().splitlines()[-1:]}")
    (folder / "index.html").write_text(PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    with server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_zarrita_decodes_what_zarr_python_does(browser_page, reader, tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", raw_values(), photometric="minisblack")
    path = write_segmentation(tmp_path / "s.zarr")
    with served(volume=tmp_path / "raw.tif", segmentation=path) as address:
        page = browser_page(reader)
        page.wait_for("window.read !== undefined")
        inside = tuple(slice(*side) for side in BOX)
        for key, expected in {
            "segmentation.zarr/0": zarr.open_array(path / "0")[inside],
            "segmentation.zarr/labels/membrane/0": zarr.open_array(path / "labels/membrane/0")[inside],
            "raw.zarr/0": raw_values()[inside],
        }.items():
            assert len(np.unique(expected)) > 1
            # The shard's index by its size from HEAD, and by a range from its end.
            for suffix in (False, True):
                found = page.evaluate("read", [f"{address}/{key}", suffix, BOX])
                assert (found["dtype"], found["shape"]) == ("uint8", list(expected.shape))
                np.testing.assert_array_equal(np.reshape(found["values"], expected.shape), expected)
        assert page.errors == []


def test_neuroglancers_site_may_read_and_another_may_not(browser_page, reader, tmp_path):
    path = write_segmentation(tmp_path / "s.zarr")
    page = browser_page(reader)
    page.page.context.grant_permissions(["local-network-access"])
    site = {"content_type": "text/html", "body": "<!doctype html><link rel='icon' href='data:,'>"}
    page.page.route("https://*/", lambda route: route.fulfill(**site))
    fetched = "url => fetch(url, {headers: {Range: 'bytes=0-9'}}).then(a => a.text(), error => `${error}`)"
    with served(segmentation=path) as address:
        url = f"{address}/segmentation.zarr/zarr.json"
        page.page.goto("https://neuroglancer-demo.appspot.com/")
        assert page.evaluate(fetched, url) == (path / "zarr.json").read_text()[:10]
        page.page.goto("https://example.com/")
        assert page.evaluate(fetched, url) == "TypeError: Failed to fetch"
