"""Bytes that one launch of each of our kernels moves, by a stated formula per kernel.

A formula says of every tensor that a kernel is given how many of its numbers go to or from main memory: each once,
however many programs ask for it, for what a launch reads again is in the cache. Tests compare the formulas with the
distinct addresses that the kernels touch in Triton's interpreter. A kernel without a formula is an error.

Symbols as in the kernels: M tokens of a piece, k or J slots of a token, G lists of sub-keys, n of them in a list, h
numbers of half a query, D columns, P pairs of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Elements = dict[str, float]
"""Numbers moved, by the name of the kernel's parameter; what goes in and out counts twice."""


@dataclass(frozen=True)
class Slots:
    """Which slots the pairs of one piece name.

    Attributes:
        distinct: how many.
        again: those of them that a later piece reads, too.
        before: those that an earlier piece has read, too.
        pairs_again: pairs whose slot a later piece reads.
    """

    distinct: float
    again: float
    before: float
    pairs_again: float


def evenly_spread(pairs: int, num_slots: int, piece: int, pieces: int) -> Slots:
    """What to expect of pairs that name slots by chance, in one of several pieces of as many pairs each."""
    share = 1 - (1 - 1 / num_slots) ** pairs
    again, before = (1 - (1 - share) ** others for others in (pieces - 1 - piece, piece))
    distinct = num_slots * share
    return Slots(distinct, distinct * again, distinct * before, pairs * again)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        name: of the kernel.
        grid: programs.
        arguments: by the names of the parameters, constants included.
        slots: of its piece, for kernels that move rows of a table.
    """

    name: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    slots: Slots | None = None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it is given."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}


def evenly_read(noted: tuple[str, tuple[int, ...], dict[str, Any]], num_slots: int, pieces: int) -> Launch:
    """A launch whose tokens read slots by chance.

    Args:
        noted: its name, grid and arguments, as `benchmarks.counting` notes them.
        num_slots: rows of the table.
        pieces: of the call, of as many tokens each.
    """
    launch = Launch(*noted)
    if launch.name not in ROW_KERNELS:
        return launch
    pairs = pairs_of_rows(launch)
    number = launch["first_row"] * launch["J"] // pairs
    return replace(launch, slots=evenly_spread(pairs, num_slots, number, pieces))


def moved_bytes(launch: Launch) -> float:
    """Bytes of a launch by its kernel's formula.

    Raises:
        RuntimeError: the kernel has no formula, or its formula leaves out a tensor.
    """
    if launch.name not in FORMULAS:
        raise RuntimeError(
            f"{launch.name} has no formula for the bytes it moves: add one to FORMULAS in benchmarks/kernel_traffic.py"
        )
    elements = FORMULAS[launch.name](launch)
    tensors = launch.tensors()
    missing = sorted(set(tensors) - set(elements))
    if missing:
        raise RuntimeError(f"the formula of {launch.name} in benchmarks/kernel_traffic.py leaves out {missing}")
    return sum(tensor.element_size() * elements[name] for name, tensor in tensors.items())


def streams(launch: Launch) -> Elements:
    """Every number of every tensor once."""
    return {name: tensor.numel() for name, tensor in launch.tensors().items()}


_PER_PAIR_OF_KEYS = (
    "INDICES COSTS PROBABILITIES STRENGTHS WEIGHTS GRAD_STRENGTHS SLOPE_GRADIENTS ORDER SORT_KEYS SORTED_KEYS POSITIONS"
).split()
_WHOLE = "SUB_KEYS GRAD_MOVED BASE OUT MEANS GRAD_SLOPES STARTS LENGTHS LARGEST STEP".split()


def _keys(**special: Callable[[Launch], float]) -> Callable[[Launch], Elements]:
    """A formula of the sub-keys: numbers of pairs once, and those of sub-keys and queries once."""

    def formula(launch: Launch) -> Elements:
        """Of one launch."""
        tensors = launch.tensors()
        pairs = _pairs_of_keys(launch)
        elements = dict.fromkeys(_PER_PAIR_OF_KEYS, float(pairs))
        elements |= {name: float(tensors[name].numel()) for name in _WHOLE if name in tensors}
        if "H" in launch.arguments and "tokens" in launch.arguments:
            elements["QUERIES"] = float(launch["tokens"] * _lists(launch) * launch["H"])
        return elements | {name: numbers(launch) for name, numbers in special.items() if name in tensors}

    return formula


def _lists(launch: Launch) -> int:
    """G."""
    arguments = launch.arguments
    if "SEGMENTS" in arguments:
        return int(arguments["SEGMENTS"] // arguments["COUNT"])
    heads_are_rows = launch.name in ("slots_kernel", "address_kernel")
    return launch.grid[1] * (2 if heads_are_rows else 1)


def _pairs_of_keys(launch: Launch) -> int:
    """G * M * k; where no number of tokens is given, those that are sorted."""
    arguments = launch.arguments
    if "tokens" in arguments:
        return int(_lists(launch) * arguments["tokens"] * arguments["K"])
    return int(arguments["ORDER"].numel() if isinstance(arguments.get("ORDER"), Tensor) else 0)


def _slots_of_tokens(launch: Launch) -> float:
    """Numbers of [M, heads, k]."""
    return _pairs_of_keys(launch) / 2


def _proposals(launch: Launch) -> float:
    """G * M * n."""
    return float(_lists(launch) * launch["tokens"] * launch["N"])


def _tiles(launch: Launch) -> float:
    """Tiles in use: of a sub-key's readers all but the last are whole, and the last is half full by chance."""
    return float(min(launch["PARTIALS"].shape[0], _pairs_in_tiles(launch) / launch["TILE"] + launch["SEGMENTS"] / 2))


def _pairs_in_tiles(launch: Launch) -> int:
    """G * M * k, from the room for tiles."""
    return int((launch["PARTIALS"].shape[0] - launch["SEGMENTS"]) * launch["TILE"])


def _partials(launch: Launch) -> float:
    return _tiles(launch) * launch["H"]


def _gradients_of_queries(launch: Launch) -> float:
    """In and out."""
    return float(2 * launch["tokens"] * _lists(launch) * launch["H"])


def _pieces_means(launch: Launch) -> float:
    """A row of the losses."""
    return float(2 * launch["N"])


_PER_PAIR = (
    "PAIR_SLOTS SLOTS NAMES HEADS LENGTHS COUNTS PLACES ORDER WEIGHTS SOURCES SINKS BY_SLOT ROWS IS_HEAD".split()
)


def _values(**special: Callable[[Launch], float]) -> Callable[[Launch], Elements]:
    """A formula of the values: what is known of a piece's pairs once, and the tensors of rows as `special` says."""

    def formula(launch: Launch) -> Elements:
        """Of one launch."""
        written = written_rows(launch)
        elements = dict.fromkeys(_PER_PAIR, float(pairs_of_rows(launch)))
        elements |= {"WRITE_WEIGHTS": written, "SCALES": 1.0, "ROUNDING": 0.0}
        # By chance there are no segments of more pairs than a tile.
        elements |= {"PARTIALS": 0.0, "TICKETS": 0.0}
        return elements | {name: numbers(launch) for name, numbers in special.items()}

    return formula


def pairs_of_rows(launch: Launch) -> int:
    """Pairs of the piece: a program for each, or for each row of J of them."""
    if "pairs" in launch.arguments:
        return int(launch["pairs"])
    return int(launch.grid[0] * (launch["J"] if launch.name in _BY_ROW else 1))


_BY_ROW = ("read_rows_kernel", "backward_rows_kernel")
ROW_KERNELS = (*_BY_ROW, "write_rows_kernel", "adjoint_rows_kernel")
"""What moves rows of a table."""


def _rows(what: Callable[[Slots], float]) -> Callable[[Launch], float]:
    """Numbers of the rows of some slots."""

    def numbers(launch: Launch) -> float:
        """D for each."""
        assert launch.slots is not None, f"{launch.name} moves rows of slots"
        return what(launch.slots) * float(launch["D"])

    return numbers


def _read(launch: Launch) -> float:
    """Rows of the piece, from the grid."""
    return float(launch.grid[0] * launch["D"])


def written_rows(launch: Launch) -> int:
    """Rows of the piece that are written, as far as the kernel has to do with it."""
    return int(launch.arguments.get("written", 0)) if launch.arguments.get("WRITTEN", True) else 0


def _written(launch: Launch) -> float:
    return float(written_rows(launch) * launch["D"])


def _blocks_written(launch: Launch) -> float:
    return float(written_rows(launch) * launch.grid[1])


def _pairs_twice(launch: Launch) -> float:
    """A part from the log of every pair and block of columns, and one from the adjoint of those that are written."""
    return float((pairs_of_rows(launch) + written_rows(launch) * launch["J"]) * launch.grid[1])


_STREAMING = (
    "write_plan_kernel", "adjoint_plan_kernel", "normalize_hidden_kernel", "normalize_hidden_backward_kernel",
    "finish_hidden_kernel", "moments_kernel", "standardize_kernel", "standard_moments_kernel",
    "standardize_backward_kernel", "mixture_square_kernel", "mix_reads_kernel", "mixture_product_kernel",
    "mix_reads_backward_kernel", "finish_mixture_kernel", "add_output_kernel",
)  # fmt: skip
"""Kernels that read or write all numbers of all their tensors once."""

FORMULAS: dict[str, Callable[[Launch], Elements]] = {
    "select_kernel": _keys(PROPOSALS=_proposals, PRODUCTS=_proposals),
    "slots_kernel": _keys(SCORES=_slots_of_tokens, SLOTS=_slots_of_tokens),
    "address_kernel": _keys(PRODUCTS=_proposals, SCORES=_slots_of_tokens, SLOTS=_slots_of_tokens),
    "reader_mean_kernel": _keys(LOSSES=_pieces_means),
    "strength_kernel": _keys(),
    "tile_kernel": _keys(PARTIALS=_partials, PARTIAL_TOTALS=_tiles, TICKETS=_tiles),
    "finish_kernel": _keys(PARTIALS=_partials, PARTIAL_TOTALS=_tiles),
    "strength_gradient_kernel": _keys(),
    "slope_gradient_kernel": _keys(),
    "token_backward_kernel": _keys(
        GRAD_SCORES=_slots_of_tokens, GRAD_QUERIES=_gradients_of_queries, POSITIONS=_pairs_of_keys
    ),
    "read_rows_kernel": _values(
        TABLE=_rows(lambda slots: slots.distinct), READS=_read, TARGETS=_written, ERRORS=_written,
        SQUARES=_blocks_written,
    ),
    "write_rows_kernel": _values(
        TABLE=_rows(lambda slots: 2 * slots.distinct), LOG=_rows(lambda slots: slots.distinct), ERRORS=_written
    ),
    "backward_rows_kernel": _values(
        LOG=_rows(lambda slots: slots.distinct), ADJOINT=_rows(lambda slots: slots.again), ERRORS=_written,
        GRAD_READS=_read, GRAD_ROWS=_read, GRAD_TARGETS=_written, GRAD_WRITE_WEIGHTS=_blocks_written,
        GRAD_WEIGHTS=_pairs_twice,
    ),
    "adjoint_rows_kernel": _values(
        # Rows that an earlier piece reads go out; those that a later one reads come in before.
        ADJOINT=_rows(lambda slots: slots.before * (1 + slots.again / max(1.0, slots.distinct))),
        GRAD_ROWS=lambda launch: float(launch.grid[0] // launch["J"] * launch["D"]),
    ),
    **dict.fromkeys(_STREAMING, streams),
}  # fmt: skip
"""Kernel -> numbers of its tensors."""
