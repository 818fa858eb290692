"""The artifacts of the study at a scale of seconds.

What is trained on what, what is computed once, and what is the same after a kill.
"""

import json
import os
import pickle
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unlearn_utils.cache import workers
from unlearn_utils.cache.store import Artifact
from unlearn_utils.data import tokens
from unlearn_utils.engine import evaluation, models, training
from unlearn_utils.profiles import PROFILES, Corpus, Pretraining, Shape, Unlearning
from unlearn_utils.study import pool, selection, single_run, study_documents, unlearning

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=12, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=1, epochs=2),
    seeds=2,
    domains=("arxiv", "github"),
    noise_domain="github",
    workers=1,
    resamples=20,
)
METHOD, OTHER = "ascent_kl_general", "gradient_ascent"
PARTS = [  # that the target is trained on
    ("arxiv", "forget"),
    ("arxiv", "retain"),
    ("github", "forget"),
    ("github", "retain"),
    ("general", "retain"),
]
SIZES_OF_HALF = {  # documents of one half that a run on arxiv is measured on
    ("arxiv", "forget"): 2,
    ("arxiv", "approximate"): 2,
    ("arxiv", "retain"): 2,
    ("general", "evaluation"): 2,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with the baselines, their rows, and one unlearned model.

    And the documents that each pre-training was given.
    """
    given = []
    real = training.pretrain

    def pretrain(model, documents, *rest):
        given.append([tuple(ids) for ids in documents])
        return real(model, documents, *rest)

    with pytest.MonkeyPatch.context() as patch:
        store = tmp_path_factory.mktemp("study") / "store"
        patch.setenv("UNLEARN_STORE", str(store))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(training, "pretrain", pretrain)
        patch.setattr(models, "half_precision", lambda: False)
        study_documents.data.cache_clear()
        study_documents.fingerprint.cache_clear()
        study_documents.tokenizer.cache_clear()
        rows = pool.measure_baselines(TINY)
        unlearning.unlearning_run(TINY, "arxiv", METHOD).folder()
        yield {"store": store, "given": given, "rows": rows}


@pytest.fixture(scope="module")
def runs(world):
    """Two methods on two domains, each with a second seed."""
    return unlearning.unlearn_all(TINY, [METHOD, OTHER])


@pytest.fixture
def another_store(world, tmp_path, monkeypatch):
    """Return what copies the store without some kinds of artifacts, which are then made again."""

    def copy(*without):
        def left_out(folder, names):
            return [name for name in names if name in without]

        shutil.copytree(world["store"], tmp_path / "store", ignore=left_out)
        monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))

    return copy


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


def refuse_to_compute(monkeypatch):
    """Let every training, measurement and loading of a model fail from now on."""
    monkeypatch.setattr(training, "pretrain", refuse)
    monkeypatch.setattr(training, "unlearn", refuse)
    monkeypatch.setattr(evaluation, "measure", refuse)
    monkeypatch.setattr(models, "load", refuse)


def read(artifact, name):
    return pd.read_parquet(artifact.folder() / f"{name}.parquet")


def chosen(artifact):
    return json.loads((artifact.folder() / "chosen.json").read_text())


def cost(folder):
    return json.loads((folder / "cost.json").read_text())


def checksums(folder):
    return json.loads((folder / "checksums.json").read_text())


def perplexities(rows, split):
    """Return the perplexity on one split at each step."""
    found = {}
    for step, part in rows[rows.split == split].groupby("step"):
        found[step] = np.exp(part.nll.sum() / part.tokens.sum())
    return found


def weights(folder):
    return torch.cat([weight.detach().flatten() for weight in models.load(folder).parameters()])


def sizes(rows):
    """Return the number of documents of each part."""
    return rows.groupby(["domain", "split"]).size().to_dict()


def report_documents():
    """Return the documents that a run on arxiv reports."""
    documents = study_documents.tokenized(TINY, study_documents.measured_parts(["arxiv"]), 4)
    return selection.half(documents, selection.REPORT)


def target_rows(world, half):
    """Return the target's rows of one half of what a run on arxiv is measured on."""
    rows = world["rows"]
    here = (rows.model == "target") & rows.domain.isin(["arxiv", "general"])
    return selection.half(rows[here], half)


# -------------------------------------------------------------------------------------- documents


def test_a_retrained_model_s_parts_leave_out_exactly_its_forget_set():
    assert study_documents.training_parts(TINY, None) == PARTS
    for domain in TINY.domains:
        others = [part for part in PARTS if part != (domain, "forget")]
        assert study_documents.training_parts(TINY, domain) == others


def test_measured_parts_by_hand():
    assert study_documents.measured_parts(["books"]) == [
        ("books", "forget"),
        ("books", "approximate"),
        ("books", "retain"),
        ("general", "evaluation"),
    ]


def test_documents_are_the_corpus_s_in_order(world):
    parts = [("github", "retain"), ("general", "evaluation"), ("arxiv", "forget")]
    found = study_documents.tokenized(TINY, parts, limit=1)
    assert list(found.columns) == ["id", "text", "family", "rank", "domain", "split", "ids"]

    expected = []
    for domain, split in parts:
        texts = study_documents.data(TINY)[domain][split]["text"]
        if split == "retain":
            texts = texts[:1]
        expected += [(domain, split, text) for text in texts]
    in_order = found[["domain", "split", "text"]].itertuples(index=False, name=None)
    assert list(in_order) == expected
    assert len(found) == 1 + 4 + 4

    tokenizer = study_documents.tokenizer(TINY)
    for ids, text in zip(found.ids, found.text, strict=True):
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) == 48
        assert text.startswith(tokenizer.decode(ids[1:]))


def test_the_tokenizer_sees_retain_text_only(world, monkeypatch, tmp_path):
    real = tokens.train_tokenizer
    seen = []

    def train_tokenizer(texts, size):
        seen.extend(texts)
        return real(texts, size)

    monkeypatch.setattr(tokens, "train_tokenizer", train_tokenizer)
    study_documents._make_tokenizer(TINY, tmp_path)
    retained = []
    for splits in study_documents.data(TINY).values():
        retained += splits["retain"]["text"]
    assert sorted(seen) == sorted(retained)
    assert len(study_documents.tokenizer(TINY)) == 400


def test_each_model_is_trained_on_all_of_its_parts_and_nothing_else(world):
    """Trainings come in order: target, without arxiv, without github, and that with a new seed."""

    def ids(*parts):
        return {tuple(ids) for ids in study_documents.tokenized(TINY, parts).ids}

    target, no_arxiv, no_github, noise = world["given"]
    assert set(target) == ids(*PARTS)
    assert len(target) == len(set(target)) == 2 * (4 + 6) + 6
    assert set(no_arxiv) == set(target) - ids(("arxiv", "forget"))
    assert set(no_github) == set(target) - ids(("github", "forget"))
    assert len(no_arxiv) == len(no_github) == len(target) - 4
    assert no_github == noise
    unseen = ids(("arxiv", "approximate"), ("github", "approximate"), ("general", "evaluation"))
    assert unseen.isdisjoint(target)


# --------------------------------------------------------------------------- models and their rows


def test_what_is_stored_is_not_computed_again(world, monkeypatch):
    refuse_to_compute(monkeypatch)
    pd.testing.assert_frame_equal(pool.measure_baselines(TINY), world["rows"])
    assert unlearning.unlearning_run(TINY, "arxiv", METHOD).done()
    with pytest.raises(AssertionError, match="computed again"):
        unlearning.unlearning_run(TINY, "arxiv", METHOD, learning_rate=1.0).folder()


def test_the_target_is_loadable_and_has_a_history(world):
    folder = pool.target(TINY).folder()
    history = pd.read_parquet(folder / "history.parquet")
    assert history.step.tolist() == list(range(1, 79))  # 26 documents, 12 passes, 4 at a time
    assert set(history.left_out) == {"nothing"}
    assert history.loss[-5:].mean() < history.loss[:5].mean() - 1
    assert models.load(folder).config.vocab_size == 400
    taken = cost(folder)
    assert taken["tokens"] == 26 * 48 * 12
    assert taken["threads"] == 1
    assert 0 < taken["training_seconds"] <= taken["seconds"] + 0.01


def test_keys_of_models_follow_what_changes_them_and_nothing_else(world):
    same = replace(TINY, name="other", resamples=999, workers=2, unlearning=Unlearning())
    assert pool.target(same).path == pool.target(TINY).path

    found = [artifact.path for artifact in pool.baselines(TINY).values()]
    for change in (
        {"pretraining": Pretraining(epochs=11, batch=4)},
        {"shape": replace(TINY.shape, layers=3)},
        {"corpus": replace(TINY.corpus, retain=5)},
    ):
        found.append(pool.target(replace(TINY, **change)).path)
    assert len(set(found)) == len(found) == 7


def test_keys_of_runs_follow_what_changes_them_and_nothing_else(world):
    other_pretraining = replace(TINY, pretraining=Pretraining())
    fewer_measured = replace(TINY, corpus=replace(TINY.corpus, measured=3))
    first = unlearning.unlearning_run(TINY, "arxiv", METHOD).path
    others = [
        unlearning.unlearning_run(TINY, "github", METHOD),
        unlearning.unlearning_run(TINY, "arxiv", OTHER),
        unlearning.unlearning_run(TINY, "arxiv", METHOD, variant="official"),
        unlearning.unlearning_run(TINY, "arxiv", METHOD, variant=(1, 2)),
        unlearning.unlearning_run(TINY, "arxiv", METHOD, schedule="cosine"),
        unlearning.unlearning_run(other_pretraining, "arxiv", METHOD),
        unlearning.unlearning_run(fewer_measured, "arxiv", METHOD),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 1),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 2),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 1, learning_rate=1e-3),
    ]
    assert len({first, *(artifact.path for artifact in others)}) == 1 + len(others)

    own_rate = unlearning.unlearning_run(TINY, "arxiv", METHOD, learning_rate=2e-3)
    assert own_rate.path == first
    same = replace(TINY, seeds=9, resamples=7, workers=2)
    assert unlearning.unlearning_run(same, "arxiv", METHOD).path == first


@pytest.mark.parametrize("wrong", ["learning_rat", "seed"])
def test_a_choice_that_is_no_field_of_the_recipe_is_an_error(world, wrong):
    with pytest.raises(TypeError, match=wrong):
        unlearning.unlearning_run(TINY, "arxiv", METHOD, **{wrong: 1})


def test_the_bound_is_part_of_a_run_s_key(world, monkeypatch):
    before = unlearning.unlearning_run(TINY, "arxiv", METHOD).path
    monkeypatch.setattr(selection, "BOUND", 0.2)
    assert unlearning.unlearning_run(TINY, "arxiv", METHOD).path != before


def test_the_order_of_domains_is_part_of_the_key(world):
    turned = replace(TINY, domains=("github", "arxiv"))
    orders = []
    for profile in (TINY, turned):
        parts = study_documents.training_parts(profile, None)
        orders.append(study_documents.tokenized(profile, parts).id.tolist())
    assert orders[0] != orders[1]
    assert pool.target(turned).path != pool.target(TINY).path


def test_rows_cover_every_measured_part_of_every_model(world):
    rows = world["rows"]
    names = [
        "target",
        "retrained without arxiv",
        "retrained without github",
        "retrained without github, seed 1",
    ]
    assert rows.model.unique().tolist() == names
    assert list(pool.baselines(TINY)) == names
    expected = {("general", "evaluation"): 4}
    for domain in TINY.domains:
        for split in ("forget", "approximate", "retain"):
            expected[domain, split] = 4
    for _, part in rows.groupby("model"):
        assert sizes(part) == expected
        assert part.id.tolist() == rows.id[: len(part)].tolist()
        assert (part.tokens == 47).all()
    assert not rows.isna().any(axis=None)
    assert {"ids", "text"}.isdisjoint(rows.columns)


def test_rows_are_those_of_the_stored_model(world):
    rows = world["rows"].query(
        "model == 'retrained without github' and domain == 'github' and split == 'forget'"
    )
    documents = study_documents.tokenized(TINY, [("github", "forget")])
    model = models.load(pool.retrained(TINY, "github").path)
    again = evaluation.measure(model, documents, study_documents.tokenizer(TINY))
    assert rows.id.tolist() == again.id.tolist()
    assert rows.nll.tolist() == pytest.approx(again.nll.tolist(), rel=1e-5)


@pytest.mark.parametrize(("domain", "other"), [("arxiv", "github"), ("github", "arxiv")])
def test_the_target_remembers_what_the_retrained_model_never_saw(world, domain, other):
    rows = world["rows"]
    forget = rows[(rows.domain == domain) & (rows.split == "forget")]

    def loss(model):
        part = forget[forget.model == model]
        return part.nll.sum() / part.tokens.sum()

    never_saw = loss(f"retrained without {domain}")
    assert never_saw > loss("target") + 0.1
    assert never_saw > loss(f"retrained without {other}") + 0.1


def test_baseline_rows_are_of_each_domain_s_own_model_and_the_general_documents(world):
    rows = world["rows"]
    found = pool.baseline_rows(TINY, rows, "retrained")
    assert set(found.model) == {"retrained"}
    assert found.groupby("target_domain").size().to_dict() == {"arxiv": 16, "github": 16}
    for domain, part in found.groupby("target_domain"):
        assert set(part.domain) == {domain, "general"}
        own = rows[rows.model == f"retrained without {domain}"]
        own = own[own.domain.isin([domain, "general"])]
        assert part.nll.tolist() == own.nll.tolist()
    target = pool.baseline_rows(TINY, rows, "target")
    assert target.id.tolist() == found.id.tolist()
    assert target.nll.tolist() != found.nll.tolist()


def test_baseline_rows_have_the_second_seed_for_the_domain_that_was_trained_twice(world):
    again = pool.baseline_rows(TINY, world["rows"], "retrained again")
    own = world["rows"].query(
        "model == 'retrained without github, seed 1' and domain in ('github', 'general')"
    )
    assert set(again.target_domain) == {"github"}
    assert again.nll.tolist() == own.nll.tolist()


# -------------------------------------------------------------------------------- worker processes


def test_artifacts_travel_to_worker_processes(world):
    target = pool.target(TINY)
    for artifact in (
        target,
        pool.measurements(TINY, target),
        unlearning.unlearning_run(TINY, "arxiv", METHOD),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 1),
    ):
        assert pickle.loads(pickle.dumps(artifact)).path == artifact.path


def test_side_by_side_keeps_what_is_finished_when_another_artifact_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def fail(folder):
        raise IndexError

    works = Artifact("toy", 1, {"x": 0}, lambda folder: None)
    fails = Artifact("toy", 1, {"x": 1}, fail)
    with pytest.raises(IndexError):
        workers.side_by_side([works, fails], TINY.workers)
    assert works.done()
    assert not fails.done()


def test_two_artifacts_are_made_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def make(folder):
        (folder / "process").write_text(str(os.getpid()))
        time.sleep(1)  # long enough that one process cannot take both

    artifacts = [Artifact("toy", 1, {"x": x}, make) for x in range(2)]
    workers.side_by_side(artifacts, 2)
    monkeypatch.setattr("joblib.Parallel", refuse)
    workers.side_by_side(artifacts, 2)  # nothing is missing: nothing is started
    assert all(artifact.done() for artifact in artifacts)
    processes = {(artifact.path / "process").read_text() for artifact in artifacts}
    assert len(processes | {str(os.getpid())}) == 3


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(ValueError), workers.on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError
    assert torch.get_num_threads() == before


# -------------------------------------------------------------------------------------- unlearning


def test_watched_steps_by_hand():
    for total in range(1, 9):
        assert single_run.watched_steps(total) == list(range(1, total + 1))
    first = list(range(1, 9))
    assert single_run.watched_steps(9) == [*first, 9]
    # 8, 8 (15/8)^(1/3) = 9.9, 12.2, 15
    assert single_run.watched_steps(15) == [*first, 10, 12, 15]
    assert single_run.watched_steps(1000) == [*first, 40, 200, 1000]


def test_halves_of_the_documents_keep_pairs_together(world):
    parts = study_documents.measured_parts(TINY.domains)
    rows = study_documents.tokenized(TINY, parts, TINY.corpus.measured)
    seen = selection.half(rows, selection.SELECTION)
    reported = selection.half(rows, selection.REPORT)
    assert set(seen.id).isdisjoint(reported.id)
    assert set(seen.id) | set(reported.id) == set(rows.id)
    for half in (seen, reported):
        assert sizes(half[half.domain != "github"]) == SIZES_OF_HALF
        keys = half[["domain", "rank"]]
        forget = keys[half.split == "forget"].values.tolist()
        assert forget == keys[half.split == "approximate"].values.tolist()


def test_a_trajectory_holds_the_selection_half_at_every_watched_step(world):
    rows = read(unlearning.unlearning_run(TINY, "arxiv", METHOD), "trajectory")
    steps = rows.step.unique().tolist()
    assert steps == [0, *single_run.watched_steps(8)]
    assert steps == list(range(9))  # 4 documents, twice, one at a time
    assert set(rows["rank"] % 2) == {0}
    assert not rows.isna().any(axis=None)
    for _, part in rows.groupby("step"):
        assert sizes(part) == SIZES_OF_HALF
        assert part.id.tolist() == rows.id[:8].tolist()
    assert rows.groupby("step").nll.sum().nunique() == 9

    columns = ["id", "family", "rank", "domain", "split", "tokens", "nll", "correct", "min_k_40"]
    assert {*columns, "step", "method", "target_domain"} < set(rows.columns)
    assert "zlib" not in rows
    start = target_rows(world, selection.SELECTION)[columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[rows.step == 0][columns], start)


def test_a_report_holds_the_other_half_for_both_rules(world):
    run = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    rows = read(run, "report")
    assert rows.rule.unique().tolist() == list(selection.RULES)
    assert set(rows["rank"] % 2) == {1}
    assert not rows.isna().any(axis=None)
    for rule, part in rows.groupby("rule"):
        assert sizes(part) == SIZES_OF_HALF
        assert set(part.step) == {chosen(run)[rule]}
    assert set(rows.id).isdisjoint(read(run, "trajectory").id)


def test_the_rows_of_a_run_have_its_settings_and_its_cost_the_steps(world):
    run = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    expected = {
        "method": METHOD,
        "target_domain": "arxiv",
        "seed": 0,
        "learning_rate": 2e-3,
        "epochs": 2,
        "batch": 1,
        "variant": "corrected",
        "schedule": "constant",
    }
    for name in ("report", "trajectory", "history"):
        (settings,) = read(run, name)[list(expected)].drop_duplicates().to_dict("records")
        assert settings == expected
    taken = cost(run.path)
    assert taken["steps"] == len(read(run, "history")) == 8
    assert 0 < taken["training_seconds"] <= taken["seconds"]


@pytest.mark.parametrize("domain", TINY.domains)
def test_chosen_steps_by_the_rules_in_words(world, runs, domain):
    """Of the steps that raise general perplexity by no more than a tenth: the nearest to the goal.

    The goal is of forget perplexity.
    """
    run = unlearning.unlearning_run(TINY, domain, METHOD)
    rows = read(run, "trajectory")
    forget = perplexities(rows, "forget")
    general = perplexities(rows, "evaluation")
    allowed = [step for step in forget if general[step] <= 1.1 * general[0]]

    known = selection.half(world["rows"], selection.SELECTION)
    known = known[known.domain == domain].assign(step=0)

    def goal(model, split):
        return perplexities(known[known.model == model], split)[0]

    goals = {
        "practitioner": goal("target", "approximate"),
        "oracle": goal(f"retrained without {domain}", "forget"),
    }
    found = chosen(run)
    for rule, wanted in goals.items():
        nearest = min(allowed, key=lambda step: abs(np.log(forget[step] / wanted)))
        assert found[rule] == nearest
        assert 0 < found[rule] < 8
    assert found.keys() == {*goals, "diverged"}
    assert found["diverged"] is None


def test_the_weights_are_those_of_the_practitioner_s_step(world):
    run = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    assert chosen(run)["practitioner"] != chosen(run)["oracle"]
    rows = read(run, "report")
    tokenizer = study_documents.tokenizer(TINY)
    found = evaluation.measure(models.load(run.path), report_documents(), tokenizer)
    for rule, same in (("practitioner", True), ("oracle", False)):
        part = rows[rows.rule == rule]
        assert found.id.tolist() == part.id.tolist()
        assert (found.nll.tolist() == pytest.approx(part.nll.tolist(), rel=1e-5)) is same


@pytest.mark.parametrize("method", [METHOD, OTHER])
def test_a_run_that_ends_at_a_chosen_step_is_the_one_that_was_reported(world, runs, method):
    """It is so for the oracle's step, and for a repetition with the first seed."""
    artifact = unlearning.unlearning_run(TINY, "arxiv", method)
    rows = read(artifact, "report").set_index("rule")
    step = chosen(artifact)["oracle"]

    start = pool.target(TINY).folder()
    run = single_run.Run(TINY, "arxiv", method, TINY.unlearning)
    outcome = single_run.execute(run, start, steps=step)
    assert len(outcome.history) == step
    model = single_run.load_with_weights(start, outcome.weights)
    found = evaluation.measure(model, report_documents(), study_documents.tokenizer(TINY))
    assert found.nll.tolist() == pytest.approx(rows.nll["oracle"].tolist(), rel=1e-5)

    again = read(unlearning.repeated_run(TINY, "arxiv", method, 0), "report")
    assert again.nll.tolist() == pytest.approx(rows.nll["practitioner"].tolist(), rel=1e-5)


def test_weights_of_another_model_are_named(world):
    with pytest.raises(ValueError, match=r"weights of another model, stranger among them"):
        single_run.load_with_weights(pool.target(TINY).path, {"stranger": torch.zeros(1)})


def test_other_seeds_differ_and_end_at_the_same_step(world):
    first = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    own = read(first, "report").query("rule == 'practitioner'")
    target = target_rows(world, selection.REPORT).nll.sum()
    sums = [own.nll.sum()]
    for seed in (1, 2):
        report = read(unlearning.repeated_run(TINY, "arxiv", METHOD, seed), "report")
        keys = report[["seed", "step", "rule", "target_domain", "method"]].drop_duplicates()
        step = chosen(first)["practitioner"]
        assert keys.values.tolist() == [[seed, step, "practitioner", "arxiv", METHOD]]
        assert report.id.tolist() == own.id.tolist()
        assert set(report.columns) == set(own.columns)
        sums.append(report.nll.sum())
    assert len(set(sums)) == 3
    assert target < min(sums)  # each of them has unlearned


def test_replacement_labels_and_the_released_code_s_variant_run_too(world):
    run = unlearning.unlearning_run(
        TINY, "arxiv", "adversarial", variant=(1, 3), epochs=1, schedule="cosine, idle warm-up"
    )
    rows = read(run, "trajectory")
    assert set(rows.variant) == {"(1, 3)"}
    assert rows.step.max() == 4
    sums = rows.groupby("step").nll.sum()
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)  # the first step is idle
    assert sums[2] != pytest.approx(sums[0], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "source"),
    [(OTHER, None), (METHOD, "general"), ("ascent_descent_in_distribution", "arxiv")],
)
def test_each_method_reads_its_own_retain_text(world, method, source):
    forget, retain = single_run.token_ids_of_sides(TINY, "arxiv", method)
    assert forget == list(study_documents.tokenized(TINY, [("arxiv", "forget")]).ids)
    expected = []
    if source:
        expected = list(study_documents.tokenized(TINY, [(source, "retain")]).ids)
    assert retain == expected


# ------------------------------------------------------------------------------- tables of all runs


def test_unlearn_all_is_a_row_for_each_method_domain_and_seed(runs):
    expected = []
    for seed in range(2):
        for method in (METHOD, OTHER):
            expected += [[method, domain, seed] for domain in TINY.domains]
    assert runs[["method", "target_domain", "seed"]].values.tolist() == expected
    assert all(artifact.done() for artifact in runs.entry)
    assert len({artifact.path for artifact in runs.entry}) == 8
    assert runs.entry[0].path == unlearning.unlearning_run(TINY, "arxiv", METHOD).path
    assert runs.entry[7].path == unlearning.repeated_run(TINY, "github", OTHER, 1).path


def test_unlearn_all_computes_nothing_the_second_time(runs, monkeypatch):
    refuse_to_compute(monkeypatch)
    again = unlearning.unlearn_all(TINY, [METHOD, OTHER])
    for before, after in zip(runs.entry, again.entry, strict=True):
        assert before.path == after.path
    assert len(unlearning.rows_of_runs(again, "report")) > 0


def test_rows_of_runs_are_those_of_every_run(runs):
    report = unlearning.rows_of_runs(runs, "report")
    by_rule = report.groupby(["method", "target_domain", "seed", "rule"]).size()
    assert set(by_rule) == {8}
    assert len(by_rule) == 2 * 2 * 3  # two rules of the first seed, one of the second
    for name, each in (("trajectory", 9 * 8), ("history", 8)):
        found = unlearning.rows_of_runs(runs, name)
        assert set(found.seed) == {0}
        assert found.groupby(["method", "target_domain"]).size().tolist() == [each] * 4


def test_a_table_of_the_chosen_steps(runs):
    found = unlearning.chosen_steps(runs)
    expected = []
    for method in (METHOD, OTHER):
        expected += [[method, domain] for domain in TINY.domains]
    assert found[["method", "target_domain"]].values.tolist() == expected
    assert found.diverged.isna().all()
    for row, artifact in zip(found.itertuples(), runs.entry[:4], strict=True):
        kept = {"practitioner": row.practitioner, "oracle": row.oracle, "diverged": None}
        assert kept == chosen(artifact)


# -------------------------------------------------------------------------------- runs that diverge


def test_a_run_that_diverges_ends_there_and_says_so(runs):
    run = unlearning.unlearning_run(TINY, "arxiv", OTHER, learning_rate=0.1)
    rows = read(run, "trajectory")
    kept = chosen(run)
    assert 1 < kept["diverged"] < 8
    assert rows.step.max() == kept["diverged"] == len(read(run, "history"))
    forget = perplexities(rows, "forget")
    assert [step for step in forget if forget[step] >= 10 * 400] == [kept["diverged"]]
    assert kept["practitioner"] < kept["diverged"]
    assert not rows.isna().any(axis=None)
    both = pd.concat([runs[:1], runs[2:3].assign(entry=[run])])
    table = unlearning.chosen_steps(both)
    assert table.diverged.isna().tolist() == [True, False]
    assert table.diverged[1] == kept["diverged"]


@pytest.mark.parametrize(("rate", "last"), [(1e3, 1), (1e30, 2)])
def test_a_run_that_breaks_keeps_the_target(world, rate, last):
    """Weights of 1e30 guess uniformly, for the norms overflow.

    A step later nothing is a number, and such rows are left out.
    """
    run = unlearning.unlearning_run(TINY, "arxiv", OTHER, learning_rate=rate)
    assert chosen(run) == {"practitioner": 0, "oracle": 0, "diverged": last}
    assert len(read(run, "history")) == last
    rows = read(run, "trajectory")
    assert rows.step.unique().tolist() == [0, 1]
    assert not rows.isna().any(axis=None)
    assert torch.equal(weights(run.path), weights(pool.target(TINY).path))

    start = target_rows(world, selection.REPORT).nll.tolist()
    report = read(run, "report")
    again = read(unlearning.repeated_run(TINY, "arxiv", OTHER, 1, learning_rate=rate), "report")
    for found in (report[report.rule == "practitioner"], report[report.rule == "oracle"], again):
        assert found.nll.tolist() == pytest.approx(start, rel=1e-5)
        assert not found.isna().any(axis=None)


# ------------------------------------------------------------------------------------- after a kill


def test_a_run_killed_midway_gives_the_same_numbers_when_it_is_resumed(
    world, another_store, monkeypatch
):
    undisturbed = unlearning.unlearning_run(TINY, "arxiv", METHOD).folder()
    another_store("unlearned", "measured")
    real = evaluation.measure_briefly
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:  # the third watched step
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(evaluation, "measure_briefly", killed)
    run = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    with pytest.raises(KeyboardInterrupt):
        run.folder()
    assert not run.done()
    assert not run.path.exists()
    assert pool.target(TINY).done()

    monkeypatch.setattr(evaluation, "measure_briefly", real)
    monkeypatch.setattr(training, "pretrain", refuse)  # the target is there
    resumed = run.folder()
    assert resumed != undisturbed
    assert resumed.name == undisturbed.name
    assert checksums(resumed) == checksums(undisturbed)
    assert checksums(resumed).keys() >= {
        "model.safetensors",
        "chosen.json",
        "trajectory.parquet",
        "report.parquet",
        "history.parquet",
    }


def test_a_killed_repetition_gives_the_same_numbers_when_it_is_resumed(
    runs, another_store, monkeypatch
):
    undisturbed = unlearning.repeated_run(TINY, "arxiv", METHOD, 1).folder()
    another_store("repeated")
    with monkeypatch.context() as patch:
        patch.setattr(training, "unlearn", refuse)
        with pytest.raises(AssertionError, match="computed again"):
            unlearning.unlearn_all(TINY, [METHOD])
    again = unlearning.repeated_run(TINY, "arxiv", METHOD, 1)
    assert not again.done()
    assert unlearning.unlearning_run(TINY, "arxiv", METHOD).done()
    assert checksums(again.folder()) == checksums(undisturbed)
    assert again.path != undisturbed


def test_a_killed_pretraining_gives_the_same_model_when_it_is_resumed(
    world, another_store, monkeypatch
):
    undisturbed = pool.target(TINY).folder()
    another_store("pretrained")
    real = models.save

    def killed(model, folder):
        real(model, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pool.target(TINY).folder()
    assert not pool.target(TINY).done()

    monkeypatch.setattr(models, "save", real)
    resumed = pool.target(TINY).folder()
    assert torch.equal(weights(resumed), weights(undisturbed))
    before = pd.read_parquet(undisturbed / "history.parquet")
    after = pd.read_parquet(resumed / "history.parquet")
    pd.testing.assert_frame_equal(after, before)
