"""Published models and data, from a folder in the place of the hub: loading code, chunks, the stand-in for retraining, a whole notebook."""

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
from unlearn_utils.findings import reports
from unlearn_utils.runner import profile_run
from unlearn_utils.study import costs, grid, pool, selection, single_run, study_documents, unlearning

METHOD = "ascent_descent_in_distribution"
GPU, PAPER = (replace(p, seeds=1, resamples=40) for p in (profiles.GPU, profiles.PAPER))
SMALL = replace(GPU, unlearning=profiles.Unlearning(learning_rate=1e-3, batch=8))


@pytest.fixture(scope="module", autouse=True)
def mirror(tmp_path_factory, text):
    """The folder in the place of the hub, and a store of its own."""
    folder, before = tmp_path_factory.mktemp("hub"), dict(os.environ)
    tok = tokens.train_tokenizer([text, *hubs.texts("general", 60)], 500)
    os.environ |= {paths.HUB: str(hubs.mirror(folder, tok, seed=5)), "UNLEARN_STORE": str(tmp_path_factory.mktemp("store"))}
    yield folder
    os.environ.clear()
    os.environ.update(before)


# ---------------------------------------------------------------------------------------------- what is read


def test_members_are_forgotten_or_retained_and_non_members_unseen(mirror):
    files = {side: mirror / hub.MIMIR / "cache_100_200_1000_512" / side / "github_ngram_13_0.8.jsonl" for side in ("train", "test")}
    members, others = ({json.loads(line) for line in file.read_text().splitlines()} for file in files.values())
    found = study_documents.data(GPU)
    forget, approximate, retain = (set(found["github"][s]["text"]) for s in ("forget", "approximate", "retain"))
    assert forget | retain == members and not forget & retain and approximate <= others
    assert len(forget) == len(approximate) == 16 and list(found) == ["arxiv", "github", "general"]
    assert {s: len(d) for s, d in found["general"].items()} == {"evaluation": 16, "retain": 32}


def test_whole_documents_are_cut_into_chunks_that_keep_their_document(mirror):
    table = study_documents.tokenized(PAPER, [("arxiv", "forget"), ("general", "evaluation")])
    long = table[table.family == table.family[table.id.str.endswith("/1")].iloc[0]]
    text = study_documents.data(PAPER)["arxiv"]["forget"].to_pandas().set_index("family").text[long.family.iloc[0]]
    assert list(map(len, long.ids))[:-1] == [4096] * (len(long) - 1) and len(long) > 1
    tok = study_documents.tokenizer(PAPER)
    assert sum(long.ids, []) == [tok.bos_token_id, *tok(text, add_special_tokens=False)["input_ids"]]
    assert table.id.is_unique and table.groupby("family")["rank"].nunique().eq(1).all()
    assert tokens.cut(range(9), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]] and tokens.cut(range(4), 9) == [] and tokens.cut([], 9) == []
    assert tokens.cut(range(14), 9) == [list(range(9)), list(range(9, 14))]


def test_books_come_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    for split, letters in {"forget": "ab", "approximate": "cd", "retain": "ef"}.items():
        (tmp_path / "books" / split).mkdir(parents=True)
        for letter in letters:
            (tmp_path / "books" / split / f"{letter}.txt").write_text(f"The book {letter}.")
    assert profiles.profile("paper").domains == ("arxiv", "github")
    monkeypatch.setenv("UNLEARN_BOOKS", str(tmp_path))
    found = study_documents.data(profiles.profile("paper"))
    assert sorted(found["books"]["forget"]["text"]) == ["The book a.", "The book b."] and profiles.profile("gpu").domains == GPU.domains


def test_a_chunk_that_is_to_be_forgotten_is_not_retained(monkeypatch):
    monkeypatch.setattr(
        single_run, "documents", lambda profile, parts: pd.DataFrame({"ids": {"forget": [[1, 2], [3]], "retain": [[3], [4]]}[parts[0][1]]})
    )
    assert single_run.token_ids_of_sides(GPU, "arxiv", METHOD) == ([[1, 2], [3]], [[4]])


@pytest.mark.parametrize("profile", [GPU, PAPER], ids=lambda p: p.name)
def test_pinned_revisions_are_commits(profile):
    revisions = [profile.hub.revision, hub.DATASETS[profile.corpus.source].revision]
    assert all(len(r) == 40 and int(r, 16) for r in revisions)


def test_results_of_one_model_and_text_are_not_those_of_another():
    other = [replace(GPU, hub=replace(GPU.hub, revision="0" * 40)), replace(GPU, corpus=replace(GPU.corpus, pairs=3))]
    other += [replace(GPU, shape=replace(GPU.shape, context=64)), replace(GPU, corpus=replace(GPU.corpus, whole=True))]
    steps = [pool.measurements(p, pool.target(p)).path for p in (GPU, *other)]
    assert len(set(steps)) == 5


# ---------------------------------------------------------------------------------------------- what is not there


def test_without_connection_one_line_says_what_to_get_and_how(monkeypatch, capsys):
    monkeypatch.delenv(paths.HUB)
    for name, profile in (("gpu", GPU), ("paper", PAPER)):
        assert __main__.main(["fetch", name]) == 2 and __main__.main(["run", name]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first == second and first.startswith(f"error: dataset {profile.corpus.source}, revision ") and " GB)" in first
        assert f"python -m unlearn_utils fetch {name}" in first and ("access at" in first) == (name == "gpu")
    with pytest.raises(FileNotFoundError, match=r"model 01-ai/Yi-6B, revision 0b5fb42\w+ \(12.1 GB\), is not on this machine"):
        hub.Snapshot(PAPER.hub).folder()


def test_fetch_says_where_everything_lies(mirror, capsys, monkeypatch):
    monkeypatch.setattr(downstream, "load", lambda tasks: {})
    assert __main__.main(["fetch", "paper"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [str(mirror / hub.PAPER), str(mirror / PAPER.hub.name)]
    assert __main__.main(["fetch", "laptop"]) == 0 and "reads nothing from the hub" in capsys.readouterr().out


def test_a_mirror_that_lacks_something_is_named(mirror, monkeypatch, tmp_path, capsys):
    shutil.copytree(mirror / hub.MIMIR, tmp_path / hub.MIMIR)
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    assert __main__.main(["fetch", "gpu"]) == 2
    assert f"{paths.HUB}={tmp_path} holds no folder EleutherAI/pythia-1.4b; copy the files of revision fedc38" in capsys.readouterr().err
    file = next(tmp_path.rglob("test/arxiv_*.jsonl"))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}: no such file; MIMIR has one for each domain"):
        study_documents.data(replace(GPU, name="fresh"))


def test_what_a_published_model_cannot_give_is_refused():
    with pytest.raises(ValueError, match=r"EleutherAI/pythia-1.4b cannot be trained again here: the profile gpu has no retrained model"):
        pool.retrained(GPU, "arxiv")
    assert pool.histories(GPU).empty and list(pool.train_baselines(GPU)) == ["target"]


# ---------------------------------------------------------------------------------------------- the stand-in


def test_approximate_retraining_by_hand():
    """Forget document f0 of the even half gets what u2 has, the even half's only unseen one; f1 and f3 share u1."""
    rows = [
        ("f0", "forget", 0),
        ("f1", "forget", 1),
        ("f3", "forget", 3),
        ("u1", "approximate", 1),
        ("u2", "approximate", 2),
        ("g0", "evaluation", 0),
    ]
    table = pd.DataFrame(rows, columns=["id", "split", "rank"]).assign(family=lambda t: t.id, domain="d", target_domain="d", model="target")
    table["nll"], table["tokens"] = np.arange(6.0), np.arange(10, 16)
    found = pool.approximate_retraining(table)
    assert found.id.tolist() == table.id.tolist() and found.split.tolist() == table.split.tolist()
    assert found.nll.tolist() == [4, 3, 3, 3, 4, 5] and found.tokens.tolist() == [14, 13, 13, 13, 14, 15]


def test_a_forget_document_of_several_chunks_shares_what_an_unseen_document_has():
    """Document a has 2 chunks, its stand-in u 3: sums are divided by two, scores are means; so the level is the target's on u."""
    rows = [
        ("a/0", "a", "forget"),
        ("a/1", "a", "forget"),
        ("u/0", "u", "approximate"),
        ("u/1", "u", "approximate"),
        ("u/2", "u", "approximate"),
    ]
    table = pd.DataFrame(rows, columns=["id", "family", "split"]).assign(rank=0, domain="d", target_domain="d", model="target")
    table["nll"], table["tokens"], table["min_k_40"] = [1.0, 1, 6, 9, 15], [9, 9, 10, 20, 30], [0.0, 0, -1, -2, -6]
    found = pool.approximate_retraining(table)[:2]
    assert found.id.tolist() == ["a/0", "a/1"] and found.nll.tolist() == [15, 15] and found.tokens.tolist() == [30, 30]
    assert found.min_k_40.tolist() == [-3, -3]


@pytest.fixture(scope="module")
def staged():
    """One method on both domains, under every model."""
    found = unlearning.unlearn_all(SMALL, [METHOD])
    return found, reports.report_rows(SMALL, found)


def test_retraining_is_not_available_and_its_stand_in_is_what_the_target_does_to_unseen_text(staged):
    runs_, rows = staged
    assert rows[rows.model == "retrained"].nll.isna().all() and (rows.model == "retrained again").sum() == 0
    target, proxy = ({d: part[part.target_domain == d] for d in SMALL.domains} for part in (rows[rows.model == m] for m in ("target", SMALL.truth)))
    for d in SMALL.domains:
        wanted = selection.log_perplexity(target[d], "approximate")
        assert selection.log_perplexity(proxy[d], "forget") == pytest.approx(wanted, abs=1e-12)
        assert proxy[d][proxy[d].split == "retain"].nll.tolist() == target[d][target[d].split == "retain"].nll.tolist()
    shown = tables.wide(tables.summarise(rows, ["model", "target_domain", "split"], ["perplexity"], 0, 20), ["target_domain", "split"], "model")
    assert set(shown["retrained"]) == {"not available"} and not (shown["approximate retraining"] == "not available").any()
    far = reports.distances(SMALL, rows, 0)
    assert far[far.model == "retrained"]["value"].isna().all() and far[far.model != "retrained"]["value"].notna().all()
    assert reports.divergences(SMALL, runs_, 0)["value"].isna().all() and reports.quality(SMALL, rows, 0).wilcoxon_p.isna().all()
    auc = tables.auc_table(rows[rows.domain != "general"], ["model", "target_domain"], ["Min-40%"], 0, 20).set_index("model")["value"]
    assert np.isnan(auc["retrained"]).all() and (auc["approximate retraining"] == 0.5).all()
    assert len(reports.ranking(SMALL, rows, 0)) == 1 and set(reports.continuations(SMALL, runs_).model) == {"target", "unlearned"}


def test_an_unlearned_model_is_written_in_the_published_type_and_did_change(staged):
    runs_, _ = staged
    folder, chosen = runs_.entry[1].folder(), unlearning.chosen_steps(runs_).practitioner[1]
    before, after = models.load(pool.target(SMALL).folder()), models.load(folder)
    assert models.stored_dtype(folder) == torch.float16 and chosen > 0
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_cost_of_training_is_computed_and_cost_of_unlearning_counted():
    found = pd.concat([pd.read_parquet(costs.flops(GPU, "arxiv", m).folder() / "rows.parquet") for m in (costs.RETRAINING, METHOD)])
    training, ours = found.to_dict("records")
    assert training["flops"] == 6 * training["parameters"] * GPU.hub.tokens and np.isnan(training["steps"])
    assert ours["steps"] == 2 and 0.5 < ours["flops"] / ours["estimate"] < 3 and ours["tokens"] < 16 * 512
    shape = replace(profiles.sized(32, 1), vocabulary=500, context=32)
    (row,) = pd.read_parquet(costs.flops(GPU, "arxiv", METHOD, 8, shape).folder() / "rows.parquet").to_dict("records")
    assert row["parameters"] == efficiency.parameter_count(models.build(shape, study_documents.tokenizer(GPU), 0))


def test_the_grid_is_measured_against_the_stand_in():
    setting = grid.Setting("arxiv", METHOD, 1e-3, 8)
    rows = grid.grid_rows(SMALL, [setting])
    from unlearn_utils.findings import robustness

    found = robustness.log_perplexities(SMALL, [setting], rows, pool.measure_baselines(SMALL), 0)
    target = pool.baseline_rows(SMALL, pool.measure_baselines(SMALL), "target").query("target_domain == 'arxiv'")
    assert found.retrained["forget"][0, 0] == pytest.approx(selection.log_perplexity(target, "approximate"), abs=1e-12)
    assert np.isfinite(robustness.gap(found)).all()


@pytest.mark.parametrize(
    ("profile", "names"),
    [("gpu", ["02_target_and_retrained", "07_ascent_descent_in_distribution"]), ("paper", ["01_data_curation", "02_target_and_retrained"])],
)
def test_notebooks_run_on_a_published_model(tmp_path, monkeypatch, capsys, profile, names):
    """By the runner, as `./run_all.sh gpu` would."""
    (tmp_path / "notebooks").mkdir()
    for name in names:
        shutil.copy(paths.PROJECT / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("PYTHONPATH", str(paths.PROJECT))
    assert profile_run.run(tmp_path, profile) == 0, capsys.readouterr().err
    text = (tmp_path / "runs" / profile / f"{names[-1]}.ipynb").read_text()
    assert "not available" in text and "approximate retraining" in text
