"""What travels between processes, as it arrives."""

import pickle
from typing import TypeVar

Value = TypeVar("Value")


def shipped(value: Value) -> Value:
    """A copy as a worker gets it: Ray pickles what it sends. Nothing but what a test made itself is unpickled."""
    copy: Value = pickle.loads(pickle.dumps(value))
    return copy
