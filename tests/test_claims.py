"""Each claim: its verdict by hand, what is measured for it, the table, and the README's."""

import inspect
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unlearn_utils import __main__
from unlearn_utils.cache import paths
from unlearn_utils.core import efficiency, methods
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import Method, Term
from unlearn_utils.core.replicates import NOT_AVAILABLE, PLAIN, Estimate, Spread, prediction
from unlearn_utils.findings import (
    claims,
    comparison,
    defects,
    draws,
    evidence,
    plots_of_claims,
    pool_tables,
    robustness,
)
from unlearn_utils.findings.claims import Claim
from unlearn_utils.findings.evidence import Computed, Like, Measured
from unlearn_utils.profiles import LAPTOP, PROFILES, STUDY, Grid
from unlearn_utils.study import costs, extra_measurements, pool, released_code, selection

ROOT = Path(__file__).resolve().parents[1]
HAND = replace(
    PROFILES["smoke"],
    name="hand",
    grid=Grid(domains=("arxiv",), claimed_domains=("arxiv", "github")),
    domains=("arxiv", "github"),
    replicates=(1, 2, 3),
    resamples=2,
)
PUBLISHED = replace(HAND, hub=PROFILES["gpu"].hub, replicates=(1,))
NAMES = list(methods.METHODS)
KEYS = ["id", "claim", "source", "quantity", "unit", "target_domains", "sense", "threshold"]
TOLD = ["margin", "own verdict", "verdict", "because", "study", "notebook"]


def found(value, low, high, rerun=None, replicates=6):
    """An estimate; its rerun interval is the interval of the mean where none is given."""
    rerun_low, rerun_high = rerun or (low, high)
    return NOT_AVAILABLE._replace(
        value=value,
        low=low,
        high=high,
        n=9,
        replicates=replicates,
        rerun_low=rerun_low,
        rerun_high=rerun_high,
    )


def span(low, high):
    return found((low + high) / 2, low, high)


# ---------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("sense", "low", "high", "expected"),
    [
        ("above", 3, 4, "supported"),
        ("above", 2.01, 2.02, "supported"),
        ("above", 1, 1.9, "not supported"),
        ("above", -9, -5, "not supported"),
        ("above", 1, 3, "inconclusive"),
        ("above", 2, 3, "inconclusive"),  # touches the threshold
        ("above", 1, 2, "inconclusive"),
        ("above", 2, 2, "inconclusive"),
        ("above", 2.5, 2.5, "supported"),
        ("below", 0, 1, "supported"),
        ("below", -9, 1.99, "supported"),
        ("below", 3, 4, "not supported"),
        ("below", 1, 3, "inconclusive"),
        ("below", 1, 2, "inconclusive"),
        ("below", 2, 3, "inconclusive"),
        ("below", 1.5, 1.5, "supported"),
        ("inside", -1, 1, "supported"),
        ("inside", -1.99, 1.99, "supported"),
        ("inside", 3, 4, "not supported"),
        ("inside", -4, -3, "not supported"),
        ("inside", -3, 3, "inconclusive"),
        ("inside", 1, 3, "inconclusive"),
        ("inside", -3, -1, "inconclusive"),
        ("inside", -2, 1, "inconclusive"),
        ("inside", 2, 3, "inconclusive"),
        ("inside", -3, -2, "inconclusive"),
    ],
)
@pytest.mark.parametrize("which", ["mean", "rerun"])
def test_verdicts_by_hand(sense, low, high, expected, which):
    """The threshold is 2. Whichever interval it is, the other lies within it."""
    middle = (low + high) / 2
    narrow, wide = (middle, middle), (low, high)
    mean, rerun = (wide, narrow) if which == "mean" else (narrow, wide)
    assert claims.verdict(sense, 2.0, found(middle, *mean, rerun)) == expected


def test_a_verdict_needs_both_intervals():
    for mean, rerun in (((3, 4), (1, 6)), ((1, 6), (3, 4))):
        assert claims.verdict("above", 2.0, found(3.5, *mean, rerun)) == "inconclusive"
        assert claims.verdict("above", 0.5, found(3.5, *mean, rerun)) == "supported"
        assert claims.verdict("above", 6.5, found(3.5, *mean, rerun)) == "not supported"


def test_one_replicate_is_judged_by_its_own_interval():
    """The rerun interval beside it is the study's: 9 to 10 would turn, -1 to 0 open the verdict."""
    for rerun in ((9, 10), (-1, 0)):
        one = found(3.5, 3, 4, rerun, replicates=1)
        assert claims.verdict("above", 2.0, one) == "supported"
        assert claims.verdict("below", 2.0, one) == "not supported"
        assert claims.margin("above", 2.0, one) == pytest.approx(3)


def test_one_replicate_decides_nothing_where_no_other_is_known():
    """Its interval is of documents alone, and says nothing of how training varies."""
    one = found(3.5, 3, 4, (math.nan, math.nan), replicates=1)
    for sense in ("above", "below", "inside"):
        assert claims.verdict(sense, 2.0, one) == "inconclusive"
        assert claims.margin(sense, 2.0, one) == 0


def test_a_computed_number_has_its_range_alone():
    computed = NOT_AVAILABLE._replace(value=5.0, low=4.0, high=9.0, n=2)
    assert claims.verdict("above", 3.0, computed) == "supported"
    assert claims.verdict("above", 4.5, computed) == "inconclusive"


def test_above_and_below_contradict_each_other():
    """Where one is supported the other is not; they are inconclusive together.

    Turned around, a claim is as true.
    """
    generator = np.random.default_rng(0)
    for low, high in np.sort(generator.normal(size=(50, 2)), axis=1):
        above = claims.verdict("above", 0.1, span(low, high))
        below = claims.verdict("below", 0.1, span(low, high))
        assert {above, below} in ({"supported", "not supported"}, {"inconclusive"})
        turned = claims.verdict("below", -0.1, span(-high, -low))
        assert turned == above


def test_what_is_no_number_supports_nothing():
    assert claims.verdict("above", 0.0, NOT_AVAILABLE) == "not available"
    assert math.isnan(claims.margin("above", 0.0, NOT_AVAILABLE))


def test_a_claim_has_one_of_three_senses():
    with pytest.raises(ValueError, match="not 'near'"):
        claims.verdict("near", 0.0, span(1, 2))


@pytest.mark.parametrize(
    ("sense", "threshold", "estimate", "expected"),
    [
        ("above", 2.0, found(5, 4, 6, (3, 7)), 1.5),  # the wider of the two: 3 / 2
        ("above", 2.0, found(5, 3, 7, (4, 6)), 1.5),
        ("above", 8.0, found(5, 4, 6, (3, 7)), 1.5),
        ("below", 8.0, found(5, 4.9, 6, (4.9, 6)), 3.0),  # the side of the threshold: up
        ("above", 2.0, found(5, 4.9, 6, (4.9, 6)), 30.0),  # down
        ("above", 5.5, found(5, 4, 6), 0.5),
        ("inside", 2.0, found(1, 0.5, 1.5), 2.0),  # the nearer bound, 2, not -2
        ("inside", 2.0, found(-1, -1.5, -0.5), 2.0),
        ("inside", 2.0, found(-3, -3.5, -2.5), 2.0),
        ("inside", 2.0, found(1, -8, 1.5), 1 / 3),  # -2, as the interval is long on that side
        ("above", 2.0, found(5, 5, 5), math.inf),
        ("above", 5.0, found(5, 4, 6), 0.0),
    ],
)
def test_margins_by_hand(sense, threshold, estimate, expected):
    assert claims.margin(sense, threshold, estimate) == pytest.approx(expected)


def test_a_verdict_is_decided_where_its_margin_is_above_1():
    generator = np.random.default_rng(1)
    seen = set()
    for middle, width in generator.normal(size=(200, 2)):
        around = np.sort(generator.normal(middle, width**2, size=5))
        rerun_low, low, value, high, rerun_high = around
        estimate = found(value, low, high, (rerun_low, rerun_high))
        for sense, threshold in (("above", 0.3), ("below", 0.3), ("inside", 0.7)):
            verdict = claims.verdict(sense, threshold, estimate)
            decided = verdict in ("supported", "not supported")
            assert decided == (claims.margin(sense, threshold, estimate) > 1)
            seen.add((sense, verdict))
    assert len(seen) == 9


YES, NO, OPEN, NONE = "supported", "not supported", "inconclusive", "not available"


@pytest.mark.parametrize(
    ("robustness_says", "window_says", "expected"),
    [
        (YES, YES, YES),
        (NO, NO, NO),
        (OPEN, OPEN, OPEN),
        (NONE, NONE, NONE),
        (YES, NO, "inconclusive: robustness yes, window no"),
        (OPEN, YES, "inconclusive: robustness open, window yes"),
        (NO, OPEN, "inconclusive: robustness no, window open"),
        (YES, NONE, "inconclusive: robustness yes, window not available"),
    ],
)
def test_two_rows_decide_c2_together(robustness_says, window_says, expected):
    own = {"C1": NO, "C2": robustness_says, "C2 window": window_says, "C1 tuned": YES}
    assert claims.of_claims(own) == {"C1": NO, "C2": expected, "C1 tuned": YES}
    assert claims.decided_by("C2 window") == "C2" and claims.decided_by("C1 here") == "C1 here"


# -------------------------------------------------------------------------------------- the claims


def test_each_claim_has_an_id_of_its_own():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    assert [claim.id for claim in claims.CLAIMS if claim.half] == ["C2", "C2 window"]


def test_the_claims_are_those_that_can_be_decided():
    """C3 is a checklist (`evidence.coverage`); F2 had no power."""
    of_the_paper = [c for c in claims.CLAIMS if c.source.startswith(claims.ABSTRACT)]
    assert {claim.id[:2] for claim in of_the_paper} == {"C1", "C2", "C4"}
    findings = [claim for claim in claims.CLAIMS if claim.id.startswith("F")]
    assert {claim.source for claim in findings} == {claims.OURS}
    assert {claim.id.partition(".")[0] for claim in findings} == {"F1", "F3", "F4"}


def test_each_guideline_and_each_defect_has_its_claim():
    by_id = {claim.id: claim for claim in claims.CLAIMS}
    for letter, guideline in zip("abcd", robustness.GUIDELINES, strict=True):
        claim = by_id[f"C4{letter}"]
        assert claim.measure.args == (guideline,) and claim.claim.endswith(guideline)
    defects_by_number = {}
    for claim in claims.CLAIMS:
        if claim.id.startswith("F4."):
            defects_by_number[claim.id.removeprefix("F4.")] = claim.measure.args[0]
    assert list(defects_by_number.values()) == list(released_code.NAMES)
    assert all(name.startswith(number) for number, name in defects_by_number.items())


def test_each_claim_s_notebook_exists_and_its_sense_is_one_of_three():
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert {claim.notebook for claim in claims.CLAIMS} <= there and len(there) > 10
    assert {claim.sense for claim in claims.CLAIMS} == {"above", "below", "inside"}


def test_thresholds_are_those_that_were_stated():
    by_id = {claim.id: claim.threshold for claim in claims.CLAIMS}
    assert {type(threshold) for threshold in by_id.values()} == {float}
    assert by_id["C1"] == by_id["C1 tuned"] == by_id["C1 here"] == 100_000  # the paper's own
    assert by_id["C2"] == by_id["C2 window"] == 0.01  # fixed before the study's paths were run
    assert {by_id[f"C4{letter}"] for letter in "abcd"} == {0.05}
    assert by_id["F1"] == by_id["F3"] == 0.05
    assert by_id["F4.1"] == pytest.approx(math.log(1.1), abs=1e-4)


def test_no_verdict_is_written_into_a_claim():
    words = [field.name for field in fields(Claim) if field.name != "measure"]
    assert {"id", "claim", "quantity", "unit", "threshold"} <= set(words)
    for claim in claims.CLAIMS:
        said = " ".join(str(getattr(claim, name)) for name in words).lower()
        assert not any(word in said for word in ("supported", "inconclusive", "verdict"))
        assert callable(claim.measure)


# ------------------------------------------------------------------------------------- their table


def stated(id, sense="above", threshold=0.0, found=None, notebook="07"):
    """A claim that is measured as a constant: three replicates, two resamples."""
    if found is None:
        found = Measured(np.array([[1.0] * 3, [1.1] * 3, [1.2] * 3]), 7, ("arxiv", "github"))
    return Claim(
        id=id,
        claim=f"says {id}",
        source="ours",
        quantity=f"measure of {id}",
        unit="nats",
        sense=sense,
        threshold=threshold,
        notebook=notebook,
        measure=lambda profile: found,
    )


@pytest.fixture
def hand(monkeypatch, tmp_path):
    """Four claims with a verdict each, in a project of their own."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    some = (
        stated("X1"),
        stated("X2", "below", 0.4, notebook="11"),
        stated("X3", "inside", 100_000.0, Computed(240465.3, 0.5, 300582.0, 2), "02"),
        stated("X4", "above", 99.0, Measured(None, 0, ())),
    )
    monkeypatch.setattr(claims, "CLAIMS", some)
    (tmp_path / "figures").mkdir()
    return tmp_path


def test_the_table_has_a_row_for_each_claim(hand):
    table = claims.measure_all(HAND)
    assert list(table.columns) == [*KEYS, *Estimate._fields, *TOLD]
    assert table.id.tolist() == ["X1", "X2", "X3", "X4"]
    assert table.verdict.tolist() == [YES, NO, OPEN, NONE] == table["own verdict"].tolist()
    assert table.claim.tolist() == ["says X1", "says X2", "says X3", "says X4"]
    assert table.target_domains.tolist() == ["arxiv, github", "arxiv, github", "", ""]
    assert table.notebook.tolist() == ["07", "11", "02", "07"]
    assert table.n.tolist() == [7, 7, 2, 0] and table.replicates.tolist() == [3, 3, 0, 0]
    assert set(table.study) == {""}
    first, _, third, fourth = (row for _, row in table.iterrows())
    assert first.value == pytest.approx(1.1) and first.by_replicate == "1 1.1 1.2"
    low, high = prediction(Spread.of(np.array([1.0, 1.1, 1.2])))
    assert (first.rerun_low, first.rerun_high) == (pytest.approx(low), pytest.approx(high))
    assert (third.value, third.low, third.high) == (240465.3, 0.5, 300582)
    assert np.isnan([third.rerun_low, fourth.value, fourth.margin]).all()


def test_each_claim_is_measured_once_on_the_profile(monkeypatch, hand):
    asked = []

    def measure(profile):
        asked.append(profile)
        return Computed(0.0, 0.0, 0.0, 1)

    monkeypatch.setattr(claims, "CLAIMS", (replace(stated("X1"), measure=measure),))
    assert claims.measure_all(HAND).verdict.tolist() == [OPEN] and asked == [HAND]


def test_a_measure_that_cannot_be_negative_has_no_negative_bound(monkeypatch, hand):
    values = np.array([[0.01] * 3, [0.3] * 3])
    parts = {}
    for scale in (PLAIN, defects.SIZE):
        measured = Measured(values, 5, ("arxiv",), scale)
        monkeypatch.setattr(claims, "CLAIMS", (stated("X1", found=measured),))
        parts[scale] = claims.measure_all(HAND).iloc[0]
    assert parts[PLAIN].low < 0 and parts[PLAIN].rerun_low < 0
    assert parts[defects.SIZE].low == parts[defects.SIZE].rerun_low == 0
    assert parts[defects.SIZE].high == parts[PLAIN].high


def written(folder, table, **columns):
    """Write a table of the study."""
    (folder / "figures" / "study").mkdir(exist_ok=True)
    pd.DataFrame([columns]).to_csv(folder / "figures" / "study" / f"{table}.csv", index=False)


def test_one_replicate_borrows_the_spread_of_its_row_in_the_study(monkeypatch, hand):
    """By the words of the claim, whatever notebook shows it; of C2, by the row that is meant."""
    one = np.full((1, 3), 1.05)
    like = Like("table11_claim", {"target_domain": "arxiv", "measure": "window"})
    some = (
        stated("X1", found=Measured(one, 7, ("arxiv",)), notebook="02"),
        stated("X2", found=Measured(one, 7, ("arxiv",), like=like)),
        stated("X3", found=Measured(one, 7, ("github",))),
    )
    monkeypatch.setattr(claims, "CLAIMS", some)
    keys = dict.fromkeys(KEYS, "") | {"unit": "nats", "source": "ours", "sense": "above"}
    keys |= {"id": "X1", "claim": "says X1", "quantity": "measure of X1", "threshold": 0.0}
    row = {**keys, "target_domains": "arxiv", "value": 0}
    written(hand, claims.TABLE, **row, by_replicate="1 1.1 1.3", notebook="02", verdict="x")
    written(hand, "table11_claim", **like.keys, value=0, by_replicate="2 2.1 2.4 2.2")
    first, second, third = (row for _, row in claims.measure_all(LAPTOP).iterrows())
    for row, values in ((first, [1, 1.1, 1.3]), (second, [2, 2.1, 2.4, 2.2])):
        expected = prediction(Spread.of(np.array(values)))
        assert (row.rerun_low, row.rerun_high) == pytest.approx(expected)
        assert row.value == pytest.approx(1.05) and row.low < 1.05 < row.high
    assert np.isnan(third.rerun_low) and third.low == third.high
    assert [first.study, second.study] == ["x", ""]


def test_the_study_does_not_judge_itself(monkeypatch, hand):
    written(hand, claims.TABLE, id="X1", verdict=NO)
    monkeypatch.setattr(claims, "CLAIMS", (stated("X1"),))
    assert claims.measure_all(HAND).study.tolist() == [NO]
    assert claims.measure_all(replace(HAND, name=STUDY.name)).study.tolist() == [""]
    (hand / "figures" / "study" / f"{claims.TABLE}.csv").unlink()
    assert claims.measure_all(HAND).study.tolist() == [""]


def test_the_table_says_what_stands_in_for_a_retrained_model(monkeypatch, hand):
    every = ("C1", "C1 here", "C2", "C2 window", "C4a", "F1", "F3", "F4.1")
    monkeypatch.setattr(claims, "CLAIMS", tuple(stated(name) for name in every))
    assert not claims.measure_all(HAND).quantity.str.contains(";").any()
    published = claims.measure_all(PUBLISHED).set_index("id").quantity
    noted = published[published.str.contains(";")].str.split("; ").str[1]
    assert noted.to_dict() == claims.STANDS_IN
    assert list(claims.STANDS_IN) == ["C1 here", "C2", "C2 window", "F3"]


# -------------------------------------------------------------------------------------- the reason


def row_of(estimate, sense="above", threshold=2.0):
    table = pd.DataFrame([{"sense": sense, "threshold": threshold, "unit": "nats"}])
    return next(table.assign(**estimate._asdict()).itertuples())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            row_of(found(5, 4, 6, (3, 7))),
            "the interval of the mean, [4, 6], and that of a further replicate, [3, 7], lie "
            "above 2 (nats)",
        ),
        (
            row_of(found(3, 2.5, 3.5, (1.5, 4.5))),
            "the interval of the mean, [2.5, 3.5], lies above 2, but that of a further replicate, "
            "[1.5, 4.5], lies across 2 (nats)",
        ),
        (
            row_of(found(5, 4, 6, (3, 7)), "inside"),
            "the interval of the mean, [4, 6], and that of a further replicate, [3, 7], lie "
            "outside ±2 (nats)",
        ),
        (
            row_of(found(5, 4, 6, (0, 1), replicates=1), "below"),
            "the interval of one replicate, [4, 6], lies above 2 (nats)",
        ),
        (
            row_of(found(1, 0, 2, (math.nan, math.nan), replicates=1)),
            "one replicate says nothing of how much training varies, and no study is committed",
        ),
        (
            row_of(NOT_AVAILABLE._replace(value=240465.3, low=150290, high=300582), "above", 1e5),
            "all that is thought possible, [150,000, 301,000], lies above 100,000 (nats)",
        ),
        (
            row_of(NOT_AVAILABLE._replace(value=67.01, low=67.01, high=67.01), "above", 1e5),
            "67 is below 100,000 (nats), and the number is exact",
        ),
        (
            row_of(NOT_AVAILABLE),
            "there is no retrained model to measure it with, or no run comes so far",
        ),
    ],
)
def test_reasons_by_hand(row, expected):
    assert claims.because(row) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.0, "0"),
        (0.9994, "0.999"),
        (-0.07514, "-0.0751"),
        (0.012344, "0.0123"),
        (1.409, "1.41"),
        (900.4, "900"),
        (-1234.5, "-1,230"),
        (240465.4, "240,000"),
        (math.nan, "not available"),
    ],
)
def test_rounded_by_hand(number, expected):
    assert claims.rounded(number) == expected


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.999, "0.9"), (1.04, "1.0"), (12.0, "12.0"), (math.inf, "exact"), (math.nan, NONE)],
)
def test_a_margin_below_1_never_reads_as_1(margin, expected):
    assert claims.margin_text(margin) == expected


# ------------------------------------------------------------------------------------ as it prints


def test_a_table_for_reading(hand):
    shown = claims.shown(claims.measure_all(HAND))
    assert shown.index.tolist() == ["X1", "X2", "X3", "X4"]
    assert shown.loc["X1"].tolist() == [
        "1.1 [0.852, 1.35]",
        "[0.603, 1.6]",
        "above 0",
        "2.2",
        "supported",
    ]
    assert shown.loc["X3"].tolist()[:2] == ["240,000 [0.5, 301,000]", ""]


def test_a_sentence_for_each_row(monkeypatch, hand):
    halves = (
        replace(stated("X1"), id="C2", half="robustness"),
        replace(stated("X2", threshold=9.0), id="C2 window", half="window"),
        stated("X4", found=Measured(None, 0, ())),
    )
    monkeypatch.setattr(claims, "CLAIMS", halves)
    both = "of both rows together C2 is inconclusive: robustness yes, window no."
    first, second, third = claims.sentences(claims.measure_all(HAND))
    assert first.startswith("C2 is supported, because the interval of the mean, [0.852, 1.35], ")
    assert first.endswith(both) and second.endswith(both)
    assert second.startswith("C2 window is not supported, because ")
    assert third.startswith("X4 is not available, because there is no retrained model")
    assert third.endswith(" comes so far.")


HEAD = (
    "| id | claim | measured | asked | margin | verdict | notebook |\n"
    "|---|---|---|---|---|---|---|\n"
)
ALONE = HEAD + (
    "| X1 | says X1 | 1.1 [0.852, 1.35] | above 0 | 2.2 | supported | 07 |\n"
    "| X2 | says X2 | 1.1 [0.852, 1.35] | below 0.4 | 1.4 | not supported | 11 |\n"
    "| X3 | says X3 | 240,000 [0.5, 301,000] | inside ±100,000 | 0.5 | inconclusive | 02 |\n"
    "| X4 | says X4 | not available | above 99 | not available | not available | 07 |\n"
)


def test_markdown_by_hand(hand):
    assert claims.markdown(claims.measure_all(HAND)) == ALONE


def test_markdown_shows_another_profile_s_values_beside(hand):
    """Also where it lacks a claim."""
    table = claims.measure_all(HAND)
    beside = table.assign(value=[0.12345, 7.0, 1234.0, math.nan])[:3]
    lines = claims.markdown(table, beside).splitlines()
    assert lines[0].endswith("| verdict | one replicate | notebook |")
    shown = [line.split(" | ")[-2] for line in lines[2:]]
    assert shown == ["0.123", "7", "1,230", "not available"]
    assert {line.count("|") for line in lines} == {9}


def test_a_stored_table_prints_as_before(hand):
    table = claims.measure_all(HAND)
    table.to_csv(hand / "table.csv", index=False, float_format="%.6g")
    assert claims.markdown(claims.stored(hand / "table.csv")) == ALONE


def test_no_claim_breaks_the_table(monkeypatch, hand):
    """Seven columns in each line, whatever the claims say."""
    stubs = tuple(
        replace(claim, measure=lambda profile: Computed(1.0, 0.0, 2.0, 5))
        for claim in (*claims.MAIN_CLAIMS, *claims.GUIDELINE_CLAIMS, *claims.DEFECT_CLAIMS)
    )
    monkeypatch.setattr(claims, "CLAIMS", stubs)
    lines = claims.markdown(claims.measure_all(HAND)).splitlines()
    assert {line.count("|") for line in lines} == {8} and len(lines) == 2 + len(stubs)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def project(hand):
    """A project with the table of four claims."""
    table = claims.measure_all(HAND)
    table.to_csv(hand / "figures" / "table14_claims.csv", index=False)
    return hand


def test_the_command_prints_the_profile_s_table_where_there_is_no_study(project, capsys):
    assert __main__.main(["claims"]) == 0
    assert capsys.readouterr() == (ALONE, "")
    assert sorted(path.name for path in project.iterdir()) == ["figures"]


def test_the_command_prints_the_study_with_this_run_beside(project, capsys):
    table = claims.measure_all(HAND)
    (project / "figures" / "study").mkdir()
    changed = table.assign(verdict="as the study says")
    changed.to_csv(project / "figures" / "study" / "table14_claims.csv", index=False)
    assert __main__.main(["claims"]) == 0
    assert capsys.readouterr().out == claims.markdown(changed, table)
    assert __main__.main(["claims", "study"]) == 0
    assert capsys.readouterr().out == claims.markdown(changed)


def test_the_command_prints_another_profile_s_table(project, capsys):
    (project / "runs" / "smoke" / "figures").mkdir(parents=True)
    second = claims.measure_all(HAND)[1:2]
    second.to_csv(project / "runs" / "smoke" / "figures" / "table14_claims.csv", index=False)
    (project / "figures" / "study").mkdir()
    second.to_csv(project / "figures" / "study" / "table14_claims.csv", index=False)
    assert __main__.main(["claims", "smoke"]) == 0
    assert capsys.readouterr().out == HEAD + ALONE.splitlines(True)[3]


@pytest.mark.parametrize("options", [[], ["--readme"], ["study"]])
def test_a_missing_table_is_one_line(project, capsys, options):
    (project / "figures" / "table14_claims.csv").unlink()
    assert __main__.main(["claims", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: no ") and "--only 14" in err


BEFORE = "# Title\n\n| id | another table |\n|---|---|\n\n"
AFTER = "\n\nMore: naïve — 東京.\n\n## End\n"
MARKS = (claims.START, claims.END)


def test_the_readme_s_table_is_replaced_and_nothing_else(project, capsys):
    file = project / "README.md"
    old = f"{claims.START}\n| old | table |\n|---|---|\n{claims.END}"
    file.write_text(f"{BEFORE}{old}{AFTER}", encoding="utf-8")
    for _ in range(2):  # the second time changes nothing
        assert __main__.main(["claims", "--readme"]) == 0
        new = f"{claims.START}\n{ALONE}{claims.END}"
        assert file.read_text(encoding="utf-8") == f"{BEFORE}{new}{AFTER}"
    assert capsys.readouterr() == ("", "")


def test_an_empty_place_in_the_readme_is_filled(project):
    file = project / "README.md"
    file.write_text(f"{BEFORE}{claims.START}\n{claims.END}\n{AFTER}", encoding="utf-8")
    assert __main__.main(["claims", "--readme"]) == 0
    new = f"{claims.START}\n{ALONE}{claims.END}"
    assert file.read_text(encoding="utf-8") == f"{BEFORE}{new}\n{AFTER}"


@pytest.mark.parametrize("kept", [(), MARKS[:1], MARKS[1:]])
def test_a_readme_without_both_marks_is_left_alone(project, capsys, kept):
    """What has no end cannot be replaced: one line, and not a byte of the README is lost."""
    file = project / "README.md"
    text = BEFORE + "\n".join(kept) + AFTER
    file.write_text(text, encoding="utf-8")
    code = __main__.main(["claims", "--readme"])
    assert file.read_text(encoding="utf-8") == text
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------------------- what is committed


def test_the_readme_shows_the_committed_study():
    here = claims.stored(ROOT / "figures" / "table14_claims.csv")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, start, rest = text.partition(claims.START)
    shown, end, _ = rest.partition(claims.END)
    assert start and end, "README.md has no marks for the claims' table"
    study = claims.study_table().set_index("id")
    lines = shown.strip().splitlines()
    assert len(lines) == 2 + len(study)
    for line, (name, row) in zip(lines[2:], study.iterrows(), strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[:3] == [name, row.claim, claims.text(row)]
        assert row.verdict in cells
    assert set(here.id) == set(study.index)


@pytest.mark.parametrize("profile", [LAPTOP, STUDY], ids=lambda profile: profile.name)
def test_the_committed_table_is_of_these_claims(profile):
    """Nobody wrote a verdict by hand, and no claim or threshold changed after it was measured."""
    file = paths.own_figures(ROOT, profile.name) / "table14_claims.csv"
    table = claims.stored(file)
    assert list(table.columns) == [*KEYS, *Estimate._fields, *TOLD]
    assert table.id.tolist() == [claim.id for claim in claims.CLAIMS]
    trained = table[table.replicates > 0]
    assert set(trained.replicates) <= set(range(1, 1 + len(profile.replicates)))
    assert np.isfinite(trained[["rerun_low", "rerun_high"]]).all(axis=None)
    own = {}
    for row, claim in zip(table.itertuples(), claims.CLAIMS, strict=True):
        for name in ("claim", "source", "quantity", "unit", "sense", "notebook"):
            assert getattr(row, name) == getattr(claim, name)
        assert row.threshold == pytest.approx(claim.threshold, rel=1e-4)
        own[row.id] = claims.verdict(claim.sense, claim.threshold, row)
    assert table["own verdict"].tolist() == list(own.values())
    told = claims.of_claims(own)
    assert table.verdict.tolist() == [told[claims.decided_by(name)] for name in own]


# --------------------------------------------------------------------------------- evidence: cost


def test_the_computed_ratio_by_hand():
    """Ascent + KL, 7/3 passes, on the larger forget set, arXiv's 22.1 MB, at 4 bytes a token.

    3.1e12 / (7/3 x 22.1e6 / 4); the bounds are at 2.5 and at 5 bytes a token.
    """
    ratio = evidence.computed_ratio(HAND)
    assert ratio.value == pytest.approx(3.1e12 / (7 / 3 * 22.1e6 / 4))
    assert ratio.value == pytest.approx(2.40e5, rel=0.01)
    assert ratio.low == pytest.approx(ratio.value * 2.5 / 4)
    assert ratio.high == pytest.approx(ratio.value * 5 / 4)
    assert (ratio.n, ratio.domains) == (2, ())


def test_the_computed_ratio_is_the_least_of_all(monkeypatch):
    some = {}
    for name, passes in {"quick": 1.0, "slow": 9.0, "usual": 3.0}.items():
        some[name] = Method(name, name, Term(name, "words", "ascent", passes=passes))
    monkeypatch.setattr(methods, "METHODS", some)
    sizes = {"one": 30.0e6, "two": 60.0e6, "three": 20.0e6}
    monkeypatch.setattr(efficiency, "FORGET_BYTES", sizes)
    monkeypatch.setattr(efficiency, "BYTES_PER_TOKEN", (2.0, 3.0, 10.0))
    least = [pytest.approx(3.1e12 / (9 * 60e6 / size)) for size in (3.0, 2.0, 10.0)]
    assert evidence.computed_ratio(HAND) == Computed(*least, 3)


def test_tuning_counts_its_runs_and_what_it_reads():
    """Three rates, two epochs of 5 passes, four marks that read half as much as the forget set.

    A mark is a forward pass, a third of a training pass: 3 (2 x 5 + 4 x 1/2 x 1/3).
    """
    found = efficiency.tuning_passes(5, rates=3, epochs=2, marks=4, read=0.5)
    assert found == pytest.approx(32)
    assert efficiency.tuning_passes(5, 1, 1, 0, 1.0) == 5
    assert efficiency.tuning_passes(5, 3, 2, 4, 0.0) == 30


def test_the_ratio_with_tuning_by_hand():
    """Six rates, two epochs; the powers of two up to 30 steps and 30 itself are six marks.

    6 (2 x 7/3 + 6 x 1/3) = 40 passes in the place of 7/3.
    """
    first = next(iter(robustness.GUIDELINES.values()))
    assert evidence.passes_of_tuning(first, 7 / 3) == pytest.approx(40)
    one, tuned = evidence.computed_ratio(HAND), evidence.tuned_ratio(HAND)
    for name in ("value", "low", "high"):
        assert getattr(tuned, name) == pytest.approx(getattr(one, name) * (7 / 3) / 40)


def test_each_guideline_costs_the_runs_that_it_takes():
    """Passes of ascent + KL: 40; one rate alone a sixth; one epoch, nothing read; AUC reads more.

    With an AUC 1.5 forget sets are read at a mark: 6 (2 x 7/3 + 6 x 1.5 x 1/3). The command `tune`
    reads 16 documents of each half of four sets, 128/60 of the forget set.
    """
    table = evidence.cost_of_guidelines()
    assert table.guideline.tolist() == [*robustness.GUIDELINES, robustness.SEARCH]
    assert table.rates.tolist() == [6, 1, 1, 6, 6] and table.epochs.tolist() == [2, 2, 1, 2, 2]
    one = evidence.computed_ratio(HAND).value
    passes = one * (7 / 3) / table["value"]
    assert passes.tolist() == pytest.approx([40, 40 / 6, 7 / 3, 46, 28 + 12 * 128 / 60])
    assert (table.low < table["value"]).all() and (table["value"] < table.high).all()


def test_the_counted_ratio_is_the_largest_of_all(monkeypatch):
    """1000 FLOPs of retraining against 50 at the least; 300 against 10."""
    flops = {
        "arxiv": dict.fromkeys(NAMES, 50) | {costs.RETRAINING: 1000, NAMES[4]: 120},
        "github": dict.fromkeys(NAMES, 20) | {costs.RETRAINING: 300, NAMES[1]: 10},
    }

    def rows_of(keys):
        rows = [{"target_domain": d, "method": m, "flops": flops[d][m]} for d, m in keys]
        return pd.DataFrame(rows)

    monkeypatch.setattr(costs, "flops", lambda profile, domain, method: (domain, method))
    monkeypatch.setattr(evidence, "side_by_side", lambda artifacts, workers: None)
    monkeypatch.setattr(extra_measurements, "rows_of", rows_of)
    assert evidence.counted_ratio(HAND) == Computed(30.0, 30.0, 30.0, 8, ("arxiv", "github"))


# ---------------------------------------------------------------------- evidence: hyperparameters

DRAWS = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


def families(by_domain):
    return lambda profile, domains: min(by_domain[domain] for domain in domains)


def test_c2_is_a_difference_over_the_claimed_domains(monkeypatch):
    asked = []

    def differences(profile, plane, measure):
        asked.append((plane, measure))
        return {"arxiv": 7 * DRAWS, "github": 8 * DRAWS, "mean": DRAWS}

    monkeypatch.setattr(robustness, "differences", differences)
    monkeypatch.setattr(robustness, "smallest_n", families({"arxiv": 5, "github": 4}))
    both = evidence.more_robust("window", HAND)
    assert both.draws is DRAWS and both.n == 4 and both.domains == ("arxiv", "github")
    assert both.like.keys["target_domain"] == "mean"
    one = replace(HAND, grid=Grid(claimed_domains=("arxiv",)))
    alone = evidence.more_robust("robustness", one)
    assert alone.n == 5 and alone.domains == ("arxiv",)
    plane = robustness.MAIN_PLANE
    keys = {"target_domain": "arxiv", "plane": plane, "measure": "robustness"}
    assert alone.like == Like("table11_claim", keys)
    assert asked == [(plane, "window"), (plane, "robustness")]


def test_the_spread_of_c2_is_that_of_a_row_of_its_own_table(monkeypatch, tmp_path):
    """Its keys are those that the study writes."""
    monkeypatch.setenv(paths.FIGURES, str(tmp_path))
    of = dict.fromkeys((*HAND.grid.claimed_domains, "mean"), np.zeros((3, 3)))
    monkeypatch.setattr(robustness, "differences", lambda *asked: of)
    monkeypatch.setattr(robustness, "smallest_n", lambda *asked: 5)
    table = robustness.claim_table(HAND)
    for measure in robustness.SMALLEST:
        like = evidence.more_robust(measure, HAND).like
        keys = list(like.keys)
        assert like.table == "table11_claim" and list(table.columns[: len(keys)]) == keys
        rows = table[(table[keys] == list(like.keys.values())).all(axis=1)]
        assert len(rows) == 1


def test_a_regret_is_the_mean_over_methods(monkeypatch):
    guideline = next(iter(robustness.GUIDELINES))
    found = {guideline: {"gradient_ascent": 9 * DRAWS, "mean": DRAWS}}
    monkeypatch.setattr(robustness, "regrets", lambda profile: found)
    monkeypatch.setattr(robustness, "smallest_n", families({"arxiv": 5, "github": 4}))
    assert evidence.regret(guideline, HAND) == Measured(DRAWS, 5, ("arxiv",))


def test_what_needs_a_retrained_model_is_not_measured_without_one():
    guideline = next(iter(robustness.GUIDELINES))
    for found in (evidence.regret(guideline, PUBLISHED), evidence.proxy(PUBLISHED)):
        assert found.draws is None and found.n == 0


# ------------------------------------------------------------------------------ evidence: findings


def test_the_findings_are_those_of_their_notebooks(monkeypatch):
    sample = {"arxiv": 6, "github": 3}

    class Drawn:
        def __init__(self, number):
            self.families = number

    def drawn(profile, domain, split, half):
        assert split == "approximate" and half is draws.ALL
        return Drawn(sample[domain])

    monkeypatch.setattr(draws, "sample", drawn)
    monkeypatch.setattr(pool_tables, "proxy_bias", lambda profile: DRAWS)
    assert evidence.proxy(HAND) == Measured(DRAWS, 3, ("arxiv", "github"))

    monkeypatch.setattr(robustness, "smallest_n", families({"arxiv": 5, "github": 4}))
    monkeypatch.setattr(comparison, "least_detected", lambda profile: 2 * DRAWS)
    least = evidence.least_detected(HAND)
    assert (least.draws == 2 * DRAWS).all() and least.n == 4

    monkeypatch.setattr(defects, "effect", lambda profile, defect: ((profile, defect), 8))
    found = evidence.effect_of_defect("1 shifted labels", HAND)
    assert found == Measured((HAND, "1 shifted labels"), 8, ("arxiv",), defects.SIZE)


def test_each_stand_in_of_these_tests_is_called_as_what_it_stands_for():
    for function, names in (
        (robustness.differences, ["profile", "plane", "measure"]),
        (robustness.smallest_n, ["profile", "domains"]),
        (robustness.regrets, ["profile"]),
        (pool_tables.proxy_bias, ["profile"]),
        (comparison.least_detected, ["profile"]),
        (defects.effect, ["profile", "defect"]),
        (draws.sample, ["profile", "domain", "split", "half"]),
    ):
        assert list(inspect.signature(function).parameters) == names


# ----------------------------------------------------------------------------- evidence: coverage


class Path1:
    """A path of two marks whose last one has some numbers."""

    def __init__(self, gaps, auc):
        middle = np.zeros((3, 2, len(SPLITS)))
        middle[:, -1] = gaps
        self.gaps = {selection.REPORT: middle}
        self.auc = {selection.REPORT: np.array([[0.5, auc]] * 3)}


def test_the_checklist_by_hand(monkeypatch):
    """One method has no AUC on github in one replicate, another no general text on arxiv."""
    nan = math.nan

    def usual(profile, domain, method):
        whole = [Path1([0, 0, 0, 0], 0.5) for _ in profile.replicates]
        if method == NAMES[0] and domain == "github":
            whole[-1] = Path1([0, 0, 0, 0], nan)
        if method == NAMES[1] and domain == "arxiv":
            whole = [Path1([0, 0, 0, nan], 0.5) for _ in profile.replicates]
        return whole

    def levels(profile, rows, domain, half):
        assert half == selection.REPORT
        return np.full((3, 4), 0.0 if rows == "target" else [0, 0, nan, 0])

    monkeypatch.setattr(comparison, "usual", usual)
    monkeypatch.setattr(pool, "target_rows", lambda profile, domain, replicate: "target")
    monkeypatch.setattr(pool, "truth_rows", lambda profile, domain, replicate: "retrained")
    monkeypatch.setattr(draws, "levels", levels)
    monkeypatch.setattr(draws, "auc", lambda profile, rows, domain, half: np.full(3, 0.5))
    table = evidence.coverage(HAND)
    assert list(table.columns) == ["model", "arxiv", "github"]
    by_model = table.set_index("model")
    assert by_model.index.tolist() == [*NAMES, "target", "retrained"]
    every = "forget, unseen, retain, general, membership"
    assert by_model.loc[NAMES[0]].tolist() == [every, "forget, unseen, retain, general"]
    assert by_model.loc[NAMES[1]].tolist() == ["forget, unseen, retain, membership", every]
    assert set(by_model.loc[[*NAMES[2:], "target"]].to_numpy().ravel()) == {every}
    assert by_model.loc["retrained"].tolist() == ["forget, unseen, general, membership"] * 2
    published = evidence.coverage(PUBLISHED).set_index("model")
    assert published.loc["retrained"].tolist() == ["", ""]


# -------------------------------------------------------------------------------------- the figure


def test_a_panel_for_each_unit(hand):
    """The largest at the left; a line a claim; the study, where there is one, beside this run."""
    assert plots_of_claims.mosaic(["a"]) == [["a"]]
    assert plots_of_claims.mosaic(["a", "b"]) == [["a", "b", "b"]]
    assert plots_of_claims.mosaic(["a", "b", "c", "d"]) == [["a", "b", "c"], ["a", "d", "d"]]
    table = claims.measure_all(HAND)
    table.loc[2, "unit"] = "ratio of FLOPs"
    for study, marks in ((None, 1), (table, 2)):
        figure = plots_of_claims.draw(table, study)
        by_unit = {ax.get_xlabel(): ax for ax in figure.axes}
        assert set(by_unit) == {"nats", "ratio of FLOPs"}
        ticks = [label.get_text() for label in by_unit["nats"].get_yticklabels()]
        assert ticks == ["X1", "X2", "X4"]
        drawn = [line for line in by_unit["nats"].lines if len(line.get_xdata())]
        assert len(drawn) == marks
        low, high = by_unit["nats"].get_xlim()
        assert low < 0 and high > 99  # every threshold is seen


def test_only_several_replicates_show_their_rerun_interval(hand):
    table = claims.measure_all(HAND)[:1].assign(rerun_low=0.7, rerun_high=1.5)
    thin = []
    for replicates in (1, 3):
        figure = plots_of_claims.draw(table.assign(replicates=replicates), None)
        segments = figure.axes[0].collections[0].get_segments()
        thin.append([np.ravel(segment).tolist() for segment in segments if len(segment)])
    assert thin == [[], [[0.7, -0.17, 1.5, -0.17]]]
