"""What others report for RULER, to stand beside a measured table; none of it was measured by this project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """Mean scores of one model, in percent."""

    model: str
    mean: float | None
    """Over 4,096 to 131,072 tokens; None where the model was not measured at all of them."""
    at: tuple[tuple[int, float], ...]
    """By length, where the source says them."""
    source: str


_RULER_SOURCE = "README of NVIDIA/RULER, commit c3f5e3b; chat models, 13 tasks, 500 samples"
_SDM_SOURCE = "publication on SDM; noted on 2026-11-28 and not checked since"
_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)


def _of_ruler(model: str, mean: float, *scores: float) -> PublishedRow:
    return PublishedRow(model, mean, tuple(zip(_LENGTHS, scores, strict=True)), _RULER_SOURCE)


PUBLISHED_ROWS = (
    PublishedRow("SDM, 8B", 50.2, (), _SDM_SOURCE),
    PublishedRow("gated delta net (GDN), 8B", 34.2, (), _SDM_SOURCE),
    PublishedRow("full attention, 8B", 61.2, (), _SDM_SOURCE),
    PublishedRow("SDM, 1.4B", 31.2, (), _SDM_SOURCE),
    PublishedRow("gated delta net (GDN), 1.4B", 20.0, (), _SDM_SOURCE),
    PublishedRow("full attention, 1.4B", 32.5, (), _SDM_SOURCE),
    _of_ruler("Llama3.1, 8B", 88.3, 95.5, 93.8, 91.6, 87.4, 84.7, 77.0),
    _of_ruler("Mistral v0.2, 7B", 68.4, 93.6, 91.2, 87.2, 75.4, 49.0, 13.8),
    PublishedRow("Llama2, 7B (the threshold)", None, ((4096, 85.6),), _RULER_SOURCE),
)
