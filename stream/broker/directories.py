"""Where the broker's jars and state live on this machine."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Directory of what can be downloaded again: `FRAUD_CACHE_DIR`, else the user's cache directory."""
    return _chosen("FRAUD_CACHE_DIR", "XDG_CACHE_HOME", ".cache", "Library/Caches")


def broker_dir() -> Path:
    """Directory of the broker of `fraud broker start`: `FRAUD_BROKER_DIR`, else below the user's state directory.

    Not below a worker's FRAUD_STATE_DIR: that is one instance's own, while all find the same broker.
    """
    if chosen := os.environ.get("FRAUD_BROKER_DIR"):
        return Path(chosen).expanduser().absolute()
    return _chosen("", "XDG_STATE_HOME", ".local/state", "Library/Application Support") / "broker"


def _chosen(variable: str, xdg_variable: str, linux: str, macos: str) -> Path:
    if variable and (chosen := os.environ.get(variable)):
        return Path(chosen).expanduser().absolute()
    if xdg := os.environ.get(xdg_variable):
        return Path(xdg).expanduser().absolute() / "fraudstream"
    return Path.home() / (macos if sys.platform == "darwin" else linux) / "fraudstream"
