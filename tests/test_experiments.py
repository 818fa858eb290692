"""The memoised steps at a scale of seconds: what is trained on what, computed once, and the same after a kill."""

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
HALF = {("arxiv", "forget"): 2, ("arxiv", "approximate"): 2, ("arxiv", "retain"): 2, ("general", "evaluation"): 2}
PARTS = [("arxiv", "forget"), ("arxiv", "retain"), ("github", "forget"), ("github", "retain"), ("general", "retain")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with the baselines, their rows and one unlearned model; and what each training was given."""
    given, real = [], training.pretrain

    def pretrain(model, documents, *rest):
        given.append([tuple(ids) for ids in documents])
        return real(model, documents, *rest)

    with pytest.MonkeyPatch.context() as patch:
        store = tmp_path_factory.mktemp("experiments") / "store"
        patch.setenv("UNLEARN_STORE", str(store))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(training, "pretrain", pretrain)
        patch.setattr(models, "half_precision", lambda: False)
        for function in (study_documents.data, study_documents.fingerprint, study_documents.tokenizer):
            function.cache_clear()
        rows = pool.measure_baselines(TINY)
        unlearning.unlearning_run(TINY, "arxiv", METHOD).folder()
        yield {"store": store, "given": given, "rows": rows}


@pytest.fixture(scope="module")
def runs(world):
    """Two methods on two domains, each with a second seed."""
    return unlearning.unlearn_all(TINY, [METHOD, OTHER])


@pytest.fixture
def another_store(world, tmp_path, monkeypatch):
    """The same store without the named steps, so that they are made again."""

    def copy(*without):
        shutil.copytree(world["store"], tmp_path / "store", ignore=lambda folder, names: [n for n in names if n in without])
        monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))

    return copy


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


def read(step, name):
    return pd.read_parquet(step.folder() / f"{name}.parquet")


def chosen(step):
    return json.loads((step.folder() / "chosen.json").read_text())


def levels(rows, split):
    """Perplexity on one split at each step."""
    parts = rows[rows.split == split].groupby("step")
    return {step: np.exp(part.nll.sum() / part.tokens.sum()) for step, part in parts}


def weights(folder):
    return torch.cat([p.detach().flatten() for p in models.load(folder).parameters()])


# ---------------------------------------------------------------------------------------------- documents


def test_a_retrained_model_s_parts_leave_out_exactly_its_forget_set():
    assert study_documents.training_parts(TINY, None) == PARTS
    for domain in TINY.domains:
        assert study_documents.training_parts(TINY, domain) == [p for p in PARTS if p != (domain, "forget")]


def test_measured_parts_by_hand():
    assert study_documents.measured_parts(["books"]) == [("books", s) for s in ("forget", "approximate", "retain")] + [
        ("general", "evaluation")
    ]


def test_documents_are_the_corpus_s_in_order(world):
    parts = [("github", "retain"), ("general", "evaluation"), ("arxiv", "forget")]
    found, data = study_documents.tokenized(TINY, parts, limit=1), study_documents.data(TINY)
    assert list(found.columns) == ["id", "text", "family", "rank", "domain", "split", "ids"]
    expected = [("github", "retain", t) for t in data["github"]["retain"]["text"][:1]]
    expected += [(d, s, t) for d, s in parts[1:] for t in data[d][s]["text"]]
    assert list(found[["domain", "split", "text"]].itertuples(index=False, name=None)) == expected and len(found) == 1 + 4 + 4
    tok = study_documents.tokenizer(TINY)
    for ids, text in zip(found.ids, found.text, strict=True):
        assert ids[0] == tok.bos_token_id and len(ids) == 48 and text.startswith(tok.decode(ids[1:]))


def test_the_tokenizer_sees_retain_text_only(world, monkeypatch, tmp_path):
    from unlearn_utils.data import tokens

    real, seen = tokens.train_tokenizer, []
    monkeypatch.setattr(tokens, "train_tokenizer", lambda texts, size: seen.extend(texts) or real(texts, size))
    study_documents._make_tokenizer(TINY, tmp_path)
    assert sorted(seen) == sorted(t for splits in study_documents.data(TINY).values() for t in splits["retain"]["text"])
    assert len(study_documents.tokenizer(TINY)) == 400


def test_each_model_is_trained_on_all_of_its_parts_and_nothing_else(world):
    """The order of trainings: target, without arxiv, without github, without github with another seed."""

    def ids(parts):
        return {tuple(x) for x in study_documents.tokenized(TINY, parts).ids}

    target, no_arxiv, no_github, noise = world["given"]
    assert set(target) == ids(PARTS) and len(target) == len(set(target)) == 2 * (4 + 6) + 6
    assert set(target) - set(no_arxiv) == ids([("arxiv", "forget")]) and set(no_arxiv) < set(target)
    assert set(target) - set(no_github) == ids([("github", "forget")]) and no_github == noise
    unseen = ids([("arxiv", "approximate"), ("github", "approximate"), ("general", "evaluation")])
    assert unseen.isdisjoint(target)


# ---------------------------------------------------------------------------------------------- models and their rows


def test_what_is_stored_is_not_computed_again(world, monkeypatch):
    for place, name in ((training, "pretrain"), (training, "unlearn"), (evaluation, "measure")):
        monkeypatch.setattr(place, name, refuse)
    pd.testing.assert_frame_equal(pool.measure_baselines(TINY), world["rows"])
    assert unlearning.unlearning_run(TINY, "arxiv", METHOD).done()
    with pytest.raises(AssertionError, match="computed again"):
        unlearning.unlearning_run(TINY, "arxiv", METHOD, learning_rate=1.0).folder()


def test_the_target_is_loadable_and_has_a_history(world):
    folder = pool.target(TINY).folder()
    history = pd.read_parquet(folder / "history.parquet")
    assert history.step.tolist() == list(range(1, 79)) and set(history.left_out) == {"nothing"}  # 26 documents, 12 passes, 4 at a time
    assert history.loss[-5:].mean() < history.loss[:5].mean() - 1
    assert models.load(folder).config.vocab_size == 400
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["tokens"] == 26 * 48 * 12 and cost["threads"] == 1 and 0 < cost["training_seconds"] <= cost["seconds"] + 0.01


def test_keys_follow_what_changes_a_model_and_nothing_else(world):
    same = replace(TINY, name="other", resamples=999, workers=2, unlearning=Unlearning())
    assert pool.target(same).path == pool.target(TINY).path
    changes = (
        {"pretraining": Pretraining(epochs=11, batch=4)},
        {"shape": replace(TINY.shape, layers=3)},
        {"corpus": replace(TINY.corpus, retain=5)},
    )
    found = [pool.target(replace(TINY, **c)).path for c in changes] + [s.path for s in pool.baselines(TINY).values()]
    assert len(set(found)) == len(found) == 7
    found = [
        unlearning.unlearning_run(TINY, "arxiv", METHOD),
        unlearning.unlearning_run(TINY, "github", METHOD),
        unlearning.unlearning_run(TINY, "arxiv", OTHER),
        unlearning.unlearning_run(TINY, "arxiv", METHOD, variant="official"),
        unlearning.unlearning_run(TINY, "arxiv", METHOD, variant=(1, 2)),
        unlearning.unlearning_run(TINY, "arxiv", METHOD, schedule="cosine"),
        unlearning.unlearning_run(replace(TINY, pretraining=Pretraining()), "arxiv", METHOD),
        unlearning.unlearning_run(replace(TINY, corpus=replace(TINY.corpus, measured=3)), "arxiv", METHOD),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 1),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 2),
        unlearning.repeated_run(TINY, "arxiv", METHOD, 1, learning_rate=1e-3),
    ]
    assert len({r.path for r in found}) == len(found)
    assert unlearning.unlearning_run(TINY, "arxiv", METHOD, learning_rate=2e-3).path == found[0].path
    assert unlearning.unlearning_run(replace(TINY, seeds=9, resamples=7, workers=2), "arxiv", METHOD).path == found[0].path
    for wrong in ("learning_rat", "seed"):
        with pytest.raises(TypeError, match=wrong):
            unlearning.unlearning_run(TINY, "arxiv", METHOD, **{wrong: 1})


def test_the_bound_is_part_of_a_run_s_key(world, monkeypatch):
    before = unlearning.unlearning_run(TINY, "arxiv", METHOD).path
    monkeypatch.setattr(selection, "BOUND", 0.2)
    assert unlearning.unlearning_run(TINY, "arxiv", METHOD).path != before


def test_the_order_of_domains_is_part_of_the_key(world):
    turned = replace(TINY, domains=("github", "arxiv"))
    orders = [study_documents.tokenized(p, study_documents.training_parts(p, None)).id.tolist() for p in (TINY, turned)]
    assert orders[0] == orders[1] or pool.target(turned).path != pool.target(TINY).path


def test_rows_cover_every_measured_part_of_every_model(world):
    rows = world["rows"]
    names = ["target", "retrained without arxiv", "retrained without github", "retrained without github, seed 1"]
    assert rows.model.unique().tolist() == names == list(pool.baselines(TINY))
    expected = {(d, s): n for d in TINY.domains for s, n in (("forget", 4), ("approximate", 4), ("retain", 4))}
    expected[("general", "evaluation")] = 4
    for _, part in rows.groupby("model"):
        assert part.groupby(["domain", "split"]).size().to_dict() == expected
        assert part.id.tolist() == rows.id[: len(part)].tolist() and (part.tokens == 47).all()
    assert not rows.isna().any(axis=None) and "ids" not in rows and "text" not in rows


def test_rows_are_those_of_the_stored_model(world):
    rows = world["rows"].query("model == 'retrained without github' and domain == 'github' and split == 'forget'")
    documents = study_documents.tokenized(TINY, [("github", "forget")])
    again = evaluation.measure(models.load(pool.retrained(TINY, "github").path), documents, study_documents.tokenizer(TINY))
    assert rows.nll.tolist() == pytest.approx(again.nll.tolist(), rel=1e-5) and rows.id.tolist() == again.id.tolist()


def test_the_target_remembers_what_the_retrained_model_never_saw(world):
    def loss(model, domain):
        part = world["rows"].query("model == @model and domain == @domain and split == 'forget'")
        return part.nll.sum() / part.tokens.sum()

    for domain, other in (("arxiv", "github"), ("github", "arxiv")):
        assert loss(f"retrained without {domain}", domain) > loss("target", domain) + 0.1
        assert loss(f"retrained without {other}", domain) < loss(f"retrained without {domain}", domain) - 0.1


def test_by_run_gives_each_domain_its_own_model_and_the_general_rows(world):
    found = pool.baseline_rows(TINY, world["rows"], "retrained")
    assert set(found.model) == {"retrained"} and found.groupby("target_domain").size().to_dict() == {"arxiv": 16, "github": 16}
    for run, part in found.groupby("target_domain"):
        assert set(part.domain) == {run, "general"}
        own = world["rows"][(world["rows"].model == f"retrained without {run}") & world["rows"].domain.isin([run, "general"])]
        assert part.nll.tolist() == own.nll.tolist()
    target = pool.baseline_rows(TINY, world["rows"], "target")
    assert target.id.tolist() == found.id.tolist() and target.nll.tolist() != found.nll.tolist()


def test_by_run_has_the_second_seed_for_the_domain_that_was_trained_twice(world):
    again = pool.baseline_rows(TINY, world["rows"], "retrained again")
    own = world["rows"].query("model == 'retrained without github, seed 1' and domain in ('github', 'general')")
    assert set(again.target_domain) == {"github"} and again.nll.tolist() == own.nll.tolist()


def test_steps_travel_to_worker_processes(world):
    target = pool.target(TINY)
    first, again = unlearning.unlearning_run(TINY, "arxiv", METHOD), unlearning.repeated_run(TINY, "arxiv", METHOD, 1)
    for step in (target, pool.measurements(TINY, target), first, again):
        assert pickle.loads(pickle.dumps(step)).path == step.path


def test_side_by_side_keeps_what_is_finished_when_another_step_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))
    steps = [pool.Step("toy", 1, {"x": x}, lambda folder, x=x: [][x] if x else None) for x in (0, 1)]
    with pytest.raises(IndexError):
        workers.side_by_side(steps, TINY.workers)
    assert [s.done() for s in steps] == [True, False]


def test_two_steps_run_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def make(folder):
        (folder / "process").write_text(str(os.getpid()))
        time.sleep(1)  # long enough that one process cannot take both

    steps = [pool.Step("toy", 1, {"x": x}, make) for x in range(2)]
    workers.side_by_side(steps, 2)
    monkeypatch.setattr("joblib.Parallel", refuse)
    workers.side_by_side(steps, 2)  # nothing is missing: nothing is started
    assert all(s.done() for s in steps)
    assert len({(s.path / "process").read_text() for s in steps} | {str(os.getpid())}) == 3


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(ValueError), workers.on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------------------------------------- unlearning


def test_watched_steps_by_hand():
    for total in range(1, 9):
        assert single_run.watched_steps(total) == list(range(1, total + 1))
    first = list(range(1, 9))
    assert single_run.watched_steps(9) == [*first, 9]
    assert single_run.watched_steps(15) == [*first, 10, 12, 15]  # 8, 8 (15/8)^(1/3) = 9.9, 12.2, 15
    assert single_run.watched_steps(1000) == [*first, 40, 200, 1000]


def test_halves_of_the_documents_keep_pairs_together(world):
    rows = study_documents.tokenized(TINY, study_documents.measured_parts(TINY.domains), TINY.corpus.measured)
    halves = [selection.half(rows, which) for which in (selection.SELECTION, selection.REPORT)]
    assert set(halves[0].id).isdisjoint(halves[1].id) and set(halves[0].id) | set(halves[1].id) == set(rows.id)
    for half in halves:
        assert half[half.domain != "github"].groupby(["domain", "split"]).size().to_dict() == HALF
        forget, other = (half[half.split == s][["domain", "rank"]].values.tolist() for s in ("forget", "approximate"))
        assert forget == other


def test_a_trajectory_holds_the_selection_half_at_every_watched_step(world):
    rows = read(unlearning.unlearning_run(TINY, "arxiv", METHOD), "trajectory")
    assert rows.step.unique().tolist() == [0, *single_run.watched_steps(8)] == list(range(9))  # 4 documents, twice, one at a time
    assert set(rows["rank"] % 2) == {0} and not rows.isna().any(axis=None)
    for _, part in rows.groupby("step"):
        assert part.groupby(["domain", "split"]).size().to_dict() == HALF and part.id.tolist() == rows.id[:8].tolist()
    start = world["rows"].query("model == 'target' and domain in ('arxiv', 'general') and rank % 2 == 0")
    columns = ["id", "family", "rank", "domain", "split", "tokens", "nll", "correct", "min_k_40"]
    assert set(columns) | {"step", "method", "target_domain"} < set(rows.columns) and "zlib" not in rows
    pd.testing.assert_frame_equal(rows[rows.step == 0][columns], start[columns].reset_index(drop=True))
    losses = rows.groupby("step").nll.sum()
    assert losses.nunique() == 9


def test_a_report_holds_the_other_half_for_both_rules(world):
    step = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    rows, kept = read(step, "report"), chosen(step)
    assert rows.rule.unique().tolist() == list(selection.RULES) and set(rows["rank"] % 2) == {1} and not rows.isna().any(axis=None)
    for rule, part in rows.groupby("rule"):
        assert part.groupby(["domain", "split"]).size().to_dict() == HALF and set(part.step) == {kept[rule]}
    assert set(rows.id).isdisjoint(read(step, "trajectory").id)
    settings = rows[["method", "target_domain", "seed", "learning_rate", "epochs", "batch", "variant", "schedule"]].drop_duplicates()
    assert settings.values.tolist() == [[METHOD, "arxiv", 0, 2e-3, 2, 1, "corrected", "constant"]]
    cost = json.loads((step.path / "cost.json").read_text())
    assert len(read(step, "history")) == cost["steps"] == 8 and 0 < cost["training_seconds"] <= cost["seconds"]


@pytest.mark.parametrize("domain", TINY.domains)
def test_chosen_steps_by_the_rules_in_words(world, runs, domain):
    """Of the steps that raise general perplexity by no more than a tenth, the one whose forget perplexity is nearest the goal."""
    step = unlearning.unlearning_run(TINY, domain, METHOD)
    rows, half = read(step, "trajectory"), world["rows"].query("rank % 2 == 0 and domain == @domain")
    forget, general = levels(rows, "forget"), levels(rows, "evaluation")
    by_model = {m: levels(half[half.model == m].assign(step=0), s)[0] for m, s in MODELS(domain)}
    for rule, goal in zip(selection.RULES, by_model.values(), strict=True):
        allowed = [s for s in forget if general[s] <= 1.1 * general[0]]
        assert chosen(step)[rule] == min(allowed, key=lambda s: abs(np.log(forget[s] / goal)))
        assert 0 < chosen(step)[rule] < 8
    assert chosen(step)["diverged"] is None and chosen(step).keys() == {"practitioner", "oracle", "diverged"}


def MODELS(domain):
    return ("target", "approximate"), (f"retrained without {domain}", "forget")


def test_the_weights_are_those_of_the_practitioner_s_step(world):
    step = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    rows = read(step, "report")
    documents = selection.half(study_documents.tokenized(TINY, study_documents.measured_parts(["arxiv"]), 4), selection.REPORT)
    found = evaluation.measure(models.load(step.path), documents, study_documents.tokenizer(TINY))
    for rule, same in (("practitioner", True), ("oracle", False)):
        part = rows[rows.rule == rule]
        assert found.id.tolist() == part.id.tolist()
        assert (found.nll.tolist() == pytest.approx(part.nll.tolist(), rel=1e-5)) is same
    assert chosen(step)["practitioner"] != chosen(step)["oracle"]


@pytest.mark.parametrize("method", [METHOD, OTHER])
def test_a_run_that_ends_at_a_chosen_step_is_the_one_that_was_reported(world, runs, method):
    """Trained anew up to each rule's step: the same report. So is a repetition with the first seed."""
    step = unlearning.unlearning_run(TINY, "arxiv", method)
    rows, kept = read(step, "report"), chosen(step)
    documents = selection.half(study_documents.tokenized(TINY, study_documents.measured_parts(["arxiv"]), 4), selection.REPORT)
    start = pool.target(TINY).folder()
    found, history, _ = single_run.run(TINY, start, "arxiv", method, TINY.unlearning, 0, steps=kept["oracle"])
    found = evaluation.measure(single_run.at(start, found), documents, study_documents.tokenizer(TINY))
    assert len(history) == kept["oracle"]
    assert found.nll.tolist() == pytest.approx(rows[rows.rule == "oracle"].nll.tolist(), rel=1e-5)
    again = read(unlearning.repeated_run(TINY, "arxiv", method, 0), "report")
    assert again.nll.tolist() == pytest.approx(rows[rows.rule == "practitioner"].nll.tolist(), rel=1e-5)


def test_other_seeds_differ_and_end_at_the_same_step(world):
    first = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    reports = [read(unlearning.repeated_run(TINY, "arxiv", METHOD, seed), "report") for seed in (1, 2)]
    own = read(first, "report").query("rule == 'practitioner'")
    for seed, report in zip((1, 2), reports, strict=True):
        assert report[["seed", "step", "rule", "target_domain", "method"]].drop_duplicates().values.tolist() == [
            [seed, chosen(first)["practitioner"], "practitioner", "arxiv", METHOD]
        ]
        assert report.id.tolist() == own.id.tolist() and set(report.columns) == set(own.columns)
    sums = {part.nll.sum() for part in (own, *reports)}
    assert len(sums) == 3
    target = world["rows"].query("model == 'target' and domain in ('arxiv', 'general') and rank % 2 == 1").nll.sum()
    assert all(target < value for value in sums)  # each of them has unlearned


def test_replacement_labels_and_the_released_code_s_variant_run_too(world):
    step = unlearning.unlearning_run(TINY, "arxiv", "adversarial", variant=(1, 3), epochs=1, schedule="cosine, idle warm-up")
    rows = read(step, "trajectory")
    assert set(rows.variant) == {"(1, 3)"} and rows.step.max() == 4
    first = rows[rows.step < 2].groupby("step").nll.sum()
    assert first[0] == pytest.approx(first[1], rel=1e-5) and rows[rows.step == 2].nll.sum() != pytest.approx(first[0], rel=1e-4)


def test_each_method_reads_its_own_retain_text(world):
    def retain(domain, split="retain"):
        return list(study_documents.tokenized(TINY, [(domain, split)]).ids)

    for method, expected in ((OTHER, []), (METHOD, retain("general")), ("ascent_descent_in_distribution", retain("arxiv"))):
        assert single_run.token_ids_of_sides(TINY, "arxiv", method) == (retain("arxiv", "forget"), expected)


def test_unlearn_all_is_a_row_for_each_method_domain_and_seed(runs):
    keys = [[m, d, s] for s in range(2) for m in (METHOD, OTHER) for d in TINY.domains]
    assert runs[["method", "target_domain", "seed"]].values.tolist() == keys and all(s.done() for s in runs.entry)
    assert len({s.path for s in runs.entry}) == 8
    assert runs.entry[0].path == unlearning.unlearning_run(TINY, "arxiv", METHOD).path
    assert runs.entry[7].path == unlearning.repeated_run(TINY, "github", OTHER, 1).path


def test_unlearn_all_computes_nothing_the_second_time(runs, monkeypatch):
    for place, name in ((training, "pretrain"), (training, "unlearn"), (evaluation, "measure"), (models, "load")):
        monkeypatch.setattr(place, name, refuse)
    again = unlearning.unlearn_all(TINY, [METHOD, OTHER])
    assert [s.path for s in again.entry] == [s.path for s in runs.entry]
    assert len(unlearning.rows_of_runs(again, "report")) > 0


def test_collected_files_are_those_of_every_run(runs):
    report = unlearning.rows_of_runs(runs, "report")
    sizes = report.groupby(["method", "target_domain", "seed", "rule"]).size()
    assert set(sizes) == {8} and len(sizes) == 2 * 2 * 3  # two rules of the first seed, one of the second
    for name, each in (("trajectory", 9 * 8), ("history", 8)):
        found = unlearning.rows_of_runs(runs, name)
        assert set(found.seed) == {0} and found.groupby(["method", "target_domain"]).size().tolist() == [each] * 4


def test_a_table_of_the_chosen_steps(runs):
    found = unlearning.chosen_steps(runs)
    assert found[["method", "target_domain"]].values.tolist() == [[m, d] for m in (METHOD, OTHER) for d in TINY.domains]
    for row, step in zip(found.itertuples(), runs.entry[:4], strict=True):
        assert {"practitioner": row.practitioner, "oracle": row.oracle, "diverged": None} == chosen(step)
    assert found.diverged.isna().all()


# ---------------------------------------------------------------------------------------------- runs that diverge


def test_a_run_that_diverges_ends_there_and_says_so(runs):
    step = unlearning.unlearning_run(TINY, "arxiv", OTHER, learning_rate=0.1)
    rows, kept = read(step, "trajectory"), chosen(step)
    assert 1 < kept["diverged"] < 8
    assert rows.step.max() == kept["diverged"] == len(read(step, "history"))
    forget = levels(rows, "forget")
    assert [s for s in forget if forget[s] >= 10 * 400] == [kept["diverged"]]
    assert kept["practitioner"] < kept["diverged"] and not rows.isna().any(axis=None)
    table = unlearning.chosen_steps(pd.concat([runs[:1], runs[2:3].assign(entry=[step])]))
    assert table.diverged.isna().tolist() == [True, False] and table.diverged[1] == kept["diverged"]


@pytest.mark.parametrize(("rate", "last"), [(1e3, 1), (1e30, 2)])
def test_a_run_that_breaks_keeps_the_target(world, rate, last):
    """Weights of 1e30 guess uniformly, for the norms overflow; a step later nothing is a number, and such rows are left out."""
    step = unlearning.unlearning_run(TINY, "arxiv", OTHER, learning_rate=rate)
    rows, report = read(step, "trajectory"), read(step, "report")
    assert chosen(step) == {"practitioner": 0, "oracle": 0, "diverged": last} and len(read(step, "history")) == last
    assert rows.step.unique().tolist() == [0, 1]
    assert torch.equal(weights(step.path), weights(pool.target(TINY).path))
    start = world["rows"].query("model == 'target' and domain in ('arxiv', 'general') and rank % 2 == 1")
    again = read(unlearning.repeated_run(TINY, "arxiv", OTHER, 1, learning_rate=rate), "report")
    for found in (report[report.rule == "practitioner"], report[report.rule == "oracle"], again):
        assert found.nll.tolist() == pytest.approx(start.nll.tolist(), rel=1e-5)
    assert not any(frame.isna().any(axis=None) for frame in (rows, report, again))


# ---------------------------------------------------------------------------------------------- after a kill


def test_a_run_killed_midway_gives_the_same_numbers_when_it_is_resumed(world, another_store, monkeypatch):
    undisturbed = unlearning.unlearning_run(TINY, "arxiv", METHOD).folder()
    another_store("unlearned", "measured")
    real, calls = evaluation.measure_briefly, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:  # the third watched step
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(evaluation, "measure_briefly", killed)
    step = unlearning.unlearning_run(TINY, "arxiv", METHOD)
    with pytest.raises(KeyboardInterrupt):
        step.folder()
    assert not step.done() and not step.path.exists() and pool.target(TINY).done()
    monkeypatch.setattr(evaluation, "measure_briefly", real)
    monkeypatch.setattr(training, "pretrain", refuse)  # the target is there
    resumed = step.folder()
    assert resumed != undisturbed and resumed.name == undisturbed.name
    sums = [json.loads((f / "checksums.json").read_text()) for f in (undisturbed, resumed)]
    assert sums[0] == sums[1] and sums[0].keys() >= {
        *("model.safetensors", "chosen.json"),
        *(f"{name}.parquet" for name in ("trajectory", "report", "history")),
    }


def test_a_killed_repetition_gives_the_same_numbers_when_it_is_resumed(runs, another_store, monkeypatch):
    undisturbed = unlearning.repeated_run(TINY, "arxiv", METHOD, 1).folder()
    another_store("repeated")
    with monkeypatch.context() as patch:
        patch.setattr(training, "unlearn", lambda *args, **kwargs: [][0])
        with pytest.raises(IndexError):
            unlearning.unlearn_all(TINY, [METHOD])
    step = unlearning.repeated_run(TINY, "arxiv", METHOD, 1)
    assert not step.done() and unlearning.unlearning_run(TINY, "arxiv", METHOD).done()
    sums = [json.loads((f / "checksums.json").read_text()) for f in (undisturbed, step.folder())]
    assert sums[0] == sums[1] and undisturbed != step.path


def test_a_killed_pretraining_gives_the_same_model_when_it_is_resumed(world, another_store, monkeypatch):
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
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "history.parquet") for f in (resumed, undisturbed)))
