"""What a grid says: log perplexities of rows set by hand; shares, widths and regrets of those.

No model is trained.
"""

import itertools
import warnings
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.core.intervals import Interval
from unlearn_utils.findings import robustness
from unlearn_utils.findings.robustness import SPLITS, LogPerplexities
from unlearn_utils.profiles import PROFILES, Grid, Unlearning
from unlearn_utils.study import grid, selection
from unlearn_utils.study.grid import Setting

PROFILE = replace(
    PROFILES["smoke"],
    domains=("arxiv", "github"),
    noise_domain="github",
    unlearning=Unlearning(learning_rate=1e-3, batch=2),
    grid=Grid(learning_rates=(1e-3, 4e-3), marks=(0.5, 1.0), domains=("arxiv", "github")),
    resamples=60,
)
FAMILIES = {  # of each document of a split; a and a are one family
    "forget": "aabc",
    "approximate": "defg",
    "retain": "hij",
    "evaluation": "klm",
}
TOKENS = [1, 2, 3, 4]  # of the documents of a split, in order
CELL = {
    "target_domain": "arxiv",
    "method": "gradient_ascent",
    "learning_rate": 1e-3,
    "batch": 2,
    "retain_weight": 1.0,
    "seed": 0,
    "retain_documents": pd.NA,
    "epoch": 1.0,
}


# ------------------------------------------------------------------------------ rows, set by hand


def documents(domain):
    """The measured documents of a domain and the general ones, which are the same for each."""
    rows = []
    for split, families in FAMILIES.items():
        source = "general" if split == "evaluation" else domain
        for rank, family in enumerate(families):
            row = {"id": f"{source}-{split}-{rank}", "family": f"{source}-{family}", "rank": rank}
            row |= {"domain": source, "split": split}
            rows.append(row | {"tokens": TOKENS[rank], "min_k_40": -1.0 - rank})
    return pd.DataFrame(rows)


def measured(domain, mean, **means):
    """Rows with the same mean loss everywhere, or by split a mean or one of each document."""
    rows = documents(domain)
    of_each = []
    for split, part in rows.groupby("split", sort=False):
        of_each += list(np.broadcast_to(means.get(split, mean), len(part)))
    return rows.assign(nll=rows.tokens * np.array(of_each, float))


def baselines(target, retrained):
    """As `pool.measure_baselines`: each model on every domain.

    retrained: by domain, the rows of the model without that domain, on that domain.
    """
    of_github = target["github"][target["github"].domain == "github"]
    frames = [target["arxiv"].assign(model="target"), of_github.assign(model="target")]
    for domain, own in retrained.items():
        model = f"retrained without {domain}"
        other = "github" if domain == "arxiv" else "arxiv"
        away = measured(other, 99)  # not what this domain's runs are compared with
        away = away[away.domain != "general"]
        frames += [own.assign(model=model), away.assign(model=model)]
    noise = pd.concat([measured(domain, 77) for domain in PROFILE.domains]).drop_duplicates("id")
    frames.append(noise.assign(model="retrained without github, seed 1"))
    return pd.concat(frames, ignore_index=True)


BASELINES = baselines(
    {"arxiv": measured("arxiv", 1, evaluation=4), "github": measured("github", 2, evaluation=4)},
    {"arxiv": measured("arxiv", 3, evaluation=5), "github": measured("github", 6, evaluation=7)},
)


def of_run(setting, by_mark):
    """As `grid.grid_rows`: the rows of one run at each mark that it reached."""
    frames = [rows.assign(step=round(4 * mark), epoch=mark) for mark, rows in by_mark.items()]
    return pd.concat(frames, ignore_index=True).assign(**asdict(setting))


def levels(runs, half=None, known=BASELINES, seed=0, profile=PROFILE):
    """Log perplexities of rows in any order."""
    rows = pd.concat([of_run(*run) for run in runs.items()], ignore_index=True)
    rows = rows.sample(frac=1, random_state=0)
    known = known.sample(frac=1, random_state=1)
    return robustness.log_perplexities(profile, list(runs), rows, known, seed, half)


ARXIV = Setting("arxiv", "gradient_ascent", 1e-3, 2)
GITHUB = Setting("github", "gradient_ascent", 1e-3, 2)
BOTH = {mark: measured("arxiv", mark) for mark in (0.5, 1.0)}


def at_both_marks(rows):
    return {0.5: rows, 1.0: rows}


# ------------------------------------------------------------------------------- log perplexities


def test_log_perplexities_weigh_tokens_not_documents():
    """Losses a token of 1, 2, 3, 4 on documents of 1, 2, 3, 4 tokens: (1 + 4 + 9 + 16) / 10.

    Without the last they are (1 + 4 + 9) / 6.
    """
    each = [1, 2, 3, 4]
    rows = measured(
        "arxiv", 0, forget=each, approximate=[2, 2, 2, 7], retain=each[:3], evaluation=[5, 5, 8]
    )
    found = levels({ARXIV: {0.5: rows, 1.0: measured("arxiv", 9)}})
    assert found.own["forget"][0].tolist() == pytest.approx([30 / 10, 9])
    assert found.own["approximate"][0].tolist() == pytest.approx([(2 + 4 + 6 + 28) / 10, 9])
    assert found.own["retain"][0].tolist() == pytest.approx([14 / 6, 9])
    assert found.own["evaluation"][0].tolist() == pytest.approx([(5 + 10 + 24) / 6, 9])


def test_there_is_a_row_for_the_value_and_for_each_resample():
    found = levels({ARXIV: BOTH, GITHUB: at_both_marks(measured("github", 1))})
    for part in (found.own, found.retrained, found.target):
        assert tuple(part) == SPLITS
        assert all(values.shape == (1 + 60, 4) for values in part.values())
    assert found.auc.shape == (4,)
    assert found.cells[grid.COLUMNS].equals(grid.cells(PROFILE, [ARXIV, GITHUB]))


def test_n_is_the_number_of_families_of_the_smallest_split():
    """Four forget documents are of three families; there are three retain documents.

    In the first half two forget documents are a and b.
    """
    assert levels({ARXIV: BOTH}).n == 3
    assert levels({ARXIV: BOTH}, half=selection.REPORT).n == 1

    def in_one_family(rows):
        return rows.assign(family=rows.family.mask(rows.split == "forget", "f"))

    runs = {ARXIV: {0.5: in_one_family(BOTH[0.5])}}
    assert levels(runs, known=in_one_family(BASELINES)).n == 1


def test_target_and_retrained_levels_are_the_domain_s():
    runs = {ARXIV: BOTH, GITHUB: at_both_marks(measured("github", 8))}
    expected = {"arxiv": (1, 3, 5), "github": (2, 6, 7)}
    for order in (runs, dict(reversed(runs.items()))):
        found = levels(order)
        for cell, domain in enumerate(found.cells.target_domain):
            target, retrained, general = expected[domain]
            for split in SPLITS[:3]:
                assert found.target[split][:, cell] == pytest.approx(target)
                assert found.retrained[split][:, cell] == pytest.approx(retrained)
            assert found.target["evaluation"][:, cell] == pytest.approx(4)
            assert found.retrained["evaluation"][:, cell] == pytest.approx(general)


def test_cells_that_differ_in_one_thing_keep_their_own_rows():
    """Domains take turns in the settings: cells come by domain, with their values."""
    changes = [
        {},
        {"method": "adversarial"},
        {"learning_rate": 4e-3},
        {"batch": 4},
        {"retain_weight": 3.0},
        {"seed": 1},
        {"retain_documents": 2},
        {"retain_documents": 4},
    ]
    runs = {}
    wanted = {}
    for change in changes:
        for first in (ARXIV, GITHUB):
            setting = replace(first, **change)
            tens = 10 * len(runs)
            runs[setting] = {}
            for mark in (0.5, 1.0):
                wanted[setting, mark] = tens + mark
                runs[setting][mark] = measured(setting.target_domain, tens + mark)
    found = levels(runs)
    assert found.cells.target_domain.tolist() == ["arxiv"] * 16 + ["github"] * 16
    for cell, row in enumerate(found.cells.itertuples(index=False)):
        few = None if row.retain_documents is pd.NA else int(row.retain_documents)
        setting = Setting(*row[:6], few)
        assert found.own["forget"][0, cell] == pytest.approx(wanted[setting, row.epoch])
    part = found.subset(found.cells.seed == 1)
    assert part.own["retain"][0].tolist() == pytest.approx([100.5, 101, 110.5, 111])
    assert part.cells.index.tolist() == [0, 1, 2, 3]
    assert part.n == found.n and part.target["forget"].shape == (61, 4) and part.auc.shape == (4,)
    assert (
        found.of_method("adversarial").cells.target_domain.tolist()
        == ["arxiv"] * 2 + ["github"] * 2
    )


@pytest.mark.parametrize(
    ("half", "expected"), [(None, 30 / 10), (0, (1 + 9) / 4), (1, (4 + 16) / 6)]
)
def test_a_half_is_every_second_document(half, expected):
    """Of the run, of the target and of the retrained model alike."""
    rows = measured("arxiv", 1, forget=[1, 2, 3, 4])
    known = baselines(
        {"arxiv": rows, "github": measured("github", 2)},
        {"arxiv": rows, "github": measured("github", 6)},
    )
    found = levels({ARXIV: at_both_marks(rows)}, half, known)
    for part in (found.own, found.target, found.retrained):
        assert part["forget"][0].tolist() == pytest.approx([expected] * 2)


def test_missing_marks_are_infinite():
    """One run ended before its second mark, in another a document has no number."""
    broken = measured("arxiv", 2)
    first = (broken.split == "forget") & (broken["rank"] == 0)
    broken.loc[first, ["nll", "min_k_40"]] = np.nan
    ended = {0.5: measured("arxiv", 2)}
    found = levels({ARXIV: ended, replace(ARXIV, seed=1): {0.5: broken, 1.0: measured("arxiv", 3)}})
    for split in SPLITS:
        expected = [False, True, split == "forget", False]
        assert np.isposinf(found.own[split]).tolist() == [expected] * 61
        assert not np.isnan(found.own[split]).any()
    assert np.isnan(found.auc).tolist() == [False, True, True, False]
    assert not robustness.acceptable(found)[:, :2].any()


def test_a_loss_beyond_all_numbers_is_infinite():
    rows = measured("arxiv", 2, forget=np.inf)
    found = levels({ARXIV: {0.5: rows, 1.0: measured("arxiv", 2)}})
    assert np.isposinf(found.own["forget"][:, 0]).all()
    assert found.own["forget"][:, 1] == pytest.approx(2)


def scored(forget, approximate):
    """Rows with these scores."""
    rows = measured("arxiv", 1)
    rows.loc[rows.split == "forget", "min_k_40"] = forget
    rows.loc[rows.split == "approximate", "min_k_40"] = approximate
    return rows


def test_auc_by_hand():
    """Members -1 and -2 against -1.5 and -3 win three of four; equal scores are half a win."""
    first = scored([-1, -2, -1, -2], [-1.5, -3, -1.5, -3])
    second = scored([-5, -5, -5, -5], [-5, -5, -5, -1])
    found = levels({ARXIV: {0.5: first, 1.0: second}})
    assert found.auc.tolist() == pytest.approx([3 / 4, 3 / 8])


@pytest.mark.parametrize(("half", "expected"), [(None, 1 / 2), (0, 1), (1, 0)])
def test_auc_of_a_half(half, expected):
    rows = scored([-1, -9, -1, -9], [-2, -8, -2, -8])
    assert levels({ARXIV: {0.5: rows}}, half).auc[0] == pytest.approx(expected)


# --------------------------------------------------------------------------------------- resamples


MIXED = measured(
    "arxiv",
    1,
    forget=[1, 3, 5, 9],
    approximate=[2, 4, 6, 8],
    retain=[1, 2, 4],
    evaluation=[3, 5, 6],
)


def test_resamples_are_shared_by_cells_target_and_retrained():
    """Identical rows give identical draws; else a difference of cells had the documents' noise."""
    known = baselines(
        {"arxiv": MIXED, "github": measured("github", 2)},
        {"arxiv": MIXED, "github": measured("github", 6)},
    )
    another = {0.5: MIXED, 1.0: measured("arxiv", 1)}
    found = levels({ARXIV: at_both_marks(MIXED), replace(ARXIV, seed=1): another}, known=known)
    for split in SPLITS:
        own = found.own[split]
        assert len(np.unique(own[:, 0])) > 3
        alike = [own[:, 1], own[:, 2], found.target[split][:, 0], found.retrained[split][:, 3]]
        for other in alike:
            assert other.tolist() == pytest.approx(own[:, 0].tolist(), rel=1e-12)
        assert own[:, 3] == pytest.approx(1)


def test_general_documents_are_drawn_alike_in_every_domain():
    runs = {}
    for setting in (ARXIV, GITHUB):
        general = measured(setting.target_domain, 1, evaluation=[3, 5, 6])
        runs[setting] = {0.5: general, 1.0: measured(setting.target_domain, 1)}
    found = levels(runs).own["evaluation"]
    assert found[:, 0].tolist() == found[:, 2].tolist()
    assert len(np.unique(found[:, 0])) > 3


def test_draws_depend_on_the_seed_alone():
    runs = {ARXIV: at_both_marks(MIXED)}
    first, again, other = (levels(runs, seed=seed).own["forget"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first[0].tolist() == other[0].tolist()
    for more in ({GITHUB: BOTH}, {replace(ARXIV, seed=1): BOTH}):  # more cells, the same draws
        assert np.array_equal(levels(runs | more).own["forget"][:, :2], first)
    fewer = levels(runs, profile=replace(PROFILE, resamples=7))
    assert fewer.own["forget"].shape == (8, 2)


def test_families_are_drawn_whole():
    """Three families with (tokens, loss) of (3, 7), (3, 15) and (4, 36), drawn three times.

    So the first two documents are always together.
    """
    sums = set()
    for draw in itertools.product([(3, 7), (3, 15), (4, 36)], repeat=3):
        tokens, loss = np.sum(draw, axis=0)
        sums.add(loss / tokens)
    found = levels({ARXIV: {0.5: MIXED}}).own["forget"][:, 0]
    assert found[0] == pytest.approx(58 / 10)
    assert all(min(abs(value - one) for one in sums) < 1e-9 for value in found)
    assert len(np.unique(found.round(9))) > 5


# ------------------------------------------------------------------------------- acceptable cells


def made(cells, own, target=None, retrained=None, auc=None, n=5):
    """Log perplexities set by hand.

    own: by split, (cells,) or (1 + resamples, cells). target, retrained: a number a split, else 0.
    """
    table = pd.DataFrame([CELL | cell for cell in cells])[grid.COLUMNS]
    draws = max(np.atleast_2d(values).shape[0] for values in own.values())
    shape = (draws, len(table))

    def filled(part):
        of_split = {split: (part or {}).get(split, 0.0) for split in SPLITS}
        return {s: np.array(np.broadcast_to(x, shape), float) for s, x in of_split.items()}

    if auc is None:
        auc = np.full(len(table), 0.5)
    parts = [filled(part) for part in (own, retrained, target)]
    return LogPerplexities(table, *parts, np.array(auc, float), n)


def test_gap_and_rise_by_hand():
    own = {"forget": [3, 5], "evaluation": [4, 4.5], "retain": [1, 2]}
    found = made([{}, {}], own, target={"evaluation": 4}, retrained={"forget": 4, "retain": 2})
    assert robustness.gap(found).tolist() == [[-1, 1]]
    assert robustness.gap(found, "retain").tolist() == [[-1, 0]]
    assert robustness.rise(found).tolist() == [[0, 0.5]]


def test_the_band_holds_its_edges_and_lies_on_both_sides():
    """A band of 0.25 around 2, all exact in binary."""
    beyond = [np.nextafter(1.75, 0), np.nextafter(2.25, 3)]
    found = made([{}] * 6, {"forget": [1.75, 2, 2.25, *beyond, np.inf]}, retrained={"forget": 2})
    assert selection.BAND == 0.25
    assert robustness.acceptable(found).tolist() == [[True] * 3 + [False] * 3]
    assert robustness.acceptable(found, band=0.0).tolist() == [[False, True] + [False] * 4]
    assert robustness.acceptable(found, band=0.5).tolist() == [[True] * 5 + [False]]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (0.1, [False, True, True, False, False]),
        (0.0, [False, False, True, False, False]),
        (0.2, [True, True, True, True, False]),
    ],
)
def test_the_bound_leaves_out_its_edge_and_is_on_the_target(bound, expected):
    """Ten percent more than the target's perplexity is too much; any number less is fine.

    The retrained model plays no part.
    """
    edge = np.log1p(0.1)
    general = [edge, np.nextafter(edge, 0), -3, np.nextafter(edge, 1), np.inf]
    found = made([{}] * 5, {"evaluation": general}, retrained={"evaluation": 9})
    assert robustness.acceptable(found, bound=bound).tolist() == [expected]
    assert selection.BOUND == 0.10
    usual = robustness.acceptable(found).tolist()
    assert usual == robustness.acceptable(found, bound=0.1).tolist()


def test_acceptable_needs_both_on_every_resample():
    found = made([{}, {}], {"forget": [[0, 0], [0, 1]], "evaluation": [[0, 1], [0, 0]]})
    assert robustness.acceptable(found).tolist() == [[True, False], [True, False]]


def test_share_by_hand():
    ok = np.array([[1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    assert robustness.share(ok).tolist() == [0.5, 0.75, 0]


RATES, MARKS = (1e-4, 1e-3, 1e-2), (0.5, 1.0)


def width_of(*good, rates=RATES, shuffle=0):
    """Width where the cells (rate number, mark number, domain number) are acceptable."""
    every = list(itertools.product(range(len(rates)), (0, 1), (0, 1)))
    order = np.random.default_rng(shuffle).permutation(len(every))
    every = [every[place] for place in order]
    settings = []
    for rate, mark, domain in every:
        setting = {"learning_rate": rates[rate], "epoch": MARKS[mark]}
        settings.append(setting | {"target_domain": PROFILE.domains[domain]})
    cells = made(settings, {"forget": 0}).cells
    ok = np.array([[False] * len(every), [cell in good for cell in every]])
    return robustness.width(ok, cells).tolist()


@pytest.mark.parametrize(
    ("good", "decades"),
    [
        ([], 0),
        ([(1, 0, 0)], 1),  # one rate: the grid's spacing, here a decade
        ([(0, 0, 0), (1, 0, 0)], 2),
        ([(1, 1, 1), (2, 1, 1)], 2),
        ([(0, 0, 0), (1, 0, 0), (2, 0, 0)], 3),
        ([(0, 0, 0), (2, 0, 0)], 1),  # no neighbours
        ([(0, 0, 0), (1, 1, 0)], 1),  # at different marks
        ([(0, 0, 0), (1, 0, 1)], 1),  # of different domains
        ([(1, 0, 0), (1, 1, 0)], 1),  # marks of one rate
        ([(0, 0, 0), (2, 0, 0), (1, 1, 1), (2, 1, 1)], 2),  # the widest counts
    ],
)
def test_width_by_hand(good, decades):
    for shuffle in range(3):
        assert width_of(*good, shuffle=shuffle) == pytest.approx([0, decades])


def test_width_is_in_the_grid_s_own_spacing():
    """Six rates over two decades: 0.4 each."""
    rates = tuple(10 ** (-4 + 0.4 * place) for place in range(6))
    assert width_of((2, 0, 0), rates=rates) == pytest.approx([0, 0.4])
    good = [(2, 0, 0), (3, 0, 0), (4, 0, 0), (0, 1, 0)]
    assert width_of(*good, rates=rates) == pytest.approx([0, 1.2])


def shared():
    """Four cells of ascent, (value, three resamples) with 2, 0, 2 and 4 of them acceptable.

    Of descent 3, 1, 3, 4 are, on the same resamples.
    """
    cells = []
    for method in ("gradient_ascent", "descent"):
        for rate in (1e-3, 1e-2):
            for mark in MARKS:
                cells.append({"method": method, "learning_rate": rate, "epoch": mark})
    ascent = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]]
    descent = [[1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    return made(cells, {"forget": 1 - np.hstack([ascent, descent])}, n=7)


def test_shares_by_hand():
    """Of three resamples the 2.5% quantile is a twentieth of the way from lowest to middle."""
    found = robustness.shares(shared())
    assert list(found.columns) == ["method", "measure", "value", "low", "high", "n"]
    assert set(found.n) == {7}
    rows = {}
    for row in found.itertuples():
        rows[row.method, row.measure] = (row.value, row.low, row.high)
    assert rows == {
        ("gradient_ascent", "acceptable share"): pytest.approx((0.5, 0.025, 0.975)),  # 0, 1/2, 1
        ("descent", "acceptable share"): pytest.approx((0.75, 0.275, 0.9875)),  # 1/4, 3/4, 1
        ("gradient_ascent", "width (decades)"): pytest.approx((1, 0.05, 1.95)),  # 0, 1, 2 rates
        ("descent", "width (decades)"): pytest.approx((2, 1.05, 2)),  # 1, 2, 2
        ("gradient_ascent", "share - ascent's"): (0, 0, 0),
        # 1/4, 1/4, 0: the same resamples
        ("descent", "share - ascent's"): pytest.approx((0.25, 0.0125, 0.25)),
    }
    assert len(rows) == len(found)


@pytest.mark.parametrize(
    ("band", "bound", "expected"),
    [(0.25, 0.1, [0, 0]), (0.25, 0.3, [0.5, 0.75]), (1.0, 0.3, [1, 1])],
)
def test_shares_take_their_band_and_bound(band, bound, expected):
    general = {"evaluation": np.full((4, 8), 0.2)}
    found = shared()._replace(own=shared().own | general)
    table = robustness.shares(found, band, bound)
    assert table[table.measure == "acceptable share"].value.tolist() == expected


def test_shares_without_gradient_ascent_say_nothing_of_it():
    """As where the weight of the retain term is varied: no warning, and the other two measures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = robustness.shares(shared().of_method("descent")).dropna()
    expected = [["acceptable share", 0.75], ["width (decades)", 2.0]]
    assert table[["measure", "value"]].values.tolist() == expected


def test_the_interval_of_what_is_infinite_is_infinite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = robustness.interval_of(np.full(9, np.inf), 3)
    assert found == Interval(np.inf, np.inf, np.inf, 3)


# ------------------------------------------------------------------- what a rule of tuning costs


def test_distance_is_the_mean_over_four_kinds_of_text():
    own = {"forget": [1, 2], "approximate": [3, 2], "retain": [0, 2], "evaluation": [6, np.inf]}
    found = made([{}, {}], own, retrained=dict.fromkeys(SPLITS, 2), target={"forget": 50})
    assert robustness.distance(found).tolist() == [[(1 + 1 + 2 + 4) / 4, np.inf]]


def test_a_run_that_has_ended_is_as_far_as_where_runs_are_ended():
    """At 9 here; in `log_perplexities` at ten times a guess among 1,024 tokens."""
    found = made([{}] * 3, {"forget": [np.inf, 50, 3]}, retrained={"forget": 2})
    found = found._replace(worst=9.0)
    assert robustness.distance(found).tolist() == [[7 / 4, 7 / 4, 1 / 4]]
    assert robustness.gap(found).tolist() == [[np.inf, 48, 1]]
    first = found.subset([True, False, False])
    assert robustness.distance(first).tolist() == [[7 / 4]]
    assert levels({ARXIV: BOTH}).worst == pytest.approx(np.log(10240))


def test_what_each_rule_misses_by_hand():
    """Cells below and above the target's level on unseen text, at it, past the bound, diverged.

    As measured, not on resamples.
    """
    own = {
        "forget": [[2, 5, 3, 3, np.inf], [9] * 5],
        "evaluation": [[0, 0.09, 0, 0.1, np.inf], [9] * 5],
    }
    auc = [0.4, 0.9, 0.5, 0.5, np.nan]
    found = made([{}] * 5, own, {"approximate": 3}, {"forget": 8}, auc)
    assert robustness.by_proxy(found).tolist() == [1, 2, 0, np.inf, np.inf]
    missed = robustness.by_membership(found).tolist()
    assert missed == pytest.approx([0.1, 0.4, 0, np.inf, np.inf])
    again = found._replace(auc=np.array([np.nan, 0.9, 0.5, 0.5, 0.5]))
    missed = robustness.by_membership(again).tolist()
    assert missed == pytest.approx([np.inf, 0.4, 0, np.inf, np.inf])


PROXY, STEPS, FIXED, MEMBERSHIP = robustness.GUIDELINES
GRID = [{"learning_rate": rate, "epoch": mark} for rate in (1e-3, 4e-3) for mark in MARKS]
assert grid.usual_rate(PROFILE) == 1e-3  # the first


def cells(forget, general=(0, 0, 0, 0), auc=(0.5,) * 4, **changes):
    """Log perplexities of one method at two rates and two marks.

    The target's on unseen text is 3, the retrained model's on the forget set 2.
    """
    if np.ndim(forget) == 1:
        forget = [forget] * 2  # one resample at least
    settings = [cell | changes for cell in GRID]
    own = {"forget": forget, "evaluation": general}
    return made(settings, own, {"approximate": 3}, {"forget": 2}, auc)


def joined(*parts, order=slice(None)):
    """Log perplexities side by side, their cells in another order."""
    sides = []
    for name in ("own", "retrained", "target"):
        side = {}
        for split in SPLITS:
            side[split] = np.hstack([getattr(part, name)[split] for part in parts])[:, order]
        sides.append(side)
    table = pd.concat([part.cells for part in parts], ignore_index=True)
    table = table.iloc[order].reset_index(drop=True)
    auc = np.concatenate([part.auc for part in parts])[order]
    return LogPerplexities(table, *sides, auc, min(part.n for part in parts))


def rows_of(table, **wanted):
    """(rate, mark, value) of each guideline."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    found = {}
    for row in table.itertuples():
        found[row.guideline] = (row.learning_rate, row.epoch, pytest.approx(row.value))
    return found


TOO_MUCH = 0.2
FIRST = cells([1.0, 2.1, 2.9, 3.0], (0, 0, 0, TOO_MUCH), (0.9, 0.7, 0.56, 0.5))


def test_regrets_by_hand():
    """Best on the first half: (1e-3, 1), 0.1 / 4 away.

    On the other half that is 0.4 / 4 away, and (4e-3, 0.5) 0.8 / 4. The proxy is met exactly by the
    cell past the bound, and next by (4e-3, 0.5); at the usual rate by (1e-3, 1).
    """
    table = robustness.regrets(PROFILE, FIRST, cells([1.2, 2.4, 2.8, 2.0]))
    assert rows_of(table, method="gradient_ascent", target_domain="arxiv") == {
        PROXY: (4e-3, 0.5, 0.1),
        STEPS: (1e-3, 1.0, 0),
        FIXED: (1e-3, 1.0, 0),
        MEMBERSHIP: (4e-3, 0.5, 0.1),
    }
    keys = ["guideline", "method", "target_domain", "learning_rate", "epoch"]
    assert list(table.columns) == [*keys, "value", "low", "high", "n"]
    assert len(table) == 8 and (table.n == 5).all()


def test_regret_is_nothing_where_every_guideline_picks_the_best_cell():
    """The usual rate after one epoch: at the retrained model's level, at AUC 1/2."""
    best = cells([5, 2, 5, 5], auc=(0.9, 0.5, 0.9, 0.9))
    table = robustness.regrets(PROFILE, best, cells([9, 8, 7, 6]))
    assert set(table.guideline) == set(robustness.GUIDELINES)
    assert (table[["value", "low", "high"]] == 0).all(axis=None)
    picked = table[table.method != "mean"]
    assert (picked.learning_rate == 1e-3).all() and (picked.epoch == 1).all()


@pytest.mark.parametrize(("general", "expected"), [(TOO_MUCH, 0.5), (0.0, 1.0)])
def test_the_bound_keeps_a_rule_from_a_cell(general, expected):
    found = cells([1.0, 2.1, 2.9, 3.0], (0, 0, 0, general), (0.9, 0.7, 0.56, 0.5))
    rows = rows_of(robustness.regrets(PROFILE, found, found), target_domain="arxiv")
    assert rows[PROXY][:2] == rows[MEMBERSHIP][:2] == (4e-3, expected)


@pytest.mark.parametrize("bad", [0.0, 50.0])
def test_usual_rate_one_epoch_is_that_cell_whatever_is_measured(bad):
    """Also where it is the worst, past the bound or diverged on the first half."""
    chosen = cells([2, bad, 2, 2], (0, 9, 0, 0), (0.5, np.nan, 0.5, 0.5))
    table = robustness.regrets(PROFILE, chosen, cells([2, 6, 2, 2]))
    assert rows_of(table, target_domain="arxiv")[FIXED] == (1e-3, 1.0, 1.0)


def test_the_usual_rate_is_the_profile_s():
    other = replace(PROFILE, unlearning=Unlearning(learning_rate=9e-3))
    table = robustness.regrets(other, FIRST, FIRST)
    assert rows_of(table, target_domain="arxiv")[FIXED][:2] == (4e-3, 1.0)


def test_a_rule_keeps_to_the_usual_rate_even_if_nothing_there_respects_the_bound():
    """The other rate comes first in the grid, so that a choice among nothing would show."""
    turned = replace(PROFILE, unlearning=Unlearning(learning_rate=4e-3))
    chosen = cells([2, 2, 3, 3], (0, 0, TOO_MUCH, TOO_MUCH))
    table = robustness.regrets(turned, chosen, cells([2, 2, 6, 6]))
    assert rows_of(table, target_domain="arxiv")[STEPS][0] == 4e-3


def test_a_regret_may_be_negative():
    """The best cell of the first half is not that of the other."""
    table = robustness.regrets(PROFILE, cells([2, 2.5, 3, 9]), cells([3, 2.5, 2, 9]))
    found = rows_of(table, target_domain="arxiv")
    assert found[PROXY] == (4e-3, 0.5, -0.25) and found[FIXED] == (1e-3, 1.0, -0.125)


def test_regrets_are_by_method_and_domain_and_their_mean():
    """Cells in any order; the mean weighs each method of each domain the same."""
    second = cells([2.0, 6.0, 3.0, 9.0], method="adversarial", auc=(0.9, 0.9, 0.5, 0.9))
    third = cells([9.0, 9.0, 9.0, 2.9], target_domain="github", auc=(0.9, 0.9, 0.9, 0.5))
    order = np.random.default_rng(0).permutation(12)
    parts = joined(FIRST, second, third, order=order)
    table = robustness.regrets(PROFILE, parts, parts)

    ascent = rows_of(table, method="gradient_ascent", target_domain="arxiv")
    adversarial = rows_of(table, method="adversarial")
    github = rows_of(table, target_domain="github")
    assert ascent[PROXY] == (4e-3, 0.5, 0.9 / 4 - 0.1 / 4)
    assert adversarial[PROXY] == (4e-3, 0.5, 1 / 4)
    assert adversarial[FIXED] == (1e-3, 1.0, 4 / 4)
    assert github[PROXY] == (4e-3, 1.0, 0)
    assert github[FIXED] == (1e-3, 1.0, 7 / 4 - 0.9 / 4)
    means = table[table.method == "mean"].set_index("guideline").value
    assert len(table) == 3 * 4 + 4 and means[PROXY] == pytest.approx((0.8 / 4 + 1 / 4 + 0) / 3)
    assert means[FIXED] == pytest.approx((0 + 4 / 4 + 6.1 / 4) / 3)


def test_a_regret_is_a_difference_on_the_same_resamples():
    """Both cells move together: a difference of 0.1 on two resamples, of 0.3 on the third.

    Of a second method, whose best is the first cell, it is -1.55 as measured and -1.3, -1.05, -0.7:
    means -0.725 and -0.6, -0.475, -0.2.
    """
    reported = cells([[9, 2.4, 2.8, 9], [9, 3.4, 3.8, 9], [9, 4.4, 4.8, 9], [9, 5.0, 6.2, 9]])
    row = robustness.regrets(PROFILE, FIRST, reported).iloc[0]
    assert row.guideline == PROXY
    assert (row.value, row.low, row.high) == pytest.approx((0.1, 0.1, 0.1 + 0.95 * 0.2))

    second = cells([2, 9, 3, 9], method="adversarial")
    table = robustness.regrets(PROFILE, joined(FIRST, second), joined(reported, reported))
    mean = table[(table.method == "mean") & (table.guideline == PROXY)].iloc[0]
    expected = (-1.45 / 2, -0.6 + 0.05 * 0.125, -0.475 + 0.95 * 0.275)
    assert (mean.value, mean.low, mean.high) == pytest.approx(expected)
