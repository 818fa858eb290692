"""How robust metrics are: by hand, and of attacks that are made up."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys

from unlearn_utils.findings import attacks, draws, metrics_attacked
from unlearn_utils.findings import plots_of_audit as reading

PROFILE = replace(toys.TOY, name="robust", replicates=(1, 2), resamples=2)
METHODS = {"gradient_ascent": None, "random_label": None}
SAMPLE = draws.Sample(pd.Index(["a", "b"]), np.array([[1.0, 1], [2, 0], [0, 2]]), 2)


def rows(nll, **columns):
    """Rows of two forget documents of 10 tokens, and one of other text."""
    brief = {"tokens": 10, "correct": 4, "min_k_40": -3.0, "extraction": 0.5}
    table = pd.DataFrame({"id": ["a", "b", "c"], "split": ["forget", "forget", "evaluation"]})
    return table.assign(nll=[*nll, 99.0], **brief).assign(**columns)


def looks(before, after):
    """A model whose losses go from one to the other under every attack."""
    relearned = []
    for step, nll in ((0, before), (2, [0.0, 0.0]), (8, after)):
        relearned.append(rows(nll, step=step, source="forget", learning_rate=0.1))
    rounded = [rows(before, bits=32), rows(after, bits=8), rows(after, bits=4)]
    return attacks.Looks(pd.concat(relearned), pd.concat(rounded), pd.DataFrame())


@pytest.fixture
def table(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path))
    found = {}
    for replicate in PROFILE.replicates:
        found[replicate, attacks.CONTROL] = looks([50, 50], [45, 45])
        found[replicate, "gradient_ascent"] = looks([50, 50], [30, 45])
        found[replicate, "random_label"] = looks([40, 40], [41, 41])
    monkeypatch.setattr(attacks, "looks", lambda profile: found)
    monkeypatch.setattr(draws, "sample", lambda *given: SAMPLE)
    monkeypatch.setattr(metrics_attacked, "METHODS", METHODS)
    return metrics_attacked.robustness_table(PROFILE)


def test_robustness_by_hand():
    """The control rises by 1: as much as the model, half, twice; it falls; the model does not."""
    ours = np.array([[0.0, 1], [0, 2], [0, 0.5], [0, 1], [0, -1], [0, 0]])
    control = np.array([[0.0, 1], [0, 1], [0, 1], [0, -1], [0, 1], [0, 1]])
    found = metrics_attacked.robustness(ours, control)
    assert found.tolist() == [1, 0.5, 1, 0, 1, 1]


def test_each_metric_is_that_of_the_forget_documents_before_and_at_the_end(table):
    """Perplexity: the control falls by 5 of a document, ascent by 12.5, random labels rise."""
    at_end = table[table.attack == attacks.RELEARNING].set_index(["method", "measure"])["value"]
    perplexity = metrics_attacked.PERPLEXITY
    assert at_end["gradient_ascent", perplexity] == pytest.approx(5 / 12.5)
    assert at_end["random_label", perplexity] == 1
    assert at_end["mean", perplexity] == pytest.approx((5 / 12.5 + 1) / 2)
    assert set(at_end.drop(perplexity, level="measure")) == {1}
    rounded = table[(table.attack == attacks.ROUNDING) & (table.measure == perplexity)]
    assert sorted(set(rounded.setting)) == [4, 8]
    assert rounded[rounded.method == "mean"]["value"].tolist() == pytest.approx([0.7, 0.7])
    assert set(table.replicates) == {2}


def test_a_table_to_read_has_a_row_an_attack(table):
    found = reading.robust(table)
    assert list(found) == list(metrics_attacked.COLUMNS)
    assert list(found.index.get_level_values("setting")) == ["0.1", "8", "4"]
