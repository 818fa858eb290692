"""The finding of notebook 20: each number in it is that of the committed table."""

import pytest
from committed import interval, study, words

AUDIT = "notebooks/20_audit.ipynb"
DOMAINS = ("arxiv", "books", "github")
OTHERS = ("do nothing", "another retrained model")
LIKE, LIRA = "share of documents like retrained", "AUC of U-LiRA, by document"
KNEW = "Spearman's correlation with margin that the target had over retrained"


@pytest.fixture(scope="module")
def table():
    return study("table20_equal")


def rows(table, measure, model=None):
    """The rows of a measure: of one model, or of the methods that reach equal forgetting."""
    part = table[(table.measure == measure) & table["value"].notna()]
    if model:
        return part[part.model == model]
    return part[~part.model.isin(OTHERS)]


def ends(part):
    """The rows with the least and the largest value."""
    return [part.loc[part["value"].idxmin()], part.loc[part["value"].idxmax()]]


def test_documents_that_are_like_retrained(table):
    again = rows(table, LIKE, "another retrained model").set_index("target_domain")["value"]
    assert f"{again['arxiv']:.0%}, {again['books']:.0%} and {again['github']:.0%}" in words(AUDIT)
    shares = []
    for domain in DOMAINS:
        of_methods = rows(table, LIKE)
        least, most = ends(of_methods[of_methods.target_domain == domain])
        shares.append(f"{least['value']:.0%} to {most['value']:.0%}")
    assert f"{shares[0]}, {shares[1]} and {shares[2]}" in words(AUDIT)
    assert rows(table, LIKE).model.nunique() == 6


def test_models_are_told_from_retrained_ones(table):
    for part in (rows(table, LIRA), rows(table, LIRA, "another retrained model")):
        least, most = ends(part)
        assert f"{interval(least)} to {interval(most)}" in words(AUDIT)


def test_what_was_memorised_most_stays_most(table):
    least, most = ends(rows(table, KNEW))
    assert f"target had is {least['value']:.2f} to {most['value']:.2f}" in words(AUDIT)


def test_single_documents_at_equal_forgetting(table):
    area = "AUC of the log-probability, by document"
    methods, again = (ends(rows(table, area, model)) for model in (None, OTHERS[1]))
    told = [f"{row['value']:.2f}" for row in (*methods, *again)]
    assert "{} to {} beside {} to {}".format(*told) in words(AUDIT)
    assert methods[1]["value"] < again[0]["value"]
