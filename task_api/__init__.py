"""What a task is, where it is recorded, and the HTTP front door through which it comes in."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("buttercup-orchestrator")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
