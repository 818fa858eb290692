"""Hubble: a published pair, trained with and without inserted passages; pinned branches."""

import gzip
import json
import os
import shutil
from dataclasses import replace

import hubs
import huggingface_hub
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import toys
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_utils import __main__, profiles
from unlearn_utils.cache import paths
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.data import corpus, hub, repository, tokens
from unlearn_utils.engine import downstream, models
from unlearn_utils.findings import comparison, draws, evidence, insertions, pool_tables
from unlearn_utils.study import method_paths, pool, selection, study_documents

METHOD = "ascent_descent_in_distribution"
HUBBLE = profiles.HUBBLE
SMALL = replace(
    HUBBLE,
    corpus=replace(HUBBLE.corpus, pairs=18, retain=24, general=12, evaluation=8, measured=8),
    shape=replace(HUBBLE.shape, context=hubs.SHORT),
    unlearning=profiles.Unlearning(learning_rate=2e-3, batch=2),
    grid=replace(HUBBLE.grid, learning_rates=(2e-3,), epochs=1, usual_epochs=2),
    resamples=40,
)
POPULAR, UNPOPULAR = HUBBLE.domains
BRANCHES = [*hub.PASSAGES.values(), HUBBLE.hub.name, HUBBLE.hub.retrained]
COMMIT, ANOTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def copies(tmp_path_factory, text):
    """The folder in the place of the hub."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = tokens.train_tokenizer([text, *hubs.texts("general", 60)], 500)
    return hubs.hubble(folder, tokenizer, seed=5)


@pytest.fixture(scope="module", autouse=True)
def mirror(copies, tmp_path_factory):
    """The folder in the place of the hub is found; there is a store of its own."""
    before = dict(os.environ)
    os.environ[paths.HUB] = str(copies)
    os.environ[paths.STORE] = str(tmp_path_factory.mktemp("store"))
    os.environ[paths.FIGURES] = str(tmp_path_factory.mktemp("figures"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "half_precision", lambda: False)  # alike on every machine
        yield copies
    os.environ.clear()
    os.environ.update(before)


# ------------------------------------------------------------------------------------ what is read


def numbers(table):
    """How often each text was inserted."""
    return table.set_index("text").duplicates.to_dict()


def test_inserted_passages_are_forgotten_and_held_out_ones_unseen(mirror):
    found = study_documents.data(SMALL)
    assert list(found) == [POPULAR, UNPOPULAR, "general"]
    for kind, other in ((POPULAR, UNPOPULAR), (UNPOPULAR, POPULAR)):
        known = dict(hubs.passages(hubs.KINDS[kind]))
        splits = {name: part.to_pandas() for name, part in found[kind].items()}
        for name in ("forget", "approximate"):
            assert numbers(splits[name]).items() <= known.items()
        assert (splits["forget"].duplicates > 0).all()
        assert (splits["approximate"].duplicates == 0).all()
        others = dict(hubs.passages(hubs.KINDS[other]))
        retain = splits["retain"]
        assert numbers(retain).items() <= others.items()
        assert (retain.duplicates > 0).all() and len(retain) == 24
    general = [part.to_pandas() for part in found["general"].values()]
    assert [len(part) for part in general] == [8, 12]
    assert (pd.concat(general).duplicates == 0).all()


def test_every_number_of_insertions_has_its_turn():
    """Six of one, two of another and one of a third: five are two, two and one."""
    table = pd.DataFrame({"text": list("abcdefghi"), "duplicates": [1] * 6 + [4] * 2 + [9]})
    drawn = corpus._in_turns(table)
    assert sorted(drawn.duplicates[:5]) == [1, 1, 4, 4, 9]
    assert sorted(drawn.text) == list("abcdefghi")


def test_how_often_it_was_inserted_goes_with_a_document_to_its_measured_row():
    table = study_documents.data(SMALL)[POPULAR]["forget"].to_pandas()
    rows = pool.target_rows(SMALL, POPULAR, 0)
    rows = rows[rows.split == "forget"].set_index("id")
    assert len(rows) == len(table) == 18
    assert rows.duplicates.to_dict() == table.set_index("id").duplicates.to_dict()
    with_none = study_documents._tokenized_split(profiles.SMOKE, "arxiv", "forget")
    assert "duplicates" not in with_none


def test_parameters_follow_from_the_shape():
    config = LlamaConfig(
        vocab_size=HUBBLE.shape.vocabulary,
        hidden_size=HUBBLE.shape.hidden,
        intermediate_size=HUBBLE.shape.intermediate,
        num_hidden_layers=HUBBLE.shape.layers,
        num_attention_heads=HUBBLE.shape.heads,
        num_key_value_heads=HUBBLE.hub.key_value_heads,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert hub.parameters(HUBBLE.shape, 8, HUBBLE.shape.vocabulary) == number
    assert 2 * number / 1e9 == pytest.approx(HUBBLE.hub.gigabytes, abs=0.05)


# -------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("duplicates: 3", "meta is no JSON object with duplicates, but 'duplicates: 3'"),
        ('{"title": "A book"}', "meta is no JSON object with duplicates"),
        ("[0]", "meta is no JSON object with duplicates"),
        ({"duplicates": 1}, "meta is no JSON object with duplicates"),
        (None, "meta is no JSON object with duplicates, but None"),
        ('{"duplicates": "4"}', "duplicates is no whole number from 0, but '4'"),
        ('{"duplicates": -1}', "duplicates is no whole number from 0, but -1"),
        ('{"duplicates": true}', "duplicates is no whole number from 0, but True"),
    ],
)
def test_a_passage_that_does_not_say_how_often_it_was_inserted_is_named(
    copies, tmp_path, monkeypatch, meta, words
):
    file = hubs.write_passages(tmp_path, POPULAR, [("A text.", 0)])
    line = json.dumps({"text": "Another text.", "meta": meta}) + "\n"
    file.write_bytes(file.read_bytes() + gzip.compress(line.encode()))
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    with pytest.raises(ValueError) as error:
        corpus.load(hub.HUBBLE, POPULAR, pairs=1, retain=1, general=1, evaluation=1)
    assert str(error.value).startswith(f"{file.resolve()}:2: {words}")
    assert "\n" not in str(error.value)


def test_a_data_set_without_passages_of_one_kind_is_named(tmp_path, monkeypatch):
    file = hubs.write_passages(tmp_path, POPULAR, [("A text.", 0)])
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    with pytest.raises(ValueError, match=f"{file}: no passage has duplicates > 0; "):
        corpus.load(hub.HUBBLE, POPULAR, pairs=1, retain=1, general=1, evaluation=1)


@pytest.mark.parametrize(
    "file",
    [
        "passages_gutenberg_unpopular/passages_gutenberg_unpopular_nodup.jsonl.gz",
        "hubble-1b-100b_toks-standard-hf/model.safetensors",
        "hubble-1b-100b_toks-standard-hf/config.json",
    ],
)
def test_a_missing_file_is_named(copies, tmp_path, monkeypatch, capsys, file):
    owner = tmp_path / "allegrolab"
    shutil.copytree(copies / "allegrolab", owner)
    (owner / file).unlink()
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    assert __main__.main(["fetch", "hubble"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    folder, name = file.split("/")
    pattern = name.replace("model.", "model*.")
    assert line.startswith(f"error: {owner / folder}: there is no file {pattern} of ")
    assert "python -m unlearn_utils fetch hubble" in line and " GB)" in line


# ------------------------------------------------------------------------- branches and the hub


@pytest.fixture
def cache(copies, tmp_path, monkeypatch):
    """A cache of the hub, as it lies on a disk: each branch is `COMMIT`; no copies, a new store."""
    monkeypatch.delenv(paths.HUB)
    monkeypatch.setenv(paths.STORE, str(tmp_path / "store"))
    monkeypatch.setattr(downstream, "load", lambda tasks: {})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(cache, copies, commit):
    """Put all that the profile reads into a cache, as `commit` of its branches."""
    for name in BRANCHES:
        model = "hubble-1b" in name
        root = cache / f"{'models' if model else 'datasets'}--{name.replace('/', '--')}"
        branch = "step48000" if model else "main"
        shutil.copytree(copies / name, root / "snapshots" / commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / branch).write_text(commit)


def on_the_hub(monkeypatch, commit):
    """Let the hub be reached, and say that every branch is `commit`."""
    real = repository.download

    def download(name, kind, revision, patterns, here_alone=False, cache=None):
        if cache is None:
            return real(name, kind, revision, patterns, here_alone)
        return cache / commit

    monkeypatch.setattr(repository, "download", download)


def test_without_connection_one_line_says_what_to_fetch_and_how_large_it_is(cache, capsys):
    for command in (["fetch", "hubble"], ["run", "hubble"]):
        assert __main__.main(command) == 2
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert line.startswith(f"error: dataset {BRANCHES[0]}, revision main (0.01 GB), is not on")
        assert "python -m unlearn_utils fetch hubble; or copy it to FOLDER/" in line
        download, parameters, memory = said.out.splitlines()  # sizes were said before
        assert f"{HUBBLE.hub.name} 2.4 GB, {HUBBLE.hub.retrained} 2.4 GB; in all 4.8 GB" in download
        assert "1.18e9 parameters" in parameters and "vocabulary 50304" in parameters
        assert "19 GB of memory" in memory
    with pytest.raises(FileNotFoundError, match=r"revision step48000 \(2.4 GB\), is not on"):
        print(hub.Snapshot(HUBBLE.hub).path)


def test_a_branch_is_pinned_printed_and_recorded(cache, copies, capsys):
    stored(cache, copies, COMMIT)
    assert __main__.main(["fetch", "hubble"]) == 0
    said = capsys.readouterr().out
    assert "vocabulary 500," in said  # of the config, which is here
    for name in BRANCHES:
        branch = "step48000" if "hubble-1b" in name else "main"
        assert f"{name}: branch {branch} is commit {COMMIT}" in said
        file = paths.store_folder() / "hub" / f"{name.replace('/', '--')}@{branch}.json"
        record = json.loads(file.read_text())
        assert record.pop("date").count("-") == 2
        assert record == {"repository": name, "branch": branch, "commit": COMMIT}
    snapshot = hub.Snapshot(HUBBLE.hub, "text")
    assert snapshot.path.name == f"allegrolab--hubble-1b-100b_toks-perturbed-hf@{COMMIT}@text"
    assert snapshot.folder().name == COMMIT


def test_a_branch_that_is_another_commit_now_is_refused(cache, copies, capsys, monkeypatch):
    stored(cache, copies, COMMIT)
    assert __main__.main(["fetch", "hubble"]) == 0
    capsys.readouterr()
    stored(cache, copies, ANOTHER)  # by another program
    assert hub.Snapshot(HUBBLE.hub).folder().name == COMMIT  # a run goes on with the recorded one
    assert __main__.main(["fetch", "hubble"]) == 0  # without a connection
    capsys.readouterr()

    on_the_hub(monkeypatch, ANOTHER)
    for command in (["fetch", "hubble"], ["run", "hubble"]):
        assert __main__.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"dataset {BRANCHES[0]}: the branch main is commit {ANOTHER} now, and " in line
        assert f"of {COMMIT}, recorded on 20" in line
    shutil.rmtree(paths.store_folder() / "hub")
    assert __main__.main(["fetch", "hubble"]) == 0
    assert hub.Snapshot(HUBBLE.hub).folder().name == ANOTHER


def test_a_copy_that_says_its_commit_is_held_to_it(copies, tmp_path, monkeypatch):
    """`hf download --local-dir` writes the commit, a hash and the time beside each file."""
    monkeypatch.setenv(paths.STORE, str(tmp_path / "store"))
    name = HUBBLE.hub.name
    shutil.copytree(copies / name, tmp_path / name)
    monkeypatch.setenv(paths.HUB, str(tmp_path))
    snapshot = hub.Snapshot(HUBBLE.hub)
    assert "@step48000@" in snapshot.path.name  # it says no commit
    note = tmp_path / name / ".cache" / "huggingface" / "download" / "config.json.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{COMMIT}\nhash\n1.5\n")
    assert f"@{COMMIT}@" in snapshot.path.name
    note.write_text(f"{ANOTHER}\nhash\n1.5\n")
    with pytest.raises(
        ValueError, match=f"is commit {ANOTHER} now, .*copy its files to {tmp_path}"
    ):
        snapshot.folder()


def test_a_damaged_record_is_named(cache, copies):
    stored(cache, copies, COMMIT)
    hub.fetch(HUBBLE)
    file = repository.record_of(hub._wanted_model(HUBBLE.hub))
    file.write_text('{"commit": ')
    with pytest.raises(ValueError, match=f"{file}: no record of a commit and its date; remove it"):
        hub.fetch(HUBBLE)


# ------------------------------------------------------------------------------ the retrained model


def test_the_pool_is_a_target_and_a_model_that_has_seen_no_forget_set():
    assert HUBBLE.truth == "retrained" and HUBBLE.has_retrained
    both = f"{POPULAR} + {UNPOPULAR}"
    rows = pool.pool_rows(SMALL)
    assert rows[["replicate", "seen"]].drop_duplicates().values.tolist() == [[0, both], [0, "none"]]
    for domain in SMALL.domains:
        (pair,) = pool.pairs(SMALL, domain, 0)
        assert (pair.target.name, pair.retrained.name) == (both, "none")
        target, truth = pool.target(SMALL), pool.retrained(SMALL, domain)
        assert target.hub.name.endswith("perturbed-hf") and truth.hub.name.endswith("standard-hf")


def test_the_truth_is_the_retrained_model_but_on_retain_text_which_it_lacks_too():
    for domain in SMALL.domains:
        target, truth = (read(SMALL, domain, 0) for read in (pool.target_rows, pool.truth_rows))
        alone = pool.rows_of_domain(SMALL, pool.retrained(SMALL, domain), domain)
        assert truth.id.tolist() == alone.id.tolist() == target.id.tolist()
        retain = truth.split == "retain"
        assert truth.nll[retain].tolist() == target.nll[retain].tolist()
        assert truth.nll[~retain].tolist() == alone.nll[~retain].tolist()
        before = draws.levels(SMALL, target, domain, draws.ALL)[0]
        after = draws.levels(SMALL, truth, domain, draws.ALL)[0]
        assert after[SPLITS.index("forget")] > before[SPLITS.index("forget")] + 0.2


def test_what_needs_a_retrained_model_has_values():
    assert pool_tables.models_table(SMALL)["value"].notna().all()
    auc = pool_tables.membership_table(SMALL).set_index("model")["value"]
    assert auc["target"].min() > auc["retrained"].max()
    apart = pool_tables.differences_table(SMALL).set_index("measure")["value"]
    assert (apart[pool_tables.MEMORISED] < -0.2).all()
    assert apart[pool_tables.PROXY_BIAS].notna().all()
    assert apart[pool_tables.NOISE_ON_FORGET].isna().all()  # it takes two pairs
    assert pool_tables.continuations_table(SMALL)["value"].notna().all()
    assert evidence.proxy(SMALL).draws is not None
    assert pool_tables.members_table(SMALL).empty


# ------------------------------------------------------------------------ how often it was inserted


@pytest.fixture
def one_method():
    """Let there be one method, for time."""
    with toys.methods_alone([METHOD]):
        yield


def test_memorisation_and_what_is_left_of_it_by_number_of_insertions(one_method):
    assert insertions.available(SMALL)
    found = insertions.insertions_table(SMALL)
    keys = ["target_domain", "model", "duplicates"]
    expected = len(SMALL.domains) * 2 * len(hubs.INSERTIONS)
    assert len(found) == len(found[keys].drop_duplicates()) == expected
    assert found["value"].notna().all()
    found = found.set_index(["target_domain", "model"]).sort_index()
    for domain in SMALL.domains:
        target, after = found.loc[(domain, "target")], found.loc[(domain, METHOD)]
        assert target.duplicates.tolist() == [1, 4, 16]
        assert target["value"].iloc[-1] == target["value"].min()  # the most often: remembered best
        assert after["value"].mean() > target["value"].mean() + 0.1
        rows = pool.target_rows(SMALL, domain, 0)
        rows = selection.half(rows[rows.split == "forget"], selection.REPORT)
        truth = pool.truth_rows(SMALL, domain, 0).loc[rows.index]
        often = rows.duplicates == 16
        gap = rows.nll[often].sum() / rows.tokens[often].sum()
        gap -= truth.nll[often].sum() / truth.tokens[often].sum()
        (ours,) = target["value"][target.duplicates == 16]
        assert ours == pytest.approx(gap)
    ax = insertions.draw(found.loc[POPULAR].reset_index(), plt.figure().subplots())
    assert len(ax.get_lines()) == 3  # two models, and the retrained one


def test_methods_are_compared_with_a_really_retrained_model(one_method):
    (drawn,) = comparison.usual(SMALL, POPULAR, METHOD)
    start = drawn.target(selection.REPORT)[0]
    assert start[SPLITS.index("forget")] < -0.2
    assert start[SPLITS.index("retain")] == pytest.approx(0, abs=1e-12)
    assert comparison.retrained_again(SMALL, POPULAR, 0) == []
    (artifact,) = method_paths.make_all([drawn.run])
    assert method_paths.outcome(artifact)["kept"] in drawn.steps
