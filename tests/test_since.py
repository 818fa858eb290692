"""The methods since the paper beside the paper's: what is said of each, and the tables of 18."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys

from unlearn_utils.core import distances, tables
from unlearn_utils.core.methods import SINCE, get_method
from unlearn_utils.findings import comparison, draws, plots, robustness, since
from unlearn_utils.study import costs, method_paths, pool, selection
from unlearn_utils.study import since as runs
from unlearn_utils.study.method_paths import CLAIMED

LOW, USUAL = 1e-3, 2e-3
GRID = replace(toys.TOY.grid, since=(LOW, USUAL))
TOY = replace(toys.TOY, name="toy18", grid=GRID)
ONE = replace(TOY, name="toy18 once", grid=replace(GRID, since=(USUAL,)))
NAMES = [CLAIMED, "npo", "task_vector"]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """A store and a folder of figures; there are three methods."""
    folder = tmp_path_factory.mktemp("since")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        patch.setattr(since, "names", lambda profile: NAMES if profile.grid.since else [])
        toys.forget_documents()
        yield folder


@pytest.fixture(scope="module")
def table(world):
    return since.methods_table(TOY)


def of(table, method, where, measure):
    found = table[(table.method == method) & (table["where"] == where)]
    return found[found.measure == measure].iloc[0]


# -------------------------------------------------------------------------------------- which runs


def test_every_method_since_the_paper_is_run_at_every_rate_of_its_own():
    found = runs.runs(TOY)
    places = [(run.method, run.recipe.learning_rate, run.target_domain) for run in found]
    assert places == [(name, rate, "arxiv") for name in SINCE for rate in (LOW, USUAL)]
    assert not runs.runs(replace(TOY, grid=replace(GRID, since=())))


def test_the_papers_methods_have_the_paths_of_the_hyperparameter_study():
    ours = runs.runs(TOY, [CLAIMED])
    theirs = method_paths.grid_runs(TOY, 0, "arxiv", CLAIMED)
    for run, other in zip(ours, theirs, strict=True):
        keep = method_paths.keeps(run)
        assert keep == method_paths.keeps(other)
        assert method_paths.path(run, keep).path == method_paths.path(other, keep).path


# ------------------------------------------------------------------------------------ what is said


def test_the_tuned_setting_is_the_one_that_the_rule_chooses(table):
    """By hand: the marks within the bound that the search has seen, nearest to the proxy."""
    profile = runs.compared(TOY)
    (rates,) = robustness.grid_of(profile, "arxiv", "npo")
    here = robustness.cells(rates)
    proxy = draws.proxy_gap(profile, "arxiv", 0, selection.SELECTION)
    seen = robustness.searched(profile, here, proxy, since.BUDGET).seen[0]
    gaps = here.gaps[selection.SELECTION][0]
    rises = (gaps - here.target[selection.SELECTION][0])[:, [distances.RETAIN, distances.GENERAL]]
    allowed = seen & (rises < np.log(1.1)).all(1)
    missed = np.where(allowed, np.abs(gaps[:, distances.FORGET] - proxy[0]), np.inf)
    best = int(np.argmin(missed))

    assert of(table, "npo", since.TUNED, since.STEPS)["value"] == here.steps[best]
    report = here.gaps[selection.REPORT][0, best]
    own = distances.distance(here.target[selection.REPORT])[0]
    score = max(0.0, 1 - distances.distance(report) / own)
    assert of(table, "npo", since.TUNED, since.SCORE)["value"] == pytest.approx(score)
    damage = of(table, "npo", since.TUNED, since.ALL_DAMAGE)["value"]
    assert damage == pytest.approx(report[1:].mean())


@pytest.mark.parametrize("method", NAMES)
def test_cost_is_steps_times_tokens_times_passes(table, method):
    of_step, _ = robustness.tokens_read(TOY, "arxiv")
    whole = costs.tokens_of_retraining(TOY, "arxiv")
    steps = of(table, method, since.TUNED, since.STEPS)["value"]
    cost = of(table, method, since.TUNED, since.COST)["value"]
    assert cost == pytest.approx(steps * of_step * get_method(method).passes / whole)
    searched = of(table, method, since.TUNED, since.SEARCH_STEPS)["value"]
    assert steps <= searched <= since.BUDGET * 3  # three steps of two documents are an epoch
    assert of(table, method, since.TUNED, since.SEARCH_COST)["value"] > cost


def test_at_equal_forgetting_the_best_rate_is_as_in_the_comparison(table):
    profile = runs.compared(TOY)
    (rates,) = robustness.grid_of(profile, "arxiv", CLAIMED)
    for level in comparison.LEVELS:
        there = comparison.at_best_rate(rates, level)
        row = of(table, CLAIMED, since.at(level, since.AT_BEST), since.ALL_DAMAGE)
        np.testing.assert_allclose(row["value"], there[since.ALL_DAMAGE][0])
        usual = comparison.at_level(rates[1], level)
        row = of(table, CLAIMED, since.at(level, since.AT_USUAL), since.ALL_DAMAGE)
        np.testing.assert_allclose(row["value"], usual[since.ALL_DAMAGE][0])


def test_with_one_rate_nothing_is_said_of_several():
    found = since.methods_table(ONE)
    where = set(found["where"])
    assert since.TUNED_STEPS in where and since.at(0.0, since.AT_USUAL) in where
    assert not where & {since.TUNED, since.ALL_SETTINGS, since.at(0.0, since.AT_BEST)}


def test_what_is_said_of_the_usual_rate_is_the_same_with_one_rate_and_with_several(table):
    """So that a run of one rate can be compared with the study."""
    alone = since.methods_table(ONE)
    same = alone[alone["where"] != since.AS_IT_IS]
    assert len(same) > 20
    columns = [*since.KEYS, "value", "low", "high", "n"]
    of_several = table[table["where"].isin(same["where"].unique())]
    left, right = same[columns].reset_index(drop=True), of_several[columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(left, right)


def test_the_target_and_another_retrained_model_stand_beside_the_methods(table):
    nothing = of(table, comparison.NOTHING, since.AS_IT_IS, since.SCORE)
    again = of(table, comparison.AGAIN, since.AS_IT_IS, since.SCORE)
    assert nothing["value"] == nothing["high"] == 0
    pair = pool.pairs(TOY, "arxiv", 0)[1]
    rows = pool.rows_of_domain(TOY, pool.trained_model(TOY, pair.retrained), "arxiv")
    truth = pool.truth_rows(TOY, "arxiv", 0)
    half = selection.REPORT
    gaps = draws.levels(TOY, rows, "arxiv", half) - draws.levels(TOY, truth, "arxiv", half)
    target = pool.target_rows(TOY, "arxiv", 0)
    own = draws.levels(TOY, target, "arxiv", half) - draws.levels(TOY, truth, "arxiv", half)
    score = 1 - distances.distance(gaps)[0] / distances.distance(own)[0]
    assert again["value"] == pytest.approx(max(0, score))


# ------------------------------------------------------------------------------ tables and figures


def test_differences_are_of_the_same_replicate_and_have_a_sign(table):
    over = since.differences_table(TOY)
    assert set(over.method) == {"npo", "task_vector"}
    for measure in (since.SCORE, since.GAP):
        ours = of(table, "npo", since.TUNED, measure)["value"]
        theirs = of(table, CLAIMED, since.TUNED, measure)["value"]
        less = of(over, "npo", since.TUNED, measure)
        assert less["value"] == pytest.approx(ours - theirs)
        assert less["low"] <= less["value"] <= less["high"]


def test_better_has_the_intervals_on_the_better_side_of_0_the_best_first():
    rows = pd.DataFrame(
        {
            "method": ["a", "b", "c", "d"],
            "where": since.TUNED,
            "measure": since.SCORE,
            "value": [0.1, 0.3, -0.2, 0.2],
            "low": [0.05, 0.1, -0.3, -0.1],
            "high": [0.2, 0.5, -0.1, 0.5],
        }
    )
    assert list(since.better(rows, since.TUNED, since.SCORE, 1).method) == ["b", "a"]
    assert list(since.better(rows, since.TUNED, since.SCORE, -1).method) == ["c"]


def test_cells_say_how_many_replicates_come_to_a_level():
    where = [since.at(level, since.AT_BEST) for level in comparison.LEVELS]
    rows = pd.DataFrame(
        {
            "method": "a",
            "where": where,
            "measure": since.ALL_DAMAGE,
            "value": [0.1, 0.2, np.nan],
            "low": [0.0, 0.1, np.nan],
            "high": [0.2, 0.3, np.nan],
            "replicates": [6, 2, 0],
        }
    )
    found = since.at_levels(rows, since.AT_BEST, since.ALL_DAMAGE)
    assert found.loc["a"].tolist() == ["0.10 [0.00, 0.20]", "0.20 [0.10, 0.30], 2 of 6", ""]


def test_a_profile_without_rates_has_empty_tables():
    none = replace(TOY, name="toy18 none", grid=replace(GRID, since=()))
    assert since.methods_table(none).empty and since.differences_table(none).empty


def test_figures_have_their_data(table, world):
    since.methods_figure(TOY, table)
    since.curves_figure(TOY, since.curves_table(TOY))
    for name in (since.FIGURE, since.CURVES):
        data = pd.read_csv(world / "figures" / f"{name}.csv")
        assert set(NAMES) <= set(data.method) and data["value"].notna().any()
        assert (world / "figures" / f"{name}.png").stat().st_size > 10_000


def test_a_curve_falls_and_its_area_is_robustness(table):
    curve = since.curves_table(TOY)
    for method in NAMES:
        own = curve[curve.method == method]
        assert (np.diff(own["value"]) <= 1e-12).all()
        area = np.trapezoid(own["value"], own.tau)
        robust = of(table, method, since.ALL_SETTINGS, since.ROBUSTNESS)["value"]
        assert area == pytest.approx(robust, abs=0.03)


def test_every_method_has_a_look_of_its_own():
    looks = [plots.method_style(name) for name in [CLAIMED, *SINCE]]
    assert len(set(map(str, looks))) == len(looks)


def test_a_table_to_read_has_a_row_a_method_and_a_column_a_measure(table):
    shown = since.to_read(table, since.TUNED, since.GAP, since.SCORE)
    assert list(shown.columns) == [since.GAP, since.SCORE]
    assert list(shown.index) == NAMES
    row = of(table, "npo", since.TUNED, since.SCORE)
    assert shown.loc["npo", since.SCORE] == tables.text(row)
