"""Write this machine's configuration of pip into one file, and print the mounts that a build needs to use it. Example:

python tools/container/pip_configuration.py /var/tmp/pip.conf

prints options of `buildah build`, one a line: the file as /etc/pip.conf, and each local folder or file that it names.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def settings(listing: str) -> dict[str, str]:
    """Names and values of what `pip config list` prints; a variable such as PIP_CERT goes before a file's line."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section == ":env:" or key not in found:
            found[key] = str(ast.literal_eval(value))
    return found


def local_paths(values: Sequence[str]) -> list[str]:
    """Existing paths among the words of the values; the parent of a file URL, for an index refers to it."""
    words = [word for value in values for word in value.split()]
    named = {word for word in words if word.startswith("/")}
    named |= {str(Path(word.removeprefix("file://")).parent) for word in words if word.startswith("file:///")}
    return sorted(path for path in named if Path(path).exists())


def write_configuration(found: dict[str, str], path: Path) -> list[str]:
    """Write the file; returns the mounts."""
    lines = [f"{key} = {' '.join(value.split())}" for key, value in found.items()]
    path.write_text("\n".join(["[global]", *lines, ""]))
    named = local_paths(list(found.values()))
    return [f"--volume={path}:/etc/pip.conf:ro", *(f"--volume={one}:{one}:ro" for one in named)]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and print the mounts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args(argv).output
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print("\n".join(write_configuration(settings(listing), output.resolve())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
