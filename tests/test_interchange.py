"""results.json: what was measured, by the names of another toolbox, computed here by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from user_models import CONTEXT, unlearn, value, write_model

from unlearn_utils.app import commands, interchange

FIELDS = ["value", "low", "high", "n", "ours", "differs"]
ATTACKS = {"mia_min_k", "mia_min_k_plus_plus", "mia_loss", "mia_zlib"}


def rows_of(model, seed):
    """Return measurements of a model: 12 documents of each of two sets, two chunks each."""
    generator = np.random.default_rng(seed)
    number = 24
    parts = []
    for split in ("documents", "unseen"):
        columns = {
            "family": [f"{split}{i // 2:02d}" for i in range(number)],
            "split": split,
            "question": 0,
            "tokens": generator.integers(5, 9, number),
            "nll": generator.uniform(5, 30, number),
            "correct": generator.integers(0, 5, number),
            "extraction": generator.uniform(0, 1, number),
        }
        for column in ("min_k_40", "min_k_plus_40", "min_k_100", "zlib"):
            columns[column] = generator.normal(0.8 * (split == "documents"), 1, number)
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).assign(model=model)


def auc(rows, column):
    """Return the probability that a chunk of documents scores above an unseen one."""
    ours, theirs = (rows[rows.split == split][column] for split in ("documents", "unseen"))
    return np.greater.outer(ours.to_numpy(), theirs.to_numpy()).mean()


def test_every_value_by_hand():
    one, other = rows_of("one", 0), rows_of("other", 1)
    found = interchange.of_models([one, other], "documents", retrained="other")
    assert found["retrained"] == "other"
    assert found["models"]["other"].keys() == ATTACKS | {
        "extraction_strength",
        "exact_memorization",
    }
    named = found["models"]["one"]
    assert all(list(entry) == FIELDS for entry in named.values())
    forget = one[one.split == "documents"]
    expected = {
        "extraction_strength": forget.extraction.mean(),
        "exact_memorization": (forget.correct / forget.tokens).mean(),
        "mia_min_k": auc(one, "min_k_40"),
        "mia_min_k_plus_plus": auc(one, "min_k_plus_40"),
        "mia_loss": auc(one, "min_k_100"),
        "mia_zlib": auc(one, "zlib"),
    }
    retrained = auc(other, "min_k_40")
    over = other.nll / other.tokens - one.nll / one.tokens
    expected["mia_reference"] = auc(one.assign(over=over), "over")
    expected["privleak"] = 100 * (retrained - expected["mia_min_k"]) / (1 - retrained)
    losses = []
    for rows in (one, other):
        sums = rows[rows.split == "documents"].groupby("family")[["nll", "tokens"]].sum()
        losses.append(sums.nll / sums.tokens)
    expected["forget_quality"] = stats.ks_2samp(*losses).pvalue
    assert {name: entry["value"] for name, entry in named.items()} == pytest.approx(expected)
    assert {entry["n"] for entry in named.values()} == {12}
    quality = named.pop("forget_quality")
    assert (quality["low"], quality["high"]) == (None, None)
    for entry in named.values():
        assert entry["low"] < entry["value"] < entry["high"]


def test_what_needs_a_retrained_model_or_unseen_text_is_absent_without_it():
    one, other = rows_of("one", 0), rows_of("other", 1)
    found = interchange.of_models([one, other], "documents")
    assert "retrained" not in found
    for named in found["models"].values():
        assert not {"privleak", "forget_quality", "mia_reference"} & named.keys()
    alone = [rows[rows.split == "documents"] for rows in (one, other)]
    named = interchange.of_models(alone, "documents", "other")["models"]["one"]
    assert named.keys() == {"extraction_strength", "exact_memorization", "forget_quality"}


def test_privleak_is_absent_where_it_is_undefined():
    """The retrained model tells the two apart: its AUC is 1."""
    one, other = rows_of("one", 0), rows_of("other", 1)
    other.loc[other.split == "documents", "min_k_40"] += 100
    named = interchange.of_models([one, other], "documents", "other")["models"]["one"]
    assert "privleak" not in named
    assert "forget_quality" in named


def test_what_is_no_number_is_null(tmp_path):
    broken = rows_of("broken", 0)
    broken["extraction"] = np.nan
    interchange.write(tmp_path / "a.json", interchange.of_models([broken], "documents"))
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read["models"]["broken"]["extraction_strength"]["value"] is None


# ----------------------------------------------------------------------------------- the commands


def run(*given):
    return commands.main([str(part) for part in given])


def test_unlearn_writes_it_beside_the_table(llama, documents, tmp_path):
    unlearn(llama, documents, tmp_path / "out")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["models"]) == ["before", "after"]
    for model, named in found["models"].items():
        area = value(results, model, "forget against unseen", "AUC Min-40%")
        assert named["mia_min_k"]["value"] == area
        assert named.keys() == ATTACKS | {"extraction_strength", "exact_memorization"}


def test_evaluate_writes_it_beside_the_table(llama, documents, tokenizer, tmp_path):
    other = write_model(tmp_path / "other", "llama", tokenizer, seed=1)
    sets = ("--documents", documents["forget"], "--unseen", documents["unseen"])
    given = ("evaluate", "--model", llama, *sets, "--context", CONTEXT)
    assert run(*given, "--retrained", other, "--out", tmp_path / "a.csv") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert list(found["models"]) == [str(llama), str(other)]
    assert {"privleak", "forget_quality"} <= found["models"][str(llama)].keys()
    csv = pd.read_csv(tmp_path / "a.csv")
    assert (csv.measure == "log ratio of perplexities").any()


def test_a_file_is_not_overwritten_nor_is_the_table(llama, documents, tmp_path, capsys):
    given = ("evaluate", "--model", llama, "--documents", documents["forget"])
    (tmp_path / "a.json").write_text("mine")
    assert run(*given, "--out", tmp_path / "a.csv") == 2
    assert "a.json: already there" in capsys.readouterr().err
    assert run(*given, "--out", tmp_path / "b.json") == 2
    assert "a .json goes beside the table" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == "mine"
    assert not (tmp_path / "b.json").exists()


def test_retrained_goes_with_documents(llama, capsys):
    assert run("evaluate", "--model", llama, "--tasks", "arc_easy", "--retrained", llama) == 2
    assert "--retrained goes with --documents only" in capsys.readouterr().err
