"""PyArrow's client of S3, by which Ray Train stores checkpoints, as patient as ours."""

from collections.abc import Callable, Mapping
from typing import Any

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

# With pauses that double from a second to twenty, each drawn from there down to nothing: about a minute and a half.
ATTEMPTS = 14


class PatientS3FileSystem(S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
    """S3 that is asked `ATTEMPTS` times.

    PyArrow's own asks three times, and forgets on its way to a worker how often it was told to.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        _, settings = super().__reduce__()
        return _patient, settings


def _patient(settings: Mapping[str, Any]) -> PatientS3FileSystem:
    return PatientS3FileSystem(**settings, retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS))


def arrow_store(url: str) -> tuple[FileSystem | None, str]:
    """A file system for Ray Train, and the place there of a local path or URL; None: Ray's own of that URL.

    Endpoint and credentials come from the environment.

    >>> arrow_store("/runs/one")
    (None, '/runs/one')
    """
    if not url.startswith("s3://"):
        return None, url
    found, place = FileSystem.from_uri(url)
    _, settings = found.__reduce__()
    return _patient(*settings), place
