"""Hosts that lose their power or their cable in the middle of a job, and hosts that join: the same bytes in the end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zarr
from hosts import ACTOR, Host, Hosts, hosts_with_ray, noticed, wait_for
from submitted import Job, flags

from unet_ray.geometry.box import Box
from unet_ray.numerics.phantom import phantom_block

pytestmark = pytest.mark.cluster

SHAPE, BLOCKS = (12, 200, 230), 108


class Undisturbed(NamedTuple):
    """Where volume and model are, and the digest of every shard that a plain loop makes of them without Ray."""

    folder: Path
    digests: dict[str, str]


class Segmentation:
    """A segmentation under way, long enough to lose a host in it."""

    def __init__(self, host: Host, inputs: Undisturbed, out: str, submit: bool = False, **more: Any) -> None:
        self.output = inputs.folder / out
        given = flags(
            volume=inputs.folder / "volume.zarr", model=inputs.folder / "model", output=self.output, tile_px=32,
            precision="float32", threads=1, **more,
        )  # fmt: skip
        self.job = Job(host, "segment", *given, submit=submit)

    def done(self) -> set[Path]:
        return set((self.output / "0" / "c").glob("*/*/[0-9]"))

    def wait_until_working(self, *busy: Host, blocks: int = 12) -> None:
        def working() -> bool:
            at_work = all(host.processes(ACTOR) for host in busy)
            return self.job.running() and at_work and len(self.done()) >= blocks

        wait_for(working, 120, every=0.02)
        assert len(self.done()) < BLOCKS, "it was to be caught in the middle"


@pytest.fixture(scope="session")
def undisturbed(
    session_hosts: Hosts, write_model: Callable[..., str], by_plain_loop: Callable[..., Any], shards: Callable[..., Any]
) -> Undisturbed:
    folder = session_hosts.folder
    volume = f"{folder}/volume.zarr"
    zarr.create_array(volume, data=phantom_block(Box.of_shape(SHAPE), 2).image, chunks=(1, *SHAPE[1:]))
    model = write_model(folder / "model", "default", base_channels=8)
    by_plain_loop(volume, model, folder / "plain", 32, 0.5)
    found = {key: shard.digest for key, shard in shards(folder / "plain").items()}
    assert sum(key.startswith("0/c/") for key in found) == BLOCKS
    return Undisturbed(folder, found)


@pytest.fixture
def ends_undisturbed(undisturbed: Undisturbed, shards: Callable[..., Any]) -> Callable[[Segmentation], dict[str, Any]]:
    """Asserts that a segmentation ends complete, with the bytes of the plain loop; its summary."""

    def check(segmentation: Segmentation) -> dict[str, Any]:
        ended = segmentation.job.wait()
        assert ended.code == 0, ended.said
        found = ended.summary
        assert (found["status"], found["blocks_written"] + found["blocks_skipped"]) == ("complete", BLOCKS)
        written = shards(segmentation.output)
        assert {key: written[key].digest for key in undisturbed.digests} == undisturbed.digests
        return found

    return check


@pytest.mark.slow
def test_a_host_that_joins_gets_work(
    hosts: Hosts, labelled: dict[str, tuple[str, ...]], undisturbed: Undisturbed, write_model: Callable[..., str]
) -> None:
    """In two minutes or three."""
    folder = hosts.folder / "joined"
    # Four networks, for with one a fast machine is done before the host is there.
    model = write_model(hosts.folder / "members", "default", base_channels=8, members=4)
    segmentation = {
        "volume": undisturbed.folder / "volume.zarr", "model": model, "tile_px": 32,
        "precision": "float32", "threads": 1, "tta": "dihedral", "output": folder / "out.zarr",
    }  # fmt: skip
    augmentation = labelled | {
        "label_kind": "membrane", "variants": 300, "patch_px": 256, "patches_per_shard": 4,
        "validation_sections": ("2",), "cache": folder / "cache",
    }  # fmt: skip
    # Of the work itself: what follows it, as the pyramid, has actors of its own.
    for name, settings, records, total in (
        ("segment", segmentation, "out.zarr/0/c/*/*/[0-9]", BLOCKS),
        ("augment", augmentation, "cache/train/image/c/*/0/0/0", 375),
    ):
        job = Job(hosts.head, name, *flags(**settings), submit=False)
        everywhere = (hosts.head, *hosts.workers)
        wait_for(lambda job=job, on=everywhere: job.running() and all(host.processes(ACTOR) for host in on), 60)
        joined = hosts.add()
        hosts.start_ray([joined])
        wait_for(lambda job=job, joined=joined: job.running() and joined.processes(ACTOR), 60, every=0.02)
        assert len(list(folder.glob(records))) < total
        ended = job.wait(400)
        assert ended.code == 0, ended.said
        assert ended.summary["status"] == "complete"
        joined.power_off()


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True], ids=["a few seconds", "until the host is taken for dead"])
def test_segmentation_survives_a_pulled_cable(
    hosts: Hosts,
    undisturbed: Undisturbed,
    ends_undisturbed: Callable[[Segmentation], Any],
    record_property: Callable[[str, object], None],
    long: bool,
) -> None:
    """In half a minute each. The disk does not hang on the cable, so a host taken for dead may go on writing."""
    cut = hosts.workers[-1]
    segmentation = Segmentation(hosts.head, undisturbed, f"cable-{long}")
    segmentation.wait_until_working(cut)
    cut.unplug()
    if long:
        noticed(hosts, cut, record_property)
    else:
        time.sleep(3)
        assert cut.address in hosts.alive()
    cut.plug()
    ends_undisturbed(segmentation)
    if long:
        cut.power_off()  # Ray has given up the host, which has given up Ray


@pytest.mark.parametrize("submit", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["joins", "submitted"])
def test_the_loss_of_the_head_ends_the_job_and_another_goes_on(
    undisturbed: Undisturbed,
    ends_undisturbed: Callable[[Segmentation], Any],
    record_property: Callable[[str, object], None],
    submit: bool,
) -> None:
    """In a minute or two: two clusters are started. What goes on is submitted."""
    with hosts_with_ray(2) as hosts:
        segmentation = Segmentation(hosts.workers[0], undisturbed, f"headless-{submit}", submit=submit, workers=1)
        segmentation.wait_until_working()
        hosts.head.power_off()
        began = time.time()
        ended = segmentation.job.wait(120)
        record_property("seconds until the command ended", round(time.time() - began, 1))
        record_property("what it said", ended.said.splitlines()[-3:])
        assert ended.code != 0, ended.said
        # A submitted job runs on the head, and has no last words.
        assert submit or "the Ray cluster" in ended.said
        there = len(segmentation.done())
        assert 12 <= there < BLOCKS
    with hosts_with_ray(2) as hosts:
        again = Segmentation(hosts.workers[0], undisturbed, f"headless-{submit}", submit=True)
        assert ends_undisturbed(again)["blocks_skipped"] == there
