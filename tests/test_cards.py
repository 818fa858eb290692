"""What lies beside a new model's weights: results with their intervals, the record, the card."""

from importlib import metadata

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_models import chunks_of, logits, record, unlearn, value

import unlearn_utils
from unlearn_utils.app import cards, user_documents
from unlearn_utils.core import methods, tables
from unlearn_utils.core.methods import METHODS, RETAIN_TEXTS, Method, Term
from unlearn_utils.engine import models

# ---------------------------------------------------------------------------------------- results


def test_intervals_count_documents_not_chunks(llama, documents, tmp_path, capsys):
    unlearn(llama, documents, tmp_path / "out")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    measured = ["model", "split", "measure", "value", "low", "high", "n"]
    assert list(results.columns) == [*measured, "method", "learning_rate", "steps", "goal"]
    run = record(tmp_path / "out")
    assert set(results.method) == {"gradient_ascent"}
    assert set(results.learning_rate) == {2e-5}
    assert set(results.steps) == {len(run["history"])} == {4}
    assert set(results.goal) == {value(results, "before", "unseen", "perplexity")}
    assert set(results.n) == {4}
    assert "forget: 4 documents, 13 chunks of up to 32 tokens" in capsys.readouterr().out
    expected = {("forget against unseen", "AUC Min-40%")}
    for split in documents:
        expected |= {(split, "perplexity"), (split, "accuracy")}
    assert set(zip(results.split, results.measure, strict=True)) == expected
    assert set(results.model) == {"before", "after"}
    assert (results.low <= results.value + 1e-9).all()
    assert (results.value <= results.high + 1e-9).all()


def lowest_mean(model, ids):
    """Return the mean of the lowest 40% of the log-probabilities of a chunk's true tokens."""
    log_p = logits(model, ids)[:-1].log_softmax(-1)
    true = log_p.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    kept = max(1, int(0.4 * len(true)))
    return true.sort().values[:kept].mean().item()


def test_auc_is_that_of_the_lowest_log_probabilities(llama, documents, tmp_path):
    """Before unlearning, from the model's own logits: forget above unseen, ties half."""
    unlearn(llama, documents, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    scores = {}
    for side in ("forget", "unseen"):
        chunks = chunks_of(documents[side], side, tokenizer)
        scores[side] = [lowest_mean(model, ids) for ids in chunks]
    wins = np.subtract.outer(scores["forget"], scores["unseen"])
    expected = (wins > 0).mean() + (wins == 0).mean() / 2
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    found = value(results, "before", "forget against unseen", "AUC Min-40%")
    assert found == pytest.approx(expected, abs=1e-9)


# ----------------------------------------------------------------------------------------- record


def test_the_record_holds_every_setting_and_no_name(llama, documents, tmp_path):
    out = tmp_path / "out"
    given = ("--retain-weight", 0.5, "--seed", 3, "--batch", 6, "--micro-batch", 2)
    unlearn(llama, documents, out, "ascent_kl_general", *given)
    run = record(out)
    expected = {
        "method": "ascent_kl_general",
        "retain_weight": 0.5,
        "seed": 3,
        "batch": 6,
        "micro_batch": 2,
        "epochs": 1,
        "context": 32,
        "learning_rate": 2e-5,
        "model": llama.name,
        "commit": None,
        "dtype": "float32",
        "lora": None,
        "merge": False,
        "bf16": models.half_precision(),
    }
    assert expected.items() <= run.items()
    assert len(run["history"]) == 3
    for name, path in documents.items():
        assert run["documents"][name] == list(user_documents.read_documents(path).sha256)
    assert without_local_part(run["versions"]["torch"]) == without_local_part(torch.__version__)

    hidden = ("secret_plan", "quark", "lepton", str(documents["forget"]), str(tmp_path))
    for file in ("run.json", "README.md", "results.csv", "config.json"):
        written = (out / file).read_text()
        assert not any(word in written for word in hidden)


def without_local_part(version):
    """Return a version without what names a build, as in 2.13.0+cu130."""
    return version.partition("+")[0]


def test_versions_need_no_installation(monkeypatch):
    """A clone that is run in place is no distribution."""
    installed = metadata.version

    def version(name):
        if name == "unlearn-utils":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    found = cards.versions()
    assert found["unlearn-utils"] == unlearn_utils.__version__
    assert {"python", "torch", "transformers", "peft"} < set(found)


# ------------------------------------------------------------------------------------------- card


def test_the_card_says_what_was_done(llama, documents, tmp_path):
    given = ("--learning-rate", 1e-4)
    unlearn(llama, documents, tmp_path / "out", "ascent_kl_in_distribution", *given)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "base_model": llama.name,
        "library_name": "transformers",
        "license": "unknown",
        "tags": ["unlearning", "ascent_kl_in_distribution"],
    }
    for said in (
        "minus the cross-entropy of the forget text",
        "KL(original model || model)",
        "w = 1, the retain text being meant as text of the forget text's own kind.",
        "Each term is a mean over the predicted tokens of an optimizer batch.",
        "| learning_rate | 0.0001 | given |",
        "| epochs | 1 | the released code of arXiv 2402.15159 uses it |",
        "| batch | 4 | ours |",
        user_documents.read_documents(documents["forget"]).sha256[2],
        "Unlearning is approximate",
        "Membership inference may still find the documents",
        "never shown to be without",
    ):
        assert said in card.text
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    after = results[(results.model == "after") & (results.measure == "AUC Min-40%")]
    row = after.iloc[0]
    assert f"| {tables.text(row, 4, significant=True)} | 4 |" in card.text
    assert f"- {record(tmp_path / 'out')['verdict']['line']}" in card.text


SEQUENCES = Term("mine", "my loss", loss="ascent", counted="sequences")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            METHODS["ascent_kl_general"],
            "Each term is a mean over the predicted tokens of an optimizer batch.",
        ),
        (
            Method("mine", "Mine", SEQUENCES),
            "Each term is a mean over the sequences of an optimizer batch.",
        ),
        (
            Method("mine", "Mine", SEQUENCES, methods.DESCENT, "general"),
            "The forget term is a mean over the sequences of an optimizer batch, the retain term "
            "over its predicted tokens.",
        ),
    ],
    ids=["tokens", "sequences", "both"],
)
def test_the_card_says_what_a_mean_is_over(method, said):
    assert cards.describe_means(method) == said


def test_the_license_is_the_base_card_s(tmp_path):
    assert cards.stated_license(tmp_path) == {"license": "unknown"}
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert cards.stated_license(tmp_path) == {"license": "unknown"}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n# A model\n")
    assert cards.stated_license(tmp_path) == {"license": "other", "license_name": "own"}


def test_the_table_of_methods_is_that_of_core():
    table = cards.method_table().set_index("name")
    assert list(table.index) == list(METHODS)
    for name, method in METHODS.items():
        row = table.loc[name]
        assert row["forget term"] == method.forget.name
        assert row["minimises"] == method.minimises
        assert (row["retain text"] in RETAIN_TEXTS) is (method.retain is not None)
        assert bool(row["retain term"]) is (method.retain is not None)
