"""The rule for --output-prefix, one for all tools of this room."""

from __future__ import annotations

import os


def check_output_prefix(prefix: str) -> None:
    """Raises ValueError where --output-prefix names a folder only: the files in it would have half a name."""
    if os.path.basename(prefix) in ("", os.curdir, os.pardir):
        raise ValueError(
            f"--output-prefix {prefix!r} is a folder; append the beginning of the file names, for example "
            f"{os.path.join(prefix, 'corpus')}"
        )
