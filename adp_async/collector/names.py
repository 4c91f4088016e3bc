"""Headers of a worker's requests that are for the collector alone."""

from __future__ import annotations

from typing import Final

#: Which attempt of which task a worker is.
TASK: Final = "x-adp-task"
ATTEMPT: Final = "x-adp-attempt"
