"""Measurements of a model against plain full-logits computations; FLOPs against counts by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from unlearn_utils.core import efficiency, fused, losses, membership, metrics
from unlearn_utils.core.methods import get_method
from unlearn_utils.data import tokens
from unlearn_utils.engine import evaluation, models, trainer, training
from unlearn_utils.profiles import Unlearning

PAD_ID = 1
SHARES = ("20", "30", "40", "50", "60", "100")


def documents(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, n).tolist() for n in lengths]


DOCUMENTS = documents([9, 2, 17, 5, 12, 30, 3], 0)


@pytest.fixture(scope="module")
def model(build):
    return build(0)


def log_p(model, ids):
    """Log-probabilities (n, V) of every token at each predicted position of one document.

    They are from its full logits, in float64.
    """
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1).numpy()


def true_log_p(full, ids):
    """Log-probabilities (n,) of the true tokens."""
    return full[np.arange(len(ids) - 1), ids[1:]]


def lowest_40(true):
    """Min-40%: the mean of the lowest 40%, one at least."""
    return np.sort(true)[: max(1, int(0.4 * len(true) + 1e-9))].mean()


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_token_scores_are_those_of_the_full_logits(model, tokenizer, monkeypatch, batch):
    monkeypatch.setattr(fused, "CPU_LOGIT_BYTES", 4 * 300 * 7)  # 7 rows of logits at a time
    monkeypatch.setattr(fused, "CPU_ROWS", 1)
    found = list(evaluation.token_scores(model, DOCUMENTS, tokenizer, batch))
    assert len(found) == len(DOCUMENTS)
    for ids, scores in zip(DOCUMENTS, found, strict=True):
        full = log_p(model, ids)
        p = np.exp(full)
        mu = (p * full).sum(1)
        sigma = np.sqrt((p * (full - mu[:, None]) ** 2).sum(1))
        assert scores.log_probs == pytest.approx(true_log_p(full, ids), abs=1e-4)
        assert scores.mu == pytest.approx(mu, abs=1e-4)
        assert scores.sigma == pytest.approx(sigma, abs=1e-3)
        assert scores.correct.tolist() == (full.argmax(1) == ids[1:]).tolist()
        assert scores.text == tokenizer.decode(ids, skip_special_tokens=True)


class Fixed(nn.Module):
    """Stands for a language model whose probabilities are the same everywhere."""

    def __init__(self, probabilities):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(probabilities).log()[:, None])


@pytest.fixture
def fixed(monkeypatch):
    """Return `Fixed` models, read as language models are."""
    monkeypatch.setattr(fused, "head_of", lambda m: fused.Head(m.weight))
    monkeypatch.setattr(fused, "hidden_states", lambda m, ids, mask: torch.ones(*ids.shape, 1))
    return Fixed


def test_mean_and_deviation_by_hand(fixed, tokenizer):
    """p = (1/2, 1/4, 1/4): log2 p = -1, -2, -2; mean -1.5, deviation 0.5."""
    model = fixed([0.5, 0.25, 0.25])
    (scores,) = evaluation.token_scores(model, [[2, 0, 1, 0]], tokenizer)
    bits = math.log(2)
    assert scores.log_probs == pytest.approx([-bits, -2 * bits, -bits], rel=1e-5)
    assert scores.mu == pytest.approx([-1.5 * bits] * 3, rel=1e-5)
    assert scores.sigma == pytest.approx([0.5 * bits] * 3, rel=1e-4)
    assert scores.correct.tolist() == [True, False, True]


def test_scores_do_not_depend_on_training_mode_nor_leave_gradients(model, tokenizer):
    (before,) = evaluation.token_scores(model, DOCUMENTS[:1], tokenizer)
    model.train()
    (after,) = evaluation.token_scores(model, DOCUMENTS[:1], tokenizer)
    assert np.array_equal(before.log_probs, after.log_probs)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def table(ids=DOCUMENTS):
    names = [f"d{i}" for i in range(len(ids))]
    columns = {"id": names, "text": "gone", "family": "f", "ids": ids, "split": "forget"}
    return pd.DataFrame(columns, index=range(10, 10 + len(ids)))


KEPT = ["id", "family", "split"]
COUNTED = ["tokens", "nll", "correct"]


def test_measure_adds_columns_to_its_documents(model, tokenizer):
    found = evaluation.measure(model, table(), tokenizer)
    assert list(found.columns) == [*KEPT, *COUNTED, *membership.columns(), "extraction"]
    scores = []
    for share in SHARES:
        scores += [f"min_k_{share}", f"min_k_plus_{share}"]
    assert {*scores, "zlib"} <= set(found.columns)
    assert found.index.tolist() == list(range(7))
    assert found.id.tolist() == table().id.tolist()
    assert found.tokens.tolist() == [len(ids) - 1 for ids in DOCUMENTS]
    assert not found.isna().any(axis=None)


def test_measurements_are_those_of_each_document_alone(model, tokenizer):
    together = evaluation.measure(model, table(), tokenizer)
    for i, ids in enumerate(DOCUMENTS):
        row = together.iloc[i]
        full = log_p(model, ids)
        true = true_log_p(full, ids)
        mu = (np.exp(full) * full).sum(1)
        sigma = np.sqrt((np.exp(full) * (full - mu[:, None]) ** 2).sum(1))
        assert row.nll == pytest.approx(-true.sum(), abs=1e-3)
        assert row.min_k_100 == pytest.approx(true.mean(), abs=1e-4)
        assert row.correct == (full.argmax(1) == ids[1:]).sum()
        assert row.min_k_40 == pytest.approx(lowest_40(true), abs=1e-4)
        assert row.min_k_plus_100 == pytest.approx(((true - mu) / sigma).mean(), abs=1e-3)
        assert row.extraction == metrics.extraction_strength(full.argmax(1) == np.array(ids[1:]))
    shares = together[[f"min_k_{k}" for k in SHARES]].to_numpy()
    assert (np.diff(shares, axis=1) >= -1e-6).all()  # the lowest k% rise with k


def test_every_score_of_the_table_is_measured(model, tokenizer, monkeypatch):
    first = membership.Score("first", lambda document: document.log_probs[0])
    monkeypatch.setattr(membership, "SCORES", {"First": first})
    found = evaluation.measure(model, table(), tokenizer)
    assert list(found.columns) == [*KEPT, *COUNTED, "first", "extraction"]
    expected = [true_log_p(log_p(model, ids), ids)[0] for ids in DOCUMENTS]
    assert found["first"].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def half_guessed(model):
    """Documents of unequal lengths of which the model guesses about every second token."""
    found = [list(ids) for ids in DOCUMENTS]
    for ids in found:
        for i in range(1, len(ids), 2):
            ids[i] = int(log_p(model, [*ids[:i], 0])[-1].argmax())
    return found


def test_brief_is_measure_with_fewer_columns(model, tokenizer, float32, monkeypatch, half_guessed):
    """Whatever the batch (unequal lengths: padding), however few rows of logits at a time."""
    rows = table(half_guessed)
    full = evaluation.measure(model, rows, tokenizer)
    found = [evaluation.measure_briefly(model, rows, PAD_ID, batch) for batch in (1, 3, 16)]
    monkeypatch.setattr(fused, "CPU_LOGIT_BYTES", 4 * 300 * 7)  # 7 rows of logits at a time
    monkeypatch.setattr(fused, "CPU_ROWS", 1)
    found.append(evaluation.measure_briefly(model, rows, PAD_ID, 3))
    exact = [*KEPT, "tokens", "correct", "extraction"]
    for part in found:
        assert list(part.columns) == [*KEPT, *COUNTED, "min_k_40", "extraction"]
        assert part.index.tolist() == list(range(7))
        assert part[exact].equals(full[exact])
        for column in ("nll", "min_k_40"):
            assert part[column].tolist() == pytest.approx(full[column].tolist(), rel=1e-5)
    # a wrong row would show
    assert full.tokens.sum() / 3 < full.correct.sum() < full.tokens.sum()
    assert full.nll.nunique() == 7


def test_brief_by_the_full_logits_of_each_document(model, float32, half_guessed):
    found = evaluation.measure_briefly(model, table(half_guessed), PAD_ID, batch=4)
    for row, ids in zip(found.itertuples(), half_guessed, strict=True):
        full = log_p(model, ids)
        true = true_log_p(full, ids)
        assert row.tokens == len(true)
        assert row.correct == (full.argmax(1) == ids[1:]).sum()
        assert row.nll == pytest.approx(-true.sum())
        assert row.min_k_40 == pytest.approx(lowest_40(true), abs=1e-4)
        assert row.extraction == metrics.extraction_strength(full.argmax(1) == np.array(ids[1:]))


def test_brief_leaves_the_model_as_measure_does(model, float32):
    before = [p.detach().clone() for p in model.parameters()]
    model.train()
    evaluation.measure_briefly(model, table(), PAD_ID)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_head_is_cast_once_for_all_chunks(model, monkeypatch):
    fused.reading_of(model)  # which looks at the head, too
    heads = []
    original = fused.head_logits

    def noted(hidden, head):
        heads.append(head.weight)
        return original(hidden, head)

    monkeypatch.setattr(fused, "head_logits", noted)
    monkeypatch.setattr(fused, "CPU_LOGIT_BYTES", 4 * 300 * 7)  # 7 rows of logits at a time
    monkeypatch.setattr(fused, "CPU_ROWS", 1)
    monkeypatch.setattr(models, "half_precision", lambda: True)
    evaluation.measure_briefly(model, table(), PAD_ID)
    assert len(heads) > 1
    assert all(head is heads[0] for head in heads)
    assert heads[0].dtype == torch.bfloat16


def test_brief_runs_in_the_training_precision(model, monkeypatch):
    """In bfloat16 other numbers, but near.

    The weights of this model, far from a trained one's, move a mean loss by a hundredth.
    """
    found = {}
    for half in (False, True):
        monkeypatch.setattr(models, "half_precision", lambda half=half: half)
        found[half] = evaluation.measure_briefly(model, table(), PAD_ID)
    exact, rounded = found[False], found[True]
    assert (rounded.nll != exact.nll).all()
    assert rounded.tokens.equals(exact.tokens)
    means = (exact.nll / exact.tokens).tolist()
    assert (rounded.nll / rounded.tokens).tolist() == pytest.approx(means, abs=0.05)


def test_brief_counts_only_the_likeliest_token_as_correct(fixed, tokenizer, float32):
    """Where two tokens are equally likely, one of them is predicted, as in `measure`."""
    tied = fixed([0.4, 0.4, 0.2])
    ids = [2, 0, 1, 0, 1]
    (expected,) = evaluation.token_scores(tied, [ids], tokenizer)
    assert expected.correct.sum() == 2
    assert evaluation.measure_briefly(tied, table([ids]), 2).correct.tolist() == [2]


def test_zlib_compresses_the_text_that_was_read(model, tokenizer, text):
    """Of a document longer than the context, the part that the model saw, and nothing else."""
    (ids,) = tokens.encode(tokenizer, [text], 32)
    (row,) = evaluation.measure(model, table([ids]), tokenizer).itertuples()
    read = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith(read)
    assert row.zlib == pytest.approx(membership.zlib_score(row.nll / 31, read))


def test_memorised_text_is_extracted(build, tokenizer, float32):
    """A model trained on one document and nothing else finds each next token the likeliest."""
    ids = documents([12], 5)
    memory = build(2)
    recipe = Unlearning(learning_rate=0.02, epochs=40, batch=1)
    method = get_method("random_label")
    training.unlearn(memory, training.Job(method, ids, [], recipe, PAD_ID, 0, labels=ids))
    (row,) = evaluation.measure(memory, table(ids), tokenizer).itertuples()
    assert row.correct == row.tokens == 11
    assert row.extraction == 1
    assert row.nll / row.tokens < 0.5
    assert evaluation.greedy_continuations(memory, [ids[0][:3]], 9, 0) == [ids[0][3:]]


def test_continued_is_the_likeliest_token_step_by_step(model):
    prompts = documents([9, 9, 9, 9], 4)
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            best = log_p(model, [*ids, 0])[-1]
            ids.append(int(best[1:].argmax()) + 1)  # never the end, 0
        expected.append(ids[9:])
    assert evaluation.greedy_continuations(model, prompts, 6, PAD_ID) == expected
    assert evaluation.greedy_continuations(model, prompts[:1], 6, PAD_ID) == expected[:1]
    with pytest.raises(ValueError, match="unequal lengths"):
        evaluation.greedy_continuations(model, DOCUMENTS[:2], 6, PAD_ID)


def test_continued_always_has_the_asked_length(build):
    """Also where the end, 0, is the likeliest token."""
    ending = build(0)
    prompt = DOCUMENTS[0]
    with torch.no_grad():
        hidden = fused.hidden_states(ending, torch.tensor([prompt]))[0, -1]
        ending.get_output_embeddings().weight[0] = 3 * hidden
    assert log_p(ending, [*prompt, 0])[-1].argmax() == 0
    (found,) = evaluation.greedy_continuations(ending, [prompt], 5, PAD_ID)
    assert len(found) == 5
    assert 0 not in found


# ----------------------------------------------------------------------------------------- FLOPs


def batch_of(rows, time, seed=0):
    return tokens.collate(documents([time] * rows, seed), PAD_ID)


def flops(model, goal, sides):
    return efficiency.step_flops(model, goal.loss, sides, goal.count)


def pretraining_flops(model, batch):
    return flops(model, training.pretraining_goal(), {"text": batch})


def test_flops_of_one_matrix_product_by_hand():
    """(3 * 5, 8) @ (8, 4): 2 * 15 * 8 * 4 forward, and as many for the weight's gradient.

    The input needs none.
    """
    layer = nn.Linear(8, 4, bias=False)
    x = torch.ones(3, 5, 8)

    def loss(model, sides, counts):
        return model(x).sum() / counts["text"]

    goal = trainer.Goal(loss, {"text": losses.predicted_tokens})
    assert flops(layer, goal, {"text": batch_of(3, 5)}) == {
        "flops_per_step": 2 * 960,
        "tokens_per_step": 15,
        "estimate_per_step": 6 * 32 * 15,
    }


def eager(build, seed=0, **changes):
    model = build(seed, **changes)
    model.set_attn_implementation("eager")
    return model


def by_hand(rows, time, width=16, inner=32, layers=2, vocabulary=300):
    """Forward and twice as much backward.

    Of the layers' matrices, two products of attention, and the head on predicted tokens.
    """
    matrices = 2 * rows * time * layers * (4 * width**2 + 3 * width * inner)
    attention = layers * 2 * 2 * rows * time**2 * width
    head = 2 * rows * (time - 1) * width * vocabulary
    return 3 * (matrices + attention + head)


@pytest.mark.parametrize(("rows", "time"), [(1, 8), (2, 32), (5, 20)])
def test_flops_of_a_llama_by_hand(build, rows, time):
    found = pretraining_flops(eager(build), batch_of(rows, time))
    rotary = found["flops_per_step"] - by_hand(rows, time)
    assert 0 <= rotary < 0.01 * by_hand(rows, time)
    assert found["tokens_per_step"] == rows * time


def test_flops_of_a_wide_llama_are_about_6_n_d(build):
    model = eager(build, hidden=128, intermediate=320, heads=4)
    found = pretraining_flops(model, batch_of(2, 24))
    assert found["estimate_per_step"] == 6 * efficiency.parameter_count(model) * 48
    assert found["flops_per_step"] == pytest.approx(found["estimate_per_step"], rel=0.05)


def test_twice_the_batch_is_twice_the_work(build):
    one = pretraining_flops(eager(build), batch_of(2, 16))
    two = pretraining_flops(eager(build), batch_of(4, 16))
    assert two["estimate_per_step"] == 2 * one["estimate_per_step"]
    assert two["tokens_per_step"] == 2 * one["tokens_per_step"]
    assert two["flops_per_step"] == pytest.approx(2 * one["flops_per_step"], rel=1e-3)


def test_flops_of_methods_by_their_passes(build):
    """Ascent reads the forget side; descent also the retain side.

    KL also lets the reference read it, forward only.
    """
    model = eager(build)
    sides = {"forget": batch_of(2, 16), "retain": batch_of(2, 16, seed=1)}
    found = {}
    for name in ("gradient_ascent", "ascent_descent_general", "ascent_kl_general"):
        method = get_method(name)
        goal = training.unlearning_goal(method, Unlearning(), model)
        found[name] = flops(model, goal, {side: sides[side] for side in method.terms})
        assert found[name]["tokens_per_step"] == 32 * len(method.terms)
    ascent, descent, kl = (counted["flops_per_step"] for counted in found.values())
    assert descent / ascent == pytest.approx(2, rel=0.01)
    assert kl / ascent == pytest.approx(2 + 1 / 3, rel=0.01)
    passes = [get_method(name).passes for name in found]
    assert [descent / ascent, kl / ascent] == pytest.approx(
        [passes[1] / passes[0], passes[2] / passes[0]], rel=0.01
    )


def test_padding_is_not_counted_as_tokens(build):
    found = pretraining_flops(eager(build), tokens.collate(documents([16, 4], 0), PAD_ID))
    assert found["tokens_per_step"] == 20
    assert found["estimate_per_step"] == 6 * efficiency.parameter_count(build(0)) * 20
