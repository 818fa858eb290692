"""The hyperparameter study's settings, counted by hand, and its runs at a scale of seconds."""

import math
import pickle
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.cache import store
from unlearn_utils.core import membership
from unlearn_utils.core.methods import METHODS, get_method
from unlearn_utils.engine import evaluation, models, training
from unlearn_utils.findings import robustness
from unlearn_utils.profiles import PROFILES, Corpus, Grid, Pretraining, Shape, Unlearning
from unlearn_utils.study import grid, pool, selection, single_run, study_documents
from unlearn_utils.study.grid import Setting

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=3),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=8, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=1),
    grid=Grid(
        learning_rates=(5e-4, 2e-3),
        marks=(0.5, 1.0, 2.0),
        domains=("arxiv", "github"),
        retain_documents=(2,),
    ),
    domains=("arxiv", "github"),
    noise_domain="github",
    workers=1,
    resamples=20,
)
MARKS = [0.5, 1.0, 2.0]
ASCENT = Setting("arxiv", "gradient_ascent", 2e-3, 1)
DESCENT = Setting("github", "ascent_descent_in_distribution", 2e-3, 1)
FEW = replace(DESCENT, retain_documents=2)
LABELS = Setting("arxiv", "random_label", 5e-4, 2, seed=1)
WEIGHED = Setting("arxiv", "ascent_kl_general", 2e-3, 1, retain_weight=3.0)
DIVERGING = replace(ASCENT, learning_rate=0.1)
SETTINGS = [ASCENT, DESCENT, FEW, LABELS, WEIGHED, DIVERGING]
# by batch, the step of each mark: of 4 documents, once or twice
STEPS = {1: {0.5: 2, 1.0: 4, 2.0: 8}, 2: {0.5: 1, 1.0: 2, 2.0: 4}}
SIZES = {"forget": 4, "approximate": 4, "retain": 3, "evaluation": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with the baselines and the runs of SETTINGS; and the job of each unlearning."""
    jobs = []
    real = training.unlearn

    def unlearn(model, job, execution):
        jobs.append(job)
        return real(model, job, execution)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("grid") / "store"))
        patch.setenv("UNLEARN_PROGRESS", str(tmp_path_factory.mktemp("progress") / "lines"))
        for name in ("UNLEARN_FRESH", "UNLEARN_WORKERS"):
            patch.delenv(name, raising=False)
        patch.setattr(training, "unlearn", unlearn)
        patch.setattr(models, "half_precision", lambda: False)
        study_documents.data.cache_clear()
        study_documents.fingerprint.cache_clear()
        study_documents.tokenizer.cache_clear()
        rows = grid.grid_rows(TINY, SETTINGS)
        patch.setattr(training, "unlearn", real)
        yield {
            "jobs": dict(zip(SETTINGS, jobs, strict=True)),
            "rows": rows,
            "baselines": pool.measure_baselines(TINY),
        }


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


def rows_of(world, setting):
    """Return the rows of one run among those of all."""
    rows = world["rows"]
    same = np.ones(len(rows), bool)
    for name, value in asdict(setting).items():
        same &= rows[name].isna() if value is None else rows[name] == value
    return rows[same]


def stored_rows(setting):
    return pd.read_parquet(grid.grid_run(TINY, setting).folder() / "rows.parquet")


def measured_documents(setting):
    parts = study_documents.measured_parts([setting.target_domain])
    return study_documents.tokenized(TINY, parts, 3)


def setting_of(cell):
    """Return the setting of a row of `grid.cells`."""
    fields = {name: getattr(cell, name) for name in asdict(ASCENT)}
    few = fields["retain_documents"]
    fields["retain_documents"] = None if few is pd.NA else int(few)
    return Setting(**fields)


def by_hand(setting, epochs, steps=None):
    """Return the model after a run of so many epochs, ended after so many steps."""
    recipe = replace(
        TINY.unlearning,
        learning_rate=setting.learning_rate,
        batch=setting.batch,
        retain_weight=setting.retain_weight,
        epochs=epochs,
    )
    run = single_run.Run(
        TINY,
        setting.target_domain,
        setting.method,
        recipe,
        setting.seed,
        setting.retain_documents,
    )
    start = pool.target(TINY).folder()
    outcome = single_run.execute(run, start, steps=steps)
    return single_run.load_with_weights(start, outcome.weights)


# ------------------------------------------------------------------------------------ the settings


def kinds(profile):
    """Return the settings by what is varied in them, beside method and learning rate."""
    own = profile.unlearning
    found = {}
    for setting in grid.plan(profile):
        varied = {
            "batch": setting.batch != own.batch,
            "retain_weight": setting.retain_weight != own.retain_weight,
            "seed": setting.seed != 0,
            "retain_documents": setting.retain_documents is not None,
        }
        kind = " ".join(name for name, differs in varied.items() if differs)
        found.setdefault(kind, []).append(setting)
    return found


def values(settings, name):
    return {getattr(setting, name) for setting in settings}


def test_the_settings_of_laptop_by_hand():
    """7 methods at 6 rates on one domain; 4 of them with 3 numbers of retain documents."""
    found = kinds(PROFILES["laptop"])
    sizes = {kind: len(settings) for kind, settings in found.items()}
    assert sizes == {"": 7 * 6, "retain_documents": 3 * 4}
    for settings in found.values():
        assert values(settings, "target_domain") == {"arxiv"}


def test_the_settings_of_the_study_by_hand():
    """7 x 6 on three domains, and more on the first alone.

    Those are another batch, two weights for 4 methods, two more seeds, and few retain documents.
    """
    found = kinds(PROFILES["study"])
    assert {kind: len(settings) for kind, settings in found.items()} == {
        "": 7 * 6 * 3,
        "batch": 7 * 6,
        "retain_weight": 2 * 4 * 6,
        "seed": 2 * 7 * 6,
        "retain_documents": 3 * 4,
    }
    domains = [setting.target_domain for setting in found.pop("")]
    assert domains == ["arxiv"] * 42 + ["books"] * 42 + ["github"] * 42
    for settings in found.values():
        assert values(settings, "target_domain") == {"arxiv"}
    assert values(found["batch"], "batch") == {8}
    assert values(found["seed"], "seed") == {1, 2}
    assert values(found["retain_weight"], "retain_weight") == {0.3, 3.0}


@pytest.mark.parametrize("name", list(PROFILES))
def test_no_setting_comes_twice_and_every_combination_once(name):
    profile = PROFILES[name]
    plan = grid.plan(profile)
    assert len(plan) == len(set(plan))
    found = kinds(profile)
    every = set()
    for domain in profile.grid.domains:
        for method in METHODS:
            every |= {(domain, method, rate) for rate in profile.grid.learning_rates}
    proper = found[""]
    assert {(one.target_domain, one.method, one.learning_rate) for one in proper} == every
    assert len(proper) == len(every)
    few = found["retain_documents"]
    assert values(few, "learning_rate") == {grid.usual_rate(profile)}
    assert values(few, "retain_documents") == set(profile.grid.retain_documents)


@pytest.mark.parametrize("name", list(PROFILES))
def test_retain_text_is_varied_for_the_methods_that_read_it(name):
    reading = {name for name, method in METHODS.items() if method.retain is not None}
    assert 0 < len(reading) < len(METHODS)
    found = kinds(PROFILES[name])
    assert values(found["retain_documents"], "method") == reading
    if "retain_weight" in found:
        assert values(found["retain_weight"], "method") == reading


@pytest.mark.parametrize(
    ("own", "rates", "expected"),
    [
        (4e-4, (1e-4, 1e-3), 1e-3),
        (3e-4, (1e-4, 1e-3), 1e-4),
        (1e-3, (1e-3, 1.1e-3), 1e-3),
        (9.0, (1e-4, 1e-3), 1e-3),
    ],
)
def test_the_usual_rate_is_the_nearest_by_ratio(own, rates, expected):
    """4e-4 is nearer to 1e-4 by difference, but to 1e-3 by ratio: 4 against 2.5."""
    profile = replace(TINY, unlearning=Unlearning(learning_rate=own))
    for order in (rates, rates[::-1]):
        with_rates = replace(profile, grid=replace(TINY.grid, learning_rates=order))
        assert grid.usual_rate(with_rates) == expected


@pytest.mark.parametrize("name", ["laptop", "study"])
def test_the_usual_rate_of_laptop_and_study(name):
    """5e-4 lies a factor of 1.67 above 3e-4 and of 1.6 under 8e-4."""
    assert grid.usual_rate(PROFILES[name]) == 8e-4


@pytest.mark.parametrize("name", list(PROFILES))
def test_marks_of_the_profiles_fall_on_different_steps_within_the_run(name):
    profile = PROFILES[name]
    documents = profile.corpus.pairs
    epochs = math.ceil(profile.grid.marks[-1])
    assert 1.0 in profile.grid.marks
    for batch in (profile.unlearning.batch, *profile.grid.batches):
        steps = [max(1, round(mark * documents / batch)) for mark in profile.grid.marks]
        assert sorted(set(steps)) == steps
        assert steps[-1] <= training.steps_of(documents, batch, epochs)


def test_a_table_has_a_row_for_each_setting_and_mark():
    found = grid.cells(TINY, [ASCENT, FEW])
    assert list(found.columns) == [
        "target_domain",
        "method",
        "learning_rate",
        "batch",
        "retain_weight",
        "seed",
        "retain_documents",
        "epoch",
    ]
    assert found.epoch.tolist() == MARKS * 2
    assert found.method.tolist() == [ASCENT.method] * 3 + [FEW.method] * 3
    assert found.retain_documents.isna().tolist() == [True] * 3 + [False] * 3
    assert found.retain_documents[3:].tolist() == [2] * 3


@pytest.mark.parametrize(("name", "cells"), [("laptop", 42 * 4), ("study", 126 * 7)])
def test_goal_cells_are_those_in_which_nothing_else_is_varied(name, cells):
    profile = PROFILES[name]
    table = grid.cells(profile, grid.plan(profile))
    mask = grid.goal_cells(table, profile)
    assert mask.dtype == bool
    # the plan starts with the grid proper
    assert mask.tolist() == [True] * cells + [False] * (len(table) - cells)


@pytest.mark.parametrize(("which", "ranks"), [(None, [0, 1, 2, 3]), (0, [0, 2]), (1, [1, 3])])
def test_half_of_the_documents(which, ranks):
    rows = pd.DataFrame({"rank": [0, 1, 2, 3]})
    assert grid.half_of(rows, which)["rank"].tolist() == ranks


# ----------------------------------------------------------------------------------------- one run


@pytest.mark.parametrize("setting", SETTINGS[:5], ids=["ascent", "all", "few", "labels", "kl"])
def test_a_run_has_a_row_for_each_mark_and_document(world, setting):
    rows = rows_of(world, setting)
    documents = measured_documents(setting)
    looks = rows[["epoch", "step"]].drop_duplicates().values.tolist()
    assert looks == [list(look) for look in STEPS[setting.batch].items()]
    for _, part in rows.groupby("epoch"):
        assert part.id.tolist() == documents.id.tolist()
        assert part.domain.tolist() == documents.domain.tolist()
        assert part.groupby("split").size().to_dict() == SIZES
        assert (part.tokens == 47).all()
    assert not rows[["tokens", "nll", "correct", "min_k_40"]].isna().any(axis=None)
    assert rows.groupby("epoch").nll.sum().nunique() == 3


@pytest.mark.parametrize(
    ("setting", "mark"),
    [(ASCENT, 2.0), (FEW, 0.5), (FEW, 2.0), (LABELS, 2.0), (WEIGHED, 2.0)],
    ids=["ascent", "few, on the way", "few", "labels", "kl"],
)
def test_a_mark_is_that_of_a_run_to_its_step(world, setting, mark):
    """Trained anew with the same recipe, and measured briefly and in full."""
    documents = measured_documents(setting)
    tokenizer = study_documents.tokenizer(TINY)
    model = by_hand(setting, 2, STEPS[setting.batch][mark])
    rows = rows_of(world, setting)
    rows = rows[rows.epoch == mark]
    for found in (
        evaluation.measure(model, documents, tokenizer),
        evaluation.measure_briefly(model, documents, tokenizer.pad_token_id),
    ):
        assert rows.id.tolist() == found.id.tolist()
        assert rows.correct.tolist() == found.correct.tolist()
        for column in ("nll", "min_k_40"):
            assert rows[column].tolist() == pytest.approx(found[column].tolist(), rel=1e-5)


def test_after_an_epoch_a_run_is_the_run_of_one_epoch(world):
    pad_id = study_documents.tokenizer(TINY).pad_token_id
    found = evaluation.measure_briefly(by_hand(ASCENT, 1), measured_documents(ASCENT), pad_id)
    rows = rows_of(world, ASCENT)
    assert rows[rows.epoch == 1].nll.tolist() == pytest.approx(found.nll.tolist(), rel=1e-6)
    assert rows[rows.epoch == 2].nll.tolist() != pytest.approx(found.nll.tolist(), rel=1e-2)


def test_a_run_is_given_its_setting_and_only_so_many_retain_documents(world):
    def ids(domain, split):
        return list(study_documents.tokenized(TINY, [(domain, split)]).ids)

    retain = {
        ASCENT: [],
        DESCENT: ids("github", "retain"),
        FEW: ids("github", "retain")[:2],
        LABELS: [],
        WEIGHED: ids("general", "retain"),
        DIVERGING: [],
    }
    assert [len(documents) for documents in retain.values()] == [0, 6, 2, 0, 6, 0]
    for setting, job in world["jobs"].items():
        assert job.method == get_method(setting.method)
        assert job.forget == ids(setting.target_domain, "forget")
        assert job.retain == retain[setting]
        assert job.seed == setting.seed
        assert job.recipe == replace(
            TINY.unlearning,
            learning_rate=setting.learning_rate,
            batch=setting.batch,
            retain_weight=setting.retain_weight,
            epochs=2,
        )
    of_all = rows_of(world, DESCENT).nll.tolist()
    of_few = rows_of(world, FEW).nll.tolist()
    assert of_all != pytest.approx(of_few, rel=1e-4)


def test_marks_that_fall_on_one_step_are_both_there(world):
    """4 documents, 4 at a time: half an epoch and an epoch both end at step 1, the first."""
    rows = stored_rows(replace(ASCENT, batch=4))
    looks = rows[["epoch", "step"]].drop_duplicates().values.tolist()
    assert looks == [[0.5, 1], [1.0, 1], [2.0, 2]]


def test_a_run_s_key_follows_its_setting_and_what_it_reads(world):
    first = grid.grid_run(TINY, DESCENT)
    changed = {
        "target_domain": "arxiv",
        "method": "gradient_ascent",
        "learning_rate": 1e-3,
        "batch": 2,
        "retain_weight": 2.0,
        "seed": 1,
        "retain_documents": 2,
    }
    assert changed.keys() == asdict(DESCENT).keys()
    others = []
    for name, value in changed.items():
        others.append(grid.grid_run(TINY, replace(DESCENT, **{name: value})))
    for profile in (
        replace(TINY, grid=replace(TINY.grid, marks=(0.5, 2.0))),
        replace(TINY, corpus=replace(TINY.corpus, measured=2)),
        replace(TINY, pretraining=Pretraining()),
        replace(TINY, unlearning=replace(TINY.unlearning, max_grad_norm=9.0)),
    ):
        others.append(grid.grid_run(profile, DESCENT))
    assert len({first.path, *(other.path for other in others)}) == 1 + len(others)
    assert pickle.loads(pickle.dumps(first)).path == first.path


def test_what_the_rest_of_the_grid_is_does_not_matter_to_a_run_s_key(world):
    same = replace(
        TINY,
        workers=2,
        resamples=9,
        seeds=7,
        unlearning=replace(TINY.unlearning, learning_rate=1.0, batch=3, epochs=5),
        grid=replace(
            TINY.grid, learning_rates=(1.0,), domains=("github",), seeds=3, retain_documents=()
        ),
    )
    assert grid.grid_run(same, DESCENT).path == grid.grid_run(TINY, DESCENT).path


# ---------------------------------------------------------------------------------------- all runs


def test_rows_are_those_of_the_runs_in_order_and_say_whose_they_are(world):
    rows = world["rows"]
    start = 0
    for setting in SETTINGS:
        own = stored_rows(setting)
        part = rows[start : start + len(own)]
        start += len(own)
        assert part[own.columns].reset_index(drop=True).equals(own)
        assert set(part.target_domain) == {setting.target_domain}
        assert set(part.domain) == {setting.target_domain, "general"}
        assert len(rows_of(world, setting)) == len(own)
    assert start == len(rows)
    assert set(grid.COLUMNS) < set(rows.columns)


def test_a_second_call_computes_nothing(world, monkeypatch):
    for name in ("pretrain", "unlearn"):
        monkeypatch.setattr(training, name, refuse)
    for name in ("measure", "measure_briefly"):
        monkeypatch.setattr(evaluation, name, refuse)
    monkeypatch.setattr(models, "load", refuse)
    pd.testing.assert_frame_equal(grid.grid_rows(TINY, SETTINGS), world["rows"])
    some = grid.grid_rows(TINY, [FEW, ASCENT])
    known = pd.concat([rows_of(world, FEW), rows_of(world, ASCENT)])
    assert some.nll.tolist() == known.nll.tolist()
    with pytest.raises(AssertionError, match="computed again"):
        grid.grid_rows(TINY, [replace(ASCENT, seed=5)])


# ------------------------------------------------- log perplexities of real runs, and divergence


@pytest.fixture(scope="module")
def found(world):
    return robustness.log_perplexities(TINY, SETTINGS, world["rows"], world["baselines"], 0)


@pytest.mark.parametrize("half", [None, selection.SELECTION, selection.REPORT])
def test_log_perplexities_are_those_of_the_rows(world, half):
    baselines = world["baselines"]
    found = robustness.log_perplexities(TINY, SETTINGS, world["rows"], baselines, 0, half)
    assert len(found.cells) == len(SETTINGS) * 3
    assert found.own["forget"].shape == (21, 18)
    target = grid.half_of(pool.baseline_rows(TINY, baselines, "target"), half)
    retrained = grid.half_of(pool.baseline_rows(TINY, baselines, "retrained"), half)
    for i, cell in enumerate(found.cells.itertuples()):
        before = target[target.target_domain == cell.target_domain]
        truth = retrained[retrained.target_domain == cell.target_domain]
        rows = grid.half_of(rows_of(world, setting_of(cell)), half)
        rows = rows[rows.epoch == cell.epoch]
        for split in robustness.SPLITS:
            known = selection.log_perplexity(before, split)
            exact = selection.log_perplexity(truth, split)
            assert found.target[split][0, i] == pytest.approx(known)
            assert found.retrained[split][0, i] == pytest.approx(exact)
            if len(rows):
                own = selection.log_perplexity(rows, split)
                assert found.own[split][0, i] == pytest.approx(own)
        if len(rows):
            members = rows[rows.split == "forget"].min_k_40
            others = rows[rows.split == "approximate"].min_k_40
            assert found.auc[i] == membership.auc(members, others)


@pytest.mark.parametrize(
    ("nll", "expected"), [(4000.0, True), (800.0, False), (np.nan, True), (np.inf, True)]
)
def test_a_run_has_diverged_past_ten_times_a_guess(nll, expected):
    """A guess is of 400 tokens, so past a log of 8.29.

    (4,000 + 40) / 200 is, (800 + 40) / 200 is not; one NaN makes it so.
    """
    rows = pd.DataFrame(
        {
            "split": ["forget", "forget", "retain"],
            "nll": [nll, 40.0, np.nan],
            "tokens": [100, 100, 100],
        }
    )
    assert single_run.has_diverged(TINY, rows) is expected


def test_a_run_that_diverges_ends_there(world):
    bound = np.log(10 * 400)
    levels = {}
    for mark, part in rows_of(world, DIVERGING).groupby("epoch"):
        levels[mark] = selection.log_perplexity(part, "forget")
    *before, last = levels
    assert last < 2
    assert levels[last] > bound
    assert all(levels[mark] < bound for mark in before)
    steps = store.cost(grid.grid_run(TINY, DIVERGING).folder())["steps"]
    assert steps == STEPS[1][last]


def test_the_later_cells_of_a_run_that_diverged_are_infinite(world, found):
    last = rows_of(world, DIVERGING).epoch.max()
    ended = [mark > last for mark in MARKS]
    diverging = (found.cells.learning_rate == 0.1).to_numpy()
    part = found.subset(diverging)
    for split in robustness.SPLITS:
        assert np.isposinf(part.own[split]).tolist() == [ended] * 21
        assert np.isfinite(part.target[split]).all()
        assert np.isfinite(part.retrained[split]).all()
    assert np.isnan(part.auc).tolist() == ended
    assert not robustness.acceptable(part)[:, part.cells.epoch >= last].any()
    others = found.subset(~diverging)
    for split in robustness.SPLITS:
        assert np.isfinite(others.own[split]).all()


def test_a_run_that_breaks_at_once_is_infinite_from_its_first_mark(world):
    """At 1e30 nothing is a number after two steps, the first mark.

    Its rows are there, but they say nothing.
    """
    broken = replace(ASCENT, learning_rate=1e30)
    rows = grid.grid_rows(TINY, [broken])
    assert set(rows.step) == {2}
    assert rows.nll.isna().any()
    found = robustness.log_perplexities(TINY, [broken], rows, world["baselines"], 0)
    assert np.isposinf(found.own["forget"]).all()
    assert np.isnan(found.auc).all()
    assert not robustness.acceptable(found).any()
    assert np.isposinf(robustness.by_proxy(found)).all()
