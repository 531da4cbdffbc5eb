"""Fingerprints: what decides an output's bytes, in 32 hexadecimal digits, and what differs between two."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


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


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
