"""What paths of a grid say: robustness, claim C2, rules of tuning, on paths set by hand.

At the end a tiny grid is run.
"""

from dataclasses import replace

import numpy as np
import pytest
import toys

from unlearn_utils.core.methods import DESCENT, METHODS
from unlearn_utils.findings import draws, robustness
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.robustness import MAIN_PLANE, Cells, Guideline
from unlearn_utils.profiles import PROFILES, Corpus, Grid, Pretraining, Unlearning
from unlearn_utils.study import costs, method_paths, selection, single_run, study_documents
from unlearn_utils.study.method_paths import ASCENT, CLAIMED
from unlearn_utils.study.single_run import Run

SELECTION, REPORT = selection.SELECTION, selection.REPORT
LOW, USUAL, HIGH = 1e-3, 2e-3, 4e-3
PROFILE = replace(
    PROFILES["smoke"],
    name="by hand",
    unlearning=Unlearning(learning_rate=USUAL, batch=2),
    grid=Grid(
        learning_rates=(LOW, USUAL, HIGH),
        epochs=2,
        usual_epochs=4,
        domains=("arxiv",),
        claimed_domains=("arxiv", "github"),
        retain_documents=(2, 3),
    ),
    domains=("arxiv", "books", "github"),
    replicates=(1, 2),
)
STEPS_OF_EPOCH = 4


@pytest.fixture(autouse=True)
def by_hand(monkeypatch, tmp_path):
    """Read no documents: an epoch has four steps, a split has so many families as its name says."""
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path / "figures"))

    def steps_of_run(run):
        return STEPS_OF_EPOCH * run.recipe.epochs

    def families(profile, domain, half):
        return len(domain) + 10 * (half == SELECTION)

    with monkeypatch.context() as patch:
        patch.setattr(single_run, "steps_of_run", steps_of_run)
        patch.setattr(draws, "families", families)
        forget()
        yield patch
    forget()


def forget():
    for function in (robustness.measured, robustness.regrets, robustness.by_retain_documents):
        function.cache_clear()
    robustness.grid_of.cache_clear()


def run_of(rate=LOW, method="gradient_ascent", domain="arxiv", replicate=1, **choices):
    epochs = PROFILE.grid.usual_epochs if rate == USUAL else PROFILE.grid.epochs
    recipe = replace(PROFILE.unlearning, learning_rate=rate, epochs=epochs)
    return Run(PROFILE, domain, method, recipe, replicate, **choices)


def alike(levels):
    """Return gaps that are alike on every kind of text: (draws, marks, splits).

    levels: (marks,) or (draws, marks).
    """
    return np.repeat(np.atleast_2d(np.array(levels, float))[..., None], 4, axis=2)


def path(run, steps, report, chosen=None, auc=None, ended=False):
    """Return a path by hand; `steps` and levels begin with the target's."""
    gaps = {REPORT: alike(report), SELECTION: alike(report if chosen is None else chosen)}
    told = np.full(gaps[REPORT].shape[:2], 0.5) if auc is None else np.atleast_2d(auc)
    return Drawn(
        run=run,
        steps=np.array(steps, float),
        gaps=gaps,
        auc={SELECTION: told, REPORT: np.full(told.shape, 0.5)},
        extraction=np.zeros(gaps[REPORT].shape[:2]),
        total=single_run.steps_of_run(run),
        ended=ended,
    )


# ------------------------------------------------------------------------------ paths of the grid


def test_paths_of_the_grid_come_by_replicate_and_rate(by_hand):
    by_hand.setattr(draws, "drawn_paths", lambda runs, what: list(runs))
    found = robustness.grid_of(PROFILE, "github", CLAIMED)
    assert [[run.replicate for run in runs] for runs in found] == [[1] * 3, [2] * 3]
    assert [run.recipe.learning_rate for run in found[1]] == [LOW, USUAL, HIGH]
    assert [run.recipe.epochs for run in found[0]] == [2, 4, 2]
    assert {run.target_domain for run in found[0]} == {"github"}


def test_the_usual_run_is_cut_where_the_plane_ends():
    """It has 16 steps, of which 8 count; its marks at 4 and 16 are near, so 8 is between them."""
    run = run_of(USUAL)
    whole = path(run, [0, 1, 4, 16], [-0.8, -0.2, -0.1, 0.1])
    found = robustness.within_plane(whole, REPORT)
    assert found.total == 8
    (scored,) = robustness.scores([whole], MAIN_PLANE)
    assert scored.weights.sum() == pytest.approx(1.0)
    assert scored.worse == pytest.approx([0.0])
    # from 4 to 8 is half of the way to 16, a third of the way from 1 to 8
    assert scored.weights[-8:] == pytest.approx([1 / 24] * 8)
    shown = 1 - np.abs(np.linspace(-0.1, 0.0, 17)[1::2]) / 0.8
    assert scored.r[0, -8:] == pytest.approx(shown)
    assert scored.best == pytest.approx([1 - 0.1 / 0.8])


def test_a_mark_where_the_plane_ends_needs_no_later_one():
    shorter = path(run_of(LOW), [0, 1, 4, 8], [-0.8, -0.2, -0.1, 0.0])
    longer = path(run_of(USUAL), [0, 1, 4, 8, 16], [-0.8, -0.2, -0.1, 0.0, 5.0])
    one, other = robustness.scores([shorter, longer], MAIN_PLANE)
    assert other.weights == pytest.approx(one.weights)
    assert other.r == pytest.approx(one.r)
    assert other.best == pytest.approx(one.best)


def test_a_path_that_ended_past_the_plane_is_whole_within_it():
    whole = path(run_of(USUAL), [0, 1, 8, 10], [-0.8, -0.2, -0.1, 9.0], ended=True)
    (scored,) = robustness.scores([whole], MAIN_PLANE)
    assert scored.weights.sum() == pytest.approx(1.0)


def test_a_path_that_ended_within_the_plane_is_not():
    whole = path(run_of(USUAL), [0, 1, 2], [-0.8, -0.2, 9.0], ended=True)
    (scored,) = robustness.scores([whole], MAIN_PLANE)
    assert scored.weights.sum() == pytest.approx(1 / 3)
    assert scored.worse == pytest.approx([2 / 3 + 1 / 6])


def test_scores_are_of_the_half_that_is_reported():
    whole = path(run_of(), [0, 1, 8], [-0.8, -0.4, -0.4], chosen=[-0.8, 0.0, 0.0])
    assert robustness.scores([whole], MAIN_PLANE)[0].best == pytest.approx([0.5])
    assert robustness.scores([whole], MAIN_PLANE, SELECTION)[0].best == pytest.approx([1.0])


def test_scores_of_the_plane_of_two():
    whole = path(run_of(), [0, 1, 8], [-0.8, 0.0, 0.0])
    whole.gaps[REPORT][:, 1:, 1:3] = 0.8  # the domain's other text is damaged
    assert robustness.scores([whole], "forget and general")[0].best == pytest.approx([1.0])
    assert robustness.scores([whole], "four kinds of text")[0].best == pytest.approx([0.5])


# ------------------------------------------------------------------------------------- robustness


def steady(level):
    """Return what makes a path whose gaps stay at a level from the first step to the last."""

    def make(run):
        return path(run, [0, 1, single_run.steps_of_run(run)], [-0.8, level, level])

    return make


def grid_by_hand(patch, levels):
    """Let the paths of the grid have gaps that stay.

    levels: (domain, method, replicate) -> the gap at each rate, as a score of 1 - gap / 0.8.
    """

    def grid_of(profile, domain, method):
        found = []
        for replicate in profile.replicates:
            at = levels(domain, method, replicate)
            runs = [run_of(rate, method, domain, replicate) for rate in (LOW, USUAL, HIGH)]
            found.append([steady(level)(run) for run, level in zip(runs, at, strict=True)])
        return found

    patch.setattr(robustness, "grid_of", grid_of)


def gap_of(score):
    """Return a gap whose score is this, past retraining; a negative score is worse than nothing."""
    return 0.8 * (1 - score)


def test_measures_by_hand():
    """Scores of 0.25, 0.75 and of something worse than doing nothing."""
    rates = []
    for rate, score in ((LOW, 0.25), (USUAL, 0.75), (HIGH, -1)):
        rates.append(steady(gap_of(score))(run_of(rate)))
    found = robustness.measures(robustness.scores(rates, MAIN_PLANE))
    expected = {
        "robustness": 1 / 3,
        "window": 1 / 3,
        "best score": 0.75,
        "worse than doing nothing": 1 / 3,
        "robustness, lower rates": 0.5,
        "robustness, higher rates": 0.375,
    }
    assert {name: values.tolist() for name, values in found.items()} == {
        name: [pytest.approx(value)] for name, value in expected.items()
    }


def by_replicate(domain, method, replicate):
    """Scores of 0.1 at every rate more for the second replicate, 0.2 for the method claimed."""
    score = 0.25 + 0.1 * (replicate - 1) + 0.2 * (method == CLAIMED) - 0.05 * (domain == "github")
    return [gap_of(score)] * 3


def test_measured_has_a_row_for_each_replicate(by_hand):
    grid_by_hand(by_hand, by_replicate)
    found = robustness.measured(PROFILE, "github", CLAIMED, MAIN_PLANE)
    assert found["robustness"] == pytest.approx(np.array([[0.4], [0.5]]))
    assert found["window"] == pytest.approx(np.array([[1.0], [1.0]]))


def test_robustness_table(by_hand):
    """On arxiv are all methods, on github those of the claim, on books none."""
    grid_by_hand(by_hand, by_replicate)
    found = robustness.robustness_table(PROFILE)
    keys = ["target_domain", "method", "plane", "measure"]
    assert list(found)[:5] == [*keys, "value"]
    assert not found[keys].duplicated().any()
    methods = found.groupby("target_domain", sort=False).method.unique()
    assert list(methods.index) == ["arxiv", "github"]
    assert list(methods.arxiv) == list(METHODS)
    assert set(methods.github) == {ASCENT, CLAIMED}
    row = found.set_index(keys).loc[("github", ASCENT, MAIN_PLANE, "robustness")]
    assert row["value"] == pytest.approx(0.25)
    assert (row["n"], row["replicates"], row["by_replicate"]) == (6, 2, "0.2 0.3")
    assert found["low"].min() >= 0 and found["high"].max() <= 1
    assert set(found.plane) == set(robustness.PLANES)


def test_differences_by_hand(by_hand):
    """0.2 on arxiv, 0.1 on github; of the first replicate 0.02 more on both."""

    def levels(domain, method, replicate):
        more = (0.2 if domain == "arxiv" else 0.1) + 0.02 * (replicate == 1)
        return [gap_of(0.3 + more * (method == CLAIMED))] * 3

    grid_by_hand(by_hand, levels)
    found = robustness.differences(PROFILE, MAIN_PLANE, "robustness")
    assert found["arxiv"] == pytest.approx(np.array([[0.22], [0.2]]))
    assert found["github"] == pytest.approx(np.array([[0.12], [0.1]]))
    assert found["mean"] == pytest.approx(np.array([[0.17], [0.15]]))


def test_claim_table(by_hand):
    grid_by_hand(by_hand, by_replicate)
    found = robustness.claim_table(PROFILE)
    keys = ["target_domain", "plane", "measure"]
    assert list(found)[:4] == [*keys, "value"]
    assert not found[keys].duplicated().any()
    main = found[found.plane == MAIN_PLANE].set_index(["measure", "target_domain"])
    assert list(main.loc["robustness"].index) == ["arxiv", "github", "mean"]
    assert main["value"].loc["robustness"].tolist() == pytest.approx([0.2] * 3)
    assert main["value"].loc["window"].tolist() == pytest.approx([0.0] * 3)
    assert main.n.loc["robustness"].tolist() == [5, 6, 5]
    assert set(found.measure) == set(robustness.SMALLEST)


def test_one_domain_has_no_row_for_the_mean(by_hand):
    """It had the name of the study's mean over three, whose spread it would borrow."""
    grid_by_hand(by_hand, by_replicate)
    alone = replace(PROFILE, grid=replace(PROFILE.grid, claimed_domains=("arxiv",)))
    assert set(robustness.claim_table(alone).target_domain) == {"arxiv"}


def test_the_smallest_differences_are_those_that_were_fixed():
    assert robustness.SMALLEST == {"robustness": 0.01, "window": 0.01}


def test_curves_by_hand(by_hand):
    """Two of three rates have a score of 0.75, and in the second replicate one."""

    def levels(domain, method, replicate):
        return [gap_of(0.75), gap_of(0.75 if replicate == 1 else 0.11), gap_of(-1)]

    grid_by_hand(by_hand, levels)
    rows = robustness.curves(PROFILE, "arxiv")
    assert len(rows) == len(METHODS) * len(robustness.TAUS)
    assert {row.keys["method"] for row in rows} == set(METHODS)
    of_ascent = {}
    for row in rows:
        if row.keys["method"] == ASCENT:
            of_ascent[round(row.keys["tau"], 3)] = row.draws[:, 0]
    assert of_ascent[0.0] == pytest.approx([2 / 3, 2 / 3])
    assert of_ascent[0.1] == pytest.approx([2 / 3, 2 / 3])
    assert of_ascent[0.125] == pytest.approx([2 / 3, 1 / 3])
    assert of_ascent[0.75] == pytest.approx([2 / 3, 1 / 3])
    assert of_ascent[0.775] == pytest.approx([0, 0])


def test_rate_table(by_hand):
    def levels(domain, method, replicate):
        return [gap_of(0.2 * replicate), gap_of(0.5), gap_of(-1)]

    grid_by_hand(by_hand, levels)
    found = robustness.rate_table(PROFILE)
    keys = ["method", "learning_rate", "measure"]
    assert list(found)[:4] == [*keys, "value"] and not found[keys].duplicated().any()
    assert len(found) == len(METHODS) * 3 * 2
    of_ascent = found[found.method == ASCENT].set_index(["measure", "learning_rate"])["value"]
    for measure in ("mean score", "best score"):
        assert of_ascent[measure].tolist() == pytest.approx([0.3, 0.5, 0.0])


# -------------------------------------------------------------------------------- rules of tuning


def cells_by_hand(chosen, report, auc=None, rates=None, epochs=None):
    """Return cells whose gaps are alike on every kind of text; the target first."""
    chosen, report = alike(chosen), alike(report)
    number = chosen.shape[1]
    told = np.full(chosen.shape[:2], 0.5) if auc is None else np.atleast_2d(np.array(auc, float))
    return Cells(
        rates=np.array([0.0] + [USUAL] * (number - 1) if rates is None else rates),
        steps=STEPS_OF_EPOCH * np.array(range(number) if epochs is None else epochs, float),
        per_epoch=STEPS_OF_EPOCH,
        diverged=frozenset(),
        gaps={SELECTION: chosen, REPORT: report},
        target={SELECTION: chosen[:, 0], REPORT: report[:, 0]},
        auc={SELECTION: told, REPORT: np.full(told.shape, np.nan)},
    )


PROXY = Guideline("proxy")


def choose(guideline, here, proxy=-0.1):
    proxy = np.broadcast_to(np.array(proxy, float), len(here.gaps[SELECTION]))
    return robustness.chosen(PROFILE, guideline, here, proxy).tolist()


def regret(guideline, here, proxy=-0.1):
    proxy = np.broadcast_to(np.array(proxy, float), len(here.gaps[SELECTION]))
    return robustness.regret(PROFILE, guideline, here, proxy)


def with_general(here, *levels):
    """Return cells with these gaps on general text, selection half."""
    here.gaps[SELECTION][..., 3] = levels
    here.target[SELECTION][..., 3] = here.gaps[SELECTION][:, 0, 3]
    return here


def test_the_cell_nearest_the_proxy_is_chosen_on_the_selection_half():
    here = with_general(cells_by_hand([-0.8, -0.5, -0.2, 0.1], [-0.8, -0.1, -0.9, 0.9]), 0, 0, 0, 0)
    assert choose(PROXY, here, -0.25) == [2]
    assert choose(PROXY, here, -0.4) == [1]
    assert choose(PROXY, here, 0.3) == [3]


def test_regret_is_how_much_farther_the_choice_is_on_the_other_half():
    """The rule chooses the cell at -0.2, the best is the last; reported are 0.9 and 0.3."""
    here = with_general(cells_by_hand([-0.8, -0.5, -0.2, 0.1], [-0.8, -0.1, -0.9, 0.3]), 0, 0, 0, 0)
    assert regret(PROXY, here, -0.25) == pytest.approx([0.6])


def test_who_knows_the_retrained_model_regrets_nothing():
    """The proxy is at the truth, and all kinds of text move alike, so the best is chosen."""
    generator = np.random.default_rng(0)
    here = cells_by_hand(generator.normal(0, 0.04, (30, 6)), generator.normal(0, 0.5, (30, 6)))
    here = with_general(here, *np.zeros(6))
    here.gaps[SELECTION][..., 1:3] = here.gaps[SELECTION][..., :1]
    assert regret(PROXY, here, 0.0).tolist() == [0.0] * 30


def test_regret_may_be_negative():
    """What is best on one half need not be on the other."""
    here = with_general(cells_by_hand([-0.8, -0.2, 0.0], [-0.8, 0.1, 0.4]), 0, 0, 0)
    assert regret(PROXY, here, -0.2) == pytest.approx([-0.3])


def test_the_choice_is_made_anew_in_each_draw():
    here = cells_by_hand(
        [[-0.8, -0.3, 0.0], [-0.8, -0.6, -0.3]], [[0.8, 0.1, 0.2], [0.8, 0.3, 0.5]]
    )
    here = with_general(here, 0, 0, 0)
    assert choose(PROXY, here, -0.3) == [1, 2]
    assert choose(PROXY, here, [-0.3, -0.7]) == [1, 1]
    assert regret(PROXY, here, [-0.3, -0.7]) == pytest.approx([0.1 - 0.2, 0.3 - 0.5])


def test_the_target_may_be_chosen():
    here = with_general(cells_by_hand([-0.2, 0.4, 0.6], [-0.2, 0.3, 0.6]), 0, 0, 0)
    assert choose(PROXY, here, -0.1) == [0]
    assert regret(PROXY, here, -0.1) == pytest.approx([0.0])


def test_general_text_may_rise_by_less_than_the_bound_over_the_target_s():
    """The retrained model's own level plays no part."""
    edge = float(np.log1p(robustness.BOUND))
    here = cells_by_hand([-0.8, -0.2, -0.1], [-0.8, -0.2, -0.1])
    assert choose(PROXY, with_general(here, 0.3, 0, 0.3 + edge - 1e-9)) == [2]
    assert choose(PROXY, with_general(here, 0.3, 0, 0.3 + edge + 1e-9)) == [1]
    assert choose(PROXY, with_general(here, 0.3, 9, 9)) == [0]
    assert robustness.BOUND == 0.10


def test_the_command_bounds_retain_text_too():
    """What rules chose before is as it was: general text alone is bounded for them."""
    here = with_general(cells_by_hand([-0.8, -0.2, -0.1], [-0.8, -0.2, -0.1]), 0, 0, 0)
    here.gaps[SELECTION][..., 2] = [-0.8, -0.8, -0.8 + np.log(1.11)]
    assert choose(PROXY, here) == [2]
    bounded, search = list(robustness.RULES.items())[-2:]
    assert choose(bounded[1], here) == choose(search[1], here) == [1]
    assert search[0] == robustness.SEARCH
    assert list(robustness.RULES)[:-2] == list(robustness.GUIDELINES)


def test_auc_of_one_half_is_a_goal():
    here = cells_by_hand([-0.8, -0.2, -0.1], [-0.8, -0.2, -0.1], auc=[0.9, 0.52, 0.4])
    here = with_general(here, 0, 0, 0)
    assert choose(Guideline("auc"), here) == [1]
    here = with_general(here, 0, 5, 0)
    assert choose(Guideline("auc"), here) == [2]


RATES = [0, LOW, LOW, USUAL, USUAL, USUAL]
EPOCHS = [0, 0.5, 1, 0.5, 1.25, 2]


def test_a_fixed_rate_leaves_the_usual_one_and_the_target():
    levels = [-0.8, -0.1, -0.1, -0.5, -0.3, 0.4]
    here = with_general(cells_by_hand(levels, levels, rates=RATES, epochs=EPOCHS), *[0] * 6)
    assert choose(PROXY, here, -0.1) == [1]
    assert choose(Guideline("proxy", ("rate",)), here, -0.1) == [4]
    assert choose(Guideline("proxy", ("rate",)), here, -0.7) == [0]


def test_what_measures_nothing_takes_the_mark_nearest_one_epoch_whatever_it_is():
    """At the usual rate 1.25 is nearer than 0.5; the target is no choice, harm is not seen."""
    levels = [-0.1, 0, 0, 9, 9, 9]
    here = cells_by_hand([levels] * 3, [levels] * 3, rates=RATES, epochs=EPOCHS)
    nothing = robustness.GUIDELINES["usual rate, one epoch, nothing measured"]
    assert choose(nothing, here) == [4, 4, 4]
    assert regret(nothing, here) == pytest.approx([9.0] * 3)


def test_what_measures_nothing_never_leaves_the_target_alone():
    here = cells_by_hand([-0.8, 2.0], [-0.8, 2.0], epochs=[0, 2.5])
    assert choose(Guideline(None, ("rate", "epochs")), here) == [1]


def test_cells_are_the_marks_within_the_plane_with_the_target_first():
    rates = [
        path(run_of(LOW), [0, 1, 4, 8], [-0.8, -0.7, -0.6, -0.5], auc=[0.9, 0.8, 0.7, 0.6]),
        path(run_of(USUAL), [0, 1, 6, 9], [-0.8, -0.4, -0.3, -0.2], chosen=[-1, -2, -3, -4]),
        path(run_of(HIGH), [0, 1], [-0.8, 3.0], ended=True),
    ]
    found = robustness.cells(rates)
    assert found.rates.tolist() == [0, LOW, LOW, LOW, USUAL, USUAL, HIGH]
    assert found.steps.tolist() == [0, 1, 4, 8, 1, 6, 1] and found.per_epoch == 4
    assert found.diverged == {HIGH}
    expected = [-0.8, -0.7, -0.6, -0.5, -0.4, -0.3, 3.0]
    assert found.gaps[REPORT][0, :, 2].tolist() == expected
    assert found.gaps[SELECTION][0, 4:6, 0].tolist() == [-2, -3]
    assert found.auc[SELECTION][0].tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5]
    assert found.target[SELECTION][0].tolist() == [-0.8] * 4
    assert found.gaps[REPORT].shape == (1, 7, 4)


def test_regrets_by_method_and_their_mean(by_hand):
    """Only the method of the claim has a rate that comes near; the proxy chooses another.

    Its proxy differs by replicate: the second has it at the best rate.
    """

    def levels(domain, method, replicate):
        return [-0.5, -0.1, -0.3] if method == CLAIMED else [-0.8, -0.8, -0.8]

    grid_by_hand(by_hand, levels)
    asked = []

    def proxy_gap(profile, domain, replicate, half):
        asked.append((domain, replicate, half))
        return np.array([-0.32 if replicate == 1 else -0.12])

    by_hand.setattr(draws, "proxy_gap", proxy_gap)
    by_hand.setattr(robustness, "BOUND", 9.0)
    found = robustness.regrets(PROFILE)
    assert set(asked) == {("arxiv", 1, SELECTION), ("arxiv", 2, SELECTION)}
    assert list(found) == list(robustness.RULES)
    tuned = found["tune rate and steps to the proxy"]
    assert list(tuned) == [*METHODS, "mean"]
    assert tuned[CLAIMED] == pytest.approx(np.array([[0.2], [0.0]]))
    assert tuned[ASCENT] == pytest.approx(np.array([[0.0], [0.0]]))
    assert tuned["mean"] == pytest.approx(np.array([[0.2 / len(METHODS)], [0.0]]))


def test_regret_table(by_hand):
    grid_by_hand(by_hand, lambda *_: [-0.5, -0.1, -0.3])
    by_hand.setattr(draws, "proxy_gap", lambda *_: np.array([-0.1]))
    found = robustness.regret_table(PROFILE)
    assert list(found)[:3] == ["guideline", "method", "value"]
    assert not found[["guideline", "method"]].duplicated().any()
    assert len(found) == len(robustness.RULES) * (len(METHODS) + 1)
    assert set(found.n) == {5} and set(found.replicates) == {2}


def test_the_command_s_rule_sees_no_more_than_the_command_would():
    """The second rate goes past the goal with its first step: what comes after is never seen.

    So the mark of the lowest rate is chosen, and the largest rate is not run.
    """
    rates = [
        path(run_of(LOW), [0, 4, 8], [-0.8, -0.5, -0.4]),
        path(run_of(USUAL), [0, 1, 4], [-0.8, 0.5, -0.1]),
        path(run_of(HIGH), [0, 1], [-0.8, -0.1]),
    ]
    for drawn in rates:
        drawn.gaps[SELECTION][..., 2:] = 0.0  # retain and general text stay
    here = robustness.cells(rates)
    assert choose(PROXY, here) == [4]
    assert choose(robustness.RULES[robustness.SEARCH], here) == [2]
    ran = robustness.searched(PROFILE, here, np.array([-0.1]))
    assert ran.seen.tolist() == [[True, True, True, True, False, False]]
    assert (ran.paths, ran.steps, ran.marks) == (2, 8 + 1, 3)


def test_what_a_search_costs(by_hand):
    """Each rate goes the whole way at once, so the first step of the first path ends it all.

    A step reads 2 forget documents of 3 tokens, and one mark 8 documents of 2 tokens: as many
    passes of the method, and a third of a pass.
    """
    grid_by_hand(by_hand, lambda *_: [0.0, 0.0, 0.0])
    by_hand.setattr(draws, "proxy_gap", lambda *_: np.array([-0.1]))
    by_hand.setattr(robustness, "BOUND", 9.0)
    by_hand.setattr(costs, "tokens_of_retraining", lambda profile, domain: 100.0)
    by_hand.setattr(robustness, "tokens_read", lambda profile, domain: (6.0, 16))
    found = robustness.search_table(PROFILE)
    keys = ["method", "measure"]
    assert list(found)[:3] == [*keys, "value"] and not found[keys].duplicated().any()
    assert set(found.n) == {len("arxiv") + 10} and set(found.replicates) == {2}
    value = found.set_index(keys)["value"]
    assert value[ASCENT].tolist() == pytest.approx([1, 1, (6 + 16 / 3) / 100])
    passes = np.mean([method.passes for method in METHODS.values()])
    assert value["mean"].tolist() == pytest.approx([1, 1, (6 * passes + 16 / 3) / 100])


# --------------------------------------------------------------------------- how much retain text


def test_the_nearest_mark_is_chosen_on_one_half_and_reported_on_the_other():
    both = path(
        run_of(USUAL),
        [0, 1, 4],
        report=[[-0.8, -0.5, -0.2], [-0.9, -0.6, -0.3]],
        chosen=[[-0.8, 0.1, -0.3], [-0.2, 0.4, -0.3]],
    )
    assert robustness.at_nearest(both)[:, 0] == pytest.approx([-0.5, -0.9])
    assert robustness.score_at_nearest(both) == pytest.approx([1 - 0.5 / 0.8, 0.0])


def test_paths_by_the_number_of_retain_documents(by_hand):
    asked = []

    def drawn_paths(runs, what):
        asked.extend(runs)
        return [path(run, [0, 1], [-0.8, -0.4]) for run in runs]

    by_hand.setattr(draws, "drawn_paths", drawn_paths)
    found = robustness.by_retain_documents(PROFILE)
    descending = [method.name for method in METHODS.values() if method.retain is DESCENT]
    assert set(found) == {(name, number) for name in descending for number in ("2", "3", "all")}
    assert all(len(paths) == 2 for paths in found.values())
    for (method, number), paths in found.items():
        assert [drawn.run.replicate for drawn in paths] == [1, 2]
        assert {drawn.run.method for drawn in paths} == {method}
        assert {str(drawn.run.retain_documents or "all") for drawn in paths} == {number}
    whole = [run for run in asked if run.retain_documents is None]
    assert len(asked) == len(set(asked)) == 12
    assert all(method_paths.keeps(run) for run in whole)


def test_retain_text_table(by_hand):
    """Scores of 0.5 with all, 0.25 with two documents, and what is damaged with three."""

    def drawn_paths(runs, what):
        found = []
        for run in runs:
            level = {2: 0.6, 3: 0.4, None: 0.4}[run.retain_documents]
            drawn = path(run, [0, 1], [-0.8, level])
            if run.retain_documents == 3:
                drawn.gaps[REPORT][:, 1] = [0.1, 0.2, 0.6, -0.7]
            found.append(drawn)
        return found

    by_hand.setattr(draws, "drawn_paths", drawn_paths)
    found = robustness.retain_text_table(PROFILE)
    keys = ["method", "retain documents", "measure"]
    assert list(found)[:4] == [*keys, "value"] and not found[keys].duplicated().any()
    value = found[found.method == CLAIMED].set_index(keys[1:])["value"].to_dict()
    assert value == {
        ("2", "score"): pytest.approx(0.25),
        ("3", "score"): pytest.approx(0.5),
        ("all", "score"): pytest.approx(0.5),
        ("2", "score, less that with all"): pytest.approx(-0.25),
        ("3", "score, less that with all"): pytest.approx(0.0),
        ("2", "damage to the domain"): pytest.approx(0.6),
        ("3", "damage to the domain"): pytest.approx(0.4),
        ("all", "damage to the domain"): pytest.approx(0.4),
        ("2", "damage to general text"): pytest.approx(0.6),
        ("3", "damage to general text"): pytest.approx(-0.7),
        ("all", "damage to general text"): pytest.approx(0.4),
    }


# ------------------------------------------------------------------------------------ a tiny grid


TINY = replace(
    toys.TOY,
    name="tiny",
    corpus=Corpus(pairs=8, retain=12, general=6, evaluation=8, measured=8),
    pretraining=Pretraining(epochs=6, batch=4),
    grid=replace(
        toys.TOY.grid,
        learning_rates=(2e-3, 2e-2),
        epochs=1,
        usual_epochs=2,
        claimed_domains=("arxiv",),
        chosen_on=4,
    ),
    domains=("arxiv",),
)


def test_a_tiny_grid_from_training_to_tables(by_hand, monkeypatch, tmp_path):
    """Every quantity is there and agrees with the others; what they are at this scale is chance."""
    by_hand.undo()  # documents are read
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("UNLEARN_FRESH", raising=False)
    descending = [name for name, method in METHODS.items() if method.retain is DESCENT]
    few = {name: METHODS[name] for name in (ASCENT, *descending)}
    monkeypatch.setattr(method_paths, "METHODS", few)
    for reader in (study_documents.data, study_documents.fingerprint, study_documents.tokenizer):
        reader.cache_clear()
    plane = robustness.robustness_table(TINY)
    assert plane[["value", "low", "high"]].notna().all(axis=None)
    keys = ["plane", "method", "measure"]
    value = plane.set_index(keys)["value"].sort_index()
    for name in robustness.PLANES:
        for method in few:
            here = value[name, method]
            assert 0 <= here["robustness"] <= here["best score"] <= 1
            assert 0 <= here["window"] <= 1 - here["worse than doing nothing"] + 1e-9
            halves = (here["robustness, lower rates"] + here["robustness, higher rates"]) / 2
            assert here["robustness"] == pytest.approx(halves)
    claim = robustness.claim_table(TINY).set_index(["plane", "measure"])["value"]
    over = value[MAIN_PLANE, CLAIMED]["robustness"] - value[MAIN_PLANE, ASCENT]["robustness"]
    assert claim[MAIN_PLANE, "robustness"] == pytest.approx(over)

    regret = robustness.regret_table(TINY)
    assert len(regret) == len(robustness.RULES) * (len(few) + 1)
    assert regret["value"].notna().all()
    search = robustness.search_table(TINY)
    assert len(search) == 3 * (len(few) + 1) and search["value"].notna().all()
    of_one_rate = robustness.rate_table(TINY)
    assert len(of_one_rate) == len(few) * 2 * 2
    retain = robustness.retain_text_table(TINY)
    assert set(retain["retain documents"]) == {"2", "all"}
    ((usual, _),) = robustness.grid_of(TINY, "arxiv", CLAIMED)
    assert usual.total == 8 and robustness.within_plane(usual, REPORT).total == 4
