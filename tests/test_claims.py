"""Verdicts follow from intervals; what is measured for each claim, on inputs small enough to compute by hand; the table of the README."""

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unlearn_utils import __main__
from unlearn_utils.cache import paths
from unlearn_utils.core import efficiency, membership, tables
from unlearn_utils.core.intervals import Interval
from unlearn_utils.findings import claims, evidence, robustness
from unlearn_utils.findings.claims import Claim
from unlearn_utils.profiles import PROFILES, Grid, Unlearning
from unlearn_utils.runner import notebooks
from unlearn_utils.study import costs, extra_measurements, grid, pool, selection

ROOT = Path(__file__).resolve().parents[1]
HAND = replace(
    PROFILES["smoke"],
    name="hand",
    unlearning=Unlearning(learning_rate=1e-3, batch=2),
    grid=Grid(learning_rates=(1e-4, 1e-3), marks=(0.5, 1.0), domains=("arxiv",), retain_documents=()),
    domains=("arxiv", "github"),
    noise_domain="github",
    resamples=20,
    seeds=2,
)
WIDE, ASCENT, LABELS = "ascent_descent_in_distribution", "gradient_ascent", "random_label"
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


# ---------------------------------------------------------------------------------------------- verdicts


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
    """The threshold is 2. All of an interval lies on one side of it (or of either bound, 2 and -2), or it is inconclusive."""
    assert claims.verdict(sense, 2.0, span(low, high)) == expected


def test_a_verdict_comes_from_the_interval_alone():
    for value in (-5, 0, 5):
        assert claims.verdict("above", 0, Interval(value, 1, 2, 1)) == "supported"
        assert claims.verdict("below", 0, Interval(value, 1, 2, 999)) == "not supported"


def test_above_and_below_contradict_each_other():
    """Where one is supported the other is not; they are inconclusive together. Turned around, a claim is as true."""
    generator = np.random.default_rng(0)
    for low, high in np.sort(generator.normal(size=(50, 2)), axis=1):
        found = [claims.verdict(sense, 0.1, span(low, high)) for sense in ("above", "below")]
        assert set(found) in ({"supported", "not supported"}, {"inconclusive"})
        turned = claims.verdict("below", -0.1, span(-high, -low))
        assert turned == found[0]


def test_what_is_no_number_supports_nothing():
    assert claims.verdict("above", 0.0, Interval(math.nan, math.nan, math.nan, 1)) == "not available"


# ---------------------------------------------------------------------------------------------- the claims


def test_each_claim_has_an_id_of_its_own():
    ids = [c.id for c in claims.CLAIMS]
    assert len(set(ids)) == len(ids)


def test_the_four_claims_of_the_abstract_are_there():
    found = {c.id[:2] for c in claims.CLAIMS if c.source.startswith(claims.ABSTRACT)}
    assert found == {"C1", "C2", "C3", "C4"}
    assert {c.source for c in claims.CLAIMS if c.id.startswith("F")} == {claims.OURS}
    assert all(c.id[0] in "CF" for c in claims.CLAIMS)


def test_each_guideline_and_each_defect_has_its_claim():
    by_id = {c.id: c for c in claims.CLAIMS}
    assert [by_id[f"C4{letter}"].measure.args for letter in "abcd"] == [(g,) for g in robustness.GUIDELINES]
    assert all(by_id[f"C4{letter}"].claim.endswith(g) for letter, g in zip("abcd", robustness.GUIDELINES, strict=True))
    defects = {c.id.removeprefix("F4."): c for c in claims.CLAIMS if c.id.startswith("F4.")}
    assert {number: c.measure.args[0][0] for number, c in defects.items()} == {n: n for n in "123457"}


def test_each_claim_s_notebook_exists_and_its_sense_is_one_of_three():
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert {c.notebook for c in claims.CLAIMS} <= there and len(there) > 10
    assert {c.sense for c in claims.CLAIMS} <= {"above", "below", "inside"}


def test_thresholds_are_finite_numbers():
    assert all(type(c.threshold) is float and math.isfinite(c.threshold) for c in claims.CLAIMS)
    assert all(c.threshold > 0 for c in claims.CLAIMS if c.sense == "inside")
    by_id = {c.id: c.threshold for c in claims.CLAIMS}
    assert by_id["C1"] == by_id["C1 here"] == 100_000  # the paper's own; every other is ours
    assert by_id["F4.1"] == pytest.approx(math.log(1.1), abs=1e-4)


def test_no_verdict_is_written_into_a_claim():
    names = [f.name for f in fields(Claim)]
    assert names == ["id", "claim", "source", "quantity", "sense", "threshold", "notebook", "measure"]
    for c in claims.CLAIMS:
        words = " ".join(str(getattr(c, name)) for name in names if name != "measure").lower()
        assert not any(v in words for v in ("supported", "inconclusive", "verdict")) and callable(c.measure)


# ---------------------------------------------------------------------------------------------- their table


def stated(id, sense="above", threshold=0.0, found=(1.0, 0.5, 1.5, 7), seeds=1, notebook="07"):
    return Claim(id, f"says {id}", "ours", f"measure of {id}", sense, threshold, notebook, lambda profile: (Interval(*found), seeds))


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
    found = claims.measured(HAND)
    assert list(found.columns) == COLUMNS
    assert found.verdict.tolist() == ["supported", "not supported", "inconclusive"]
    assert found.id.tolist() == ["X1", "X2", "X3"] and found.claim.tolist() == ["says X1", "says X2", "says X3"]
    assert found.quantity.tolist() == ["measure of X1", "measure of X2", "measure of X3"] and set(found.source) == {"ours"}
    assert found[["value", "low", "high", "n"]].values.tolist() == [[1, 0.5, 1.5, 7], [1, 0.5, 1.5, 8], [240465.3, 0.5, 300582, 2]]
    assert found.seeds.tolist() == [1, 3, 1] and found.threshold.tolist() == [0, 0.4, 1] and set(found.profile) == {"hand"}
    assert found.sense.tolist() == ["above", "below", "inside"] and found.notebook.tolist() == ["07", "11", "02"]


def test_each_claim_is_measured_once_on_the_profile(monkeypatch):
    asked = []

    def measure(profile):
        asked.append(profile)
        return Interval(0.0, 0.0, 0.0, 1), 1

    monkeypatch.setattr(claims, "CLAIMS", (replace(stated("X1"), measure=measure),))
    assert claims.measured(HAND).verdict.tolist() == ["inconclusive"] and asked == [HAND]


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
    assert claims.text(pd.Series(row | {"quantity": "log perplexity, target / exact retraining"})) == expected
    shown, _, _ = expected.partition(" [")
    assert claims.text(pd.Series(row | {"quantity": "FLOPs, counted; exact"})) == shown


def test_what_is_called_exact_has_no_interval():
    """Counts are; the computed ratio's bounds are of assumptions, everything else is of documents."""
    assert {c.id for c in claims.CLAIMS if "; exact" in c.quantity} == {"C1 here", "C3"}
    table = pd.read_csv(ROOT / "figures" / "table14_claims.csv").query("quantity.str.contains('; exact')")
    assert len(table) == 2 and (table.low == table.value).all() and (table.high == table.value).all()


EXPECTED = (
    "| id | claim | measured | threshold | n | verdict | notebook, command |\n"
    "|---|---|---|---|---|---|---|\n"
    "| X1 | says X1 | 1.00 [0.50, 1.50] | above 0 | 7 | supported | 07, `./run_all.sh --only 07` |\n"
    "| X2 | says X2 | 1.00 [0.50, 1.50] | below 0.4 | 8 | not supported | 11, `./run_all.sh --only 11` |\n"
    "| X3 | says X3 | 2.4e+05 [0.50, 3e+05] | inside ±1 | 2 | inconclusive | 02, `./run_all.sh --only 02` |\n"
)


def test_markdown_by_hand(three):
    assert claims.markdown(claims.measured(HAND)) == EXPECTED


def test_no_claim_breaks_the_table(monkeypatch):
    """Seven columns in each line, whatever the claims say."""
    stubs = tuple(replace(c, measure=lambda profile: (Interval(1.0, 0.0, 2.0, 5), 1)) for c in claims.CLAIMS)
    monkeypatch.setattr(claims, "CLAIMS", stubs)
    lines = claims.markdown(claims.measured(HAND)).splitlines()
    assert {line.count("|") for line in lines} == {8} and len(lines) == 2 + len(stubs)


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def project(three, tmp_path, monkeypatch):
    """A project with the table of three claims and a README."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    (tmp_path / "figures").mkdir()
    claims.measured(HAND).to_csv(tmp_path / "figures" / "table14_claims.csv", index=False)
    return tmp_path


def test_the_command_prints_the_committed_table(project, capsys):
    assert __main__.main(["claims"]) == 0
    assert capsys.readouterr() == (EXPECTED, "")
    assert sorted(path.name for path in project.iterdir()) == ["figures"]


@pytest.mark.parametrize(("profile", "place"), [("study", "figures/study"), ("smoke", "runs/smoke/figures")])
def test_the_command_prints_another_profile_s_table(project, capsys, profile, place):
    (project / place).mkdir(parents=True)
    claims.measured(HAND)[1:2].to_csv(project / place / "table14_claims.csv", index=False)
    assert __main__.main(["claims", profile]) == 0
    assert capsys.readouterr().out == "".join(EXPECTED.splitlines(True)[i] for i in (0, 1, 3))


def test_a_missing_table_is_one_line(project, capsys):
    (project / "figures" / "table14_claims.csv").unlink()
    for options in ([], ["--readme"], ["study"]):
        assert __main__.main(["claims", *options]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("error: no ") and "--only 14" in err


BEFORE, AFTER = "# Title\n\n| id | another table |\n|---|---|\n\n", "\n\nMore: naïve — 東京.\n\n## End\n"


def test_the_readme_s_table_is_replaced_and_nothing_else(project, capsys):
    file, marks = project / "README.md", __main__.MARKS
    file.write_text(f"{BEFORE}{marks[0]}\n| old | table |\n|---|---|\n{marks[1]}{AFTER}", encoding="utf-8")
    for _ in range(2):  # the second time changes nothing
        assert __main__.main(["claims", "--readme"]) == 0
        assert file.read_text(encoding="utf-8") == f"{BEFORE}{marks[0]}\n{EXPECTED}{marks[1]}{AFTER}"
    assert capsys.readouterr() == ("", "")


def test_an_empty_place_in_the_readme_is_filled(project):
    file, marks = project / "README.md", __main__.MARKS
    file.write_text(f"{BEFORE}{marks[0]}\n{marks[1]}\n{AFTER}", encoding="utf-8")
    assert __main__.main(["claims", "--readme"]) == 0
    assert file.read_text(encoding="utf-8") == f"{BEFORE}{marks[0]}\n{EXPECTED}{marks[1]}\n{AFTER}"


@pytest.mark.parametrize("kept", [(), (0,), (1,)])
def test_a_readme_without_both_marks_is_left_alone(project, capsys, kept):
    """What has no end cannot be replaced: one line, and not a byte of the README is lost."""
    file = project / "README.md"
    text = BEFORE + "\n".join(__main__.MARKS[i] for i in kept) + AFTER
    file.write_text(text, encoding="utf-8")
    code = __main__.main(["claims", "--readme"])
    assert file.read_text(encoding="utf-8") == text
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_readme_shows_the_committed_table():
    table = pd.read_csv(ROOT / "figures" / "table14_claims.csv", dtype={"notebook": str})
    _, start, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(__main__.MARKS[0])
    shown, end, _ = rest.partition(__main__.MARKS[1])
    assert start and end, "README.md has no marks for the claims' table"
    assert shown == "\n" + claims.markdown(table)


@pytest.mark.parametrize("profile", [notebooks.COMMITTED, "study"])
def test_the_committed_table_is_of_these_claims(profile):
    """Nobody wrote a verdict by hand, and no claim or threshold changed after it was measured."""
    table = pd.read_csv(notebooks.figures(ROOT, profile) / "table14_claims.csv", dtype={"notebook": str})
    assert list(table.columns) == COLUMNS and set(table.profile) == {profile}
    assert np.isfinite(table[["value", "low", "high"]]).all(axis=None)
    assert table.id.tolist() == [c.id for c in claims.CLAIMS]
    for row, c in zip(table.itertuples(), claims.CLAIMS, strict=True):
        assert (row.claim, row.source, row.quantity, row.sense, row.notebook) == (c.claim, c.source, c.quantity, c.sense, c.notebook)
        assert row.threshold == pytest.approx(c.threshold, rel=1e-4)
        assert row.verdict == claims.verdict(c.sense, c.threshold, Interval(row.value, row.low, row.high, row.n))


# ---------------------------------------------------------------------------------------------- evidence: cost


def test_the_computed_ratio_by_hand():
    """Ascent + KL (7/3 passes) on the larger forget set, arXiv's 22.1 MB: 3.1e12 / (7/3 x 22.1e6 / 4), from 2.5 to 5 bytes a token."""
    found, seeds = evidence.computed_ratio(HAND)
    assert found.value == pytest.approx(3.1e12 / (7 / 3 * 22.1e6 / 4)) and found.value == pytest.approx(2.40e5, rel=0.01)
    assert found.low == pytest.approx(found.value * 2.5 / 4) and found.high == pytest.approx(found.value * 5 / 4)
    assert (found.n, seeds) == (2, 1)


def test_the_computed_ratio_is_the_least_of_all(monkeypatch):
    monkeypatch.setattr(efficiency, "FORGET_BYTES", {"one": 30.0e6, "two": 60.0e6, "three": 20.0e6})
    monkeypatch.setattr(efficiency, "PASSES", {None: 1.0, "descent": 9.0, "kl": 3.0})
    monkeypatch.setattr(efficiency, "BYTES_PER_TOKEN", (2.0, 3.0, 10.0))
    found, _ = evidence.computed_ratio(HAND)
    assert found == Interval(*(pytest.approx(3.1e12 / (9 * 60e6 / b)) for b in (3.0, 2.0, 10.0)), 3)


def test_the_counted_ratio_is_the_largest_of_all(monkeypatch):
    """1000 FLOPs of retraining against 50 at the least; 300 against 10."""
    flops = {"arxiv": {costs.RETRAINING: 1000} | dict.fromkeys(grid.METHODS, 50), "github": {costs.RETRAINING: 300}}
    flops["arxiv"][WIDE], flops["github"] = 120, flops["github"] | dict.fromkeys(grid.METHODS, 20)
    flops["github"][LABELS] = 10
    monkeypatch.setattr(costs, "flops", lambda profile, domain, method: (domain, method))
    monkeypatch.setattr(evidence, "side_by_side", lambda artifacts, workers: None)
    monkeypatch.setattr(
        extra_measurements, "rows_of", lambda keys: pd.DataFrame([{"target_domain": d, "method": m, "flops": flops[d][m]} for d, m in keys])
    )
    assert evidence.counted_ratio(HAND) == (Interval(30.0, 30.0, 30.0, 8), 1)


# ---------------------------------------------------------------------------------------------- evidence: hyperparameters


def levels(names, forget, evaluation=0.0, approximate=0.0, auc=0.5, n=6):
    """Four cells (two rates, two marks) of each method. forget: by method, (1 + resamples, 4) log perplexities over the retrained model's,
    whose own are 0, like the target's; evaluation: general ones; approximate: of the target."""
    settings = [s for s in grid.plan(HAND) if s.method in names]
    cells = grid.cells(HAND, settings)
    own = np.concatenate([np.atleast_2d(forget[m]) for m in cells.method.unique()], axis=1)
    zero = np.zeros_like(own)
    zeros = dict.fromkeys(robustness.SPLITS, zero)
    return robustness.LogPerplexities(
        cells,
        zeros | {"forget": own, "evaluation": zero + evaluation},
        zeros,
        zeros | {"approximate": zero + approximate},
        np.zeros(len(cells)) + auc,
        n,
    )


def accepted(*counts):
    """Levels of which so many of four cells are near the retrained model's, in each draw."""
    return [[0.2] * k + [0.3] * (4 - k) for k in counts]


def given(monkeypatch, **halves):
    found = {{"whole": None, "chosen": selection.SELECTION, "reported": selection.REPORT}[name]: x for name, x in halves.items()}
    monkeypatch.setattr(evidence, "_grid", lambda profile: found)


def test_wider_than_ascent_by_hand(monkeypatch):
    """Shares 3/4 and 1/4; on three resamples 1/4 and 1/4, 2/4 and 2/4, 1 and 0: differences 0, 0 and 1, their 97.5% quantile 0.95."""
    shares = dict.fromkeys(grid.METHODS, accepted(4, 4, 4, 4)) | {WIDE: accepted(3, 1, 2, 4), ASCENT: accepted(1, 1, 2, 0)}
    given(monkeypatch, whole=levels(grid.METHODS, shares))
    found, seeds = evidence.wider_than_ascent(HAND)
    assert found == Interval(0.5, 0.0, pytest.approx(0.95), 6) and seeds == 1


def test_widest_is_over_the_best_other_of_each_draw(monkeypatch):
    """3/4 less 2/4; on the resamples 1/4 - 3/4, 2/4 - 2/4 and 1 - 1/4: quantiles of -0.5, 0 and 0.75."""
    shares = dict.fromkeys(grid.METHODS, accepted(0, 0, 0, 0))
    shares |= {WIDE: accepted(3, 1, 2, 4), ASCENT: accepted(1, 1, 2, 0), LABELS: accepted(2, 3, 0, 1)}
    given(monkeypatch, whole=levels(grid.METHODS, shares))
    found, seeds = evidence.widest(HAND)
    assert found == Interval(0.25, pytest.approx(-0.475), pytest.approx(0.7125), 6) and seeds == 1


def test_cells_that_damage_general_text_are_not_acceptable(monkeypatch):
    """Twelve of the 28 cells, among them every one of the claim's method, raise general perplexity by 11%; 9% is allowed."""
    shares = dict.fromkeys(grid.METHODS, accepted(4, 4))
    rise = np.log(np.where(np.isin(np.repeat(grid.METHODS, 4), [WIDE, LABELS, "adversarial"]), 1.11, 1.09))
    given(monkeypatch, whole=levels(grid.METHODS, shares, evaluation=rise))
    assert evidence.wider_than_ascent(HAND)[0] == evidence.widest(HAND)[0] == Interval(-1.0, -1.0, -1.0, 6)


def test_the_grid_proper_on_all_documents_and_on_either_half(monkeypatch):
    """Of a grid that also varies batch, weight, seed and retain documents, only the cells that every method has; one collection of runs."""
    varied = Grid((1e-4, 1e-3), (0.5, 1.0), HAND.domains, batches=(9,), retain_weights=(0.1,), seeds=2, retain_documents=(3,))
    profile, asked = replace(HAND, grid=varied), []

    def made(profile, settings, rows, baselines, seed, half):
        asked.append((rows, baselines, half))
        cells = grid.cells(profile, settings)
        zero = dict.fromkeys(robustness.SPLITS, np.zeros((3, len(cells))))
        return robustness.LogPerplexities(cells, zero, zero, zero, np.zeros(len(cells)), 5)

    monkeypatch.setattr(grid, "grid_rows", lambda profile, settings: len(settings))
    monkeypatch.setattr(pool, "measure_baselines", lambda profile: "baselines")
    monkeypatch.setattr(robustness, "log_perplexities", made)
    found = evidence._grid.__wrapped__(profile)
    every = sum(s.retain_documents is None for s in grid.plan(profile))
    assert asked == [(every, "baselines", h) for h in (None, selection.SELECTION, selection.REPORT)] and list(found) == [None, 0, 1]
    for part in found.values():
        assert len(part.cells) == 2 * 7 * 2 * 2 == part.own["forget"].shape[1]  # domains, methods, rates, marks
        assert not part.cells.duplicated(["domain", "method", "learning_rate", "epoch"]).any()
        assert set(part.cells.batch) == {2} and set(part.cells.retain_weight) == {1} and set(part.cells.seed) == {0}


A, B, C, D = robustness.GUIDELINES
SELECTED = [-0.4, -0.2, 0.1, 0.6]  # log forget perplexity over the retrained model's at (1e-4, 0.5), (1e-4, 1), (1e-3, 0.5), (1e-3, 1)
REPORTED = [0.7, 0.5, 0.3, 0.9]  # of which distance to retraining, a mean of four splits, is a quarter


@pytest.mark.parametrize(("guideline", "chosen"), [(A, 1), (B, 2), (C, 3), (D, 0)])
def test_regrets_by_hand(monkeypatch, guideline, chosen):
    """The best cell, by the selection half, is the third. Nearest to the proxy -0.25 is the second, at the usual rate (1e-3) the third;
    the usual rate and one epoch are the fourth; the first has the AUC nearest 1/2. Beside it a method whose cells are all alike."""
    auc = np.array([0.52, 0.6, 0.3, 0.9] + [0.5] * 4)
    same = {LABELS: [[0.0] * 4] * 3}
    given(
        monkeypatch,
        chosen=levels((ASCENT, LABELS), {ASCENT: [SELECTED] * 3} | same, approximate=-0.25, auc=auc, n=5),
        reported=levels((ASCENT, LABELS), {ASCENT: [REPORTED] * 3} | same, n=4),
    )
    found, seeds = evidence.regret(guideline, HAND)
    expected = pytest.approx((REPORTED[chosen] - REPORTED[2]) / 4 / 2)
    assert found == Interval(expected, expected, expected, 4) and seeds == 1


def test_a_regret_s_interval_is_of_the_mean_of_methods(monkeypatch):
    """Regrets 0.05 and 0, on two resamples 0 and 0, 0.1 and 0: quantiles of 0 and 0.05."""
    draws = [[0.7, 0.3 + lost, 0.3, 0.9] for lost in (0.2, 0.0, 0.4)]
    same = {LABELS: [[0.0] * 4] * 3}
    given(
        monkeypatch,
        chosen=levels((ASCENT, LABELS), {ASCENT: [SELECTED] * 3} | same, approximate=-0.25),
        reported=levels((ASCENT, LABELS), {ASCENT: draws} | same),
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


# ---------------------------------------------------------------------------------------------- evidence: coverage


def seen(name, run, split, i=0, **columns):
    return {"name": name, "target_domain": run, "split": split, "id": f"{run} {split} {i}", "nll": 1.0} | columns


def test_coverage_by_hand(monkeypatch):
    """Nine models on two domains: of 18 one lacks a split, one has nothing but NaN on one."""
    names = [*grid.METHODS, "target", "retrained"]
    rows = [seen(m, d, s, i) for m in names for d in HAND.domains for s in robustness.SPLITS for i in range(2)]
    rows += [seen("retrained again", "github", s) for s in robustness.SPLITS]
    monkeypatch.setattr(evidence, "_rows", lambda profile: pd.DataFrame(rows))
    assert evidence.covered(HAND) == (Interval(1.0, 1.0, 1.0, 16), 2)
    rows = [r for r in rows if (r["name"], r["target_domain"], r["split"]) != (WIDE, "arxiv", "evaluation")]
    rows = [r | {"nll": math.nan} if (r["name"], r["target_domain"], r["split"]) == ("target", "github", "retain") else r for r in rows]
    assert evidence.covered(HAND)[0].value == pytest.approx(16 / 18)


# ---------------------------------------------------------------------------------------------- evidence: findings


def baseline(domain, gaps, tokens=(10, 30, 20), split="approximate"):
    """Rows of the target and of the model retrained without a domain: log perplexity of each document lower by so much."""
    table = []
    for i, (gap, size) in enumerate(zip(gaps, tokens, strict=True)):
        row = {"domain": domain, "split": split, "family": f"{domain} {i}", "id": f"{domain} {split} {i}", "tokens": size}
        table.append(row | {"model": f"retrained without {domain}", "nll": 3.0 * size + i})
        table.append(row | {"model": "target", "nll": 3.0 * size + i - gap * size})
    return table


def proxied(monkeypatch, *parts):
    other = [baseline(d, (9, 9, 9), split=s) for d in HAND.domains for s in ("forget", "retain")]  # plays no part
    rows = pd.DataFrame(sum([*parts, *other], []))
    monkeypatch.setattr(pool, "measure_baselines", lambda profile: rows)
    return evidence.proxy(HAND)


def test_a_target_that_is_as_good_as_retraining_is_a_perfect_proxy(monkeypatch):
    assert proxied(monkeypatch, baseline("arxiv", (0, 0, 0)), baseline("github", (0, 0, 0))) == (Interval(0.0, 0.0, 0.0, 3), 1)


def test_a_target_that_is_better_by_log_2_everywhere(monkeypatch):
    found, _ = proxied(monkeypatch, baseline("arxiv", [math.log(2)] * 3), baseline("github", [math.log(2)] * 3))
    assert found == Interval(*[pytest.approx(-math.log(2))] * 3, 3)


def test_the_proxy_weighs_tokens_within_a_domain_and_domains_alike(monkeypatch):
    """(10 x 0.6 + 30 x 0.2) / 60 = 0.2 on one domain, 0.5 on the other, where there are fewer documents."""
    found, _ = proxied(monkeypatch, baseline("arxiv", (0.6, 0.2, 0)), baseline("github", (0.5, 0.5), (7, 1000)))
    assert found.value == pytest.approx(-0.35) and found.n == 2
    assert -0.55 <= found.low < found.value < found.high <= -0.25


def staged(side, forget_nll=None):
    """Rows of the report half. side(name, domain): the scores of (forget, approximate) documents; forget_nll(name, domain): log forget
    perplexity over the retrained model's, the same for each document."""
    table = []
    for domain in HAND.domains:
        for name in ("retrained", "target", *grid.METHODS, "oracle"):  # the oracle's and the target's rows play no part
            model = "unlearned" if name in grid.METHODS else {"oracle": "unlearned (oracle)"}.get(name, name)
            method = name if name in grid.METHODS else ASCENT if name == "oracle" else ""
            gap = forget_nll(name, domain) if forget_nll and name in grid.METHODS else 0.0
            for split, scores in zip(("forget", "approximate"), side(name, domain), strict=True):
                for i, score in enumerate(scores):
                    row = {"model": model, "method": method, "target_domain": domain, "split": split, "id": f"{domain} {split} {i}"}
                    row |= {"family": row["id"], "min_k_40": score, "tokens": 10 + i, "nll": (3 + (split == "forget") * gap) * (10 + i)}
                    table.append(row)
    return pd.DataFrame(table).sample(frac=1, random_state=0)


def higher(k, of=4):
    """Scores of two sides of `of` documents of which k members are above every non-member, the others below: AUC k / of."""
    return [9.0] * k + [-9.0] * (of - k), [float(i) / of for i in range(of)]


def test_detected_is_the_method_that_is_least_on_average(monkeypatch):
    """AUC over the retrained model's 1/4: of the labels 0 and 3/4, of the claim's method 1/4 and 1/4, of all others 1/2 and 1/2."""
    k = {(LABELS, "arxiv"): 1, (LABELS, "github"): 4, (WIDE, "arxiv"): 2, (WIDE, "github"): 2}

    def side(name, domain):
        return higher(k.get((name, domain), {"retrained": 1, "target": 4, "oracle": 0}.get(name, 3)))

    monkeypatch.setattr(evidence, "_rows", lambda profile: staged(side))
    found, seeds = evidence.least_detected(HAND)
    assert found.value == pytest.approx(0.25) and (found.n, seeds) == (4, 2)
    assert found.low <= 0.25 <= found.high


def test_detection_that_no_resample_changes(monkeypatch):
    """Every unlearned model's members are above, the retrained model's below: 1 less 0; but one method's tie: 1/2."""
    scores = {"retrained": -1.0, ASCENT: 0.0}
    monkeypatch.setattr(evidence, "_rows", lambda profile: staged(lambda name, _: ([scores.get(name, 1.0)] * 3, [0.0] * 3)))
    assert evidence.least_detected(HAND)[0] == Interval(0.5, 0.5, 0.5, 3)


def test_documents_are_matched_whatever_their_order(monkeypatch):
    """Each draw is of the same documents under every model: rows in another order give the same intervals."""

    def found(rows):
        monkeypatch.setattr(evidence, "_rows", lambda profile: rows)
        return evidence._forgotten(HAND)[:2]

    def side(name, domain):
        return higher(1 + len(name) % 3)

    rows = staged(side, lambda name, domain: len(name) / 10).sort_values(["model", "method", "target_domain", "split", "id"])
    exact = rows.model == "retrained"
    turned = pd.concat([rows[exact], rows[~exact].iloc[::-1]])
    for one, other in zip(found(rows), found(turned), strict=True):
        assert one.shape == (21, 14) and one == pytest.approx(other)


def test_an_auc_may_fall_below_the_retrained_model_s(monkeypatch):
    scores = {"retrained": 1.0, ASCENT: -1.0}
    monkeypatch.setattr(evidence, "_rows", lambda profile: staged(lambda name, _: ([scores.get(name, 1.0)] * 3, [0.0] * 3)))
    assert evidence.least_detected(HAND)[0] == Interval(-1.0, -1.0, -1.0, 3)


def test_weighted_aucs_are_those_of_repeated_documents():
    """Each document as often as it was drawn, ties among them."""
    generator = np.random.default_rng(0)
    members, others = (pd.Series(generator.integers(0, 5, n).astype(float)) for n in (6, 9))
    weights = [np.vstack([np.ones(n), generator.multinomial(n, [1 / n] * n, 5)]) for n in (6, 9)]
    found = evidence._auc([members, others], weights)
    expected = [
        membership.auc(*(np.repeat(x, w.astype(int)) for x, w in zip((members, others), pair, strict=True)))
        for pair in zip(*weights, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


PLACES = {(m, d): i for i, (d, m) in enumerate(((d, m) for d in HAND.domains for m in grid.METHODS), 1)}  # 1 to 14


@pytest.mark.parametrize("sign", [1, -1])
def test_agreement_of_two_distances_in_the_same_or_the_reversed_order(monkeypatch, sign):
    """30 members, 15 of them above in the retrained model; of the j-th model 15 + j or 15 - j: the AUC's distance grows with j, on either
    side. Log perplexity's grows with j too, or falls, on either side."""

    def side(name, domain):
        j = PLACES.get((name, domain), 0)
        return higher(15 + (j if j % 2 else -j), 30)

    def gap(name, domain):
        j = PLACES[name, domain]
        return (j if sign > 0 else 15 - j) / 10 * (-1 if j % 3 else 1)

    monkeypatch.setattr(evidence, "_rows", lambda profile: staged(side, gap))
    found, seeds = evidence.agreement(HAND)
    assert found.value == pytest.approx(sign) and (found.n, seeds) == (30, 2)
    assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9 and found.low * sign > 0.3 and found.high * sign > 0.3


def test_agreement_is_spearman_s_correlation_of_each_draw(monkeypatch):
    """With ties: scipy's. Where one distance is the same everywhere there is nothing to agree on: 0."""
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    far, excess = np.abs(generator.normal(size=(41, 14))).round(1), generator.normal(size=(41, 14)).round(1)
    monkeypatch.setattr(evidence, "_forgotten", lambda profile: (far, excess, 5))
    draws = [spearmanr(a, np.abs(b)).statistic for a, b in zip(far, excess, strict=True)]
    assert evidence.agreement(HAND)[0] == Interval(*map(pytest.approx, (draws[0], *np.quantile(draws[1:], [0.025, 0.975]))), 5)
    monkeypatch.setattr(evidence, "_forgotten", lambda profile: (np.ones((3, 14)), excess[:3], 5))
    assert evidence.agreement(HAND)[0] == Interval(0.0, 0.0, 0.0, 5)


# ---------------------------------------------------------------------------------------------- evidence: defects

SHIFTED = "1 shifted labels"


def trained(code, gaps, step=4, defect=SHIFTED):
    """Rows of a run at a step: log forget perplexity 3, and so much more of each document; general text far off."""
    rows = [{"split": "forget", "id": i, "family": i, "tokens": 10, "nll": (3 + gap) * 10} for i, gap in enumerate(gaps)]
    rows += [{"split": "evaluation", "id": 99, "family": 99, "tokens": 10, "nll": 900.0 * len(code)}]
    return pd.DataFrame(rows).assign(code=code, step=step, defect=defect)


def defective(monkeypatch, gaps):
    parts = [trained("corrected", [0.0] * len(gaps)), trained("official", gaps)]
    parts += [trained(c, [7.0 * (c == "official")] * len(gaps), 3) for c in ("corrected", "official")]  # an earlier step
    parts += [trained(c, [8.0 * (c == "official")] * len(gaps), 4, "2 KL over padding") for c in ("corrected", "official")]
    monkeypatch.setattr(evidence, "_official", lambda profile: pd.concat(parts))
    return evidence.defect(SHIFTED, HAND)


@pytest.mark.parametrize("gap", [0.5, -0.5])
def test_a_defect_counts_in_either_direction(monkeypatch, gap):
    found, seeds = defective(monkeypatch, [gap] * 4)
    assert found == Interval(*[pytest.approx(0.5)] * 3, 4) and seeds == 1


def test_a_defect_of_no_effect(monkeypatch):
    assert defective(monkeypatch, [0.0] * 4)[0] == Interval(0.0, 0.0, 0.0, 4)


def test_a_negative_defect_is_the_positive_one_turned(monkeypatch):
    gaps = [0.5, 1.0, 0.75, 0.25]
    plus, minus = (defective(monkeypatch, [s * g for g in gaps])[0] for s in (1, -1))
    assert minus == Interval(*map(pytest.approx, plus)) and 0.25 <= plus.low < 0.625 < plus.high <= 1


def test_a_defect_that_could_go_either_way_may_be_nothing(monkeypatch):
    """The bounds of |x| for x in [low, high] around 0: 0 and the larger of the two."""
    gaps = [1.0, -1.0, 1.0, -0.5, -1.0]
    plus, minus = (defective(monkeypatch, [s * g for g in gaps])[0] for s in (1, -1))
    assert plus.value == minus.value == pytest.approx(0.1) and plus.low == minus.low == 0
    signed = tables.log_ratio(trained("official", gaps)[:5], trained("corrected", [0] * 5)[:5], evidence.SEED, HAND.resamples)
    assert signed.low < 0 < signed.high and [plus.high, minus.high] == [pytest.approx(max(-signed.low, signed.high))] * 2
    assert -signed.low != pytest.approx(signed.high)
