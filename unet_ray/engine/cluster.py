"""The Ray cluster of a run: the one that is named, or one started for the run alone."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import ray

from unet_ray.engine.head import require_head, watched
from unet_ray.engine.machines import machines
from unet_ray.engine.same_code import require_same_code
from unet_ray.errors import ConfigError, UnetRayError

# Pixels never ride through the object store: it holds model weights and status rows.
OBJECT_STORE_BYTES = 512 * 1024**2
# Ray puts sockets below its folder, and a socket's path may have 107 bytes.
LONGEST_TEMPORARY = 30
# What Ray says of a task whose process died at every try; so do those that the system, or Ray, kills for their memory.
KILLED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
# Actors that share a GPU unless told otherwise.
MOST_PER_GPU = 4


@contextlib.contextmanager
def cluster(meanwhile: Sequence[str] = ()) -> Iterator[None]:
    """Ray, for the time of a run.

    A cluster that ``RAY_ADDRESS`` names (``ray job submit`` sets it) is joined, where all its nodes have this code.
    Otherwise Ray starts embedded, without dashboard and usage statistics, and
    never joins a cluster that merely runs on the machine. Inside another
    `cluster`, nothing happens.

    Args:
        meanwhile: modules to load while Ray starts, which mostly waits for processes of its own. Who needs one
            imports it inside the block.
    """
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    temporary: str | None = None
    try:
        if address:
            _join(address)
        else:
            base = tempfile.gettempdir()
            temporary = tempfile.mkdtemp(prefix="unet_ray-", dir=base if len(base) <= LONGEST_TEMPORARY else "/tmp")
            with loading(meanwhile):
                _start(temporary)
        # Ray sets a SIGTERM handler of its own, which would end the run without the exit code 130.
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
        with contextlib.ExitStack() as watching:
            if address:
                for warning in require_same_code():
                    print(f"cluster: {warning}", file=sys.stderr)
                watching.enter_context(watched(ray.get_runtime_context().gcs_address))
            yield
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(Path(temporary), ignore_errors=True)


@contextlib.contextmanager
def loading(modules: Sequence[str]) -> Iterator[None]:
    """Import modules in a thread meanwhile; what fails there fails again, and is told, where it is needed."""

    def load() -> None:
        for module in modules:
            with contextlib.suppress(Exception):
                import_module(module)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    yield
    thread.join()


def _start(folder: str) -> None:
    """Start Ray on this machine, with its files in ``folder``.

    Raises:
        UnetRayError: its processes did not come up in Ray's half a minute.
    """
    try:
        with _quiet_start():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=folder,
            )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UnetRayError(
            "Ray did not start on this machine within half a minute, which happens where other work keeps it busy or "
            "memory is short; run the same command again when there is room"
        ) from error


def _join(address: str) -> None:
    """Join a cluster.

    Raises:
        ConfigError: it is not there, or lets nobody in without its token, or is of another Ray or Python.
    """
    require_head(address)
    try:
        with _quiet_start():
            ray.init(logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        if _lacks_token(error):
            raise ConfigError(
                f"the Ray cluster at {address} lets nobody in without its token, and this process has none or another; "
                "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the token that its nodes were started "
                "with"
            ) from None
        raise ConfigError(f"cannot join the Ray cluster at {address}: {error}") from error


def _lacks_token(error: BaseException | None) -> bool:
    """Whether a cluster has refused this process for its token: Ray says so in causes, one of them a text only."""
    while error is not None:
        if "AuthenticationError" in f"{type(error).__name__}: {error}":
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Without the lines that Ray's C++ core writes to the terminal itself.

    They come out if the start fails, unless the reason is known.
    """
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            # Ours still come out: an interrupt may fall into this time.
            with open(kept, "w", buffering=1, closefd=False) as stderr, contextlib.redirect_stderr(stderr):
                yield
        except Exception as error:
            if not _lacks_token(error):
                said.seek(0)
                os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def fetched(reference: Any) -> Any:
    """What a task returns; an error of its own comes as it was raised, a sentence without the worker's traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def pool_size(workers: int | None, cpus_each: int, gpus_each: float = 0, memory_each: int = 0, remedy: str = "") -> int:
    """Workers to start: as many as asked for, else as many as fit; see `memory_to_ask_for`.

    Args:
        workers: asked for; None: as many as fit.
        cpus_each: CPUs of a worker.
        gpus_each: GPUs of a worker.
        memory_each: bytes of a worker.
        remedy: what an error says is to be done where nodes are too small; nothing: larger ones or fewer threads.

    Raises:
        ConfigError: not one of them fits on any node.
    """
    nodes = machines()
    fitting = sum(node.fits(cpus_each, gpus_each, memory_each) for node in nodes)
    if fitting < 1:
        most = max(nodes, key=lambda node: (node.gpus, node.cpus) if gpus_each else (node.cpus, node.gpus))
        if gpus_each and not most.gpus:
            remedy = "use --no-use-gpu or a cluster with GPUs"
        elif not remedy:
            remedy = "use larger nodes" + (" or fewer --threads" if cpus_each > 1 else "")
        raise ConfigError(
            f"a worker asks for {cpus_each} CPU and {gpus_each:g} GPU on one node, but the cluster's largest has "
            f"{most.cpus} CPU and {most.gpus} GPU; {remedy}"
        )
    return fitting if workers is None else min(workers, fitting)


def nodes_for(workers: int, cpus_each: int, gpus_each: float = 0, memory_each: int = 0) -> int:
    """Nodes that so many workers keep, those that have yet to come included, and the head, with a worker or without."""
    kept, left = 0, workers
    for node in sorted(machines(), key=lambda node: not node.head):
        fitting = node.fits(cpus_each, gpus_each, memory_each)
        if node.head or (fitting and left > 0):
            kept, left = kept + 1, left - fitting
    return kept


def memory_to_ask_for(needed: int, cpus_each: int, gpus_each: float = 0) -> int:
    """Bytes that a worker asks Ray for, so that no node gets more workers than its memory holds.

    Where a worker is larger than what any node can give it, it asks for that, for otherwise it would wait for ever:
    then there is one at a time on a node, and a sentence on stderr says what may come.
    """
    most = [node.memory for node in machines() if node.fits(cpus_each, gpus_each)]
    if not most or 0 in most or needed <= max(most):
        return needed
    print(
        f"cluster: a worker takes about {needed / 1e9:.2f} GB of memory, but the cluster's largest node has "
        f"{max(most) / 1e9:.2f} GB for Ray; there is one worker at a time on a node, and where it gets none it ends",
        file=sys.stderr,
    )
    return max(most)


def memory_together(workers: int, needed: int, cpus_each: int, gpus_each: float = 0) -> int:
    """Bytes that each of several workers asks Ray for which can only begin together.

    Nothing, after a sentence on stderr, where memory does not hold all of them by what is ``needed``, an estimate: they
    would wait for ever.
    """
    if sum(node.fits(cpus_each, gpus_each, needed) for node in machines()) >= workers:
        return needed
    print(
        f"cluster: {workers} workers take about {needed / 1e9:.2f} GB of memory each, more than the nodes have "
        "for Ray; they begin all the same",
        file=sys.stderr,
    )
    return 0


def fewest_threads(memory_each: int, most: int) -> int:
    """CPUs per worker with which memory lets workers take the most CPUs of all nodes; the fewest of those.

    Args:
        memory_each: bytes of a worker, about.
        most: CPUs per worker at most.
    """
    nodes = machines()

    def taken(each: int) -> int:
        return each * sum(node.fits(each, 0, memory_each) for node in nodes)

    return max(range(1, most + 1), key=lambda each: (taken(each), -each))


def gpu_share(actors: int | None, cpus_each: int, workers: int | None = None) -> tuple[float, int]:
    """GPUs of each of several actors that share one, and how many actors the cluster's GPUs then hold.

    Args:
        actors: that share a GPU; None: one for every ``cpus_each`` CPUs beside it on the node that has fewest, from 1
            to `MOST_PER_GPU`. Ray fills a node's first GPU before the next: with more than there are CPUs or workers
            for, others would be idle.
        cpus_each: CPUs that an actor makes good use of.
        workers: actors in all; None: as many as fit.
    """
    nodes = [node for node in machines() if node.gpus]
    if actors is None:
        beside = min((node.cpus // node.gpus for node in nodes), default=0)
        actors = min(MOST_PER_GPU, max(1, beside // cpus_each))
        if workers is not None:
            actors = min(actors, -(-workers // max(1, sum(node.gpus for node in nodes))))
    # Ray counts ten thousandths, to the nearest: seven times 0.1429 would be more than a GPU.
    share = 10_000 // actors / 10_000
    return share, sum(node.gpus * actors for node in nodes)


def threads_each(workers: int, gpus_each: float = 0) -> int:
    """The most CPUs per worker with which so many fit on the cluster's nodes at once; 1 where that is too few."""
    nodes = machines()
    largest = max(node.cpus for node in nodes)
    return next((n for n in range(largest, 1, -1) if sum(node.fits(n, gpus_each) for node in nodes) >= workers), 1)
