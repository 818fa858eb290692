"""The hyperparameter study's settings, counted by hand, and its runs at a scale of seconds."""

import math
import pickle
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.cache import store
from unlearn_utils.core import membership, methods
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
    grid=Grid(learning_rates=(5e-4, 2e-3), marks=(0.5, 1.0, 2.0), domains=("arxiv", "github"), retain_documents=(2,)),
    domains=("arxiv", "github"),
    noise_domain="github",
    workers=1,
    resamples=20,
)
ASCENT = Setting("arxiv", "gradient_ascent", 2e-3, 1)
DESCENT = Setting("github", "ascent_descent_in_distribution", 2e-3, 1)
FEW = replace(DESCENT, retain_documents=2)
LABELS = Setting("arxiv", "random_label", 5e-4, 2, seed=1)
WEIGHED = Setting("arxiv", "ascent_kl_general", 2e-3, 1, retain_weight=3.0)
DIVERGING = replace(ASCENT, learning_rate=0.1)
SETTINGS = [ASCENT, DESCENT, FEW, LABELS, WEIGHED, DIVERGING]
STEPS = {1: {0.5: 2, 1.0: 4, 2.0: 8}, 2: {0.5: 1, 1.0: 2, 2.0: 4}}  # by batch: of 4 documents, once or twice
SIZES = {"forget": 4, "approximate": 4, "retain": 3, "evaluation": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with the baselines and the runs of SETTINGS; and what each training was given."""
    given, real = [], training.unlearn

    def unlearn(model, method, forget, retain, recipe, *rest, **choices):
        given.append({"method": method, "forget": forget, "retain": retain, "recipe": recipe})
        return real(model, method, forget, retain, recipe, *rest, **choices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("grid") / "store"))
        patch.setenv("UNLEARN_PROGRESS", str(tmp_path_factory.mktemp("progress") / "lines"))
        for name in ("UNLEARN_FRESH", "UNLEARN_WORKERS"):
            patch.delenv(name, raising=False)
        patch.setattr(training, "unlearn", unlearn)
        patch.setattr(models, "half_precision", lambda: False)
        for function in (study_documents.data, study_documents.fingerprint, study_documents.tokenizer):
            function.cache_clear()
        rows = grid.grid_rows(TINY, SETTINGS)
        patch.setattr(training, "unlearn", real)
        yield {"given": dict(zip(SETTINGS, given, strict=True)), "rows": rows, "baselines": pool.measure_baselines(TINY)}


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


def rows_of(world, setting):
    """Rows of one run among those of all."""
    rows, wanted = world["rows"], asdict(setting)
    same = [rows[name].isna() if value is None else rows[name] == value for name, value in wanted.items()]
    return rows[np.logical_and.reduce(same)]


def measured_documents(setting):
    return study_documents.tokenized(TINY, study_documents.measured_parts([setting.domain]), 3)


def by_hand(setting, epochs, steps=None):
    """The model after a run of so many epochs, ended after so many steps."""
    recipe = replace(TINY.unlearning, learning_rate=setting.learning_rate, batch=setting.batch, retain_weight=setting.retain_weight)
    start, few = pool.target(TINY).folder(), setting.retain_documents
    recipe = replace(recipe, epochs=epochs)
    found = single_run.run(TINY, start, setting.domain, setting.method, recipe, setting.seed, steps=steps, retain_documents=few)
    return single_run.at(start, found[0])


# ---------------------------------------------------------------------------------------------- the settings


def test_methods_are_the_table_s_first_seven():
    first = list(methods.METHODS)[:7]
    assert list(grid.METHODS) == first and len(set(grid.METHODS)) == 7
    assert list(grid.WITH_RETAIN) == [name for name in first if methods.METHODS[name].retain] and len(grid.WITH_RETAIN) == 4


def kinds(profile):
    """Settings by what is varied in them, beside method and learning rate."""
    own, found = profile.unlearning, {}
    for s in grid.plan(profile):
        varied = {
            "batch": s.batch != own.batch,
            "retain_weight": s.retain_weight != own.retain_weight,
            "seed": s.seed != 0,
            "retain_documents": s.retain_documents is not None,
        }
        found.setdefault(" ".join(name for name, differs in varied.items() if differs), []).append(s)
    return found


def test_the_settings_of_laptop_by_hand():
    """7 methods at 6 rates on one domain; 4 of them with three numbers of retain documents at one rate."""
    found = kinds(PROFILES["laptop"])
    assert {kind: len(part) for kind, part in found.items()} == {"": 7 * 6, "retain_documents": 3 * 4}
    assert {s.domain for part in found.values() for s in part} == {"arxiv"}


def test_the_settings_of_the_study_by_hand():
    """7 x 6 on three domains; on the first alone another batch, two weights for 4 methods, two more seeds, and few retain documents."""
    found = kinds(PROFILES["study"])
    sizes = {"": 7 * 6 * 3, "batch": 7 * 6, "retain_weight": 2 * 4 * 6, "seed": 2 * 7 * 6, "retain_documents": 3 * 4}
    assert {kind: len(part) for kind, part in found.items()} == sizes
    assert [s.domain for s in found.pop("")] == [d for d in ("arxiv", "books", "github") for _ in range(42)]
    assert {s.domain for part in found.values() for s in part} == {"arxiv"}
    assert {s.batch for s in found["batch"]} == {8} and {s.seed for s in found["seed"]} == {1, 2}
    assert {s.retain_weight for s in found["retain_weight"]} == {0.3, 3.0}


@pytest.mark.parametrize("name", list(PROFILES))
def test_no_setting_comes_twice_and_every_combination_once(name):
    profile, found = PROFILES[name], kinds(PROFILES[name])
    plan = grid.plan(profile)
    assert len(plan) == len(set(plan)) == sum(map(len, found.values()))
    rates = profile.grid.learning_rates
    every = {(d, m, r) for d in profile.grid.domains for m in grid.METHODS for r in rates}
    assert {(s.domain, s.method, s.learning_rate) for s in found[""]} == every
    for kind, part in found.items():
        if kind in ("retain_weight", "retain_documents"):
            assert {s.method for s in part} == set(grid.WITH_RETAIN)
    assert {s.learning_rate for s in found["retain_documents"]} == {grid.usual_rate(profile)}
    assert {s.retain_documents for s in found["retain_documents"]} == set(profile.grid.retain_documents)


@pytest.mark.parametrize(
    ("own", "rates", "expected"),
    [(4e-4, (1e-4, 1e-3), 1e-3), (3e-4, (1e-4, 1e-3), 1e-4), (1e-3, (1e-3, 1.1e-3), 1e-3), (9.0, (1e-4, 1e-3), 1e-3)],
)
def test_the_usual_rate_is_the_nearest_by_ratio(own, rates, expected):
    """4e-4 is nearer to 1e-4 by difference, but to 1e-3 by ratio: 4 against 2.5."""
    profile = replace(TINY, unlearning=Unlearning(learning_rate=own), grid=replace(TINY.grid, learning_rates=rates))
    assert grid.usual_rate(profile) == expected
    turned = replace(profile, grid=replace(TINY.grid, learning_rates=rates[::-1]))
    assert grid.usual_rate(turned) == expected


def test_the_usual_rate_of_laptop_and_study():
    """5e-4 lies a factor of 1.67 above 3e-4 and of 1.6 under 8e-4."""
    assert [grid.usual_rate(PROFILES[name]) for name in ("laptop", "study")] == [8e-4, 8e-4]


@pytest.mark.parametrize("name", list(PROFILES))
def test_marks_of_the_profiles_fall_on_different_steps_within_the_run(name):
    profile = PROFILES[name]
    for batch in (profile.unlearning.batch, *profile.grid.batches):
        steps = [max(1, round(mark * profile.corpus.pairs / batch)) for mark in profile.grid.marks]
        assert sorted(set(steps)) == steps and 1.0 in profile.grid.marks
        assert steps[-1] <= training.steps_of(profile.corpus.pairs, batch, math.ceil(profile.grid.marks[-1]))


def test_a_table_has_a_row_for_each_setting_and_mark():
    found = grid.cells(TINY, [ASCENT, FEW])
    assert list(found.columns) == ["domain", "method", "learning_rate", "batch", "retain_weight", "seed", "retain_documents", "epoch"]
    assert found.epoch.tolist() == [0.5, 1.0, 2.0] * 2 and found.method.tolist() == [ASCENT.method] * 3 + [FEW.method] * 3
    assert found.retain_documents.isna().tolist() == [True] * 3 + [False] * 3 and found.retain_documents[3:].tolist() == [2] * 3


@pytest.mark.parametrize(("name", "cells"), [("laptop", 42 * 4), ("study", 126 * 7)])
def test_goal_cells_are_those_in_which_nothing_else_is_varied(name, cells):
    profile = PROFILES[name]
    table = grid.cells(profile, grid.plan(profile))
    mask = grid.goal_cells(table, profile)
    assert mask.dtype == bool and mask.sum() == cells
    assert mask.tolist() == [True] * cells + [False] * (len(table) - cells)  # the plan starts with the grid proper


def test_half_of_the_documents():
    rows = pd.DataFrame({"rank": [0, 1, 2, 3]})
    assert [grid.half_of(rows, which)["rank"].tolist() for which in (None, 0, 1)] == [[0, 1, 2, 3], [0, 2], [1, 3]]


# ---------------------------------------------------------------------------------------------- one run


@pytest.mark.parametrize("setting", SETTINGS[:5], ids=lambda s: f"{s.method}-{s.batch}-{s.retain_documents}")
def test_a_run_has_a_row_for_each_mark_and_document(world, setting):
    rows, documents = rows_of(world, setting), measured_documents(setting)
    assert rows[["epoch", "step"]].drop_duplicates().values.tolist() == [list(pair) for pair in STEPS[setting.batch].items()]
    for _, part in rows.groupby("epoch"):
        assert part.id.tolist() == documents.id.tolist() and part.source.tolist() == documents.domain.tolist()
        assert part.groupby("split").size().to_dict() == SIZES and (part.tokens == 47).all()
    wanted = ["tokens", "nll", "correct", "min_k_40"]
    assert not rows[wanted].isna().any(axis=None) and rows.groupby("epoch").nll.sum().nunique() == 3


@pytest.mark.parametrize("setting", [ASCENT, FEW, LABELS, WEIGHED], ids=lambda s: s.method)
def test_the_last_mark_is_that_of_a_run_to_its_step(world, setting):
    """Trained anew with the same recipe and measured in full; for one method also at the first mark, which is on the way."""
    steps, documents, tok = STEPS[setting.batch], measured_documents(setting), study_documents.tokenizer(TINY)
    for mark in [0.5, 2.0] if setting is FEW else [2.0]:
        model = by_hand(setting, 2, steps[mark])
        rows, full = rows_of(world, setting).query("epoch == @mark"), evaluation.measure(model, documents, tok)
        brief = evaluation.measure_briefly(model, documents, tok.pad_token_id)
        for found in (full, brief):
            assert rows.id.tolist() == found.id.tolist() and rows.correct.tolist() == found.correct.tolist()
            for column in ("nll", "min_k_40"):
                assert rows[column].tolist() == pytest.approx(found[column].tolist(), rel=1e-5)


def test_after_an_epoch_a_run_is_the_run_of_one_epoch(world):
    found = evaluation.measure_briefly(by_hand(ASCENT, 1), measured_documents(ASCENT), study_documents.tokenizer(TINY).pad_token_id)
    rows = rows_of(world, ASCENT)
    assert rows[rows.epoch == 1].nll.tolist() == pytest.approx(found.nll.tolist(), rel=1e-6)
    assert rows[rows.epoch == 2].nll.tolist() != pytest.approx(found.nll.tolist(), rel=1e-2)


def test_a_run_is_given_its_setting_and_only_so_many_retain_documents(world):
    retain = {d: list(study_documents.tokenized(TINY, [(d, "retain")]).ids) for d in ("arxiv", "github", "general")}
    expected = {
        ASCENT: [],
        DESCENT: retain["github"],
        FEW: retain["github"][:2],
        LABELS: [],
        WEIGHED: retain["general"],
        DIVERGING: [],
    }
    for setting, given in world["given"].items():
        assert given["retain"] == expected[setting] and len(expected[setting]) in (0, 2, 6)
        assert given["forget"] == list(study_documents.tokenized(TINY, [(setting.domain, "forget")]).ids)
        own = {"learning_rate": setting.learning_rate, "batch": setting.batch, "retain_weight": setting.retain_weight, "epochs": 2}
        assert given["method"] == setting.method and given["recipe"] == replace(TINY.unlearning, **own)
    all_of_them, few = (rows_of(world, s).nll.tolist() for s in (DESCENT, FEW))
    assert all_of_them != pytest.approx(few, rel=1e-4)


def test_marks_that_fall_on_one_step_are_both_there(world):
    """4 documents, 4 at a time: half an epoch and an epoch both end at step 1, the first possible."""
    rows = pd.read_parquet(grid.grid_run(TINY, replace(ASCENT, batch=4)).folder() / "rows.parquet")
    assert rows[["epoch", "step"]].drop_duplicates().values.tolist() == [[0.5, 1], [1.0, 1], [2.0, 2]]


def test_a_run_s_key_follows_its_setting_and_what_it_reads(world):
    first = grid.grid_run(TINY, DESCENT)
    changed = {
        "domain": "arxiv",
        "method": "gradient_ascent",
        "learning_rate": 1e-3,
        "batch": 2,
        "retain_weight": 2.0,
        "seed": 1,
        "retain_documents": 2,
    }
    assert list(changed) == list(Setting.__dataclass_fields__)
    others = [grid.grid_run(TINY, replace(DESCENT, **{name: value})) for name, value in changed.items()]
    others += [
        grid.grid_run(replace(TINY, grid=replace(TINY.grid, marks=(0.5, 2.0))), DESCENT),
        grid.grid_run(replace(TINY, corpus=replace(TINY.corpus, measured=2)), DESCENT),
        grid.grid_run(replace(TINY, pretraining=Pretraining()), DESCENT),
        grid.grid_run(replace(TINY, unlearning=replace(TINY.unlearning, max_grad_norm=9.0)), DESCENT),
    ]
    assert len({step.path for step in (first, *others)}) == 1 + len(others)
    same = replace(TINY, workers=2, resamples=9, seeds=7, unlearning=replace(TINY.unlearning, learning_rate=1.0, batch=3, epochs=5))
    same = replace(same, grid=replace(TINY.grid, learning_rates=(1.0,), domains=("github",), seeds=3, retain_documents=()))
    assert grid.grid_run(same, DESCENT).path == first.path  # what the rest of the grid is does not matter to a run
    assert pickle.loads(pickle.dumps(first)).path == first.path


# ---------------------------------------------------------------------------------------------- all runs


def test_collected_rows_are_those_of_the_runs_in_order(world):
    rows, start = world["rows"], 0
    for setting in SETTINGS:
        own = pd.read_parquet(grid.grid_run(TINY, setting).folder() / "rows.parquet")
        part = rows[start : start + len(own)]
        start += len(own)
        assert part.nll.tolist() == own.nll.tolist() and part.source.tolist() == own.domain.tolist()
        assert part.drop(columns="source").assign(domain=own.domain.tolist())[own.columns].reset_index(drop=True).equals(own)
        assert len(rows_of(world, setting)) == len(own) and set(part.domain) == {setting.domain}
    assert start == len(rows) and set(grid.COLUMNS) < set(rows.columns)


def test_a_second_call_computes_nothing(world, monkeypatch):
    for place, name in ((training, "pretrain"), (training, "unlearn"), (evaluation, "measure"), (evaluation, "brief"), (models, "load")):
        monkeypatch.setattr(place, name, refuse)
    pd.testing.assert_frame_equal(grid.grid_rows(TINY, SETTINGS), world["rows"])
    some = grid.grid_rows(TINY, [FEW, ASCENT])
    assert some.nll.tolist() == pd.concat([rows_of(world, FEW), rows_of(world, ASCENT)]).nll.tolist()
    with pytest.raises(AssertionError, match="computed again"):
        grid.grid_rows(TINY, [replace(ASCENT, seed=5)])


# ---------------------------------------------------------------------------------------------- levels of real runs, and divergence


@pytest.fixture(scope="module")
def found(world):
    return robustness.log_perplexities(TINY, SETTINGS, world["rows"], world["baselines"], 0)


@pytest.mark.parametrize("half", [None, selection.SELECTION, selection.REPORT])
def test_levels_are_the_log_perplexities_of_the_rows(world, half):
    found = robustness.log_perplexities(TINY, SETTINGS, world["rows"], world["baselines"], 0, half)
    known = {name: pool.baseline_rows(TINY, world["baselines"], name) for name in ("target", "retrained")}
    for i, cell in enumerate(found.cells.itertuples()):
        setting = Setting(*cell[1:7], None if cell.retain_documents is pd.NA else int(cell.retain_documents))
        rows = grid.half_of(rows_of(world, setting), half)
        rows = rows[rows.epoch == cell.epoch]
        for split in robustness.SPLITS:
            if len(rows):
                assert found.own[split][0, i] == pytest.approx(selection.log_perplexity(rows, split))
            for name, frame in known.items():
                own = grid.half_of(frame[frame.target_domain == cell.domain], half)
                assert getattr(found, name)[split][0, i] == pytest.approx(selection.log_perplexity(own, split))
        if len(rows):
            scores = [rows[rows.split == s].min_k_40 for s in ("forget", "approximate")]
            assert found.auc[i] == membership.auc(*scores)
    assert len(found.cells) == len(SETTINGS) * 3 and found.own["forget"].shape == (21, 18)


@pytest.mark.parametrize(("nll", "expected"), [(4000.0, True), (800.0, False), (np.nan, True), (np.inf, True)])
def test_a_run_has_diverged_past_ten_times_a_guess(nll, expected):
    """Of 400 tokens, so past a log of 8.29: (4,000 + 40) / 200 is, (800 + 40) / 200 is not; one NaN makes it so."""
    rows = pd.DataFrame({"split": ["forget", "forget", "retain"], "nll": [nll, 40.0, np.nan], "tokens": [100, 100, 100]})
    assert single_run.has_diverged(TINY, rows) is expected


def test_a_run_that_diverges_ends_there_and_its_later_cells_are_infinite(world, found):
    rows = rows_of(world, DIVERGING)
    levels = {mark: selection.log_perplexity(part, "forget") for mark, part in rows.groupby("epoch")}
    *before, last = levels
    assert last < 2 and levels[last] > np.log(10 * 400) and all(levels[mark] < np.log(10 * 400) for mark in before)
    assert store.cost(grid.grid_run(TINY, DIVERGING).folder())["steps"] == STEPS[1][last]
    at = (found.cells.learning_rate == 0.1).to_numpy()
    part = found.subset(at)
    for split in robustness.SPLITS:
        infinite = np.isposinf(part.own[split])
        assert infinite.tolist() == [[mark > last for mark in (0.5, 1.0, 2.0)]] * 21
        assert np.isfinite(part.target[split]).all() and np.isfinite(part.retrained[split]).all()
    assert np.isnan(part.auc).tolist() == [mark > last for mark in (0.5, 1.0, 2.0)]
    assert not robustness.acceptable(part)[:, part.cells.epoch >= last].any()
    others = found.subset(~at)
    assert all(np.isfinite(others.own[split]).all() for split in robustness.SPLITS)


def test_a_run_that_breaks_at_once_is_infinite_from_its_first_mark(world):
    """At 1e30 nothing is a number after two steps, the first mark: its rows are there, but they say nothing."""
    broken = replace(ASCENT, learning_rate=1e30)
    rows = grid.grid_rows(TINY, [broken])
    assert set(rows.step) == {2} and rows.nll.isna().any()
    found = robustness.log_perplexities(TINY, [broken], rows, world["baselines"], 0)
    assert np.isposinf(found.own["forget"]).all() and np.isnan(found.auc).all()
    assert not robustness.acceptable(found).any() and np.isposinf(robustness.by_proxy(found)).all()
