"""Conversion without the remarks that libraries make about themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_REMARKS = (
    "Transformer Engine and Apex",
    "Apex is not installed",
    "full scope is deprecated",
)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the context: no progress bars of Transformers, none of its remarks below errors, and no warnings of
    Megatron about what is not installed."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in _REMARKS:
                warnings.filterwarnings("ignore", message, UserWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
