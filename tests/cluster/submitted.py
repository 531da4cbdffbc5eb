"""Jobs on the hosts: submitted with `ray job submit`, or run as a command that joins the cluster."""

import json
import secrets
from typing import Any, NamedTuple

from hosts import ROOT, Host


class Ended(NamedTuple):
    code: int
    said: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of the job's stdout."""
        found: dict[str, Any] = json.loads([line for line in self.said.splitlines() if line.startswith('{"')][-1])
        return found


class Job:
    """A job under way; flags are given as `flags` makes them."""

    def __init__(self, host: Host, job: str, *argv: str, submit: bool = True, **environment: str) -> None:
        self.host, self.id = host, f"{job}-{secrets.token_hex(4)}"
        self.log = host.hosts.folder / f"{self.id}.log"
        if submit:
            how = ["--submission-id", self.id, "--working-dir", ".", "--"]
            command = [str(host.hosts.ray), "job", "submit", *how, "python", f"jobs/{job}.py", *argv]
            self.process = host.start(*command, said=self.log, **environment)
        else:
            # Not from the checkout: Ray has its workers look for modules where the driver was started.
            command = ["python", str(ROOT / "jobs" / f"{job}.py"), *argv]
            environment = {"RAY_ADDRESS": host.hosts.gcs, **environment}
            self.process = host.start(*command, said=self.log, cwd=host.hosts.folder, **environment)

    def wait(self, seconds: float = 180) -> Ended:
        """How it ended."""
        return Ended(self.process.wait(seconds), self.log.read_text())

    def stop(self) -> None:
        """`ray job stop`."""
        code, said = self.host.run(str(self.host.hosts.ray), "job", "stop", self.id)
        assert code == 0, said

    def info(self) -> dict[str, Any]:
        """What the head knows of a submitted job."""
        found: dict[str, Any] = self.host.ask(f"/api/jobs/{self.id}")
        return found

    def running(self) -> bool:
        """True; an assertion where it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        return True


def flags(**settings: Any) -> list[str]:
    """Settings as a command line has them."""
    found = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found += [f"--{name}", *([str(v) for v in value] if isinstance(value, tuple) else [str(value)])]
    return found
