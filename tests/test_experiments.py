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

from unlearn_utils import evaluation, experiments, inputs, metrics, models, training, workers
from unlearn_utils.profiles import PROFILES, Corpus, Pretraining, Shape, Unlearning

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=3, retain=6, general=6, evaluation=2, measured=2),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=12, batch=4),
    unlearning=Unlearning(learning_rate=5e-3, batch=1, epochs=2),
    domains=("arxiv", "github"),
    noise_domain="github",
    workers=1,
    resamples=20,
)
METHOD = "ascent_kl_general"
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
        for function in (inputs.data, inputs.fingerprint, inputs.tokenizer):
            function.cache_clear()
        rows = experiments.measure_baselines(TINY)
        experiments.unlearned(TINY, "arxiv", METHOD).folder()
        yield {"store": store, "given": given, "rows": rows}


@pytest.fixture
def another_store(world, tmp_path, monkeypatch):
    """The same store without the named steps, so that they are made again."""

    def copy(*without):
        shutil.copytree(world["store"], tmp_path / "store", ignore=lambda folder, names: [n for n in names if n in without])
        monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))

    return copy


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


def weights(folder):
    return torch.cat([p.detach().flatten() for p in models.load(folder).parameters()])


# ---------------------------------------------------------------------------------------------- documents


def test_a_retrained_model_s_parts_leave_out_exactly_its_forget_set():
    assert inputs.training_parts(TINY, None) == PARTS
    for domain in TINY.domains:
        assert inputs.training_parts(TINY, domain) == [p for p in PARTS if p != (domain, "forget")]


def test_measured_parts_by_hand():
    assert inputs.measured_parts(["books"]) == [("books", s) for s in ("forget", "approximate", "retain")] + [
        ("general", "evaluation")
    ]


def test_documents_are_the_corpus_s_in_order(world):
    parts = [("github", "retain"), ("general", "evaluation"), ("arxiv", "forget")]
    found, data = inputs.documents(TINY, parts, limit=1), inputs.data(TINY)
    assert list(found.columns) == ["id", "text", "family", "domain", "split", "ids"]
    expected = [("github", "retain", t) for t in data["github"]["retain"]["text"][:1]]
    expected += [(d, s, t) for d, s in parts[1:] for t in data[d][s]["text"]]
    assert list(found[["domain", "split", "text"]].itertuples(index=False, name=None)) == expected and len(found) == 1 + 2 + 3
    tok = inputs.tokenizer(TINY)
    for ids, text in zip(found.ids, found.text, strict=True):
        assert ids[0] == tok.bos_token_id and len(ids) == 48 and text.startswith(tok.decode(ids[1:]))


def test_the_tokenizer_sees_retain_text_only(world, monkeypatch, tmp_path):
    from unlearn_utils import tokens

    real, seen = tokens.train_tokenizer, []
    monkeypatch.setattr(tokens, "train_tokenizer", lambda texts, size: seen.extend(texts) or real(texts, size))
    inputs._make_tokenizer(TINY, tmp_path)
    assert sorted(seen) == sorted(t for splits in inputs.data(TINY).values() for t in splits["retain"]["text"])
    assert len(inputs.tokenizer(TINY)) == 400


def test_each_model_is_trained_on_all_of_its_parts_and_nothing_else(world):
    """The order of trainings: target, without arxiv, without github, without github with another seed."""

    def ids(parts):
        return {tuple(x) for x in inputs.documents(TINY, parts).ids}

    target, no_arxiv, no_github, noise = world["given"]
    assert set(target) == ids(PARTS) and len(target) == len(set(target)) == 2 * (3 + 6) + 6
    assert set(target) - set(no_arxiv) == ids([("arxiv", "forget")]) and set(no_arxiv) < set(target)
    assert set(target) - set(no_github) == ids([("github", "forget")]) and no_github == noise
    unseen = ids([("arxiv", "approximate"), ("github", "approximate"), ("general", "evaluation")])
    assert unseen.isdisjoint(target)


# ---------------------------------------------------------------------------------------------- models and their rows


def test_what_is_stored_is_not_computed_again(world, monkeypatch):
    for place, name in ((training, "pretrain"), (training, "unlearn"), (evaluation, "measure")):
        monkeypatch.setattr(place, name, refuse)
    pd.testing.assert_frame_equal(experiments.measure_baselines(TINY), world["rows"])
    assert experiments.unlearned(TINY, "arxiv", METHOD).done()
    with pytest.raises(AssertionError, match="computed again"):
        experiments.unlearned(TINY, "arxiv", METHOD, seed=1).folder()


def test_the_target_is_loadable_and_has_a_history(world):
    folder = experiments.target(TINY).folder()
    history = pd.read_parquet(folder / "history.parquet")
    assert history.step.tolist() == list(range(1, 73)) and set(history.left_out) == {"nothing"}  # 24 documents, 12 passes, 4 at a time
    assert history.loss[-5:].mean() < history.loss[:5].mean() - 1
    assert models.load(folder).config.vocab_size == 400
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["tokens"] == 24 * 48 * 12 and cost["threads"] == 1 and 0 < cost["training_seconds"] <= cost["seconds"] + 0.01


def test_keys_follow_what_changes_a_model_and_nothing_else(world):
    same = replace(TINY, name="other", resamples=999, workers=2, unlearning=Unlearning())
    assert experiments.target(same).path == experiments.target(TINY).path
    changes = (
        {"pretraining": Pretraining(epochs=11, batch=4)},
        {"shape": replace(TINY.shape, layers=3)},
        {"corpus": replace(TINY.corpus, retain=5)},
    )
    found = [experiments.target(replace(TINY, **c)).path for c in changes] + [s.path for s in experiments.baselines(TINY).values()]
    assert len(set(found)) == len(found) == 7
    runs = [
        experiments.unlearned(TINY, "arxiv", METHOD),
        experiments.unlearned(TINY, "github", METHOD),
        experiments.unlearned(TINY, "arxiv", "gradient_ascent"),
        experiments.unlearned(TINY, "arxiv", METHOD, seed=1),
        experiments.unlearned(TINY, "arxiv", METHOD, variant="official"),
        experiments.unlearned(replace(TINY, pretraining=Pretraining()), "arxiv", METHOD),
    ]
    assert len({r.path for r in runs}) == len(runs)
    assert experiments.unlearned(TINY, "arxiv", METHOD, learning_rate=5e-3).path == runs[0].path
    with pytest.raises(TypeError, match="learning_rat"):
        experiments.unlearned(TINY, "arxiv", METHOD, learning_rat=1)


def test_the_order_of_domains_is_part_of_the_key(world):
    turned = replace(TINY, domains=("github", "arxiv"))
    orders = [inputs.documents(p, inputs.training_parts(p, None)).id.tolist() for p in (TINY, turned)]
    assert orders[0] == orders[1] or experiments.target(turned).path != experiments.target(TINY).path


def test_rows_cover_every_measured_part_of_every_model(world):
    rows = world["rows"]
    names = ["target", "retrained without arxiv", "retrained without github", "retrained without github, seed 1"]
    assert rows.model.unique().tolist() == names == list(experiments.baselines(TINY))
    expected = {(d, s): n for d in TINY.domains for s, n in (("forget", 3), ("approximate", 3), ("retain", 2))}
    expected[("general", "evaluation")] = 2
    for _, part in rows.groupby("model"):
        assert part.groupby(["domain", "split"]).size().to_dict() == expected
        assert part.id.tolist() == rows.id[: len(part)].tolist() and (part.tokens == 47).all()
    assert not rows.isna().any(axis=None) and "ids" not in rows and "text" not in rows


def test_rows_are_those_of_the_stored_model(world):
    rows = world["rows"].query("model == 'retrained without github' and domain == 'github' and split == 'forget'")
    documents = inputs.documents(TINY, [("github", "forget")])
    again = evaluation.measure(models.load(experiments.retrained(TINY, "github").path), documents, inputs.tokenizer(TINY))
    assert rows.nll.tolist() == pytest.approx(again.nll.tolist(), rel=1e-5) and rows.id.tolist() == again.id.tolist()


def test_the_target_remembers_what_the_retrained_model_never_saw(world):
    def loss(model, domain):
        part = world["rows"].query("model == @model and domain == @domain and split == 'forget'")
        return part.nll.sum() / part.tokens.sum()

    for domain, other in (("arxiv", "github"), ("github", "arxiv")):
        assert loss(f"retrained without {domain}", domain) > loss("target", domain) + 0.1
        assert loss(f"retrained without {other}", domain) < loss(f"retrained without {domain}", domain) - 0.1


def test_by_run_gives_each_domain_its_own_model_and_the_general_rows(world):
    found = experiments.by_run(TINY, world["rows"], "retrained")
    assert set(found.model) == {"retrained"} and found.groupby("run").size().to_dict() == {"arxiv": 10, "github": 10}
    for run, part in found.groupby("run"):
        assert set(part.domain) == {run, "general"}
        own = world["rows"][(world["rows"].model == f"retrained without {run}") & world["rows"].domain.isin([run, "general"])]
        assert part.nll.tolist() == own.nll.tolist()
    target = experiments.by_run(TINY, world["rows"], "target")
    assert target.id.tolist() == found.id.tolist() and target.nll.tolist() != found.nll.tolist()


def test_by_run_has_the_second_seed_for_the_domain_that_was_trained_twice(world):
    again = experiments.by_run(TINY, world["rows"], "retrained again")
    own = world["rows"].query("model == 'retrained without github, seed 1' and domain in ('github', 'general')")
    assert set(again.run) == {"github"} and again.nll.tolist() == own.nll.tolist()


def test_continuations_are_a_row_for_each_document_and_model(world):
    rows = inputs.documents(TINY, [("arxiv", "forget")])
    folders = {"target": experiments.target(TINY).path, "retrained": experiments.retrained(TINY, "arxiv").path}
    found, tok = experiments.continuations(TINY, "arxiv", folders, prompt=20, length=10), inputs.tokenizer(TINY)
    assert found.model.tolist() == ["target"] * 3 + ["retrained"] * 3 and found.id.tolist() == rows.id.tolist() * 2
    expected = [tok.decode(x[1:30]) for x in rows.ids] * 2
    assert (found.prompt + found.document).tolist() == expected
    for name, folder in folders.items():
        part, model = found[found.model == name], models.load(folder)
        for row, ids in zip(part.itertuples(), rows.ids, strict=True):
            (follows,) = evaluation.continued(model, [ids[:20]], 10, tok.pad_token_id)
            assert row.text == tok.decode(follows)
            assert row.rouge_l == pytest.approx(metrics.rouge_l(follows, ids[20:30]))
            assert row.exact_prefix == metrics.exact_prefix(follows, ids[20:30])


def test_documents_that_are_too_short_are_not_continued(world):
    whole = replace(TINY, shape=replace(TINY.shape, context=1000))
    rows = inputs.documents(whole, [("arxiv", "forget")])
    shortest, middle, longest = sorted(map(len, rows.ids))
    assert shortest < middle <= longest
    found = experiments.continuations(whole, "arxiv", {"target": experiments.target(TINY).path}, prompt=middle - 4, length=4)
    assert found.id.tolist() == rows.id[rows.ids.map(len) >= middle].tolist() and len(found) == 2


def test_steps_travel_to_worker_processes(world):
    target = experiments.target(TINY)
    for step in (target, experiments.measured(TINY, target), experiments.unlearned(TINY, "arxiv", METHOD)):
        assert pickle.loads(pickle.dumps(step)).path == step.path


def test_side_by_side_keeps_what_is_finished_when_another_step_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))
    steps = [experiments.Step("toy", 1, {"x": x}, lambda folder, x=x: [][x] if x else None) for x in (0, 1)]
    with pytest.raises(IndexError):
        workers.side_by_side(TINY, steps)
    assert [s.done() for s in steps] == [True, False]


def test_two_steps_run_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def make(folder):
        (folder / "process").write_text(str(os.getpid()))
        time.sleep(1)  # long enough that one process cannot take both

    steps = [experiments.Step("toy", 1, {"x": x}, make) for x in range(2)]
    workers.side_by_side(replace(TINY, workers=2), steps)
    monkeypatch.setattr("joblib.Parallel", refuse)
    workers.side_by_side(replace(TINY, workers=2), steps)  # nothing is missing: nothing is started
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
    assert experiments.watched_steps(1) == [0, 1] and experiments.watched_steps(16) == list(range(17))
    for total in (17, 30, 100, 5000):
        steps = experiments.watched_steps(total)
        assert steps[:3] == [0, 1, 2] and steps[-1] == total and 10 < len(steps) <= 17
        assert (np.diff(steps) > 0).all() and np.diff(steps)[-1] > np.diff(steps)[1]


def frame(forget, approximate):
    """Rows of 10 tokens with these mean losses; a retain row that plays no part."""
    rows = [("forget", x) for x in forget] + [("approximate", x) for x in approximate] + [("retain", 99)]
    return pd.DataFrame([{"split": s, "nll": 10.0 * x, "tokens": 10} for s, x in rows])


def test_the_proxy_by_hand():
    start = frame([1, 3], [3, 5])  # perplexities exp(2) and exp(4)
    assert not experiments._proxy_reached([start])
    assert not experiments._proxy_reached([start, frame([3, 4.8], [0, 0])])  # the target's level counts, not the present one
    assert experiments._proxy_reached([start, frame([3, 4.8], [9, 9]), frame([3, 5], [9, 9])])
    assert not experiments._proxy_reached([start, frame([9, 9], [3, 5]), frame([3, 4], [3, 5])])  # the latest step counts


def test_an_unlearned_run_watches_its_steps_and_keeps_one(world):
    step = experiments.unlearned(TINY, "arxiv", METHOD)
    rows = pd.read_parquet(step.folder() / "trajectory.parquet")
    assert rows.step.unique().tolist() == list(range(7)) == experiments.watched_steps(6)  # 3 documents, twice, one at a time
    parts = {("arxiv", "forget"): 3, ("arxiv", "approximate"): 3, ("arxiv", "retain"): 2, ("general", "evaluation"): 2}
    assert all(part.groupby(["domain", "split"]).size().to_dict() == parts for _, part in rows.groupby("step"))
    assert rows[["method", "run", "seed", "learning_rate", "epochs", "variant"]].drop_duplicates().values.tolist() == [
        [METHOD, "arxiv", 0, 5e-3, 2, "corrected"]
    ]
    start = world["rows"].query("model == 'target' and domain in ('arxiv', 'general')")
    assert rows[rows.step == 0].nll.tolist() == pytest.approx(start.nll.tolist(), rel=1e-5)
    assert len(pd.read_parquet(step.path / "history.parquet")) == 6
    table = experiments.trajectories({"arxiv": step})
    assert table[table.chosen].step.nunique() == 1 and len(table) == len(rows)


def test_the_chosen_step_is_the_first_that_meets_the_rule_and_its_weights_are_kept(world):
    step = experiments.unlearned(TINY, "arxiv", METHOD)
    rows, chosen = pd.read_parquet(step.folder() / "trajectory.parquet"), json.loads((step.path / "chosen.json").read_text())

    def perplexity(n, split):
        part = rows[(rows.step == n) & (rows.split == split)]
        return metrics.perplexity(part.nll, part.tokens)

    goal, reached = perplexity(0, "approximate"), [perplexity(n, "forget") for n in range(7)]
    assert chosen["rule"] == "met" and reached[0] < goal  # the target remembers
    assert chosen["step"] == next(n for n, value in enumerate(reached) if value >= goal)
    documents = inputs.documents(TINY, [("arxiv", "forget")])
    found = evaluation.measure(models.load(step.path), documents, inputs.tokenizer(TINY))
    kept = rows[(rows.step == chosen["step"]) & (rows.split == "forget")]
    assert found.nll.tolist() == pytest.approx(kept.nll.tolist(), rel=1e-5)
    assert chosen["step"] < 6 and perplexity(6, "forget") != pytest.approx(perplexity(chosen["step"], "forget"), rel=1e-3)


def test_a_rule_that_is_never_met_keeps_the_last_step(world):
    step = experiments.unlearned(TINY, "arxiv", "random_label", learning_rate=1e-7)
    chosen = json.loads((step.folder() / "chosen.json").read_text())
    assert chosen == {"step": 6, "rule": "not met: the last step"}
    moved = (weights(step.path) - weights(experiments.target(TINY).path)).abs().max()
    assert 0 < moved < 1e-5


def test_each_method_reads_its_own_retain_text(world):
    def retain(domain, split="retain"):
        return list(inputs.documents(TINY, [(domain, split)]).ids)

    for method, expected in (("gradient_ascent", []), (METHOD, retain("general")), ("ascent_descent_in_distribution", retain("arxiv"))):
        assert experiments._sides(TINY, "arxiv", method) == (retain("arxiv", "forget"), expected)


def test_unlearn_all_runs_every_domain(world):
    steps = experiments.unlearn_all(TINY, METHOD)
    assert list(steps) == ["arxiv", "github"] and all(s.done() for s in steps.values())
    assert experiments.trajectories(steps).run.unique().tolist() == ["arxiv", "github"]


# ---------------------------------------------------------------------------------------------- after a kill


def test_a_run_killed_midway_gives_the_same_numbers_when_it_is_resumed(world, another_store, monkeypatch):
    undisturbed = experiments.unlearned(TINY, "arxiv", METHOD).folder()
    another_store("unlearned", "measured")
    real, calls = evaluation.measure, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(evaluation, "measure", killed)
    step = experiments.unlearned(TINY, "arxiv", METHOD)
    with pytest.raises(KeyboardInterrupt):
        step.folder()
    assert not step.done() and not step.path.exists() and experiments.target(TINY).done()
    monkeypatch.setattr(evaluation, "measure", real)
    monkeypatch.setattr(training, "pretrain", refuse)  # the target is there
    resumed = step.folder()
    assert resumed != undisturbed and resumed.name == undisturbed.name
    sums = [json.loads((f / "checksums.json").read_text()) for f in (undisturbed, resumed)]
    assert sums[0] == sums[1] and {"model.safetensors", "trajectory.parquet", "history.parquet", "chosen.json"} <= sums[0].keys()


def test_a_killed_pretraining_gives_the_same_model_when_it_is_resumed(world, another_store, monkeypatch):
    undisturbed = experiments.target(TINY).folder()
    another_store("pretrained")
    real = models.save

    def killed(model, folder):
        real(model, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        experiments.target(TINY).folder()
    assert not experiments.target(TINY).done()
    monkeypatch.setattr(models, "save", real)
    resumed = experiments.target(TINY).folder()
    assert torch.equal(weights(resumed), weights(undisturbed))
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "history.parquet") for f in (resumed, undisturbed)))


# ---------------------------------------------------------------------------------------------- cost


def test_flops_of_a_run_are_those_of_its_steps(world):
    def row(method):
        return pd.read_parquet(experiments.flops(TINY, "arxiv", method).folder() / "rows.parquet").iloc[0]

    ascent, kl, retraining = row("gradient_ascent"), row(METHOD), row(None)
    assert (ascent.steps, kl.steps, retraining.steps) == (6, 6, 63)  # 3 documents twice; 21 documents 12 times, 4 at a time
    assert (ascent.tokens_per_step, kl.tokens_per_step, retraining.tokens_per_step) == (48, 96, 192)
    assert retraining.flops_per_step == pytest.approx(4 * ascent.flops_per_step, rel=0.01)
    assert kl.flops_per_step == pytest.approx((2 + 1 / 3) * ascent.flops_per_step, rel=0.01)
    assert all(r.flops == r.flops_per_step * r.steps for r in (ascent, kl, retraining)) and retraining.method == "retraining"
