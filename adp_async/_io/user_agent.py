"""Who sends a request, as the service, a proxy and Oracle's support read it."""

from __future__ import annotations

import platform
from functools import cache

import aiohttp

from adp_async._version import __version__


@cache
def user_agent() -> str:
    """This client, what it runs on, and the system, with their versions."""
    python = f"Python/{platform.python_version()}"
    system = f"({platform.system()} {platform.release()}; {platform.machine()})"
    return f"adp-async/{__version__} {python} aiohttp/{aiohttp.__version__} {system}"
