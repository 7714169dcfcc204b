"""What a process runs on: Python, the platform, and versions of packages."""

from __future__ import annotations

import os
import platform
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["PACKAGES", "versions"]

#: Distributions that are always told of.
PACKAGES: Final = ("zdist", "pyzmq", "msgpack", "cloudpickle", "numpy", "pandas", "dask", "blake3", "tblib")


def versions(packages: Sequence[str] = ()) -> dict[str, Any]:
    """``{"host": {…}, "packages": {name: version}}``, the version None for what is not there.

    Parameters:
        packages: further names, of distributions as pip has them or of modules; nothing is imported for it.
    """
    system, _, release, _, machine, processor = platform.uname()
    host = {
        "python": platform.python_version(),
        "python-bits": struct.calcsize("P") * 8,
        "OS": system,
        "OS-release": release,
        "machine": machine,
        "processor": processor,
        "byteorder": sys.byteorder,
        "LC_ALL": os.environ.get("LC_ALL", "None"),
        "LANG": os.environ.get("LANG", "None"),
    }
    names = dict.fromkeys(("python", *PACKAGES, *packages))
    return {"host": host, "packages": {name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    from importlib import metadata  # takes a while to load, and mostly nobody asks

    if name == "python":
        return platform.python_version()
    loaded = getattr(sys.modules.get(name), "__version__", None)  # what runs, whatever is installed by now
    if isinstance(loaded, str):
        return loaded
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None
