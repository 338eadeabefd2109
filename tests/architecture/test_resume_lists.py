"""Every option says what a resumed run does with another value of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from megatron_fwpkm.checkpoint import compatibility
from megatron_fwpkm.config import PretrainConfig

LISTS = (compatibility.ARCHITECTURE, compatibility.SAME_RUN, compatibility.MAY_CHANGE, compatibility.NO_MATTER)


def test_every_option_is_in_one_list() -> None:
    """A new option goes into a list of checkpoint/compatibility.py; MAY_CHANGE needs a case in test_resume_options."""
    listed = Counter((group, name) for names in LISTS for group, some in names.items() for name in some)
    options = {
        (group.name, option.name)
        for group in fields(PretrainConfig)
        if group.name not in compatibility._NO_MATTER_GROUPS
        for option in fields(getattr(PretrainConfig(), group.name))
    }
    assert [place for place, times in listed.items() if times > 1] == []
    assert options - listed.keys() == set(), "in no list of checkpoint/compatibility.py"
    assert listed.keys() - options == set(), "no such option"
