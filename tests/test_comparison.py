"""Methods beside each other, on paths set by hand. No model is trained."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.core import distances
from unlearn_utils.core.methods import METHODS
from unlearn_utils.findings import comparison, draws, replicated, robustness
from unlearn_utils.findings.comparison import AGAIN, NOTHING, State
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.profiles import PROFILES, Grid
from unlearn_utils.study import method_paths, pool, selection
from unlearn_utils.study.method_paths import ASCENT, CLAIMED
from unlearn_utils.study.single_run import Run

SELECTION, REPORT = selection.SELECTION, selection.REPORT
PROFILE = replace(
    PROFILES["smoke"],
    name="compared",
    domains=("arxiv", "github"),
    grid=Grid(learning_rates=(1e-3, 2e-3), domains=("arxiv",), claimed_domains=("arxiv",)),
    replicates=(3, 4),
    resamples=2,
)
DRAWS = 3  # as measured, and two resamples
CACHED = ("usual", "retrained_again", "retrained_auc", "others_mean", "ranking_draws")
CACHED += ("membership_draws",)
# A path that goes from a gap of -0.8 to 0.2; other text gets harder by as much, from 0 on.
STRAIGHT = [-0.8, -0.6, -0.4, -0.2, 0.0, 0.2]


def gaps_of(forget, unseen=None, retain=None, general=None):
    """Return gaps at each mark: (marks, splits). Other text has what the forget set has, + 0.8."""
    forget = np.array(forget, float)
    others = []
    for other in (unseen, retain, general):
        others.append(forget + 0.8 if other is None else np.broadcast_to(other, forget.shape))
    return np.stack([forget, *others], axis=1)


def in_draws(values):
    """Return values in each draw: those that have no draws yet are alike in all."""
    values = np.array(values, float)
    return np.broadcast_to(values, (DRAWS, *values.shape)).copy()


def path(report=None, chosen=None, auc=None, extraction=None, steps=None, replicate=3, **run):
    """Return a path with these gaps: (marks, splits), or (draws, marks, splits).

    chosen: gaps of the selection half; None: those of the report half.
    """
    halves = {}
    for half, given in ((REPORT, report), (SELECTION, report if chosen is None else chosen)):
        values = gaps_of(STRAIGHT) if given is None else np.array(given, float)
        halves[half] = values if values.ndim == 3 else in_draws(values)
    marks = halves[REPORT].shape[1]
    areas = in_draws(np.full(marks, 0.75) if auc is None else auc)
    recited = in_draws(np.full(marks, 0.25) if extraction is None else extraction)
    told = {"target_domain": "arxiv", "method": ASCENT, **run}
    return Drawn(
        run=Run(PROFILE, recipe=PROFILE.unlearning, replicate=replicate, **told),
        steps=np.array(range(marks) if steps is None else steps, float),
        gaps=halves,
        auc={SELECTION: areas, REPORT: areas},
        extraction=recited,
        total=marks - 1,
        ended=False,
    )


def again(gap, auc):
    """Return another retrained model whose gaps are all alike."""
    return State(np.full((DRAWS, 4), float(gap)), np.full(DRAWS, auc), np.full(DRAWS, 0.1))


@pytest.fixture(autouse=True)
def by_hand(monkeypatch, tmp_path):
    """Let there be two methods, and nine families of one domain, eight at least of two.

    With two domains there is one other retrained model, with three there are three.
    """
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path))
    monkeypatch.setattr(comparison, "METHODS", {ASCENT: None, CLAIMED: None})
    monkeypatch.setattr(robustness, "smallest_n", lambda profile, domains: 10 - len(domains))
    others = [again(0.1, 0.4), again(0.2, 0.6), again(-0.3, 0.4)]

    def retrained_again(profile, domain, replicate):
        return others[: len(pool.pairs(profile, domain, replicate)) - 1]

    def retrained_auc(*place):
        return [np.full(DRAWS, 0.6), *(state.auc for state in retrained_again(*place))]

    monkeypatch.setattr(comparison, "retrained_again", retrained_again)
    monkeypatch.setattr(comparison, "retrained_auc", retrained_auc)
    forget()
    yield
    forget()


def forget():
    for name in CACHED:
        function = getattr(comparison, name)
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def paths_are(monkeypatch):
    """Set the paths: a function of (domain, method, replicate) that returns what `path` takes."""

    def become(of):
        def usual(profile, domain, method):
            found = []
            for replicate in profile.replicates:
                place = {"target_domain": domain, "method": method, "replicate": replicate}
                found.append(path(**{**of(domain, method, replicate), **place}))
            return found

        monkeypatch.setattr(comparison, "usual", usual)
        forget()

    become(lambda *place: {})
    return become


def keys_of(found):
    return [tuple(row) for row in found.iloc[:, : found.columns.get_loc("value")].to_numpy()]


def value(found, **keys):
    """Return the value of the one row with these keys."""
    for name, key in keys.items():
        found = found[found[name.replace("_", " ") if name == "forget_gap" else name] == key]
    (row,) = found.to_dict("records")
    return row["value"]


# -------------------------------------------------------------------------------- equal forgetting


def test_what_a_path_has_done_at_a_level():
    """Between -0.6 and -0.4 a gap of -0.45 is three quarters of the way."""
    report = gaps_of(STRAIGHT[:3], [0.0, 0.1, 0.3], [0.0, 0.2, 0.4], [-0.1, 0.0, 0.2])
    found = comparison.at_level(
        path(report, auc=[0.9, 0.8, 0.6], extraction=[0.4, 0.4, 0.0]), -0.45
    )
    unseen, retain, general = 0.25, 0.35, 0.15
    assert found["damage to unseen text"] == pytest.approx(unseen)
    assert found["damage to retain text"] == pytest.approx(retain)
    assert found["damage to general text"] == pytest.approx(general)
    assert found["damage to the domain"] == pytest.approx((unseen + retain) / 2)
    assert found["damage, mean of three"] == pytest.approx((unseen + retain + general) / 3)
    assert found["AUC"] == pytest.approx(0.65)
    assert found["extraction strength"] == pytest.approx(0.1)


def test_what_is_reported_is_the_report_half():
    drawn = path(gaps_of(STRAIGHT, 0.1, 0.1, 0.1), chosen=gaps_of(STRAIGHT, 9.0, 9.0, 9.0))
    assert comparison.at_level(drawn, -0.5)["damage to the domain"] == pytest.approx(0.1)


def test_each_draw_comes_to_the_level_at_its_own_place():
    """In the second draw the forget set is 0.1 nearer to retraining throughout."""
    report = in_draws(gaps_of(STRAIGHT))
    report[1, :, 0] += 0.1
    found = comparison.at_level(path(report), -0.5)["damage to general text"]
    assert found == pytest.approx([0.3, 0.2, 0.3])


WAYS = {
    "reached": [-0.8, -0.6, -0.45],
    "jumped": [-0.8, -0.6, -0.3],
    "never": [-0.8, -0.7, -0.6],
    "the target is beyond it": [-0.45, -0.3, -0.2],
}


@pytest.mark.parametrize(("said", "forget"), WAYS.items())
def test_how_a_path_comes_to_a_level(said, forget):
    drawn = path(gaps_of(forget))
    assert comparison.how_it_reaches(drawn, -0.5) == said
    known = np.isfinite(comparison.at_level(drawn, -0.5)["AUC"])
    assert known.tolist() == [said == "reached"] * DRAWS


def test_how_a_path_comes_to_a_level_is_as_measured():
    report = in_draws(gaps_of(WAYS["reached"]))
    report[1:] = gaps_of(WAYS["never"])
    assert comparison.how_it_reaches(path(report), -0.5) == "reached"


def test_a_target_at_the_level_is_beyond_it():
    assert comparison.how_it_reaches(path(gaps_of([-0.5, -0.3])), -0.5) == comparison.BEYOND


def test_detected_by_hand():
    """Retrained models have 0.4 and 0.6, mean 0.5: 100 (0.5 - 0.8) / 0.5."""
    retrained = [np.array([0.4]), np.array([0.6])]
    found = comparison.detected(np.array([0.8]), np.array([0.4]), retrained)
    assert found["AUC over retrained"] == pytest.approx([0.4])
    assert found["PrivLeak"] == pytest.approx([-60.0])


def test_privleak_has_no_value_where_every_retrained_model_reaches_1():
    retrained = [np.array([1.0, 0.5]), np.array([1.0, 0.5])]
    found = comparison.detected(np.array([0.8, 0.8]), retrained[0], retrained)["PrivLeak"]
    assert np.isnan(found).tolist() == [True, False]


def test_rows_at_equal_forgetting(paths_are):
    """Of two replicates one reaches -0.25, and one jumps past it."""
    jumps = gaps_of([-0.8, -0.6, -0.3, 0.1])
    paths_are(lambda domain, method, replicate: {"report": jumps} if replicate == 4 else {})
    rows = comparison.equal_rows(PROFILE, "arxiv", ASCENT)
    found = replicated.estimates(PROFILE, "none", rows)
    here = found[found["forget gap"] == -0.25].set_index("measure")
    assert here.loc["damage to the domain", "value"] == pytest.approx(0.55)
    assert here.loc["damage to the domain", "replicates"] == 1
    assert here.loc["AUC over retrained", "value"] == pytest.approx(0.15)
    assert here.loc["PrivLeak", "value"] == pytest.approx(100 * (0.5 - 0.75) / 0.5)
    assert here.loc[["reached", "jumped"], "value"].tolist() == [0.5, 0.5]
    assert here.loc["reached", "replicates"] == 2
    assert (here.n == 9).all()


def test_the_table_has_every_domain_method_and_level_once(paths_are, tmp_path):
    found = comparison.equal_table(PROFILE)
    assert len(set(keys_of(found))) == len(found)
    places = set(itertools.product(PROFILE.domains, (ASCENT, CLAIMED), comparison.LEVELS))
    assert {key[:3] for key in keys_of(found)} == places
    assert (tmp_path / "table10_equal.csv").exists()


def test_which_paths_come_to_a_level_in_words(paths_are):
    ways = {3: WAYS["reached"], 4: WAYS["jumped"], 5: WAYS["jumped"]}
    paths_are(lambda domain, method, replicate: {"report": gaps_of(ways[replicate])})
    three = replace(PROFILE, replicates=(3, 4, 5))
    found = comparison.reached_to_read(comparison.equal_table(three))
    assert found.loc[("github", CLAIMED), -0.5] == "1 of 3, 2 jump"
    assert found.loc[("arxiv", ASCENT), 0.0] == "0 of 3"
    two = replace(PROFILE, replicates=(3, 4))
    found = comparison.reached_to_read(comparison.equal_table(two))
    assert found.loc[("arxiv", ASCENT), -0.5] == "1 of 2, 1 jumps"
    assert list(found.index.get_level_values("method")) == [ASCENT, CLAIMED] * 2


# --------------------------------------------------------------------------------- at the best rate


def test_the_best_rate_has_the_least_damage_on_the_selection_half():
    """On the report half, which does not choose, the other rate is better."""
    cheap = path(gaps_of(STRAIGHT, 0.5, 0.5, 0.5), chosen=gaps_of(STRAIGHT, 0.1, 0.1, 0.1))
    dear = path(gaps_of(STRAIGHT, 0.2, 0.2, 0.2), chosen=gaps_of(STRAIGHT, 0.3, 0.3, 0.3))
    for rates in ([cheap, dear], [dear, cheap]):
        found = comparison.at_best_rate(rates, -0.5)
        assert found["damage to the domain"] == pytest.approx(0.5)


def test_the_best_rate_is_chosen_anew_in_each_draw():
    chosen = in_draws(gaps_of(STRAIGHT, 0.1, 0.1, 0.1))
    chosen[1, :, 1:] = 0.9
    one = path(gaps_of(STRAIGHT, 0.5, 0.5, 0.5), chosen=chosen)
    other = path(gaps_of(STRAIGHT, 0.2, 0.2, 0.2), chosen=gaps_of(STRAIGHT, 0.3, 0.3, 0.3))
    found = comparison.at_best_rate([one, other], -0.5)["damage to unseen text"]
    assert found == pytest.approx([0.5, 0.2, 0.5])


def test_least_damage_is_of_three_kinds_of_text():
    general = path(gaps_of(STRAIGHT, 0.0, 0.0, 0.9), auc=[0.9] * 6)
    domain = path(gaps_of(STRAIGHT, 0.2, 0.2, 0.2), auc=[0.6] * 6)
    assert comparison.at_best_rate([general, domain], -0.5)["AUC"] == pytest.approx(0.6)


def test_a_rate_that_jumps_or_never_comes_is_not_chosen():
    jumps = path(gaps_of(WAYS["jumped"], 0.0, 0.0, 0.0))
    never = path(gaps_of(WAYS["never"], 0.0, 0.0, 0.0))
    comes = path(gaps_of(STRAIGHT, 0.7, 0.7, 0.7))
    found = comparison.at_best_rate([jumps, comes, never], -0.5)["damage to retain text"]
    assert found == pytest.approx(0.7)
    nothing = comparison.at_best_rate([jumps, never], -0.5)
    assert all(np.isnan(values).all() for values in nothing.values())
    on_report_half = path(chosen=gaps_of(WAYS["never"]))
    assert np.isnan(comparison.at_best_rate([on_report_half], -0.5)["AUC"]).all()


def test_the_table_of_best_rates(monkeypatch):
    """In one replicate the chosen rate jumps on the report half."""
    lost = path(gaps_of(WAYS["jumped"]), chosen=gaps_of(STRAIGHT, 0.0, 0.0, 0.0))
    grid = [[path(), path(gaps_of(STRAIGHT, 0.9, 0.9, 0.9))], [path(), lost]]
    monkeypatch.setattr(robustness, "grid_of", lambda profile, domain, method: grid)
    found = comparison.best_rate_table(PROFILE)
    assert set(found.target_domain) == {"arxiv"}
    keys = {"method": CLAIMED, "forget_gap": -0.5}
    assert value(found, **keys, measure="damage to the domain") == pytest.approx(0.3)
    assert value(found, **keys, measure="reached") == 0.5
    assert comparison.reached_to_read(found).loc[("arxiv", CLAIMED), -0.5] == "1 of 2"


# ---------------------------------------------------------------------- models that are no method's


def test_do_nothing_is_the_target(paths_are):
    report = gaps_of([-0.8, 0.0], [-0.1, 0.5], [-0.2, 0.5], [0.1, 0.5])
    start = {"report": report, "auc": [0.9, 0.5], "extraction": [0.4, 0.0]}
    paths_are(lambda *place: start)
    model, saw, found = comparison.other_models(PROFILE, "github", 4)[0]
    assert (model, saw) == (NOTHING, "arxiv + github")
    assert found["forget gap"] == pytest.approx(-0.8)
    assert found["distance"] == pytest.approx((0.8 + 0.1 + 0.2 + 0.1) / 4)
    assert found["damage to the domain"] == pytest.approx(-0.15)
    assert found["AUC over retrained"] == pytest.approx(0.3)
    assert found["PrivLeak"] == pytest.approx(100 * (0.5 - 0.9) / 0.5)
    assert found["extraction strength"] == pytest.approx(0.4)


def test_do_nothing_is_the_target_of_the_replicate(paths_are):
    paths_are(lambda domain, method, replicate: {"report": gaps_of([-replicate / 10, 0.0])})
    for replicate in PROFILE.replicates:
        found = comparison.other_models(PROFILE, "arxiv", replicate)[0][2]
        assert found["forget gap"] == pytest.approx(-replicate / 10)


def test_privleak_of_another_retrained_model_is_not_against_itself(paths_are, monkeypatch):
    """AUCs are 0.6, of the truth, and 0.5: then 100 (0.6 - 0.5) / 0.4."""
    monkeypatch.setattr(comparison, "retrained_again", lambda *place: [again(0.1, 0.5)])
    areas = [np.full(DRAWS, 0.6), np.full(DRAWS, 0.5)]
    monkeypatch.setattr(comparison, "retrained_auc", lambda *place: areas)
    (_, (model, saw, found)) = comparison.other_models(PROFILE, "arxiv", 3)
    assert (model, saw) == (AGAIN, "none")
    assert found["PrivLeak"] == pytest.approx(25.0)
    assert found["AUC over retrained"] == pytest.approx(-0.1)
    assert found["distance"] == pytest.approx(0.1)


def test_others_mean_is_over_models_of_a_replicate(paths_are):
    """Distances of 0.1, 0.2 and 0.3, where gaps are 0.1, 0.2 and -0.3."""
    four = replace(PROFILE, domains=("arxiv", "books", "github"))
    found = comparison.others_mean(four, "arxiv")
    assert found[AGAIN]["distance"] == pytest.approx(np.full((2, DRAWS), 0.2))
    assert found[AGAIN]["forget gap"] == pytest.approx(np.zeros((2, DRAWS)))
    assert found[NOTHING]["distance"].shape == (2, DRAWS)


def test_other_models_one_by_one(paths_are):
    profile = replace(PROFILE, domains=("arxiv", "books", "github"))
    found = comparison.models_table(profile)
    assert len(set(keys_of(found))) == len(found)
    saw = {key[2] for key in keys_of(found) if key[0] == "books" and key[1] == AGAIN}
    assert saw == {"arxiv", "github", "none"}
    here = {"target_domain": "books", "model": AGAIN, "measure": "distance"}
    assert value(found, **here, saw="github") == pytest.approx(0.2)
    points = comparison.plane_points(found)
    assert len(points) == 3 * 4 * 2  # domains, models, replicates
    there = points[(points.target_domain == "books") & (points.saw == "none")]
    assert there["forget gap"].tolist() == [-0.3, -0.3]
    assert points[points.model == NOTHING]["damage"].tolist() == [0.0] * 6


def test_points_are_single_models_of_each_replicate(paths_are):
    paths_are(lambda domain, method, replicate: {"report": gaps_of([-replicate / 10, 0.0])})
    points = comparison.plane_points(comparison.models_table(PROFILE))
    here = points[(points.model == NOTHING) & (points.target_domain == "github")]
    assert here["forget gap"].tolist() == pytest.approx([-0.3, -0.4])
    assert here.damage.tolist() == pytest.approx([0.5, 0.4])


SPLITS = distances.SPLITS


def rows_with(domain, loss):
    """Return rows of a model with this loss a token, by split or for all."""
    frames = []
    for split in SPLITS:
        where = "general" if split == "evaluation" else domain
        names = [f"{where}-{split}-{rank}" for rank in range(6)]
        part = {"id": names, "family": names, "rank": range(6), "domain": where, "split": split}
        each = loss.get(split, 1.0) if isinstance(loss, dict) else loss
        part |= {"tokens": 2, "nll": 2.0 * each, "min_k_40": -each, "extraction": each / 10}
        frames.append(pd.DataFrame(part))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def pool_by_hand(monkeypatch):
    """Let a retrained model's loss be 2, and 1 more for each forget set that it has not seen."""
    monkeypatch.undo()

    def loss(member):
        return 4.0 - len(member.seen)

    def rows_of_domain(profile, model, domain):
        if model.seen == ("books",):
            return rows_with(domain, {"forget": 2.0, "approximate": 3.0, "retain": 3.5})
        return rows_with(domain, loss(model))

    monkeypatch.setattr(pool, "trained_model", lambda profile, member: member)
    monkeypatch.setattr(pool, "rows_of_domain", rows_of_domain)
    monkeypatch.setattr(pool, "target_rows", lambda profile, domain, _: rows_with(domain, 1.0))
    monkeypatch.setattr(pool, "truth_rows", lambda profile, domain, _: rows_with(domain, 2.0))
    forget()
    draws.sample.cache_clear()
    yield
    forget()
    draws.sample.cache_clear()


def test_other_retrained_models_are_those_of_the_other_pairs(pool_by_hand):
    """Without arxiv's forget set there are those that saw books, github, and none."""
    profile = replace(PROFILE, domains=("arxiv", "books", "github"))
    of_books, of_github, of_none = comparison.retrained_again(profile, "arxiv", 3)
    assert of_books.gaps == pytest.approx(np.broadcast_to([0, 1, 1.5, -1], (DRAWS, 4)))
    assert of_github.gaps == pytest.approx(np.full((DRAWS, 4), 1.0))
    assert of_none.gaps == pytest.approx(np.full((DRAWS, 4), 2.0))
    assert of_books.auc == pytest.approx(1.0) and of_github.auc == pytest.approx(0.5)
    assert of_books.extraction == pytest.approx(0.2)
    areas = comparison.retrained_auc(profile, "arxiv", 3)
    assert np.array(areas)[:, 0] == pytest.approx([0.5, 1.0, 0.5, 0.5])


def test_a_published_model_has_no_other_retrained_model(pool_by_hand):
    published = replace(PROFILE, hub=PROFILES["gpu"].hub)
    assert comparison.retrained_again(published, "arxiv", 3) == []
    assert len(comparison.retrained_auc(published, "arxiv", 3)) == 1


def test_a_comparison_of_a_published_model_has_one_model_that_is_no_method_s(
    paths_are, monkeypatch
):
    monkeypatch.setattr(comparison, "retrained_again", lambda *place: [])
    areas = [np.full(DRAWS, 0.5)]
    monkeypatch.setattr(comparison, "retrained_auc", lambda *place: areas)
    assert set(comparison.models_table(PROFILE).model) == {NOTHING}
    assert set(comparison.ranking_table(PROFILE).model) == {NOTHING, ASCENT, CLAIMED}
    assert set(comparison.membership_table(PROFILE).model) == {NOTHING, ASCENT, CLAIMED}


# ------------------------------------------------------------------------------------ the ranking


def alike(*levels):
    """Return gaps that are alike on every kind of text."""
    return np.repeat(np.array(levels, float)[:, None], 4, axis=1)


def test_a_method_is_ranked_at_its_nearest_mark_of_the_selection_half(paths_are):
    """There the second mark is nearest; on the report half it has 0.3, and the third 0.1."""
    chosen, report = alike(0.8, 0.1, 0.4), alike(0.8, 0.3, 0.1)
    paths_are(lambda *place: {"report": report, "chosen": chosen})
    found = comparison.ranking_draws(PROFILE)
    assert found[ASCENT]["arxiv"] == pytest.approx(np.full((2, DRAWS), 0.3))
    assert found[NOTHING]["arxiv"] == pytest.approx(np.full((2, DRAWS), 0.8))


def test_a_method_may_be_best_left_alone(paths_are):
    paths_are(lambda *place: {"report": alike(-0.2, 0.3, 0.9)})
    assert comparison.ranking_draws(PROFILE)[CLAIMED]["github"] == pytest.approx(0.2)


def ranked(domain, method, replicate):
    """Distances: ascent 0.4 on arxiv and 0.2 on github; the other 0.02 less, or 0.08 more."""
    far = 0.4 if domain == "arxiv" else 0.2
    if method == CLAIMED:
        far += 0.1 * (replicate == 4) - 0.02
    return {"report": alike(-0.8, far)}


def test_the_ranking_by_hand(paths_are):
    paths_are(ranked)
    found = comparison.ranking_table(PROFILE)
    assert value(found, model=ASCENT, target_domain="mean", measure="distance") == pytest.approx(
        0.3
    )
    own = value(found, model=CLAIMED, target_domain="arxiv", measure="distance")
    assert own == pytest.approx(0.43)
    less = f"distance - {CLAIMED}'s"
    row = found[(found.model == ASCENT) & (found.measure == less) & (found.target_domain == "mean")]
    assert row["by_replicate"].tolist() == ["0.02 -0.08"]
    assert value(found, model=AGAIN, target_domain="github", measure=less) == pytest.approx(-0.13)
    assert less not in set(found[found.model == CLAIMED].measure)
    assert set(found[found.target_domain == "mean"].n) == {8}
    assert set(found[found.target_domain != "mean"].n) == {9}


def test_the_ranking_to_read_has_the_nearest_first(paths_are):
    paths_are(ranked)
    table = comparison.ranking_table(PROFILE)
    found = comparison.ranking_to_read(table)
    assert list(dict.fromkeys(found.model)) == [AGAIN, ASCENT, CLAIMED, NOTHING]
    assert set(found.target_domain) == {"mean"}
    written = list(dict.fromkeys(table.model))
    paths_are(lambda domain, method, replicate: {"report": alike(-0.8, 0.1 + (method == ASCENT))})
    assert list(dict.fromkeys(comparison.ranking_table(PROFILE).model)) == written


# ----------------------------------------------------------------------------- membership inference


def told(domain, method, replicate):
    """AUC at a gap of 0: 0.7, and 0.9 on github; replicate 4 of ascent stops before."""
    falls = np.linspace(1.0, 0.7 if domain == "arxiv" else 0.9, 5)
    if method == ASCENT and replicate == 4 and domain == "github":
        return {"report": gaps_of(STRAIGHT[:4]), "auc": falls[:4]}
    report = gaps_of(STRAIGHT[:5])
    return {"report": report, "auc": falls + 0.04 * (method == CLAIMED)}


def test_auc_over_retrained_is_a_mean_over_domains(paths_are):
    paths_are(told)
    found = comparison.auc_excess(PROFILE, 0.0)
    assert found[ASCENT][0] == pytest.approx((0.1 + 0.3) / 2)
    assert found[CLAIMED] == pytest.approx(np.full((2, DRAWS), 0.24))
    assert np.isnan(found[ASCENT][1]).all()
    assert found[NOTHING] == pytest.approx(1.04 - 0.6)
    assert comparison.auc_excess(PROFILE, -0.25)[ASCENT].shape == (2, DRAWS)


def test_another_retrained_model_in_membership_is_a_mean_over_three(paths_are):
    profile = replace(PROFILE, domains=("arxiv", "books", "github"))
    found = comparison.auc_excess(profile, 0.0)[AGAIN]
    assert found == pytest.approx((0.4 + 0.6 + 0.4) / 3 - 0.6)


def test_the_least_detected_of_those_that_reach_retraining(paths_are):
    """In replicate 4 ascent does not, which would be the least."""
    paths_are(told)
    found = comparison.least_detected(PROFILE)
    assert found[0] == pytest.approx(0.2)
    assert found[1] == pytest.approx(0.24)


def test_nobody_reaches_retraining(paths_are):
    paths_are(lambda *place: {"report": gaps_of(STRAIGHT[:3])})
    assert np.isnan(comparison.least_detected(PROFILE)).all()


def test_the_membership_table(paths_are):
    paths_are(told)
    found = comparison.membership_table(PROFILE)
    assert len(set(keys_of(found))) == len(found)
    assert set(found[found.model == ASCENT]["at"]) == {"gap -0.5", "gap -0.25", "gap 0"}
    assert set(found[found.model == AGAIN]["at"]) == {"as it is"}
    here = {"model": CLAIMED, "at": "gap 0"}
    assert value(found, **here, measure="AUC") == pytest.approx(0.84)
    leak = 100 * ((0.5 - 0.74) / 0.5 + (0.5 - 0.94) / 0.5) / 2
    assert value(found, **here, measure="PrivLeak") == pytest.approx(leak)
    row = found[(found.model == ASCENT) & (found["at"] == "gap 0") & (found.measure == "AUC")]
    assert (row.replicates.tolist(), row.n.tolist()) == ([1], [8])


# -------------------------------------------------------------------------------------- the plane


def test_damage_on_the_way_by_hand():
    """From -0.8 half of the way is -0.4, and a quarter past retraining is 0.2."""
    drawn = path()
    assert comparison.on_the_way(drawn, 0.0) == pytest.approx(0.0)
    assert comparison.on_the_way(drawn, 0.5) == pytest.approx(0.4)
    assert comparison.on_the_way(drawn, 1.25) == pytest.approx(1.0)
    assert np.isnan(comparison.on_the_way(drawn, 1.3)).all()
    at_level = comparison.at_level(drawn, 0.0)["damage to the domain"]
    assert comparison.on_the_way(drawn, 1.0) == pytest.approx(at_level)


def test_every_draw_starts_at_its_own_target():
    """In the second draw the way is from -1 to 0: a tenth of it ends at -0.9."""
    report = in_draws(gaps_of(STRAIGHT))
    report[1] -= [0.2, 0.0, 0.0, 0.0]
    found = comparison.on_the_way(path(report), 0.1)
    assert found == pytest.approx([0.08, 0.1, 0.08])


def test_a_path_that_jumps_has_no_damage_on_its_way():
    drawn = path(gaps_of([-0.8, -0.7, -0.3, -0.2]))
    known = [np.isfinite(comparison.on_the_way(drawn, share)[0]) for share in (0.1, 0.5, 0.7)]
    assert known == [True, False, True]


def test_the_lines_of_the_figure(paths_are):
    paths_are(lambda domain, method, replicate: {"report": gaps_of([-replicate / 10, -0.2])})
    found = comparison.plane_data(PROFILE)
    assert len(found) == 2 * 2 * len(comparison.WAY)
    half = found[(found.method == ASCENT) & (found.target_domain == "arxiv")]
    half = half.set_index("share of the way")
    assert half.loc[0.0, "forget gap"] == pytest.approx(-0.35)
    assert half.loc[0.2, "forget gap"] == pytest.approx(-0.28)
    assert half.loc[0.2, "value"] == pytest.approx(0.8 - 0.28)
    assert half.loc[[0.2, 0.4, 1.0], "replicates"].tolist() == [2, 1, 0]


# ------------------------------------------------------------------------------- keys, and one path


def test_keys_do_not_depend_on_what_came_out(paths_are):
    made = (
        comparison.equal_table,
        comparison.ranking_table,
        comparison.membership_table,
        comparison.models_table,
        comparison.plane_data,
    )
    before = [keys_of(table(PROFILE)) for table in made]
    paths_are(lambda *place: {"report": gaps_of([-0.3, 0.9])})
    assert [keys_of(table(PROFILE)) for table in made] == before


def test_gaps_between_marks_are_on_log_steps():
    drawn = path(gaps_of([-0.8, -0.7, -0.5]), steps=[0, 1, 4])
    for step, gap in ((0, -0.8), (1, -0.7), (2, -0.6), (4, -0.5)):
        found = comparison.gaps_at(drawn, step)
        assert found.shape == (DRAWS, 4)
        assert found[:, 0] == pytest.approx(gap)
    assert np.isnan(comparison.gaps_at(drawn, 5)).all()


def test_rows_of_a_path_by_hand(paths_are):
    ends = {3: [-0.8, -0.4], 4: [-0.6, -0.4, -0.2]}
    paths_are(lambda domain, method, replicate: {"report": gaps_of(ends[replicate], general=0.3)})
    rows = comparison.path_rows(PROFILE, "github", ASCENT, [0, 1, 2])
    found = replicated.estimates(PROFILE, "none", rows)
    forget = found[found.split == "forget"].set_index("step")
    assert forget["value"].tolist() == pytest.approx([-0.7, -0.4, -0.2])
    assert forget.replicates.tolist() == [2, 2, 1]
    general = found[found.split == "evaluation"]
    assert general["value"].tolist() == pytest.approx([0.3] * 3)


def test_every_run_that_is_compared_once(monkeypatch):
    monkeypatch.undo()
    found = comparison.runs(PROFILE)
    assert len(set(found)) == len(found)
    usual = [run for run in found if method_paths.keeps(run)]
    assert len(usual) == 2 * 2 * len(METHODS)  # replicates, domains, methods
    others = {run.target_domain for run in found if run not in usual}
    assert others == {"arxiv"}
    grid = method_paths.grid_runs(PROFILE, 4, "arxiv", CLAIMED)
    assert set(grid) <= set(found)
