"""Verdicts follow from intervals; what is measured for each claim, by hand; the README's table."""

import math
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from unlearn_utils import __main__
from unlearn_utils.cache import paths
from unlearn_utils.core import efficiency, membership, methods, tables
from unlearn_utils.core.intervals import Interval
from unlearn_utils.core.methods import Method, Term
from unlearn_utils.findings import claims, evidence, robustness
from unlearn_utils.findings.claims import Claim
from unlearn_utils.profiles import PROFILES, Grid, Unlearning
from unlearn_utils.runner.places import COMMITTED, Places
from unlearn_utils.study import costs, extra_measurements, grid, pool, selection

ROOT = Path(__file__).resolve().parents[1]
HAND = replace(
    PROFILES["smoke"],
    name="hand",
    unlearning=Unlearning(learning_rate=1e-3, batch=2),
    grid=Grid(
        learning_rates=(1e-4, 1e-3),
        marks=(0.5, 1.0),
        domains=("arxiv",),
        retain_documents=(),
    ),
    domains=("arxiv", "github"),
    noise_domain="github",
    resamples=20,
    seeds=2,
)
NAMES = list(methods.METHODS)
WIDE = "ascent_descent_in_distribution"
ASCENT = "gradient_ascent"
LABELS = "random_label"
COLUMNS = [
    "id",
    "claim",
    "source",
    "quantity",
    "sense",
    "threshold",
    "value",
    "low",
    "high",
    "n",
    "seeds",
    "profile",
    "verdict",
    "notebook",
]


def span(low, high):
    return Interval((low + high) / 2, low, high, 9)


def exactly(value, n):
    """An interval of no width around a value."""
    return Interval(*[pytest.approx(value)] * 3, n)


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
        ("above", 3, math.inf, "supported"),
        ("above", 1, math.inf, "inconclusive"),
        ("below", 0, 1, "supported"),
        ("below", -9, 1.99, "supported"),
        ("below", 3, 4, "not supported"),
        ("below", 1, 3, "inconclusive"),
        ("below", 1, 2, "inconclusive"),
        ("below", 2, 3, "inconclusive"),
        ("below", 2, 2, "inconclusive"),
        ("below", 1.5, 1.5, "supported"),
        ("below", -math.inf, 1, "supported"),
        ("below", math.inf, math.inf, "not supported"),
        ("inside", -1, 1, "supported"),
        ("inside", -1.99, 1.99, "supported"),
        ("inside", -1.5, -1.5, "supported"),
        ("inside", 3, 4, "not supported"),
        ("inside", -4, -3, "not supported"),
        ("inside", -3, 3, "inconclusive"),
        ("inside", 1, 3, "inconclusive"),
        ("inside", -3, -1, "inconclusive"),
        ("inside", -2, 1, "inconclusive"),
        ("inside", 1, 2, "inconclusive"),
        ("inside", 2, 3, "inconclusive"),
        ("inside", -3, -2, "inconclusive"),
        ("inside", 2, 2, "inconclusive"),
    ],
)
def test_verdicts_by_hand(sense, low, high, expected):
    """The threshold is 2.

    All of an interval lies on one side of it (or of either bound, 2 and -2), or it is inconclusive.
    """
    assert claims.verdict(sense, 2.0, span(low, high)) == expected


def test_a_verdict_comes_from_the_interval_alone():
    for value in (-5, 0, 5):
        assert claims.verdict("above", 0, Interval(value, 1, 2, 1)) == "supported"
        assert claims.verdict("below", 0, Interval(value, 1, 2, 999)) == "not supported"


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
    nothing = Interval(math.nan, math.nan, math.nan, 1)
    assert claims.verdict("above", 0.0, nothing) == "not available"


def test_a_claim_has_one_of_three_senses():
    with pytest.raises(ValueError, match="not 'near'"):
        claims.verdict("near", 0.0, span(1, 2))


# -------------------------------------------------------------------------------------- the claims


def test_each_claim_has_an_id_of_its_own():
    ids = [claim.id for claim in claims.CLAIMS]
    assert len(set(ids)) == len(ids)


def test_the_four_claims_of_the_abstract_are_there():
    of_the_paper = [c for c in claims.CLAIMS if c.source.startswith(claims.ABSTRACT)]
    assert {claim.id[:2] for claim in of_the_paper} == {"C1", "C2", "C3", "C4"}
    findings = [claim for claim in claims.CLAIMS if claim.id.startswith("F")]
    assert {claim.source for claim in findings} == {claims.OURS}
    assert all(claim.id[0] in "CF" for claim in claims.CLAIMS)


def test_each_guideline_and_each_defect_has_its_claim():
    by_id = {claim.id: claim for claim in claims.CLAIMS}
    for letter, guideline in zip("abcd", robustness.GUIDELINES, strict=True):
        claim = by_id[f"C4{letter}"]
        assert claim.measure.args == (guideline,) and claim.claim.endswith(guideline)
    defects = {}
    for claim in claims.CLAIMS:
        if claim.id.startswith("F4."):
            defects[claim.id.removeprefix("F4.")] = claim.measure.args[0][0]
    assert defects == {number: number for number in "123457"}


def test_each_claim_s_notebook_exists_and_its_sense_is_one_of_three():
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert {claim.notebook for claim in claims.CLAIMS} <= there and len(there) > 10
    assert {claim.sense for claim in claims.CLAIMS} <= {"above", "below", "inside"}


def test_thresholds_are_finite_numbers():
    for claim in claims.CLAIMS:
        assert type(claim.threshold) is float and math.isfinite(claim.threshold)
        assert claim.threshold > 0 or claim.sense != "inside"
    by_id = {claim.id: claim.threshold for claim in claims.CLAIMS}
    assert by_id["C1"] == by_id["C1 here"] == 100_000  # the paper's own; every other is ours
    assert by_id["F4.1"] == pytest.approx(math.log(1.1), abs=1e-4)


def test_no_verdict_is_written_into_a_claim():
    names = [field.name for field in fields(Claim)]
    words = ["id", "claim", "source", "quantity", "sense", "threshold", "notebook"]
    assert names == [*words, "measure"]
    for claim in claims.CLAIMS:
        said = " ".join(str(getattr(claim, name)) for name in words).lower()
        assert not any(word in said for word in ("supported", "inconclusive", "verdict"))
        assert callable(claim.measure)


# ------------------------------------------------------------------------------------- their table


def stated(id, sense="above", threshold=0.0, found=(1.0, 0.5, 1.5, 7), seeds=1, notebook="07"):
    return Claim(
        id=id,
        claim=f"says {id}",
        source="ours",
        quantity=f"measure of {id}",
        sense=sense,
        threshold=threshold,
        notebook=notebook,
        measure=lambda profile: (Interval(*found), seeds),
    )


@pytest.fixture
def three(monkeypatch):
    """Three claims with a verdict each."""
    some = (
        stated("X1"),
        stated("X2", "below", 0.4, (1.0, 0.5, 1.5, 8), 3, "11"),
        stated("X3", "inside", 1.0, (240465.3, 0.5, 300582.0, 2), notebook="02"),
    )
    monkeypatch.setattr(claims, "CLAIMS", some)
    return some


def test_the_table_has_a_row_for_each_claim(three):
    found = claims.measure_all(HAND)
    assert list(found.columns) == COLUMNS
    assert found.verdict.tolist() == ["supported", "not supported", "inconclusive"]
    assert found.id.tolist() == ["X1", "X2", "X3"]
    assert found.claim.tolist() == ["says X1", "says X2", "says X3"]
    assert found.quantity.tolist() == ["measure of X1", "measure of X2", "measure of X3"]
    assert set(found.source) == {"ours"} and set(found.profile) == {"hand"}
    assert found[["value", "low", "high", "n"]].values.tolist() == [
        [1, 0.5, 1.5, 7],
        [1, 0.5, 1.5, 8],
        [240465.3, 0.5, 300582, 2],
    ]
    assert found.seeds.tolist() == [1, 3, 1] and found.threshold.tolist() == [0, 0.4, 1]
    assert found.sense.tolist() == ["above", "below", "inside"]
    assert found.notebook.tolist() == ["07", "11", "02"]


def test_each_claim_is_measured_once_on_the_profile(monkeypatch):
    asked = []

    def measure(profile):
        asked.append(profile)
        return Interval(0.0, 0.0, 0.0, 1), 1

    monkeypatch.setattr(claims, "CLAIMS", (replace(stated("X1"), measure=measure),))
    assert claims.measure_all(HAND).verdict.tolist() == ["inconclusive"] and asked == [HAND]


def test_the_table_says_what_stands_in_for_a_retrained_model(monkeypatch):
    some = tuple(stated(claim.id) for claim in claims.CLAIMS)
    monkeypatch.setattr(claims, "CLAIMS", some)
    here = claims.measure_all(HAND)
    assert not here.quantity.str.contains(";").any()
    published = claims.measure_all(replace(HAND, hub=PROFILES["gpu"].hub)).set_index("id").quantity
    noted = published[published.str.contains(";")].str.split("; ").str[1]
    assert noted.to_dict() == claims.STANDS_IN
    assert list(claims.STANDS_IN) == ["C1 here", "C2", "C2 widest", "F2", "F3"]


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.5, 0.254, 0.746, "0.50 [0.25, 0.75]"),
        (-0.0751, -0.1053, -0.0454, "-0.08 [-0.11, -0.05]"),
        (0.0, 0.0, 0.0, "0.00 [0.00, 0.00]"),  # alike on every resample, but measured
        (240465.0, 150291.0, 300582.0, "2.4e+05 [1.5e+05, 3e+05]"),
        (900.0, 500.0, 1500.0, "900.00 [500.00, 1.5e+03]"),
        (-1234.5, -2000.0, 999.99, "-1.2e+03 [-2e+03, 999.99]"),
        (0.5, 0.499, 0.502, "0.50 [0.50, 0.50]"),
    ],
)
def test_text_by_hand(value, low, high, expected):
    row = {"value": value, "low": low, "high": high}
    measured = row | {"quantity": "log perplexity, target / exact retraining"}
    assert claims.text(pd.Series(measured)) == expected
    counted = row | {"quantity": "FLOPs, counted; exact"}
    shown, _, _ = expected.partition(" [")
    assert claims.text(pd.Series(counted)) == shown


def test_what_is_called_exact_has_no_interval():
    """Counts are; the computed ratio has bounds of assumptions, everything else of documents."""
    exact = {claim.id for claim in claims.CLAIMS if "; exact" in claim.quantity}
    assert exact == {"C1 here", "C3"}
    table = pd.read_csv(ROOT / "figures" / "table14_claims.csv")
    table = table[table.quantity.str.contains("; exact")]
    assert len(table) == 2
    assert (table.low == table.value).all() and (table.high == table.value).all()


EXPECTED = (
    "| id | claim | measured | threshold | n | verdict | notebook, command |\n"
    "|---|---|---|---|---|---|---|\n"
    "| X1 | says X1 | 1.00 [0.50, 1.50] | above 0 | 7 | supported "
    "| 07, `./run_all.sh --only 07` |\n"
    "| X2 | says X2 | 1.00 [0.50, 1.50] | below 0.4 | 8 | not supported "
    "| 11, `./run_all.sh --only 11` |\n"
    "| X3 | says X3 | 2.4e+05 [0.50, 3e+05] | inside ±1 | 2 | inconclusive "
    "| 02, `./run_all.sh --only 02` |\n"
)


def test_markdown_by_hand(three):
    assert claims.markdown(claims.measure_all(HAND)) == EXPECTED


def test_no_claim_breaks_the_table(monkeypatch):
    """Seven columns in each line, whatever the claims say."""

    def measure(profile):
        return Interval(1.0, 0.0, 2.0, 5), 1

    stubs = tuple(replace(claim, measure=measure) for claim in claims.CLAIMS)
    monkeypatch.setattr(claims, "CLAIMS", stubs)
    lines = claims.markdown(claims.measure_all(HAND)).splitlines()
    assert {line.count("|") for line in lines} == {8} and len(lines) == 2 + len(stubs)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def project(three, tmp_path, monkeypatch):
    """A project with the table of three claims and a README."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    (tmp_path / "figures").mkdir()
    table = claims.measure_all(HAND)
    table.to_csv(tmp_path / "figures" / "table14_claims.csv", index=False)
    return tmp_path


def test_the_command_prints_the_committed_table(project, capsys):
    assert __main__.main(["claims"]) == 0
    assert capsys.readouterr() == (EXPECTED, "")
    assert sorted(path.name for path in project.iterdir()) == ["figures"]


@pytest.mark.parametrize(
    ("profile", "place"), [("study", "figures/study"), ("smoke", "runs/smoke/figures")]
)
def test_the_command_prints_another_profile_s_table(project, capsys, profile, place):
    (project / place).mkdir(parents=True)
    second = claims.measure_all(HAND)[1:2]
    second.to_csv(project / place / "table14_claims.csv", index=False)
    assert __main__.main(["claims", profile]) == 0
    head, rule, _, row, _ = EXPECTED.splitlines(True)
    assert capsys.readouterr().out == head + rule + row


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
        new = f"{claims.START}\n{EXPECTED}{claims.END}"
        assert file.read_text(encoding="utf-8") == f"{BEFORE}{new}{AFTER}"
    assert capsys.readouterr() == ("", "")


def test_an_empty_place_in_the_readme_is_filled(project):
    file = project / "README.md"
    file.write_text(f"{BEFORE}{claims.START}\n{claims.END}\n{AFTER}", encoding="utf-8")
    assert __main__.main(["claims", "--readme"]) == 0
    new = f"{claims.START}\n{EXPECTED}{claims.END}"
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


def test_the_readme_shows_the_committed_table():
    table = pd.read_csv(ROOT / "figures" / "table14_claims.csv", dtype={"notebook": str})
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, start, rest = text.partition(claims.START)
    shown, end, _ = rest.partition(claims.END)
    assert start and end, "README.md has no marks for the claims' table"
    assert shown == "\n" + claims.markdown(table)


@pytest.mark.parametrize("profile", [COMMITTED, "study"])
def test_the_committed_table_is_of_these_claims(profile):
    """Nobody wrote a verdict by hand, and no claim or threshold changed after it was measured."""
    path = Places(ROOT, profile).figures / "table14_claims.csv"
    table = pd.read_csv(path, dtype={"notebook": str})
    assert list(table.columns) == COLUMNS and set(table.profile) == {profile}
    assert np.isfinite(table[["value", "low", "high"]]).all(axis=None)
    assert table.id.tolist() == [claim.id for claim in claims.CLAIMS]
    for row, claim in zip(table.itertuples(), claims.CLAIMS, strict=True):
        for name in ("claim", "source", "quantity", "sense", "notebook"):
            assert getattr(row, name) == getattr(claim, name)
        assert row.threshold == pytest.approx(claim.threshold, rel=1e-4)
        found = Interval(row.value, row.low, row.high, row.n)
        assert row.verdict == claims.verdict(claim.sense, claim.threshold, found)


# --------------------------------------------------------------------------------- evidence: cost


def test_the_computed_ratio_by_hand():
    """Ascent + KL, 7/3 passes, on the larger forget set, arXiv's 22.1 MB, at 4 bytes a token.

    3.1e12 / (7/3 x 22.1e6 / 4); the bounds are at 2.5 and at 5 bytes a token.
    """
    found, seeds = evidence.computed_ratio(HAND)
    assert found.value == pytest.approx(3.1e12 / (7 / 3 * 22.1e6 / 4))
    assert found.value == pytest.approx(2.40e5, rel=0.01)
    assert found.low == pytest.approx(found.value * 2.5 / 4)
    assert found.high == pytest.approx(found.value * 5 / 4)
    assert (found.n, seeds) == (2, 1)


def test_the_computed_ratio_is_the_least_of_all(monkeypatch):
    some = {}
    for name, passes in {"quick": 1.0, "slow": 9.0, "usual": 3.0}.items():
        some[name] = Method(name, name, Term(name, "words", "ascent", passes=passes))
    monkeypatch.setattr(methods, "METHODS", some)
    sizes = {"one": 30.0e6, "two": 60.0e6, "three": 20.0e6}
    monkeypatch.setattr(efficiency, "FORGET_BYTES", sizes)
    monkeypatch.setattr(efficiency, "BYTES_PER_TOKEN", (2.0, 3.0, 10.0))
    found, _ = evidence.computed_ratio(HAND)
    least = [pytest.approx(3.1e12 / (9 * 60e6 / size)) for size in (3.0, 2.0, 10.0)]
    assert found == Interval(*least, 3)


def test_the_counted_ratio_is_the_largest_of_all(monkeypatch):
    """1000 FLOPs of retraining against 50 at the least; 300 against 10."""
    flops = {
        "arxiv": dict.fromkeys(NAMES, 50) | {costs.RETRAINING: 1000, WIDE: 120},
        "github": dict.fromkeys(NAMES, 20) | {costs.RETRAINING: 300, LABELS: 10},
    }

    def rows_of(keys):
        rows = [{"target_domain": d, "method": m, "flops": flops[d][m]} for d, m in keys]
        return pd.DataFrame(rows)

    monkeypatch.setattr(costs, "flops", lambda profile, domain, method: (domain, method))
    monkeypatch.setattr(evidence, "side_by_side", lambda artifacts, workers: None)
    monkeypatch.setattr(extra_measurements, "rows_of", rows_of)
    assert evidence.counted_ratio(HAND) == (Interval(30.0, 30.0, 30.0, 8), 1)


# ---------------------------------------------------------------------- evidence: hyperparameters


def levels(names, forget, evaluation=0.0, approximate=0.0, auc=0.5, n=6):
    """Four cells (two rates, two marks) of each method; the retrained model's levels are all 0.

    forget: by method, (1 + resamples, 4) log perplexities over the retrained model's. evaluation:
    general ones. approximate: of the target, whose other levels are 0.
    """
    settings = [setting for setting in grid.plan(HAND) if setting.method in names]
    cells = grid.cells(HAND, settings)
    own = np.concatenate([np.atleast_2d(forget[m]) for m in cells.method.unique()], axis=1)
    zero = np.zeros_like(own)
    zeros = dict.fromkeys(robustness.SPLITS, zero)
    return robustness.LogPerplexities(
        cells=cells,
        own=zeros | {"forget": own, "evaluation": zero + evaluation},
        retrained=zeros,
        target=zeros | {"approximate": zero + approximate},
        auc=np.zeros(len(cells)) + auc,
        n=n,
    )


def accepted(*counts):
    """Levels of which so many of four cells are near the retrained model's, in each draw."""
    return [[0.2] * count + [0.3] * (4 - count) for count in counts]


def given(monkeypatch, **halves):
    names = {"whole": None, "chosen": selection.SELECTION, "reported": selection.REPORT}
    found = {names[name]: part for name, part in halves.items()}
    monkeypatch.setattr(evidence, "_grid", lambda profile: found)


def test_wider_than_ascent_by_hand(monkeypatch):
    """Shares 3/4 and 1/4; on three resamples 1/4 and 1/4, 2/4 and 2/4, 1 and 0.

    The differences are 0, 0 and 1, their 97.5% quantile is 0.95.
    """
    shares = dict.fromkeys(NAMES, accepted(4, 4, 4, 4))
    shares |= {WIDE: accepted(3, 1, 2, 4), ASCENT: accepted(1, 1, 2, 0)}
    given(monkeypatch, whole=levels(NAMES, shares))
    found, seeds = evidence.wider_than_ascent(HAND)
    assert found == Interval(0.5, 0.0, pytest.approx(0.95), 6) and seeds == 1


def test_widest_is_over_the_best_other_of_each_draw(monkeypatch):
    """3/4 less 2/4; on the resamples 1/4 - 3/4, 2/4 - 2/4 and 1 - 1/4: of -0.5, 0 and 0.75."""
    shares = dict.fromkeys(NAMES, accepted(0, 0, 0, 0))
    shares |= {WIDE: accepted(3, 1, 2, 4)}
    shares |= {ASCENT: accepted(1, 1, 2, 0), LABELS: accepted(2, 3, 0, 1)}
    given(monkeypatch, whole=levels(NAMES, shares))
    found, seeds = evidence.widest(HAND)
    assert found == Interval(0.25, pytest.approx(-0.475), pytest.approx(0.7125), 6) and seeds == 1


def test_cells_that_damage_general_text_are_not_acceptable(monkeypatch):
    """Three methods, the claim's among them, raise general perplexity by 11%; 9% is allowed."""
    shares = dict.fromkeys(NAMES, accepted(4, 4))
    damaging = np.isin(np.repeat(NAMES, 4), [WIDE, LABELS, "adversarial"])
    assert damaging.sum() == 12
    rise = np.log(np.where(damaging, 1.11, 1.09))
    given(monkeypatch, whole=levels(NAMES, shares, evaluation=rise))
    lost = Interval(-1.0, -1.0, -1.0, 6)
    assert evidence.wider_than_ascent(HAND)[0] == evidence.widest(HAND)[0] == lost


def test_the_grid_proper_on_all_documents_and_on_either_half(monkeypatch):
    """Of a grid that varies more than the grid proper, the cells that every method has.

    It also varies batch, weight, seed and retain documents. The runs are collected once.
    """
    varied = Grid(
        learning_rates=(1e-4, 1e-3),
        marks=(0.5, 1.0),
        domains=HAND.domains,
        batches=(9,),
        retain_weights=(0.1,),
        seeds=2,
        retain_documents=(3,),
    )
    profile = replace(HAND, grid=varied)
    asked = []

    def made(profile, settings, rows, baselines, seed, half):
        asked.append((rows, baselines, half))
        cells = grid.cells(profile, settings)
        zero = dict.fromkeys(robustness.SPLITS, np.zeros((3, len(cells))))
        return robustness.LogPerplexities(cells, zero, zero, zero, np.zeros(len(cells)), 5)

    monkeypatch.setattr(grid, "grid_rows", lambda profile, settings: len(settings))
    monkeypatch.setattr(pool, "measure_baselines", lambda profile: "baselines")
    monkeypatch.setattr(robustness, "log_perplexities", made)
    found = evidence._grid.__wrapped__(profile)
    every = sum(setting.retain_documents is None for setting in grid.plan(profile))
    halves = [None, selection.SELECTION, selection.REPORT]
    assert asked == [(every, "baselines", half) for half in halves]
    assert list(found) == halves == [None, 0, 1]
    for part in found.values():
        cells = part.cells
        assert len(cells) == 2 * 7 * 2 * 2  # domains, methods, rates, marks
        assert len(cells) == part.own["forget"].shape[1]
        assert not cells.duplicated(["target_domain", "method", "learning_rate", "epoch"]).any()
        assert set(cells.batch) == {2} and set(cells.retain_weight) == {1}
        assert set(cells.seed) == {0}


A, B, C, D = robustness.GUIDELINES
# of the cells (1e-4, 0.5), (1e-4, 1), (1e-3, 0.5), (1e-3, 1): log forget perplexity over the
# retrained model's, a quarter of which is the distance to retraining, a mean of four splits
SELECTED = [-0.4, -0.2, 0.1, 0.6]
REPORTED = [0.7, 0.5, 0.3, 0.9]


@pytest.mark.parametrize(("guideline", "chosen"), [(A, 1), (B, 2), (C, 3), (D, 0)])
def test_regrets_by_hand(monkeypatch, guideline, chosen):
    """The best cell, by the selection half, is the third.

    Nearest to the proxy -0.25 is the second, at the usual rate (1e-3) the third; the usual rate and
    one epoch are the fourth; the first has the AUC nearest 1/2. Beside it stands a method whose
    cells are all alike.
    """
    auc = np.array([0.52, 0.6, 0.3, 0.9] + [0.5] * 4)
    same = {LABELS: [[0.0] * 4] * 3}
    names = (ASCENT, LABELS)
    selected = {ASCENT: [SELECTED] * 3} | same
    reported = {ASCENT: [REPORTED] * 3} | same
    given(
        monkeypatch,
        chosen=levels(names, selected, approximate=-0.25, auc=auc, n=5),
        reported=levels(names, reported, n=4),
    )
    found, seeds = evidence.regret(guideline, HAND)
    assert found == exactly((REPORTED[chosen] - REPORTED[2]) / 4 / 2, 4) and seeds == 1


def test_a_regret_s_interval_is_of_the_mean_of_methods(monkeypatch):
    """Regrets 0.05 and 0, on two resamples 0 and 0, 0.1 and 0: quantiles of 0 and 0.05."""
    draws = [[0.7, 0.3 + lost, 0.3, 0.9] for lost in (0.2, 0.0, 0.4)]
    same = {LABELS: [[0.0] * 4] * 3}
    names = (ASCENT, LABELS)
    given(
        monkeypatch,
        chosen=levels(names, {ASCENT: [SELECTED] * 3} | same, approximate=-0.25),
        reported=levels(names, {ASCENT: draws} | same),
    )
    found, _ = evidence.regret(A, HAND)
    assert found == Interval(*map(pytest.approx, (0.025, 0.00125, 0.04875)), 6)


def test_a_regret_may_be_negative(monkeypatch):
    given(
        monkeypatch,
        chosen=levels((ASCENT,), {ASCENT: [SELECTED] * 3}, approximate=-0.25),
        reported=levels((ASCENT,), {ASCENT: [[0.7, 0.1, 0.3, 0.9]] * 3}),
    )
    assert evidence.regret(A, HAND)[0].value == pytest.approx(-0.05)


# ----------------------------------------------------------------------------- evidence: coverage


def test_coverage_by_hand(monkeypatch):
    """Nine models on two domains: of 18 one lacks a split, one has nothing but NaN on one."""
    rows = []
    for name in (*NAMES, "target", "retrained"):
        for domain in HAND.domains:
            for split in robustness.SPLITS:
                for number in range(2):
                    rows.append((name, domain, split, f"{domain} {split} {number}", 1.0))
    for split in robustness.SPLITS:  # not asked for
        rows.append(("retrained again", "github", split, f"github {split} 0", 1.0))
    table = pd.DataFrame(rows, columns=["name", "target_domain", "split", "id", "nll"])
    monkeypatch.setattr(evidence, "_rows", lambda profile: table)
    assert evidence.covered(HAND) == (Interval(1.0, 1.0, 1.0, 16), 2)

    keys = table.set_index(["name", "target_domain", "split"]).index
    lacking = table[keys != (WIDE, "arxiv", "evaluation")]
    unknown = (keys == ("target", "github", "retain"))[lacking.index]
    lacking = lacking.assign(nll=lacking.nll.mask(unknown))
    monkeypatch.setattr(evidence, "_rows", lambda profile: lacking)
    assert evidence.covered(HAND)[0].value == pytest.approx(16 / 18)


# ----------------------------------------------------------------------------- evidence: findings


def baseline(domain, gaps, tokens=(10, 30, 20), split="approximate"):
    """Rows of the target and of the model retrained without a domain.

    gaps: how much lower the target's log perplexity of each document is.
    """
    table = []
    for number, (gap, size) in enumerate(zip(gaps, tokens, strict=True)):
        row = {"domain": domain, "split": split, "tokens": size}
        row |= {"family": f"{domain} {number}", "id": f"{domain} {split} {number}"}
        retrained = 3.0 * size + number
        table.append(row | {"model": f"retrained without {domain}", "nll": retrained})
        table.append(row | {"model": "target", "nll": retrained - gap * size})
    return table


def proxied(monkeypatch, *parts):
    rows = []
    for part in parts:
        rows += part
    for domain in HAND.domains:
        for split in ("forget", "retain"):  # plays no part
            rows += baseline(domain, (9, 9, 9), split=split)
    monkeypatch.setattr(pool, "measure_baselines", lambda profile: pd.DataFrame(rows))
    return evidence.proxy(HAND)


def test_a_target_that_is_as_good_as_retraining_is_a_perfect_proxy(monkeypatch):
    found = proxied(monkeypatch, baseline("arxiv", (0, 0, 0)), baseline("github", (0, 0, 0)))
    assert found == (Interval(0.0, 0.0, 0.0, 3), 1)


def test_a_target_that_is_better_by_log_2_everywhere(monkeypatch):
    better = [math.log(2)] * 3
    found, _ = proxied(monkeypatch, baseline("arxiv", better), baseline("github", better))
    assert found == exactly(-math.log(2), 3)


def test_the_proxy_weighs_tokens_within_a_domain_and_domains_alike(monkeypatch):
    """(10 x 0.6 + 30 x 0.2) / 60 = 0.2 on one domain, 0.5 on the other, with fewer documents."""
    one = baseline("arxiv", (0.6, 0.2, 0))
    other = baseline("github", (0.5, 0.5), (7, 1000))
    found, _ = proxied(monkeypatch, one, other)
    assert found.value == pytest.approx(-0.35) and found.n == 2
    assert -0.55 <= found.low < found.value < found.high <= -0.25


def no_gap(name, domain):
    return 0.0


def report(side, gap=no_gap):
    """Rows of the report half, in any order; those of the oracle and the target play no part.

    side(name, domain): the scores of (forget, approximate) documents. gap(name, domain): a method's
    log forget perplexity over the retrained model's, the same for each document.
    """
    models = {"retrained": ("retrained", ""), "target": ("target", "")}
    models |= {name: ("unlearned", name) for name in NAMES}
    models["oracle"] = ("unlearned (oracle)", ASCENT)
    table = []
    for domain in HAND.domains:
        for name, (model, method) in models.items():
            far = gap(name, domain) if name in NAMES else 0.0
            for split, scores in zip(("forget", "approximate"), side(name, domain), strict=True):
                level = 3 + far if split == "forget" else 3
                for number, score in enumerate(scores):
                    document = f"{domain} {split} {number}"
                    row = {"model": model, "method": method, "target_domain": domain}
                    row |= {"split": split, "id": document, "family": document}
                    row |= {"min_k_40": score, "tokens": 10 + number, "nll": level * (10 + number)}
                    table.append(row)
    return pd.DataFrame(table).sample(frac=1, random_state=0)


def reported(monkeypatch, rows):
    monkeypatch.setattr(evidence, "_rows", lambda profile: rows)


def higher(members, of=4):
    """Scores of two sides of `of` documents; of the members so many are above every other.

    The rest of them is below: AUC members / of.
    """
    ours = [9.0] * members + [-9.0] * (of - members)
    return ours, [float(number) / of for number in range(of)]


def test_detected_is_the_method_that_is_least_on_average(monkeypatch):
    """AUC over the retrained model's 1/4, on the two domains.

    Of the labels 0 and 3/4, of the claim's method 1/4 and 1/4, of all others 1/2 and 1/2.
    """
    members = {(LABELS, "arxiv"): 1, (LABELS, "github"): 4}
    members |= {(WIDE, "arxiv"): 2, (WIDE, "github"): 2}
    elsewhere = {"retrained": 1, "target": 4, "oracle": 0}

    def side(name, domain):
        return higher(members.get((name, domain), elsewhere.get(name, 3)))

    reported(monkeypatch, report(side))
    found, seeds = evidence.least_detected(HAND)
    assert found.value == pytest.approx(0.25) and (found.n, seeds) == (4, 2)
    assert found.low <= 0.25 <= found.high


def apart(scores, otherwise):
    """Three members of one score each, by model, against non-members of score 0."""
    return lambda name, domain: ([scores.get(name, otherwise)] * 3, [0.0] * 3)


def test_detection_that_no_resample_changes(monkeypatch):
    """Every unlearned model's members are above, the retrained model's below: 1 less 0.

    But one method's tie: 1/2.
    """
    reported(monkeypatch, report(apart({"retrained": -1.0, ASCENT: 0.0}, otherwise=1.0)))
    assert evidence.least_detected(HAND)[0] == Interval(0.5, 0.5, 0.5, 3)


def test_an_auc_may_fall_below_the_retrained_model_s(monkeypatch):
    reported(monkeypatch, report(apart({"retrained": 1.0, ASCENT: -1.0}, otherwise=1.0)))
    assert evidence.least_detected(HAND)[0] == Interval(-1.0, -1.0, -1.0, 3)


def test_documents_are_matched_whatever_their_order(monkeypatch):
    """Each draw is of the same documents under every model: another order, the same intervals."""

    def side(name, domain):
        return higher(1 + len(name) % 3)

    def gap(name, domain):
        return len(name) / 10

    rows = report(side, gap).sort_values(["model", "method", "target_domain", "split", "id"])
    exact = rows.model == "retrained"
    turned = pd.concat([rows[exact], rows[~exact].iloc[::-1]])
    reported(monkeypatch, rows)
    first = evidence._forgotten(HAND)[:2]
    reported(monkeypatch, turned)
    second = evidence._forgotten(HAND)[:2]
    for one, other in zip(first, second, strict=True):
        assert one.shape == (21, 14) and one == pytest.approx(other)


def test_weighted_aucs_are_those_of_repeated_documents():
    """Each document as often as it was drawn, ties among them."""
    generator = np.random.default_rng(0)
    sizes = {"forget": 6, "approximate": 9}
    scores = {side: generator.integers(0, 5, n).astype(float) for side, n in sizes.items()}
    weights = {}
    for side, n in sizes.items():
        weights[side] = np.vstack([np.ones(n), generator.multinomial(n, [1 / n] * n, 5)])
    sides = {side: pd.DataFrame({"min_k_40": values}) for side, values in scores.items()}
    found = evidence._auc(sides, weights)
    expected = []
    for draw in range(6):
        repeated = [np.repeat(scores[side], weights[side][draw].astype(int)) for side in sizes]
        expected.append(membership.auc(*repeated))
    assert found.tolist() == pytest.approx(expected)


PLACES = {}  # 1 to 14
for _domain in HAND.domains:
    for _name in NAMES:
        PLACES[_name, _domain] = len(PLACES) + 1


@pytest.mark.parametrize("sign", [1, -1])
def test_agreement_of_two_distances_in_the_same_or_the_reversed_order(monkeypatch, sign):
    """30 members, 15 of them above in the retrained model; of the j-th model 15 + j or 15 - j.

    So the AUC's distance grows with j, on either side. Log perplexity's grows with j too, or falls,
    on either side.
    """

    def side(name, domain):
        j = PLACES.get((name, domain), 0)
        return higher(15 + (j if j % 2 else -j), 30)

    def gap(name, domain):
        j = PLACES[name, domain]
        far = (j if sign > 0 else 15 - j) / 10
        return -far if j % 3 else far

    reported(monkeypatch, report(side, gap))
    found, seeds = evidence.agreement(HAND)
    assert found.value == pytest.approx(sign) and (found.n, seeds) == (30, 2)
    assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9
    assert found.low * sign > 0.3 and found.high * sign > 0.3


def test_agreement_is_spearman_s_correlation_of_each_draw(monkeypatch):
    """With ties: scipy's. Where one distance is the same everywhere: 0."""
    generator = np.random.default_rng(0)
    far = np.abs(generator.normal(size=(41, 14))).round(1)
    excess = generator.normal(size=(41, 14)).round(1)
    monkeypatch.setattr(evidence, "_forgotten", lambda profile: (far, excess, 5))
    draws = []
    for one, other in zip(far, excess, strict=True):
        draws.append(spearmanr(one, np.abs(other)).statistic)
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    expected = Interval(*map(pytest.approx, (draws[0], low, high)), 5)
    assert evidence.agreement(HAND)[0] == expected

    nothing = (np.ones((3, 14)), excess[:3], 5)
    monkeypatch.setattr(evidence, "_forgotten", lambda profile: nothing)
    assert evidence.agreement(HAND)[0] == Interval(0.0, 0.0, 0.0, 5)


# ------------------------------------------------------------------------------ evidence: defects

SHIFTED = "1 shifted labels"


def trained(code, gaps, step=4, defect=SHIFTED):
    """Rows of a run at a step: log forget perplexity 3, and so much more of each document.

    General text is far off.
    """
    rows = []
    for number, gap in enumerate(gaps):
        row = {"split": "forget", "id": number, "family": number}
        rows.append(row | {"tokens": 10, "nll": (3 + gap) * 10})
    general = {"split": "evaluation", "id": 99, "family": 99, "tokens": 10}
    rows.append(general | {"nll": 900.0 * len(code)})
    return pd.DataFrame(rows).assign(code=code, step=step, defect=defect)


def defective(monkeypatch, gaps):
    same = [0.0] * len(gaps)
    parts = [trained("corrected", same), trained("official", gaps)]
    earlier = partial(trained, step=3)
    parts += [earlier("corrected", same), earlier("official", [7.0] * len(gaps))]
    another = partial(trained, defect="2 KL over padding")
    parts += [another("corrected", same), another("official", [8.0] * len(gaps))]
    monkeypatch.setattr(evidence, "_trajectories", lambda profile: pd.concat(parts))
    return evidence.effect_of_defect(SHIFTED, HAND)


@pytest.mark.parametrize("gap", [0.5, -0.5])
def test_a_defect_counts_in_either_direction(monkeypatch, gap):
    found, seeds = defective(monkeypatch, [gap] * 4)
    assert found == exactly(0.5, 4) and seeds == 1


def test_a_defect_of_no_effect(monkeypatch):
    assert defective(monkeypatch, [0.0] * 4)[0] == Interval(0.0, 0.0, 0.0, 4)


def test_a_negative_defect_is_the_positive_one_turned(monkeypatch):
    gaps = [0.5, 1.0, 0.75, 0.25]
    plus, _ = defective(monkeypatch, gaps)
    minus, _ = defective(monkeypatch, [-gap for gap in gaps])
    assert minus == Interval(*map(pytest.approx, plus))
    assert 0.25 <= plus.low < 0.625 < plus.high <= 1


def test_a_defect_that_could_go_either_way_may_be_nothing(monkeypatch):
    """The bounds of |x| for x in [low, high] around 0: 0 and the larger of the two."""
    gaps = [1.0, -1.0, 1.0, -0.5, -1.0]
    plus, _ = defective(monkeypatch, gaps)
    minus, _ = defective(monkeypatch, [-gap for gap in gaps])
    assert plus.value == minus.value == pytest.approx(0.1) and plus.low == minus.low == 0
    official, corrected = trained("official", gaps)[:5], trained("corrected", [0] * 5)[:5]
    signed = tables.log_ratio(official, corrected, evidence.SEED, HAND.resamples)
    assert signed.low < 0 < signed.high
    larger = pytest.approx(max(-signed.low, signed.high))
    assert [plus.high, minus.high] == [larger, larger]
    assert -signed.low != pytest.approx(signed.high)
