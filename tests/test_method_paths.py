"""Paths at a scale of seconds: which steps are marks, where a path ends, what is kept of it."""

import json
import math
import shutil
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import profiles
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS
from unlearn_utils.engine import evaluation, models, training
from unlearn_utils.profiles import Grid, Pretraining, Unlearning
from unlearn_utils.study import method_paths, pool, selection, single_run, study_documents
from unlearn_utils.study.method_paths import ASCENT, CLAIMED
from unlearn_utils.study.single_run import Run

TOY = replace(toys.TOY, name="toy paths", replicates=(5,))
KL = "ascent_kl_general"
BRIEF = ["tokens", "nll", "correct", "min_k_40", "extraction"]
SIZES = {  # documents of one half that a path on arxiv is measured on; of three, two are chosen on
    selection.REPORT: {"forget": 3, "approximate": 3, "retain": 2, "evaluation": 2},
    selection.SELECTION: {"forget": 2, "approximate": 2, "retain": 2, "evaluation": 2},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with the target and the retrained models, and their measurements."""
    with pytest.MonkeyPatch.context() as patch:
        store = tmp_path_factory.mktemp("paths") / "store"
        toys.use_store(patch, store)
        for domain in TOY.domains:
            pool.target_rows(TOY, domain, 5)
            pool.truth_rows(TOY, domain, 5)
        yield store


@pytest.fixture(scope="module")
def usual(world):
    """The path of KL at the usual rate, with the weights of its nearest step."""
    artifact = method_paths.path(method_paths.usual_run(TOY, 5, "arxiv", KL), keep=True)
    artifact.folder()
    return artifact


@pytest.fixture
def another_store(world, tmp_path, monkeypatch):
    """A copy of the store without paths, which are then made again."""
    without = shutil.ignore_patterns("path")
    shutil.copytree(world, tmp_path / "store", ignore=without)
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))


def rows_of(artifact):
    return pd.read_parquet(artifact.path / "rows.parquet")


def ended(artifact):
    return json.loads((artifact.path / "ended.json").read_text())


def run_at(rate, method=ASCENT, epochs=3):
    return Run(TOY, "arxiv", method, replace(TOY.unlearning, learning_rate=rate, epochs=epochs), 5)


# -------------------------------------------------------------------------------------- which runs


def test_a_usual_run_is_longer_than_the_plane():
    run = method_paths.usual_run(profiles.LAPTOP, 0, "books", ASCENT)
    assert run.recipe == replace(profiles.LAPTOP.unlearning, epochs=3)
    assert run.recipe.epochs > profiles.LAPTOP.grid.epochs == 2
    assert (run.target_domain, run.replicate, run.retain_documents) == ("books", 0, None)
    other = method_paths.usual_run(profiles.LAPTOP, 0, "books", ASCENT, batch=2, epochs=1)
    assert other.recipe == replace(profiles.LAPTOP.unlearning, batch=2, epochs=1)


def test_a_grid_has_every_rate_and_the_usual_run_at_its_own():
    runs = method_paths.grid_runs(profiles.STUDY, 4, "github", CLAIMED)
    assert [run.recipe.learning_rate for run in runs] == list(profiles.STUDY.grid.learning_rates)
    usual = method_paths.usual_run(profiles.STUDY, 4, "github", CLAIMED)
    assert runs[2] == usual
    assert {run.recipe.epochs for run in runs if run != usual} == {2}


def test_grids_are_of_every_method_on_one_domain_and_of_claim_c2_on_those_it_is_about():
    first = [("arxiv", method) for method in METHODS]
    assert method_paths.grid_places(profiles.LAPTOP) == first
    others = list(product(("books", "github"), (ASCENT, CLAIMED)))
    assert sorted(method_paths.grid_places(profiles.STUDY)) == sorted([*first, *others])


def test_every_run_once():
    """On a laptop: all methods on three domains, five more rates on one, two with fewer texts."""
    usual = len(METHODS) * 3 + len(METHODS) * 5 + 2 * 2
    laptop = method_paths.every_run(profiles.LAPTOP)
    assert len(laptop) == len(set(laptop)) == usual
    study = method_paths.every_run(profiles.STUDY)
    assert len(study) == len(set(study)) == 6 * (usual + 2 * 2 * 5)
    assert {run.replicate for run in study} == set(profiles.STUDY.replicates)


def test_fewer_retain_documents_are_of_the_methods_with_descent():
    runs = method_paths.fewer_retain_runs(profiles.LAPTOP, 0)
    methods = ("ascent_descent_general", "ascent_descent_in_distribution")
    assert [(run.method, run.retain_documents) for run in runs] == list(product(methods, (15, 60)))
    usual = {method_paths.usual_run(profiles.LAPTOP, 0, "arxiv", method) for method in methods}
    assert {replace(run, retain_documents=None) for run in runs} == usual


def test_weights_are_kept_of_usual_runs_alone():
    run = method_paths.usual_run(TOY, 5, "arxiv", ASCENT)
    assert method_paths.keeps(run)
    assert not method_paths.keeps(replace(run, retain_documents=2))
    assert not method_paths.keeps(run_at(1e-3))
    assert not method_paths.keeps(run_at(2e-3, epochs=2))


# ------------------------------------------------------------------------------- what a run reads


@pytest.mark.parametrize(
    ("method", "source"), [(ASCENT, None), (KL, "general"), (CLAIMED, "arxiv")]
)
def test_each_method_reads_its_own_retain_text_but_what_is_measured(world, method, source):
    forget, retain = single_run.token_ids_of_sides(TOY, "arxiv", method)
    assert forget == list(study_documents.tokenized(TOY, [("arxiv", "forget")]).ids)
    expected = []
    if source:
        rows = study_documents.tokenized(TOY, [(source, "retain")])
        if source == "arxiv":
            rows = rows[rows["rank"] >= 4]
            assert len(rows) == 6
        expected = list(rows.ids)
    assert retain == expected


@pytest.mark.parametrize("method", METHODS)
def test_no_method_trains_on_a_document_that_it_is_measured_on(world, method):
    measured = method_paths.measured_documents(TOY, "arxiv")
    withheld = measured[measured.split != "forget"]
    _, retain = single_run.token_ids_of_sides(TOY, "arxiv", method)
    assert {tuple(ids) for ids in withheld.ids}.isdisjoint(map(tuple, retain))


def test_a_path_is_measured_on_the_report_half_and_the_first_of_the_other(world):
    found = method_paths.measured_documents(TOY, "arxiv")
    for half, sizes in SIZES.items():
        assert selection.half(found, half).groupby("split").size().to_dict() == sizes
    chosen = selection.half(found, selection.SELECTION)
    assert set(chosen["rank"]) == {0, 2}
    fewer = replace(TOY, grid=replace(TOY.grid, chosen_on=1))
    chosen = selection.half(method_paths.of_path(fewer, found), selection.SELECTION)
    assert set(chosen["rank"]) == {0}


def test_steps_of_a_run_by_hand(world):
    """Six documents, two at a time, three times."""
    assert single_run.steps_of_run(run_at(1e-3)) == 9
    longer = replace(run_at(1e-3).recipe, batch=4)
    assert single_run.steps_of_run(replace(run_at(1e-3), recipe=longer)) == 5  # 18 / 4


# ------------------------------------------------------------------------------- which are marks


def test_marks_double_and_the_last_step_is_among_them():
    assert single_run.marks(1) == [1]
    assert single_run.marks(2) == [1, 2]
    assert single_run.marks(9) == [1, 2, 4, 8, 9]
    assert single_run.marks(45) == [1, 2, 4, 8, 16, 32, 45]


def test_the_next_glance_follows_the_pace(monkeypatch):
    """0.075 is half of what makes a mark: at a pace of 0.01 a step it takes 7 steps."""
    monkeypatch.setattr(method_paths, "MOVED", 0.15)
    glance = method_paths.next_glance
    assert glance((0, 1.0), (1, 1.0)) == 2  # at most a quarter of the steps on, at least one
    assert glance((10, 1.0), (20, 1.0)) == 25
    assert glance((90, 1.0), (100, 1.1)) == 107
    assert glance((90, 1.0), (100, 0.9)) == 107  # whichever way it goes
    assert glance((99, 1.0), (100, 9.0)) == 101
    assert glance((99, 1.0), (100, math.nan)) == 125


@pytest.fixture
def looks(monkeypatch):
    """Make what looks at a path whose levels are given; before the first step they are 1.0.

    The retrained model's are 2.0 on the forget set and 1.0 elsewhere, on both halves.
    """
    documents = pd.DataFrame(product(SPLITS, range(4)), columns=["split", "rank"])
    documents["id"] = documents.split + documents["rank"].astype(str)
    documents = documents.assign(family=documents.id, domain="arxiv")

    def measured(model, rows, pad_id):
        levels = {split: 1.0 for split in SPLITS} | model
        halves = rows["rank"] % 2
        nll = [
            levels.get(f"{split} {half}", levels[split])
            for split, half in zip(rows.split, halves, strict=True)
        ]
        return rows.assign(tokens=10, nll=10 * np.array(nll), correct=0, min_k_40=0, extraction=0)

    monkeypatch.setattr(evaluation, "measure_briefly", measured)
    monkeypatch.setattr(method_paths, "MOVED", 0.15)
    monkeypatch.setattr(method_paths, "MOVED_BEYOND", 0.5)
    monkeypatch.setattr(method_paths, "tokenizer", lambda profile: SimpleNamespace(pad_token_id=0))

    def make(marks=(1,), bound=1.0):
        return method_paths._Looks(
            profile=TOY,
            documents=documents,
            marks=list(marks),
            at_mark=1.0,
            glanced=(0, 1.0),
            truth={half: np.array([2.0, 1.0, 1.0, 1.0]) for half in (0, 1)},
            bound={0: bound, 1: bound},
            stored_as=None,
            frames=[],
        )

    return make


def seen(looks):
    """Return the steps that are marks."""
    return [int(frame.step.iloc[0]) for frame in looks.frames]


def test_a_step_is_a_mark_if_the_forget_set_has_moved(looks):
    found = looks(marks=(1,))
    levels = [1.01, 1.10, 1.17, 1.20, 1.33]  # since the last mark: .01, .09, .16, .03, .16
    for step, level in enumerate(levels, 1):
        found.due = step  # a glance at each step
        assert not found.watch(step, {"forget": level})
    assert seen(found) == [1, 3, 5]


def test_a_step_between_glances_is_no_mark_unless_it_is_one_anyway(looks):
    found = looks(marks=(1, 4))
    found.watch(1, {})
    assert found.due == 2
    found.due = 9
    for step in (2, 3, 4):
        found.watch(step, {"forget": 1.9})
    assert seen(found) == [1, 4]


def test_far_beyond_retraining_it_must_have_moved_further(looks):
    """Retraining is at 2.0; past 2.5 a mark is half a nat from the last one."""
    found = looks(marks=(), bound=9.0)
    levels = [2.1, 2.3, 2.6, 2.75, 2.9, 3.3]  # since the last mark: 1.1, .2, .3, .45, .6, .4
    for step, level in enumerate(levels, 1):
        found.due = step
        found.watch(step, {"forget": level})
    assert seen(found) == [1, 2, 5]


def test_other_text_makes_no_mark(looks):
    found = looks(marks=(1,))
    for step in (1, 2, 3):
        found.due = step
        found.watch(step, {"retain": 1.0 + step})
    assert seen(found) == [1]


# -------------------------------------------------------------------------------- where it ends


def test_a_path_ends_where_the_forget_set_is_past_the_bound_on_both_halves(looks):
    found = looks(marks=(1, 2, 3), bound=1.0)
    assert not found.watch(1, {"forget": 3.0})  # at the bound
    assert not found.watch(2, {"forget": 2.9, "forget 1": 3.5})  # past it on the report half alone
    assert found.watch(3, {"forget": 3.1})
    assert found.ended == 3
    assert seen(found) == [1, 2, 3]


def test_damage_to_other_text_ends_nothing(looks):
    found = looks(marks=(1,))
    assert not found.watch(1, {"retain": 50.0, "approximate": 50.0, "evaluation": 50.0})
    assert found.ended is None


def test_a_path_ends_where_losses_are_no_numbers_and_leaves_them_out(looks):
    found = looks(marks=(1, 2))
    found.watch(1, {})
    assert found.watch(2, {split: math.nan for split in SPLITS})
    assert found.ended == 2
    assert seen(found) == [1]
    assert found.kept == 1


def test_the_bound_is_four_times_the_target_s_distance(world):
    run = method_paths.usual_run(TOY, 5, "arxiv", ASCENT)
    found = method_paths._looks(run, keep=True, stored_as=torch.float32)
    before = method_paths.of_path(TOY, pool.target_rows(TOY, "arxiv", 5))
    after = method_paths.of_path(TOY, pool.truth_rows(TOY, "arxiv", 5))
    for half in SIZES:
        gaps = []
        for split in SPLITS:
            ours = selection.log_perplexity(selection.half(before, half), split)
            gaps.append(ours - selection.log_perplexity(selection.half(after, half), split))
        assert found.bound[half] == pytest.approx(4 * np.mean(np.abs(gaps)))
    assert found.marks == [1, 2, 4, 8, 9]


# -------------------------------------------------------------------------------- what is kept


def test_the_kept_step_is_the_nearest_on_the_selection_half(looks):
    """Distances there are .25 (1.0 off on one of four texts), .05, .1; on the other half 3 is."""
    found = looks(marks=(1, 2, 3))
    found.watch(1, {"forget": 1.0})
    found.watch(2, {"forget": 1.8, "forget 1": 1.0})
    found.watch(3, {"forget": 1.6, "forget 1": 2.0})
    assert found.kept == 2
    assert found.least == pytest.approx(0.2 / 4)


def test_the_first_step_is_kept_even_if_the_target_was_nearer(looks):
    found = looks(marks=(1, 2))
    found.watch(1, {"retain": 5.0})
    found.watch(2, {"retain": 6.0})
    assert found.kept == 1


def test_kept_weights_are_those_of_the_kept_step(usual):
    """A run that is ended there has them; so have its rows."""
    kept = ended(usual)["kept"]
    assert kept > 0
    start = pool.target(TOY).folder()
    outcome = single_run.execute(method_paths.usual_run(TOY, 5, "arxiv", KL), start, steps=kept)
    assert len(outcome.history) == kept
    documents = method_paths.measured_documents(TOY, "arxiv")
    pad_id = study_documents.tokenizer(TOY).pad_token_id
    rows = rows_of(usual)
    known = rows[rows.step == kept]
    for model in (
        models.load(usual.path),
        single_run.load_with_weights(start, outcome.weights),
    ):
        found = evaluation.measure_briefly(model, documents, pad_id)
        assert found.id.tolist() == known.id.tolist()
        assert found.nll.tolist() == pytest.approx(known.nll.tolist(), rel=1e-5)
    other = rows[rows.step != kept].groupby("step").nll.sum()
    assert known.nll.sum() != pytest.approx(other.to_numpy(), rel=1e-5)


def test_the_kept_step_of_a_path_is_its_nearest_mark(usual):
    rows = selection.half(rows_of(usual), selection.SELECTION)
    truth = method_paths.of_path(TOY, pool.truth_rows(TOY, "arxiv", 5))
    exact = method_paths.levels(selection.half(truth, selection.SELECTION))
    far = {}
    for step, part in rows[rows.step > 0].groupby("step"):
        far[step] = np.abs(method_paths.levels(part) - exact).mean()
    assert ended(usual)["kept"] == min(far, key=far.get)


def test_weights_of_another_model_are_named(world):
    with pytest.raises(ValueError, match=r"weights of another model, stranger among them"):
        single_run.load_with_weights(pool.target(TOY).path, {"stranger": torch.zeros(1)})


# --------------------------------------------------------------------------------- stored paths


def test_a_path_begins_at_the_target_and_is_measured_at_its_marks(usual):
    rows = rows_of(usual)
    steps = rows.step.unique().tolist()
    assert steps[0] == 0 and {0, 1, 2, 4, 8, 9} <= set(steps) <= set(range(10))
    assert ended(usual)["ended"] is None
    history = pd.read_parquet(usual.path / "history.parquet")
    assert history.step.tolist() == list(range(1, 10))
    columns = [*pool.DOCUMENT_KEYS, *BRIEF]
    assert set(rows.columns) == {*columns, "step"}
    assert not rows.isna().any(axis=None)
    documents = method_paths.measured_documents(TOY, "arxiv")
    for _, part in rows.groupby("step"):
        assert part.id.tolist() == documents.id.tolist()
    start = method_paths.of_path(TOY, pool.target_rows(TOY, "arxiv", 5))
    pd.testing.assert_frame_equal(rows[rows.step == 0][columns], start[columns])
    sums = rows[rows.split == "forget"].groupby("step").nll.sum()
    assert sums.is_monotonic_increasing  # it unlearns


def test_a_path_that_goes_too_far_ends_there_and_says_so(world):
    artifact = method_paths.path(run_at(0.05))
    rows = rows_of_filled(artifact)
    end = ended(artifact)["ended"]
    assert 1 <= end < 9
    assert rows.step.max() == end == len(pd.read_parquet(artifact.path / "history.parquet"))
    assert not (artifact.path / "model.safetensors").exists()


def rows_of_filled(artifact):
    artifact.folder()
    return rows_of(artifact)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_path_that_breaks_ends_with_numbers(world, rate):
    """Weights of 1e30 guess uniformly, for the norms overflow; a step later nothing is a number."""
    artifact = method_paths.path(run_at(rate), keep=True)
    rows = rows_of_filled(artifact)
    found = ended(artifact)
    assert found["ended"] in (1, 2)
    assert found["kept"] == 1
    assert rows.step.unique().tolist() == [0, 1]
    assert not rows.isna().any(axis=None)


def test_labels_and_defects_of_the_released_code_run_too(world):
    """Its first step is idle."""
    recipe = Unlearning(
        learning_rate=0.02, batch=1, variant=(1, 3), schedule="cosine, idle warm-up"
    )
    artifact = method_paths.path(Run(TOY, "arxiv", "adversarial", recipe, 5))
    sums = rows_of_filled(artifact).groupby("step").nll.sum()
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    assert sums[2] != pytest.approx(sums[0], rel=1e-4)


@pytest.mark.parametrize("wrong", ["learning_rat", "seed"])
def test_a_choice_that_is_no_field_of_the_recipe_is_an_error(wrong):
    with pytest.raises(TypeError, match=wrong):
        method_paths.usual_run(TOY, 5, "arxiv", ASCENT, **{wrong: 1})


def test_other_replicates_have_other_targets_and_orders(world):
    other = replace(run_at(1e-3), replicate=6)
    settings = method_paths.path(other).settings
    own = method_paths.path(run_at(1e-3)).settings
    for name in ("target", "retrained", "seed"):
        assert settings[name] != own[name]


def test_keys_of_paths_follow_what_changes_them_and_nothing_else(world, monkeypatch):
    run = method_paths.usual_run(TOY, 5, "arxiv", KL)

    def with_profile(**changes):
        return replace(run, profile=replace(TOY, **changes))

    first = method_paths.path(run).path
    others = [
        method_paths.path(run, keep=True),
        method_paths.path(replace(run, target_domain="github")),
        method_paths.path(replace(run, method=ASCENT)),
        method_paths.path(replace(run, replicate=6)),
        method_paths.path(replace(run, retain_documents=2)),
        method_paths.path(with_profile(pretraining=Pretraining())),
        method_paths.path(with_profile(corpus=replace(TOY.corpus, measured=3))),
        method_paths.path(with_profile(corpus=replace(TOY.corpus, resized=("arxiv", 5)))),
        method_paths.path(with_profile(grid=replace(TOY.grid, chosen_on=1))),
    ]
    for change in (
        {"learning_rate": 1e-3},
        {"epochs": 2},
        {"batch": 3},
        {"variant": (1,)},
        {"schedule": "cosine"},
        {"retain_weight": 2.0},
    ):
        others.append(method_paths.path(replace(run, recipe=replace(run.recipe, **change))))
    found = [artifact.path for artifact in others]
    monkeypatch.setattr(method_paths, "MOVED", 0.5)
    found.append(method_paths.path(run).path)
    assert len({first, *found}) == 1 + len(found) == 17

    monkeypatch.undo()
    toys.use_store(monkeypatch, first.parents[1])
    grid = Grid(chosen_on=TOY.grid.chosen_on, learning_rates=(1.0,), epochs=9)
    same = with_profile(name="other", replicates=(1, 5), resamples=7, workers=2, grid=grid)
    assert method_paths.path(same).path == first


def test_paths_of_a_published_model_have_the_proxy_for_the_truth(world, monkeypatch):
    published = replace(TOY, hub=profiles.GPU.hub)
    run = replace(run_at(1e-3), profile=published)
    assert method_paths.path(run).settings["retrained"] is None
    assert published.truth == "approximate retraining"

    target = pool.target_rows(TOY, "arxiv", 5)
    monkeypatch.setattr(pool, "target_rows", lambda *_: target)
    monkeypatch.setattr(method_paths, "tokenized", lambda *_: target)
    monkeypatch.setattr(single_run, "steps_of_run", lambda _: 9)
    found = method_paths._looks(run, keep=False, stored_as=torch.float32)
    report = selection.half(target, selection.REPORT)
    unseen = selection.log_perplexity(report, "approximate")
    forget = selection.log_perplexity(report, "forget")
    assert found.truth[selection.REPORT] == pytest.approx(
        [unseen, unseen, *method_paths.levels(report)[2:]]
    )
    assert found.bound[selection.REPORT] == pytest.approx((unseen - forget) / 4 * 4)


def test_what_is_stored_is_not_computed_again(usual, monkeypatch):
    monkeypatch.setattr(training, "unlearn", toys.refuse)
    monkeypatch.setattr(models, "load", toys.refuse)
    runs = [method_paths.usual_run(TOY, 5, "arxiv", KL)]
    (found,) = method_paths.make_all(runs)
    assert found.path == usual.path
    with pytest.raises(AssertionError, match="computed again"):
        method_paths.make_all([run_at(3e-3)])


def test_a_path_killed_midway_gives_the_same_numbers_when_it_is_resumed(
    world, usual, another_store, monkeypatch
):
    before = world / "path" / usual.path.name
    undisturbed = json.loads((before / "checksums.json").read_text())
    real = evaluation.measure_briefly
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(evaluation, "measure_briefly", killed)
    path = method_paths.path(method_paths.usual_run(TOY, 5, "arxiv", KL), keep=True)
    with pytest.raises(KeyboardInterrupt):
        path.folder()
    assert not path.done() and not path.path.exists()

    monkeypatch.setattr(evaluation, "measure_briefly", real)
    monkeypatch.setattr(training, "pretrain", toys.refuse)  # the target is there
    resumed = path.folder()
    assert resumed != before and resumed.name == before.name
    found = json.loads((resumed / "checksums.json").read_text())
    assert found == undisturbed
    assert {"model.safetensors", "rows.parquet", "history.parquet", "ended.json"} <= found.keys()
