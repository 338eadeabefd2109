"""What the self-test of an evaluation found, as plain values. Free of torch."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CausalityCheck:
    """Whether changing a token left all logits before it unchanged."""

    changed: int
    """Position of the changed token."""
    before_identical: bool
    """The logits of all earlier positions are identical bit for bit."""
    after_differs: bool
    """Some later logits differ, so the check could have failed."""

    @property
    def passed(self) -> bool:
        """Earlier logits are identical, and later ones show that the change arrived."""
        return self.before_identical and self.after_differs

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict."""
        return asdict(self) | {"passed": self.passed}

    def exit_status(self) -> int:
        """That of a tool: 0, or 1 after an error message if the check failed."""
        if not self.passed:
            print(
                "error: the causality check failed: changing a token changed earlier logits, or had no effect",
                file=sys.stderr,
            )
        return int(not self.passed)
