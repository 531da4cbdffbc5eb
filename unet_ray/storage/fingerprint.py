"""Fingerprints: what decides an output's bytes, in 32 hexadecimal digits, and what differs between two."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# Of what differs; of another stack that is every section.
NAMED = 8


def digest(data: bytes | memoryview) -> str:
    """BLAKE2b of bytes, 128 bits, as hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Digest of JSON-able parts; the order of keys does not matter.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    return digest(json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def differences(made_with: Mapping[str, Any], asked: Mapping[str, Any], under: str = "") -> list[str]:
    """What differs, one phrase per key, such as ``elastic.sigma_px 10 (now 8)``.

    >>> differences({"seed": 1, "noise": {"sd": 2}}, {"seed": 1, "noise": {"sd": 3}})
    ['noise.sd 2 (now 3)']
    >>> differences({"voxel_size_nm": [50.0, 4.0]}, {"voxel_size_nm": (50.0, 4.0)})
    []
    """
    found: list[str] = []
    for key in sorted({*made_with, *asked}):
        old, new = made_with.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{under}{key}.")
        elif old != new and json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            # What was stored comes back from JSON, which makes tuples lists.
            found.append(f"{under}{key} {_short(old)} (now {_short(new)})")
    return found


def named(differing: Sequence[str]) -> str:
    """What `differences` found, in one sentence that can be read: the first `NAMED`, and how many more.

    >>> named(["seed 1 (now 2)", "noise.sd 2 (now 3)"])
    'seed 1 (now 2), noise.sd 2 (now 3)'
    >>> named([f"{number} null (now 1)" for number in range(60)])[-26:]
    '7 null (now 1) and 52 more'
    """
    rest = len(differing) - NAMED
    return ", ".join(differing[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
