"""What is wrong with the words of a command line, all of it at once, with advice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from .familiar_names import familiar_name
from .megatron_flags import known_megatron_flags, megatron_advice

_ARGPARSE = (
    (r"argument ([^\s/]+)\S*: expected one argument", "{} needs a value"),
    (r"argument ([^\s/]+)\S*: expected at least one argument", "{} needs at least one value"),
    (r"argument ([^\s/]+)\S*: not allowed with argument ([^\s/]+)\S*", "{} and {} are mutually exclusive: remove one"),
    (r"argument \S+: invalid choice: ('.*') \(choose from (.*)\)", "{!r} is not one of {}"),
)
"""What argparse says, and what is said here of the same flags."""


def in_our_spelling(argv: Sequence[str]) -> list[str]:
    """The words with dashes in the two flags that Megatron-LM also spells with an underscore (opt_param)."""
    return [re.sub(r"^(--(no-)?(override|use-checkpoint)-opt)_param-scheduler", r"\1-param-scheduler", w) for w in argv]


def without_values_of_switches(argv: Sequence[str], flags: Collection[str]) -> tuple[list[str], list[str]]:
    """The words without values that were given to switches (`--bf16 true`), and a complaint for each of those.

    `flags` are the switches, without their --no- forms.
    """
    switches = {f"--{form}{flag[2:]}": flag[2:] for flag in flags for form in ("", "no-")}
    words: list[str] = []
    complaints: list[str] = []
    before = ""
    for word in argv:
        flag, equals, _ = word.partition("=")
        if equals and flag in switches:
            complaints.append(_value_of_switch(word, switches[flag]))
        elif before in switches and not word.startswith("-"):
            complaints.append(_value_of_switch(f"{before} {word}", switches[before]))
        else:
            words.append(word)
        before = word
    return words, complaints


def _value_of_switch(shown: str, name: str) -> str:
    return f"{shown}: a switch takes no value; write --{name} or --no-{name}"


def without_flags(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """The words without these flags and what follows them up to the next flag."""
    kept: list[str] = []
    leaving_out = False
    for word in words:
        if is_flag(word):
            leaving_out = word.partition("=")[0] in flags
        if not leaving_out:
            kept.append(word)
    return kept


def complaints_of_unknown(
    words: Sequence[str], unknown: Sequence[str], advise: Callable[[str], str], flag_of_files: str | None
) -> list[str]:
    """A complaint for each flag among the words that nobody knows, and for each argument that belongs to no flag.

    Args:
        words: the command line.
        unknown: the words that the parser left over; what follows an unknown flag is taken for its value.
        advise: what to do about an unknown flag, by its name without dashes.
        flag_of_files: the flag that an argument without one may belong to.
    """
    complaints = []
    for word in dict.fromkeys(unknown):
        if is_flag(word):
            flag = word.split("=")[0]
            complaints.append(f"unknown flag {flag}{advise(flag.lstrip('-').replace('_', '-'))}")
        elif not {words[place - 1] for place in range(1, len(words)) if words[place] == word} & set(unknown):
            hint = f"; did you mean {flag_of_files} {word}?" if flag_of_files else ""
            complaints.append(f"unexpected argument {word!r}: every option is a flag{hint}")
    return complaints


def in_one_sentence(complaint: str) -> str:
    """A complaint of argparse in our words: `--x needs a value` for `argument --x: expected one argument`."""
    for pattern, words in _ARGPARSE:
        if (found := re.fullmatch(pattern, complaint, re.DOTALL)) is not None:
            return words.format(*(group.replace("', '", ", ").strip("'") for group in found.groups()))
    return complaint


def are_required(arguments: Sequence[str]) -> str:
    """What is wrong where these flags or commands (`{export,verify}`) are missing."""
    names = [name.strip("{}").replace(",", " or ") for name in arguments]
    if len(names) == 1:
        return f"{names[0]} is required"
    return f"{', '.join(names[:-1])} and {names[-1]} are required"


def is_flag(word: str) -> bool:
    """Whether a word of a command line is a flag; `-1` is a value."""
    return re.match(r"--?[A-Za-z_]", word) is not None


def join_complaints(complaints: Sequence[str]) -> str:
    """One complaint as it is, several as a list."""
    if len(complaints) == 1:
        return complaints[0]
    return f"{len(complaints)} invalid arguments:" + "".join(f"\n  - {line}" for line in complaints)


def advice(name: str, names: Sequence[str], dashes: str = "") -> str:
    """What to do about an unknown name: the answer to a flag of Megatron-LM, `; did you mean X?`, or nothing.

    A name that another program has for one of ours suggests ours, as does one that is spelled like it.

    `dashes` stand before names on the command line and are missing in YAML.
    """
    answer = megatron_advice(name)
    if answer is not None:
        return f": {answer}"
    if (ours := familiar_name(name, names)) is not None:
        return f"; did you mean {dashes}{ours}?"
    # A forgotten prefix or half, as in `topk` or `subkeys`; whole words only, and the memory's before others.
    near = [other for other in names if len(name) > 3 and f"-{name}-" in f"-{other}-"]
    near = sorted(near, key=lambda other: (not other.startswith("fwpkm-"), len(other)))[:1]
    if near:
        return f"; did you mean {dashes}{near[0]}?"
    theirs = difflib.get_close_matches(name, known_megatron_flags(), n=1, cutoff=0.93)
    # Only booleans have a --no- form, but whoever asks for one means that option.
    near = difflib.get_close_matches(name.removeprefix("no-"), names, n=1, cutoff=0.8)
    if theirs and difflib.get_close_matches(name, [*near, *theirs], n=1, cutoff=0.0) == theirs:
        return f"; did you mean Megatron-LM's {dashes}{theirs[0]}? {megatron_advice(theirs[0])}"
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def tool_advice(name: str, known: Sequence[str], answers: Mapping[str, str]) -> str:
    """The same for a flag of a tool whose flags are `known` (with their dashes).

    `answers` say what to do instead of flags of other programs.
    """
    for form in (name, name.removeprefix("no-"), name.removeprefix("disable-")):
        if form in answers:
            return f": {answers[form]}"
    ours = familiar_name(name, [other.lstrip("-") for other in known])
    near = [f"--{ours}"] if ours else difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""
