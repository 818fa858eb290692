"""Published models and data, from a folder in the place of the hub.

Loading code, chunks, the stand-in for retraining, a whole notebook.
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

from unlearn_utils import __main__, profiles
from unlearn_utils.cache import paths
from unlearn_utils.core import efficiency, tables
from unlearn_utils.data import hub, tokens
from unlearn_utils.engine import downstream, models
from unlearn_utils.findings import reports, robustness
from unlearn_utils.runner import profile_run
from unlearn_utils.study import (
    costs,
    grid,
    pool,
    selection,
    single_run,
    study_documents,
    unlearning,
)

METHOD = "ascent_descent_in_distribution"
GPU, PAPER = (replace(p, seeds=1, resamples=40) for p in (profiles.GPU, profiles.PAPER))
SMALL = replace(GPU, unlearning=profiles.Unlearning(learning_rate=1e-3, batch=8))


@pytest.fixture(scope="module", autouse=True)
def mirror(tmp_path_factory, text):
    """The folder in the place of the hub, and a store of its own."""
    before = dict(os.environ)  # the runner sets more variables
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = tokens.train_tokenizer([text, *hubs.texts("general", 60)], 500)
    hubs.mirror(folder, tokenizer, seed=5)
    os.environ[paths.HUB] = str(folder)
    os.environ[paths.STORE] = str(tmp_path_factory.mktemp("store"))
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
    assert len(split["forget"]) == len(split["approximate"]) == 16
    assert list(found) == ["arxiv", "github", "general"]
    assert {s: len(d) for s, d in found["general"].items()} == {"evaluation": 16, "retain": 32}


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


def test_a_chunk_that_is_to_be_forgotten_is_not_retained(monkeypatch):
    ids = {"forget": [[1, 2], [3]], "retain": [[3], [4]]}

    def tokenized(profile, parts):
        ((_, split),) = parts
        return pd.DataFrame({"ids": ids[split]})

    monkeypatch.setattr(single_run, "tokenized", tokenized)
    assert single_run.token_ids_of_sides(GPU, "arxiv", METHOD) == ([[1, 2], [3]], [[4]])


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
    assert pool.histories(GPU).empty and list(pool.train_baselines(GPU)) == ["target"]


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
    table = table.assign(domain="d", target_domain="d", model="target")
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
    table = table.assign(rank=0, domain="d", target_domain="d", model="target")
    table["nll"] = [1.0, 1, 6, 9, 15]
    table["tokens"] = [9, 9, 10, 20, 30]
    table["min_k_40"] = [0.0, 0, -1, -2, -6]
    found = pool.approximate_retraining(table)[:2]
    assert found.id.tolist() == ["a/0", "a/1"]
    assert found.nll.tolist() == [15, 15]
    assert found.tokens.tolist() == [30, 30]
    assert found.min_k_40.tolist() == [-3, -3]


@pytest.fixture(scope="module")
def staged():
    """One method on both domains, under every model: the runs, and their rows."""
    runs = unlearning.unlearn_all(SMALL, [METHOD])
    return runs, reports.report_rows(SMALL, runs)


def test_the_stand_in_for_retraining_is_what_the_target_does_to_unseen_text(staged):
    _, rows = staged
    for domain in SMALL.domains:
        own = rows[rows.target_domain == domain]
        target = own[own.model == "target"]
        proxy = own[own.model == SMALL.truth]
        unseen = selection.log_perplexity(target, "approximate")
        assert selection.log_perplexity(proxy, "forget") == pytest.approx(unseen, abs=1e-12)
        kept = [part[part.split == "retain"].nll.tolist() for part in (target, proxy)]
        assert kept[0] == kept[1]


def test_retraining_is_not_available_in_any_table(staged):
    runs, rows = staged
    assert rows[rows.model == "retrained"].nll.isna().all()
    assert not (rows.model == "retrained again").any()
    by = ["model", "target_domain", "split"]
    shown = tables.summarise(rows, by, ["perplexity"], 0, 20)
    shown = tables.wide(shown, ["target_domain", "split"], "model")
    assert set(shown["retrained"]) == {"not available"}
    assert not (shown["approximate retraining"] == "not available").any()
    far = reports.distances(SMALL, rows, 0)
    assert far[far.model == "retrained"]["value"].isna().all()
    assert far[far.model != "retrained"]["value"].notna().all()
    assert reports.divergences(SMALL, runs, 0)["value"].isna().all()
    assert reports.quality(SMALL, rows, 0).wilcoxon_p.isna().all()
    of_domains = rows[rows.domain != "general"]
    auc = tables.auc_table(of_domains, ["model", "target_domain"], ["Min-40%"], 0, 20)
    auc = auc.set_index("model")["value"]
    assert np.isnan(auc["retrained"]).all()
    assert (auc["approximate retraining"] == 0.5).all()
    assert len(reports.ranking(SMALL, rows, 0)) == 1
    assert set(reports.continuations(SMALL, runs).model) == {"target", "unlearned"}


def test_an_unlearned_model_is_written_in_the_published_type_and_did_change(staged):
    runs, _ = staged
    folder = runs.entry[1].folder()
    assert unlearning.chosen_steps(runs).practitioner[1] > 0
    assert models.stored_dtype(folder) == torch.float16
    before = models.load(pool.target(SMALL).folder())
    after = models.load(folder)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def counted(*case):
    """The row of `costs.flops`."""
    (row,) = pd.read_parquet(costs.flops(*case).folder() / "rows.parquet").to_dict("records")
    return row


def test_cost_of_training_is_computed_and_cost_of_unlearning_counted():
    training = counted(GPU, "arxiv", costs.RETRAINING)
    assert training["flops"] == 6 * training["parameters"] * GPU.hub.tokens
    assert np.isnan(training["steps"])
    ours = counted(GPU, "arxiv", METHOD)
    assert ours["steps"] == 2
    assert 0.5 < ours["flops"] / ours["estimate"] < 3
    assert ours["tokens"] < 16 * 512
    shape = replace(profiles.sized(32, 1), vocabulary=500, context=32)
    model = models.build(shape, study_documents.tokenizer(GPU), 0)
    small = counted(GPU, "arxiv", METHOD, 8, shape)
    assert small["parameters"] == efficiency.parameter_count(model)


def test_the_grid_is_measured_against_the_stand_in():
    setting = grid.Setting("arxiv", METHOD, 1e-3, 8)
    rows = grid.grid_rows(SMALL, [setting])
    baselines = pool.measure_baselines(SMALL)
    found = robustness.log_perplexities(SMALL, [setting], rows, baselines, 0)
    target = pool.baseline_rows(SMALL, baselines, "target").query("target_domain == 'arxiv'")
    unseen = selection.log_perplexity(target, "approximate")
    assert found.retrained["forget"][0, 0] == pytest.approx(unseen, abs=1e-12)
    assert np.isfinite(robustness.gap(found)).all()


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("gpu", ["02_target_and_retrained", "07_ascent_descent_in_distribution"]),
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
