"""The halves of documents that choices and reports see, and levels, by hand."""

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.study import selection


def test_halves_by_hand():
    rows = pd.DataFrame({"rank": [0, 1, 2, 3, 0, 1, 2, 3], "id": list("abcdwxyz")})
    assert selection.half(rows, selection.SELECTION).id.tolist() == list("acwy")
    assert selection.half(rows, selection.REPORT).id.tolist() == list("bdxz")


def test_halves_keep_pairs_together_are_disjoint_and_complete():
    generator = np.random.default_rng(0)
    splits = ["forget", "approximate", "retain"]
    ranks = np.concatenate([generator.permutation(61) for _ in splits])
    rows = pd.DataFrame({"rank": ranks, "split": np.repeat(splits, 61)})
    rows.index = generator.permutation(183) + 5
    seen = selection.half(rows, selection.SELECTION)
    reported = selection.half(rows, selection.REPORT)
    for half in (seen, reported):
        forget = set(half[half.split == "forget"]["rank"])
        assert forget == set(half[half.split == "approximate"]["rank"])
        assert len(forget) in (30, 31)
        in_order = [place for place in rows.index if place in set(half.index)]
        assert half.index.tolist() == in_order
    assert set(seen.index).isdisjoint(reported.index)
    assert set(seen.index) | set(reported.index) == set(rows.index)


def test_log_perplexity_weighs_tokens_not_documents():
    rows = pd.DataFrame({"split": ["forget", "forget", "retain"], "nll": [2.0, 18.0, 99.0]})
    rows = rows.assign(tokens=[2, 6, 1])
    assert selection.log_perplexity(rows, "forget") == pytest.approx(20 / 8)


def test_log_perplexity_of_a_document_without_a_number_is_none():
    """Else a run that broke on some documents would look good on the others."""
    rows = pd.DataFrame({"split": "forget", "nll": [2.0, np.nan], "tokens": [2, 6]})
    assert np.isnan(selection.log_perplexity(rows, "forget"))
