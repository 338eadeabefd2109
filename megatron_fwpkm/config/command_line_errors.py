"""What is wrong with the words of a command line, all of it at once, with advice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

from .arguments import Option
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


def without_values_of_switches(argv: Sequence[str], known: Collection[Option]) -> tuple[list[str], list[str]]:
    """The words without values that were given to switches (`--bf16 true`), and a complaint for each of those."""
    names = [option.name for option in known if option.is_boolean]
    switches = {f"--{form}{name}": name for name in names for form in ("", "no-")}
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


def complaints_of_unknown(words: Sequence[str], unknown: Sequence[str], names: Sequence[str]) -> list[str]:
    """A complaint for each flag among the words that nobody knows, and for each argument that belongs to no flag.

    `unknown` are the words that the parser left over; what follows an unknown flag is taken for its value.
    """
    complaints = []
    for word in dict.fromkeys(unknown):
        if is_flag(word):
            flag = word.split("=")[0]
            complaints.append(f"unknown flag {flag}{advice(flag.lstrip('-').replace('_', '-'), names, '--')}")
        elif not {words[place - 1] for place in range(1, len(words)) if words[place] == word} & set(unknown):
            complaints.append(f"unexpected argument {word!r}: every option is a flag; did you mean --config {word}?")
    return complaints


def in_one_sentence(complaint: str) -> str:
    """A complaint of argparse in our words: `--x needs a value` for `argument --x: expected one argument`."""
    for pattern, words in _ARGPARSE:
        if (found := re.fullmatch(pattern, complaint, re.DOTALL)) is not None:
            return words.format(*(group.replace("', '", ", ").strip("'") for group in found.groups()))
    required = "the following arguments are required: "
    if not complaint.startswith(required):
        return complaint
    names = [name.split("/")[0].strip("{}").replace(",", " or ") for name in complaint[len(required) :].split(", ")]
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
    # A forgotten prefix or a forgotten half, as in `topk` or `subkeys`; whole words only.
    near = sorted((other for other in names if len(name) > 3 and f"-{name}-" in f"-{other}-"), key=len)[:1]
    if near:
        return f"; did you mean {dashes}{near[0]}?"
    theirs = difflib.get_close_matches(name, known_megatron_flags(), n=1, cutoff=0.93)
    # Only booleans have a --no- form, but whoever asks for one means that option.
    near = difflib.get_close_matches(name.removeprefix("no-"), names, n=1, cutoff=0.8)
    if theirs and difflib.get_close_matches(name, [*near, *theirs], n=1, cutoff=0.0) == theirs:
        return f"; did you mean Megatron-LM's {dashes}{theirs[0]}? {megatron_advice(theirs[0])}"
    return f"; did you mean {dashes}{near[0]}?" if near else ""
