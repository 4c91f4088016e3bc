"""What one check of ``adp-async doctor`` found."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

__all__ = ["Finding", "State"]

State = Literal["ok", "warning", "wrong", "skipped"]


@frozen
class Finding:
    """What one step found: *told* is the fact, *fix* what to do about it."""

    step: str
    state: State
    told: str
    fix: str = ""

    def fields(self) -> dict[str, str | None]:
        """For programs: the names stay."""
        return {
            "step": self.step,
            "state": self.state,
            "message": self.told,
            "fix": self.fix or None,
        }
