"""Text to hide facts in: what is read, what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from megatron_fwpkm.evaluation.needle.haystack import Haystack, load_haystack


def test_gzip_and_plain_text_give_the_same_tokens(folder, tokenizer):
    plain = load_haystack([str(folder / "novel.txt")], tokenizer)
    packed = load_haystack([str(folder / "novel.txt.gz")], tokenizer)
    assert plain.tokens.tolist() == packed.tokens.tolist() == tokenizer.encode((folder / "novel.txt").read_text())


def test_an_end_of_document_stands_between_texts(tmp_path, tokenizer):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("delanto baranka")
    haystack = load_haystack([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tokenizer)
    once = tokenizer.encode("delanto baranka")
    assert haystack.tokens.tolist() == [*once, tokenizer.eod, *once]
    begun = load_haystack([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tokenizer, tokenizer.bos)
    assert begun.tokens.tolist() == [*once, tokenizer.eod, tokenizer.bos, *once] and tokenizer.bos is not None


def test_cuts_come_from_everywhere_and_have_the_length():
    haystack = Haystack(np.arange(50), ("a.txt",))
    cuts = [haystack.cut(np.random.default_rng(seed), 45) for seed in range(60)]
    assert {cut[0] for cut in cuts} == set(range(6))
    assert all(cut.tolist() == list(range(cut[0], cut[0] + 45)) for cut in cuts)
    assert len(haystack.cut(np.random.default_rng(0), 50)) == 50


def test_a_cut_longer_than_the_text_is_refused():
    with pytest.raises(
        ValueError, match=r"the haystack \(a\.txt\) has only 50 tokens, but a context needs 51: add text"
    ):
        Haystack(np.arange(50), ("a.txt",)).cut(np.random.default_rng(0), 51)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"  \n ", "contains no text"),
        (b"caf\xe9", "not UTF-8 text: byte 0xe9 at 3"),
        (gzip.compress(b"words " * 100)[:-20], "damaged gzip"),
    ],
    ids=["missing", "empty", "latin-1", "cut off"],
)
def test_bad_files_are_refused(tmp_path, tokenizer, content, said):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"--haystack .*{said}"):
        load_haystack([str(path)], tokenizer)


def test_no_file_is_refused(tokenizer):
    with pytest.raises(ValueError, match="--haystack is empty; give at least one text file"):
        load_haystack([], tokenizer)
