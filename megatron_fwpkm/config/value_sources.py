"""What the source of an option's value tells a user: which file a refused value stands in, options without effect."""

from __future__ import annotations

import re

from .loading import CHECKPOINT, COMMAND_LINE, DEFAULT, PREFIXES, Resolved, option_groups


def sources_of_named_values(message: str, resolved: Resolved) -> list[str]:
    """A line for each option that an error names with its value, where that value stands in a file.

    The line says where, and how the command line changes it.
    """
    lines = []
    for group, _, found in option_groups():
        for option in found:
            value = getattr(getattr(resolved.config, group), option.field_name)
            source = resolved.value_sources[option.flag]
            named = re.search(rf"{re.escape(f'{option.flag} {option.format(value)}')}(?![\w-]|[.,]\d)", message)
            if named is None or source in (DEFAULT, COMMAND_LINE):
                continue
            if source.startswith(CHECKPOINT):
                lines.append(f"{option.flag} {option.format(value)} was taken from {source}")
                continue
            way = "the command line takes precedence over a file"
            if option.nullable or option.is_list:
                way = f"`{option.flag} none` on the command line unsets it"
            lines.append(f"{option.flag} {option.format(value)} is set in {source}; {way}")
    return lines


def check_memory_options(resolved: Resolved) -> None:
    """Options of the memory on the command line require a memory, or `none` for a plain transformer.

    Raises ValueError if neither the command line nor a file sets the layers with a memory.
    """
    layers = f"--{PREFIXES['fwpkm']}layer-numbers"
    given = [
        flag
        for flag, source in resolved.value_sources.items()
        if flag.startswith(f"--{PREFIXES['fwpkm']}") and source == COMMAND_LINE
    ]
    if given and resolved.value_sources[layers] == DEFAULT:
        raise ValueError(
            f"{' '.join(given)}: the model has no memory; choose its layers, as in {layers} 2, or use "
            f"{layers} none for a plain transformer"
        )
