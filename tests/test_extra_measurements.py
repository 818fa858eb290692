"""A further look at stored models, compared with the models themselves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils.core import metrics
from unlearn_utils.engine import evaluation, models
from unlearn_utils.profiles import PROFILES, Corpus, Pretraining, Shape
from unlearn_utils.study import extra_measurements, pool, study_documents

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=3, batch=4),
    domains=("arxiv", "github"),
    workers=1,
    resamples=20,
)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The target, in a store of its own. Prompts are short, as its models read 48 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("extra") / "store"))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(models, "half_precision", lambda: False)
        patch.setattr(extra_measurements, "PROMPT", 20)
        patch.setattr(extra_measurements, "LENGTH", 10)
        toys.forget_documents()
        yield pool.target(TINY)


def read(artifact):
    return pd.read_parquet(artifact.folder() / "rows.parquet")


def forget_documents(domain):
    return study_documents.tokenized(TINY, [(domain, "forget")])


def losses_of(artifact, ids):
    """Return the loss of each predicted token from the full logits, in float64: (n - 1,)."""
    with torch.no_grad():
        logits = models.load(artifact.folder())(torch.tensor([ids])).logits
    log_p = logits[0, :-1].double().log_softmax(-1).numpy()
    return -log_p[np.arange(len(ids) - 1), ids[1:]]


# ----------------------------------------------------------------------------------- continuations


def test_continuations_and_their_scores_are_those_of_the_tokens(target):
    documents = forget_documents("arxiv")
    found = read(extra_measurements.greedy_continuations(TINY, target, "arxiv"))
    for column in ("id", "rank", "family"):
        assert found[column].tolist() == documents[column].tolist()
    assert set(found.target_domain) == {"arxiv"}

    tokenizer = study_documents.tokenizer(TINY)
    model = models.load(target.path)
    for row, ids in zip(found.itertuples(), documents.ids, strict=True):
        prompt, true = ids[:20], ids[20:30]
        (written,) = evaluation.greedy_continuations(model, [prompt], 10, tokenizer.pad_token_id)
        assert row.prompt == tokenizer.decode(prompt[1:])
        assert row.document == tokenizer.decode(true)
        assert row.prompt + row.document == tokenizer.decode(ids[1:30])
        assert row.text == tokenizer.decode(written)
        assert row.rouge_l == metrics.rouge_l(written, true)
        assert row.exact_prefix == metrics.exact_prefix(written, true)


def test_scores_of_continuations_by_hand(target, monkeypatch, tmp_path):
    """A model writes the truth, nothing of it, its first three tokens, and all but the first."""
    true = [ids[20:30] for ids in forget_documents("github").ids]
    written = [true[0], [1] * 10, true[2][:3] + [1] * 7, [1] + true[3][1:]]
    monkeypatch.setattr(evaluation, "greedy_continuations", lambda *args: written)
    extra_measurements._make_greedy_continuations(TINY, target, "github", tmp_path)
    found = pd.read_parquet(tmp_path / "rows.parquet")
    assert found.exact_prefix.tolist() == [10, 0, 3, 0]
    assert found.rouge_l.tolist() == pytest.approx([1, 0, 0.3, 0.9])


def test_documents_that_are_too_short_are_not_continued(target, monkeypatch, tmp_path):
    longer = replace(TINY, shape=replace(TINY.shape, context=1000))
    documents = study_documents.tokenized(longer, [("arxiv", "forget")])
    lengths = documents.ids.map(len)
    shortest, second, *_ = sorted(lengths)
    assert shortest < second
    monkeypatch.setattr(extra_measurements, "PROMPT", second - 4)
    monkeypatch.setattr(extra_measurements, "LENGTH", 4)
    extra_measurements._make_greedy_continuations(longer, target, "arxiv", tmp_path)
    found = pd.read_parquet(tmp_path / "rows.parquet")
    assert found.id.tolist() == documents.id[lengths >= second].tolist()
    assert len(found) == 3


# ------------------------------------------------------------------------------------ token losses


def test_token_losses_are_those_of_the_full_logits(target):
    """Of documents of every measured split of the domain, and of a general one."""
    documents = study_documents.tokenized(TINY, study_documents.measured_parts(["github"]))
    chosen = documents.groupby(["domain", "split"]).nth(1)
    assert sorted(chosen.split) == ["approximate", "evaluation", "forget", "retain"]
    for row in chosen.itertuples():
        found = read(extra_measurements.token_losses(TINY, target, "github", row.id))
        assert list(found) == ["position", "token", "nll"]
        assert found.position.tolist() == list(range(len(row.ids)))
        assert np.isnan(found.nll[0])
        assert found.nll[1:].to_numpy() == pytest.approx(losses_of(target, row.ids), abs=1e-4)


def test_token_losses_are_those_of_their_model(target):
    other = pool.retrained(TINY, "arxiv")
    name = forget_documents("arxiv").id[2]
    ids = forget_documents("arxiv").ids[2]
    found = read(extra_measurements.token_losses(TINY, other, "arxiv", name))
    assert found.nll[1:].to_numpy() == pytest.approx(losses_of(other, ids), abs=1e-4)
    assert found.nll[1:].to_numpy() != pytest.approx(losses_of(target, ids), abs=1e-2)


def test_the_texts_of_tokens_are_the_document(target):
    """Each is what its token adds; the opening token has no text."""
    tokenizer = study_documents.tokenizer(TINY)
    name, ids = forget_documents("arxiv").id[0], forget_documents("arxiv").ids[0]
    found = read(extra_measurements.token_losses(TINY, target, "arxiv", name))
    assert found.token[0] == ""
    assert found.token[1:].map(len).min() > 0
    assert found.token[1:].tolist() == [tokenizer.decode([number]) for number in ids[1:]]
    text = study_documents.data(TINY)["arxiv"]["forget"]["text"][0]
    assert text.startswith("".join(found.token))


def test_a_character_of_several_tokens_stands_with_the_last_of_them(target):
    """The four bytes of a clef are four tokens of this small vocabulary."""
    tokenizer = study_documents.tokenizer(TINY)
    ids = tokenizer("a\U0001d11eb", add_special_tokens=False)["input_ids"]
    found = extra_measurements._texts_of_tokens(tokenizer, ids)
    assert found == ["a", "", "", "", "\U0001d11e", "b"]
    cut = extra_measurements._texts_of_tokens(tokenizer, ids[:3])  # it ends within the clef
    assert cut[:2] == ["a", ""] and set(cut[2]) == {"\ufffd"}


def test_a_document_that_is_not_measured_is_named(target):
    name = forget_documents("github").id[0]
    look = extra_measurements.token_losses(TINY, target, "arxiv", name)
    with pytest.raises(ValueError, match=f"no measured document of arxiv has the id '{name}'"):
        look.folder()


# ------------------------------------------------------------------------------------- all together


def test_keys_of_looks_follow_what_changes_them(target, monkeypatch):
    other = pool.retrained(TINY, "arxiv")
    looks = []
    for model in (target, other):
        for domain in TINY.domains:
            looks.append(extra_measurements.greedy_continuations(TINY, model, domain))
            for name in forget_documents(domain).id[:2]:
                looks.append(extra_measurements.token_losses(TINY, model, domain, name))
    monkeypatch.setattr(extra_measurements, "LENGTH", 11)
    looks.append(extra_measurements.greedy_continuations(TINY, target, "arxiv"))
    assert len({look.path for look in looks}) == len(looks) == 13
    again = extra_measurements.greedy_continuations(replace(TINY, resamples=9), target, "arxiv")
    assert again.path == looks[-1].path


def test_rows_of_several_looks(target):
    looks = []
    for domain in TINY.domains:
        looks.append(extra_measurements.greedy_continuations(TINY, target, domain))
    found = extra_measurements.rows_of(looks)
    assert found.target_domain.tolist() == ["arxiv"] * 4 + ["github"] * 4
    assert found.index.tolist() == list(range(8))
