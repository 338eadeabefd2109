"""Writes docs/options.md: a table per group of options, from the same fields as --help.

`python -m megatron_fwpkm.config.options_table` writes the file; with --check it only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .arguments import Option, metavar
from .cli import run_cli
from .loading import option_groups

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "options.md"

_HEAD = """\
# Options of pretrain.py

<!-- Written by `python -m megatron_fwpkm.config.options_table` (or `make docs`); change the dataclasses in
megatron_fwpkm/config and run it again. -->

Every option is a flag. `--config FILE` reads options from a YAML file: a flat mapping with the same names without the
dashes, and lists where an option takes several values. The command line takes precedence over the file; with several
files, a later one takes precedence over an earlier one. An unknown or repeated name, a nested mapping and a value of
the wrong type are errors that name the file and the line. Booleans have two forms (`--bf16` and `--no-bf16`; `true`
and `false` in YAML); `none` unsets a value or empties a list. `--dry-run` shows the value of every option and where
it comes from.

```yaml
num-layers: 12
fwpkm-layer-numbers: [3, 7, 11]
layer-pattern: swa*3,fa
window-size: 511,0
bf16: true
lr: 1e-3
```
"""


def render() -> str:
    """The whole document."""
    parts = [_HEAD]
    for _, cls, options in option_groups():
        about = " ".join((cls.__doc__ or "").split())
        parts.append(
            f"\n## {cls.__name__}\n\n{about}\n\n| option | values | default | meaning |\n| --- | --- | --- | --- |\n"
        )
        parts += [_row(option) for option in options]
    return "".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the document, or check it; returns 1 when the check finds it stale."""
    parser = argparse.ArgumentParser(prog="python -m megatron_fwpkm.config.options_table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the document is stale")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="default: docs/options.md")
    arguments = parser.parse_args(argv)
    if arguments.check:
        if not arguments.output.is_file() or arguments.output.read_text(encoding="utf-8") != render():
            raise ValueError(f"{arguments.output} is stale: run `make docs` and commit it")
        return 0
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(render(), encoding="utf-8")
    print(f"wrote {arguments.output}")
    return 0


def _row(option: Option) -> str:
    flag = f"`{option.flag}`"
    if option.is_boolean:
        values = f"also `--no-{option.name}`"
    elif option.choices:
        values = ", ".join(f"`{choice}`" for choice in option.choices)
    else:
        values = metavar(option) if option.kind == "LEFT,RIGHT" else option.kind
        values = f"one or more: {values}" if option.is_list else values
    default = f"`{option.format(option.default)}`"
    return f"| {flag} | {_cell(values)} | {_cell(default)} | {_cell(option.help)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(run_cli(main))
