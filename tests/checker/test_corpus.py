"""The labelled pairs, by kind, through the public function."""

import pytest

from .corpus import Pair, as_response, corpus_verdicts, read_corpus
from .plain import plain_verdicts

CORPUS = read_corpus()
KINDS = sorted({pair.kind for pair in CORPUS})


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_pairs(kind: str):
    wrong = [
        f"{'same' if pair.is_same else 'different'}: {pair.answer} ~~ {pair.gold}: {verdict.status}, {verdict.reason}"
        for pair, verdict in corpus_verdicts().items()
        if pair.kind == kind and verdict.is_correct != pair.is_same
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_same_in_both_directions(kind: str):
    """Where nothing refers to the gold alone (choices with text, alternatives), the relation is symmetric."""
    pairs = [pair for pair in CORPUS if pair.kind == kind and kind not in ("choice", "hostile text")]
    pairs = [pair for pair in pairs if as_response(pair.answer).endswith("$.")]
    verdicts = plain_verdicts([as_response(pair.gold) for pair in pairs], [pair.answer for pair in pairs])
    wrong = [
        f"{pair.gold} ~~ {pair.answer}: {verdict.status}, {verdict.reason}"
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if verdict.is_correct != pair.is_same
    ]
    assert not wrong, "\n".join(wrong)


def test_the_corpus_is_large_and_has_both_labels_of_every_kind():
    assert len(set(CORPUS)) >= 600
    for kind in KINDS:
        labels = {pair.is_same for pair in CORPUS if pair.kind == kind}
        assert labels == ({False} if kind == "hostile text" else {True, False}), kind


def test_a_pair_is_one_pair():
    assert Pair("integer", True, "42", "42") in CORPUS
