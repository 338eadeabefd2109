"""Faster ways to the very tokens that a tokenizer gives. Free of torch."""

from typing import Literal

Accelerator = Literal["auto", "gigatoken", "segments", "none"]
