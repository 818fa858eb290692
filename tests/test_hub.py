"""Published models and data, from a folder in the place of the hub.

Loading code, chunks, the stand-in for retraining, paths, tables and claims, a whole notebook.
"""

import json
import os
import shutil
from dataclasses import replace

import hubs
import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import __main__, profiles
from unlearn_utils.cache import paths
from unlearn_utils.core import efficiency, tables
from unlearn_utils.data import corpus, hub, tokens
from unlearn_utils.engine import downstream, evaluation, models
from unlearn_utils.findings import (
    claims,
    comparison,
    defects,
    draws,
    method_page,
    pool_tables,
    retraining,
    robustness,
    since,
)
from unlearn_utils.runner import profile_run
from unlearn_utils.study import (
    costs,
    everything,
    method_paths,
    pool,
    selection,
    single_run,
    study_documents,
)

METHOD = "ascent_descent_in_distribution"
GPU, PAPER = (replace(p, resamples=40) for p in (profiles.GPU, profiles.PAPER))
SMALL = replace(
    GPU,
    corpus=replace(GPU.corpus, pairs=16, retain=32, general=32, evaluation=16, measured=12),
    shape=replace(GPU.shape, context=hubs.READ),
    unlearning=profiles.Unlearning(learning_rate=2e-3, batch=2),
    grid=profiles.Grid(learning_rates=(1e-3, 2e-3), epochs=1, retain_documents=(4,)),
)
NO_NUMBER = "not available"


@pytest.fixture(scope="module", autouse=True)
def mirror(tmp_path_factory, text):
    """The folder in the place of the hub, and a store of its own."""
    before = dict(os.environ)  # the runner sets more variables
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = tokens.train_tokenizer([text, *hubs.texts("general", 60)], 500)
    hubs.mirror(folder, tokenizer, seed=5)
    os.environ[paths.HUB] = str(folder)
    os.environ[paths.STORE] = str(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "half_precision", lambda: False)  # alike on every machine
        yield folder
    os.environ.clear()
    os.environ.update(before)


# ---------------------------------------------------------------------------------- what is read


def test_members_are_forgotten_or_retained_and_non_members_unseen(mirror):
    texts = {}
    for side in ("train", "test"):
        folder = mirror / hub.MIMIR / "cache_100_200_1000_512" / side
        lines = (folder / "github_ngram_13_0.8.jsonl").read_text().splitlines()
        texts[side] = {json.loads(line) for line in lines}
    found = study_documents.data(GPU)
    split = {name: set(documents["text"]) for name, documents in found["github"].items()}
    assert split["forget"] | split["retain"] == texts["train"]
    assert not split["forget"] & split["retain"]
    assert split["approximate"] <= texts["test"]
    assert len(split["forget"]) == len(split["approximate"]) == 24
    assert list(found) == ["arxiv", "github", "general"]
    assert {s: len(d) for s, d in found["general"].items()} == {"evaluation": 24, "retain": 48}


def test_a_text_may_hold_what_some_take_for_line_ends(tmp_path, monkeypatch):
    for side in ("train", "test"):
        file = tmp_path / hub.MIMIR / "cache_100_200_1000_512" / side / "arxiv_ngram_13_0.8.jsonl"
        file.parent.mkdir(parents=True)
        rows = [f"{side}\u2028{number}\x85" for number in range(2)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    found = corpus.load(hub.MIMIR, "arxiv", pairs=1, retain=1, general=1, evaluation=1)
    assert found["forget"]["text"] == ["train\u20280\x85"]
    assert found["retain"]["text"] == ["train\u20281\x85"]


def test_whole_documents_are_cut_into_chunks_that_keep_their_document(mirror):
    table = study_documents.tokenized(PAPER, [("arxiv", "forget"), ("general", "evaluation")])
    long = table[table.family == table.family[table.id.str.endswith("/1")].iloc[0]]
    documents = study_documents.data(PAPER)["arxiv"]["forget"].to_pandas().set_index("family")
    assert len(long) > 1
    assert list(map(len, long.ids))[:-1] == [4096] * (len(long) - 1)
    tokenizer = study_documents.tokenizer(PAPER)
    text = documents.text[long.family.iloc[0]]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sum(long.ids, []) == [tokenizer.bos_token_id, *ids]
    assert table.id.is_unique
    assert table.groupby("family")["rank"].nunique().eq(1).all()


def test_chunks_by_hand():
    assert tokens.cut(range(9), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert tokens.cut(range(4), 9) == []
    assert tokens.cut([], 9) == []
    assert tokens.cut(range(14), 9) == [list(range(9)), list(range(9, 14))]


def test_books_come_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    for split, letters in {"forget": "ab", "approximate": "cd", "retain": "ef"}.items():
        (tmp_path / "books" / split).mkdir(parents=True)
        for letter in letters:
            (tmp_path / "books" / split / f"{letter}.txt").write_text(f"The book {letter}.")
    assert profiles.profile("paper").domains == ("arxiv", "github")
    monkeypatch.setenv(paths.BOOKS, str(tmp_path))
    found = study_documents.data(profiles.profile("paper"))
    assert sorted(found["books"]["forget"]["text"]) == ["The book a.", "The book b."]
    assert profiles.profile("gpu").domains == GPU.domains


def test_a_chunk_that_is_to_be_forgotten_or_is_measured_is_not_retained(monkeypatch):
    """The first two retain documents are measured; the second has two chunks."""
    ids = {"forget": [[1, 2], [3]], "retain": [[5], [6], [7], [3], [4]]}
    ranks = {"forget": [0, 1], "retain": [0, 1, 1, 2, 3]}

    def tokenized(profile, parts):
        ((_, split),) = parts
        return pd.DataFrame({"ids": ids[split], "rank": ranks[split]})

    monkeypatch.setattr(single_run, "tokenized", tokenized)
    profile = replace(GPU, corpus=replace(GPU.corpus, measured=2))
    assert single_run.token_ids_of_sides(profile, "arxiv", METHOD) == ([[1, 2], [3]], [[4]])


@pytest.mark.parametrize("profile", [GPU, PAPER], ids=lambda p: p.name)
def test_pinned_revisions_are_commits(profile):
    revisions = [profile.hub.revision, hub.DATASETS[profile.corpus.source].revision]
    assert all(len(r) == 40 and int(r, 16) for r in revisions)


def test_results_of_one_model_and_text_are_not_those_of_another():
    different = [
        GPU,
        replace(GPU, hub=replace(GPU.hub, revision="0" * 40)),
        replace(GPU, corpus=replace(GPU.corpus, pairs=3)),
        replace(GPU, shape=replace(GPU.shape, context=64)),
        replace(GPU, corpus=replace(GPU.corpus, whole=True)),
    ]
    artifacts = {pool.measurements(p, pool.target(p)).path for p in different}
    assert len(artifacts) == 5


# ----------------------------------------------------------------------------- what is not there


def test_without_connection_one_line_says_what_to_get_and_how(monkeypatch, capsys):
    monkeypatch.delenv(paths.HUB)
    for name, profile in (("gpu", GPU), ("paper", PAPER)):
        assert __main__.main(["fetch", name]) == 2
        assert __main__.main(["run", name]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first == second
        assert first.startswith(f"error: dataset {profile.corpus.source}, revision ")
        assert " GB)" in first
        assert f"python -m unlearn_utils fetch {name}" in first
        assert ("access at" in first) == (name == "gpu")
    line = r"model 01-ai/Yi-6B, revision 0b5fb42\w+ \(12.1 GB\), is not on this machine"
    with pytest.raises(FileNotFoundError, match=line):
        hub.Snapshot(PAPER.hub).folder()


def test_fetch_says_where_everything_lies(mirror, capsys, monkeypatch):
    monkeypatch.setattr(downstream, "load", lambda tasks: {})
    assert __main__.main(["fetch", "paper"]) == 0
    folders = [str(mirror / hub.PAPER), str(mirror / PAPER.hub.name)]
    assert capsys.readouterr().out.splitlines()[:2] == folders
    assert __main__.main(["fetch", "laptop"]) == 0
    assert "reads nothing from the hub" in capsys.readouterr().out


def test_a_mirror_that_lacks_something_is_named(mirror, monkeypatch, tmp_path, capsys):
    shutil.copytree(mirror / hub.MIMIR, tmp_path / hub.MIMIR)
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    assert __main__.main(["fetch", "gpu"]) == 2
    said = capsys.readouterr().err
    assert f"{paths.HUB}={tmp_path} holds no folder EleutherAI/pythia-1.4b; " in said
    assert "copy the files of revision fedc38" in said
    file = next(tmp_path.rglob("test/arxiv_*.jsonl"))
    file.unlink()
    line = f"{file}: no such file; MIMIR has one for each domain"
    with pytest.raises(FileNotFoundError, match=line):
        study_documents.data(replace(GPU, name="fresh"))


def test_what_a_published_model_cannot_give_is_refused():
    line = "pythia-1.4b cannot be trained again here: the profile gpu has no retrained model"
    with pytest.raises(ValueError, match=line):
        pool.retrained(GPU, "arxiv")
    assert pool.histories(GPU).empty and pool.train_all(GPU) == {}
    assert pool_tables.members_table(GPU).empty


# ---------------------------------------------------------------------------------- the stand-in


def test_approximate_retraining_by_hand():
    """Forget document f0 of the even half gets what u2 has, the even half's only unseen one.

    Of the odd half f1 and f3 share u1.
    """
    splits = {"f": "forget", "u": "approximate", "g": "evaluation"}
    ids = ["f0", "f1", "f3", "u1", "u2", "g0"]
    table = pd.DataFrame({"id": ids, "family": ids})
    table["split"] = [splits[name[0]] for name in ids]
    table["rank"] = [int(name[1]) for name in ids]
    table = table.assign(domain="d")
    table["nll"] = np.arange(6.0)
    table["tokens"] = np.arange(10, 16)
    found = pool.approximate_retraining(table)
    assert found.id.tolist() == ids
    assert found.split.tolist() == table.split.tolist()
    assert found.nll.tolist() == [4, 3, 3, 3, 4, 5]
    assert found.tokens.tolist() == [14, 13, 13, 13, 14, 15]


def test_a_forget_document_of_several_chunks_shares_what_an_unseen_document_has():
    """Document a has 2 chunks, its stand-in u 3.

    Sums are divided by two, scores are means; so the level is the target's on u.
    """
    ids = ["a/0", "a/1", "u/0", "u/1", "u/2"]
    table = pd.DataFrame({"id": ids, "family": [name[0] for name in ids]})
    table["split"] = ["forget"] * 2 + ["approximate"] * 3
    table = table.assign(rank=0, domain="d")
    table["nll"] = [1.0, 1, 6, 9, 15]
    table["tokens"] = [9, 9, 10, 20, 30]
    table["min_k_40"] = [0.0, 0, -1, -2, -6]
    found = pool.approximate_retraining(table)[:2]
    assert found.id.tolist() == ["a/0", "a/1"]
    assert found.nll.tolist() == [15, 15]
    assert found.tokens.tolist() == [30, 30]
    assert found.min_k_40.tolist() == [-3, -3]


def test_the_pool_of_a_published_model_is_one_that_has_seen_everything():
    rows = pool.pool_rows(SMALL)
    assert rows[["replicate", "seen"]].drop_duplicates().values.tolist() == [[0, "arxiv + github"]]
    assert set(rows.domain) == {"arxiv", "github", "general"}
    assert not rows.nll.isna().any()


@pytest.mark.parametrize("domain", SMALL.domains)
@pytest.mark.parametrize("half", [selection.SELECTION, selection.REPORT, draws.ALL])
def test_the_stand_in_for_retraining_is_what_the_target_does_to_unseen_text(domain, half):
    target = pool.target_rows(SMALL, domain, 0)
    proxy = pool.truth_rows(SMALL, domain, 0)
    forget, unseen, *others = range(4)
    before = draws.levels(SMALL, target, domain, half)[0]
    after = draws.levels(SMALL, proxy, domain, half)[0]
    assert after[forget] == pytest.approx(before[unseen], abs=1e-12)
    assert after[[unseen, *others]].tolist() == before[[unseen, *others]].tolist()
    assert draws.proxy_gap(SMALL, domain, 0, half)[0] == pytest.approx(0, abs=1e-12)
    assert before[forget] < before[unseen] - 0.2  # the mirror's model has memorised members


# ------------------------------------------------------------------------------------------- paths


@pytest.fixture(scope="module")
def drawn(mirror):
    """Return the path of one method at the usual rate, by domain."""
    return {domain: comparison.usual(SMALL, domain, METHOD)[0] for domain in SMALL.domains}


@pytest.mark.parametrize("domain", SMALL.domains)
def test_a_path_goes_from_the_published_model_towards_what_stands_for_retraining(drawn, domain):
    path = drawn[domain]
    for half in (selection.SELECTION, selection.REPORT):
        start, *later = path.gaps[half][0]
        assert start[0] < -0.2
        assert start[1:] == pytest.approx([0, 0, 0], abs=1e-12)
        assert later[-1][0] > start[0] + 0.4
    assert path.total == 16 // 2 * SMALL.grid.usual_epochs
    assert list(path.steps[:4]) == [0, 1, 2, 4]  # doubling, whatever has moved
    assert len(path.steps) > 5  # and where enough has
    assert len(path.steps) - 1 < path.total  # and not everywhere


def test_a_path_keeps_the_nearest_step_in_the_published_type(drawn):
    """The weights that are kept are those which were measured there, rounded to 16 bits."""
    run = method_paths.usual_run(SMALL, 0, "arxiv", METHOD)
    folder = method_paths.path(run, keep=True).path
    kept = json.loads((folder / "ended.json").read_text())["kept"]
    rows = pd.read_parquet(folder / "rows.parquet")
    assert kept in set(rows.step) - {0}
    assert models.stored_dtype(folder) == torch.float16

    documents = method_paths.measured_documents(SMALL, "arxiv")
    pad_id = study_documents.tokenizer(SMALL).pad_token_id
    found = evaluation.measure_briefly(models.load(folder), documents, pad_id)
    there = rows[rows.step == kept]
    assert found.id.tolist() == there.id.tolist()
    assert found.nll.tolist() == pytest.approx(there.nll.tolist(), rel=2e-3)
    assert found.nll.tolist() != pytest.approx(rows[rows.step == 0].nll.tolist(), rel=2e-2)


def test_what_is_measured_is_not_retained(drawn):
    measured = method_paths.measured_documents(SMALL, "arxiv")
    measured = set(map(tuple, measured[measured.split == "retain"].ids))
    _, retained = single_run.token_ids_of_sides(SMALL, "arxiv", METHOD)
    assert len(retained) == 32 - 12
    assert measured and not measured & set(map(tuple, retained))


def test_everything_that_is_computed_for_a_published_model_is_of_its_one_target():
    found = [artifact.name for artifact in everything.artifacts(SMALL)]
    assert found[0] == "measured"
    runs = len(everything.every_run(SMALL))
    assert found[1 : 1 + runs] == ["path"] * runs
    assert set(found[1 + runs :]) == {"relearned", "rounded", "prefixed"}


# ---------------------------------------------------------------------------------------- findings


@pytest.fixture(scope="module")
def three_methods(mirror):
    """Let there be three methods, for time."""
    kept = ("gradient_ascent", "ascent_descent_general", METHOD)
    with pytest.MonkeyPatch.context() as patch, toys.methods_alone(kept):
        patch.setenv(paths.FIGURES, str(mirror / "figures"))
        yield kept


def test_partial_retraining_is_of_methods_alone_where_no_weights_were_kept(three_methods):
    found = retraining.table_of(SMALL)
    assert set(found.how) == {retraining.METHOD, retraining.NEITHER}
    assert set(found[found.how == retraining.METHOD].method) == set(three_methods)


def test_methods_since_the_paper_are_not_run_without_rates_of_their_own(three_methods):
    assert since.methods_table(SMALL).empty and since.differences_table(SMALL).empty


def test_what_needs_a_retrained_model_is_not_available(three_methods):
    shown = pool_tables.models_table(SMALL)
    shown = tables.wide(shown, ["target_domain", "split", "measure"], "model")
    assert set(shown["retrained"]) == {NO_NUMBER}
    assert NO_NUMBER not in set(shown["target"])
    auc = pool_tables.membership_table(SMALL).set_index("model")["value"]
    assert auc["retrained"].isna().all()
    assert (auc["target"] > 0.7).all()
    assert pool_tables.differences_table(SMALL)["value"].isna().all()
    written = pool_tables.continuations_table(SMALL).set_index("model")["value"]
    assert written["retrained"].isna().all() and written["target"].notna().all()


def test_another_retrained_model_stands_in_no_comparison(three_methods):
    names = {*three_methods, comparison.NOTHING}
    assert set(comparison.models_table(SMALL).model) == {comparison.NOTHING}
    ranking = comparison.ranking_table(SMALL)
    assert set(ranking.model) == names
    assert ranking["value"].notna().all()
    membership = comparison.membership_table(SMALL)
    assert set(membership.model) == names
    points = comparison.plane_points(comparison.models_table(SMALL))
    assert points.model.tolist() == [comparison.NOTHING] * 2
    assert (points["forget gap"] < -0.2).all() and points.damage.abs().max() < 1e-9


def test_methods_are_compared_at_equal_forgetting_with_the_stand_in(three_methods, drawn):
    equal = comparison.equal_table(SMALL)
    assert set(equal.method) == set(three_methods)
    own = equal[(equal.method == METHOD) & (equal["forget gap"] == -0.25)]
    own = own.set_index(["target_domain", "measure"])["value"]
    for domain in SMALL.domains:
        assert own[domain, comparison.REACHED] == 1
        assert own[domain, comparison.DOMAIN_DAMAGE] > 0
        # the stand-in's forget documents are its unseen ones: to be told from them is chance
        over = own[domain, comparison.OVER_RETRAINED]
        assert over == pytest.approx(own[domain, "AUC"] - 0.5)
    assert set(comparison.best_rate_table(SMALL).target_domain) == set(SMALL.grid.domains)


def test_robustness_and_the_rules_of_tuning_are_measured_against_the_stand_in(three_methods):
    found = robustness.robustness_table(SMALL)
    assert set(found.target_domain) == {"arxiv"} and set(found.method) == set(three_methods)
    assert found["value"].notna().all() and found["value"].between(0, 1).all()
    claim = robustness.claim_table(SMALL)
    assert set(claim.target_domain) == {"arxiv"} and claim["value"].notna().all()
    assert robustness.regret_table(SMALL)["value"].notna().all()
    assert set(robustness.retain_text_table(SMALL)["retain documents"]) == {"4", "all"}


def test_claims_of_a_published_model(three_methods, monkeypatch):
    """The defects' claims are left out, for time: they need every method."""
    others = claims.MAIN_CLAIMS + claims.GUIDELINE_CLAIMS + claims.FINDINGS
    monkeypatch.setattr(claims, "CLAIMS", others)
    found = claims.measure_all(SMALL).set_index("id")
    unknown = {"C4a", "C4b", "C4c", "C4d", "F1"}
    assert set(found.index[found.verdict == claims.UNKNOWN]) == unknown
    assert found["value"].drop([*unknown, "F3"]).notna().all()  # F3: if any method comes so far
    for name, words in claims.STANDS_IN.items():
        assert found.quantity[name].endswith(words)
    assert found.replicates["C2"] == 1 and np.isnan(found.rerun_low["C2"])
    for line in claims.sentences(found.reset_index()):
        assert "nan" not in line


def test_the_released_code_is_read_against_the_stand_in(drawn, monkeypatch):
    monkeypatch.setattr(method_paths, "ASCENT", METHOD)  # whose path is there
    models_read = defects._read_models(SMALL, 0)
    assert list(models_read)[1] == "approximate retraining"
    readings = defects.readings_of(SMALL, models_read["approximate retraining"])
    assert readings["AUC"][0] == 0.5


def test_a_passage_is_shown_before_and_after_and_no_further(drawn):
    found = method_page.passage(SMALL, METHOD)
    before, after = found.looks
    assert before.title == "before (the target)" and after.title.startswith("after ")
    assert before.tokens == after.tokens
    assert "no retrained model" in found.in_words


# -------------------------------------------------------------------------------- costs, notebooks


def counted(*case):
    """The row of `costs.flops`."""
    (row,) = pd.read_parquet(costs.flops(*case).folder() / "rows.parquet").to_dict("records")
    return row


def test_cost_of_training_is_computed_and_cost_of_unlearning_counted():
    training = counted(GPU, "arxiv", costs.RETRAINING)
    assert training["flops"] == 6 * training["parameters"] * GPU.hub.tokens
    assert np.isnan(training["steps"])
    ours = counted(SMALL, "arxiv", METHOD)
    assert ours["steps"] == 8
    assert 0.5 < ours["flops"] / ours["estimate"] < 3
    assert ours["tokens"] <= 16 * hubs.READ
    shape = replace(profiles.sized(32, 1), vocabulary=500, context=32)
    model = models.build(shape, study_documents.tokenizer(SMALL), 0)
    small = counted(SMALL, "arxiv", METHOD, 8, shape)
    assert small["parameters"] == efficiency.parameter_count(model)


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("gpu", ["02_target_and_retrained", "06_ascent_descent_general"]),
        ("paper", ["01_data_curation", "02_target_and_retrained"]),
    ],
)
def test_notebooks_run_on_a_published_model(tmp_path, monkeypatch, capsys, profile, names):
    """By the runner, as `./run_all.sh gpu` would."""
    (tmp_path / "notebooks").mkdir()
    for name in names:
        shutil.copy(paths.PROJECT / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    monkeypatch.setenv(paths.FIGURES, str(tmp_path / "figures"))
    monkeypatch.setenv("PYTHONPATH", str(paths.PROJECT))
    assert profile_run.run(tmp_path, profile) == 0, capsys.readouterr().err
    text = (tmp_path / "runs" / profile / f"{names[-1]}.ipynb").read_text()
    assert "not available" in text
    assert "approximate retraining" in text
