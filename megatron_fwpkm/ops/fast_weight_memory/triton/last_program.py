# mypy: disable-error-code="no-untyped-def"
"""How the program that finishes last adds what others have left, in an order that does not depend on who that is.

Programs of a group store their parts and then draw tickets; the one that draws the last ticket knows that all parts
are there. Nobody waits, so programs may run in any order and any number at a time. Tickets are whole numbers: the order
in which they are drawn changes no result.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last(TICKET, group):
    """Whether this program is the last of `group` that comes here, after what it has stored; the ticket is reset.

    The barrier puts the stores of all threads before the ticket, which releases them to the GPU and, to the last
    program, acquires those of the others.
    """
    tl.debug_barrier()
    last = tl.atomic_add(TICKET, 1, sem="acq_rel", scope="gpu") == group - 1
    tl.debug_barrier()
    if last:
        tl.store(TICKET, 0)
    return last


@triton.jit
def load_partials(pointers, mask):
    """What other programs of this launch have stored, from where all of the GPU sees it."""
    return tl.load(pointers, mask=mask, other=0.0, cache_modifier=".cg")
