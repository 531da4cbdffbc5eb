"""The four engines; the only package that imports Ray."""

import os

# Ray reads these when it is imported, so they stand before every import of it here.
# Authentication is always explicit: unset, Ray turns it on for the clusters that it starts itself and then
# refuses its own command-line tools.
_token_given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
os.environ.setdefault("RAY_AUTH_MODE", "token" if _token_given else "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A thread of Ray Data that outlives the run's cluster by a moment would start another, or join one of this machine.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Otherwise each print of a training worker comes out twice.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# With num_gpus=0 a worker must not see the node's GPUs: augmentation leaves them to training.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
# The driver's C++ core prints its remarks about Ray Data's own actors to the user's terminal.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# How often the training controller asks its workers; each checkpoint waits for it (default 2 s).
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Ray calls what a worker does from a thread, whose heap glibc takes from the kernel and gives back with each large
# tensor, whatever `keep_freed_memory` says: only the first heap of a process keeps. With one heap for all threads a
# forward pass on a CPU is about a tenth faster.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
if "RAY_ADDRESS" not in os.environ:
    # An embedded Ray: its log monitor would look for new files ten times a second, and nobody reads what it finds.
    os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
    os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "60")
