"""Where the workers of a training tell the driver how far they are and what went wrong."""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 writes how far it is, and the driver reads it for the progress line."""

    def __init__(self) -> None:
        self.row: dict[str, Any] = {}
        self.lines: list[str] = []
        self.error: Exception | None = None

    def post(self, row: dict[str, Any]) -> None:
        """Put the newest row."""
        self.row = row

    def say(self, line: str) -> None:
        """Put a line for the user."""
        self.lines.append(line)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The newest row, empty before the first step; and the lines since the last time."""
        said, self.lines = self.lines, []
        return self.row, said

    def fail(self, error: Exception) -> None:
        """Note an error that trying again would only repeat; the first one counts."""
        self.error = self.error or error

    def failure(self) -> Exception | None:
        """The error noted, if any."""
        return self.error
