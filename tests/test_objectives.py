"""The fused losses against their plain definitions, and the replacement labels against hand-made cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPTNeoXConfig, GraniteConfig, LlamaConfig

from unlearn_utils.core import fused, losses, replacement
from unlearn_utils.core.fused import Head

VOCABULARY, WIDTH = 64, 16
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=1),
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "head_dim"}),
    "gemma2, soft-capped": Gemma2Config(**SHAPE, num_key_value_heads=1, final_logit_softcapping=0.5),
    "cohere, scaled": CohereConfig(**SHAPE, logit_scale=3.0),
    "granite, divided": GraniteConfig(**SHAPE, logits_scaling=0.25),
}


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(family="llama", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").eval()
        for parameter in model.parameters():  # the default initialisation is nearly uniform over tokens
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(rows=3, time=7, seed=0):
    ids = torch.randint(3, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def padded(batch, extra):
    """The same batch with `extra` columns of padding on the right."""
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    return {name: F.pad(tensor, (0, extra), value=fill[name]) for name, tensor in batch.items()}


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def plain_logits(hidden, head):
    logits = F.linear(hidden, head.weight, head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


HEADS = {"plain": {}, "scale": {"scale": 0.3}, "softcap": {"softcap": 2.0}, "both": {"scale": 1.7, "softcap": 3.0}}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 3 rows, so that every loss here crosses several."""
    monkeypatch.setattr(fused, "CPU_LOGIT_BYTES", 3 * 4 * VOCABULARY)
    monkeypatch.setattr(fused, "CPU_ROWS", 1)


def leaves(dtype=torch.float64, bias=True, **choices):
    hidden = random(10, WIDTH, seed=1, dtype=dtype).requires_grad_()
    weight = random(VOCABULARY, WIDTH, seed=2, dtype=dtype).requires_grad_()
    return hidden, Head(weight, random(VOCABULARY, seed=3, dtype=dtype).requires_grad_() if bias else None, **choices)


def terms():
    """Each term beside its plain definition on log-probabilities."""
    targets = torch.randint(VOCABULARY, (10,), generator=torch.Generator().manual_seed(4))
    fixed, head = random(10, WIDTH, seed=5, dtype=torch.float64), Head(random(VOCABULARY, WIDTH, seed=6, dtype=torch.float64), softcap=4.0)
    p = plain_logits(fixed, head).softmax(-1)
    return {
        "cross-entropy": (fused.true_token(targets), lambda log_q: F.nll_loss(log_q, targets, reduction="none")),
        "KL": (fused.divergence(fixed, head), lambda log_q: (p * (p.log() - log_q)).sum(-1)),
        "official KL": (fused.official_divergence(fixed, head, 1e-2), lambda log_q: -(p * (log_q.exp() + 1e-2).log()).sum(-1)),
    }


@pytest.mark.parametrize("choices", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", terms())
@pytest.mark.parametrize("bias", [True, False])
def test_fused_loss_and_gradients_equal_the_plain_ones(name, choices, bias):
    (hidden, head), (term, plain) = leaves(bias=bias, **choices), terms()[name]
    weights = random(10, seed=7, dtype=torch.float64)
    parameters = [hidden, head.weight] + ([head.bias] if bias else [])
    expected = (weights * plain(plain_logits(hidden, head).log_softmax(-1))).sum()
    loss = fused.fused_loss(hidden, head, term, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = torch.autograd.grad(2 * loss, parameters), torch.autograd.grad(2 * expected, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", terms())
def test_gradcheck(name):
    hidden, head = leaves(scale=1.3, softcap=2.5)
    hidden, weight, bias = (x.detach()[:8].requires_grad_() for x in (hidden, head.weight, head.bias))
    fixed, term = random(8, WIDTH, seed=8, dtype=torch.float64), None
    if name == "cross-entropy":
        term = fused.true_token(torch.arange(8))
    else:
        make = {"KL": fused.divergence, "official KL": fused.official_divergence}[name]
        term = make(fixed, Head(random(8, WIDTH, seed=9, dtype=torch.float64)))
    assert torch.autograd.gradcheck(lambda h, w, b: fused.fused_loss(h, Head(w, b, 1.3, 2.5), term), (hidden, weight, bias))


def test_only_what_needs_a_gradient_gets_one(monkeypatch):
    hidden, head = leaves()
    frozen = Head(head.weight.detach())
    fused.fused_loss(hidden, frozen, fused.true_token(torch.arange(10))).backward()
    assert hidden.grad is not None and frozen.weight.grad is None
    monkeypatch.delattr(fused, "_accumulate")  # without gradients none is computed
    with torch.no_grad():
        assert fused.fused_loss(hidden, head, fused.true_token(torch.arange(10))) > 0


@pytest.mark.parametrize(("vocabulary", "rows"), [(64, 16384), (2048, 512), (32000, 96), (64000, 65), (256000, 16), (10**7, 1)])
def test_a_chunk_of_logits_fits_the_budget(vocabulary, rows, monkeypatch):
    """4 MiB; at large vocabularies 96 rows or as many as fit 16 MiB."""
    monkeypatch.undo()  # the real budget
    assert fused.chunk_rows(vocabulary, torch.device("cpu")) == rows
    assert rows == 1 or rows * vocabulary * 4 <= 16 * 2**20
    assert fused.chunk_rows(vocabulary, torch.device("cuda")) == max(1, 256 * 2**20 // (4 * vocabulary))


def test_logits_are_made_chunk_by_chunk(monkeypatch):
    seen, original = [], fused._logits
    monkeypatch.setattr(fused, "_logits", lambda rows, *rest: seen.append(len(rows)) or original(rows, *rest))
    hidden, head = leaves()
    fused.fused_loss(hidden, head, fused.true_token(torch.arange(10)))
    assert seen == [3, 3, 3, 1]


def test_bf16_autocast_multiplies_in_bf16_and_sums_in_float32():
    hidden, head = leaves(torch.float32, bias=False)
    term = fused.true_token(torch.arange(10))
    exact = fused.fused_loss(hidden, head, term)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused.fused_loss(hidden, head, term)
        narrow = F.linear(hidden, head.weight)
    assert narrow.dtype == torch.bfloat16 and loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(narrow.float(), torch.arange(10), reduction="sum"))
    ours, theirs = (torch.autograd.grad(x, [hidden, head.weight]) for x in (loss, exact))
    for g, expected in zip(ours, theirs, strict=True):
        assert g.dtype == torch.float32
        assert 0 < (g - expected).norm() / expected.norm() < 0.01


def test_a_mean_keeps_its_digits_in_bfloat16():
    """1 / 1021 is not a number of bfloat16."""
    hidden, head = leaves(torch.bfloat16, bias=False)
    term = fused.true_token(torch.arange(10))
    of_sum, of_mean = (torch.autograd.grad(fused.fused_loss(hidden, head, term) / n, [hidden, head.weight]) for n in (1, 1021))
    for one, mean in zip(of_sum, of_mean, strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(mean, (one.float() / 1021).bfloat16())


@pytest.mark.parametrize("choices", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_reference_s_logits_are_multiplied_like_the_model_s(choices, bias):
    """In bfloat16, too, KL to itself is 0."""
    hidden, head = leaves(torch.float32, bias=bias, **choices)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused.fused_loss(hidden, head, fused.divergence(hidden.detach(), head))
    assert loss == 0 and not torch.autograd.grad(loss, hidden)[0].any()


# ---------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_loss_equals_the_framework_s(family):
    model, batch = tiny(family), padded(batch_of(), 2)
    batch["labels"][0, 2] = -100
    expected = model(**batch).loss
    loss = losses.next_token_loss(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model), rtol=1e-4, atol=1e-5)


def test_head_reads_scale_softcap_and_bias():
    assert fused.head_of(tiny())[1:] == (None, 1.0, None)
    assert fused.head_of(tiny("cohere, scaled")).scale == 3.0
    assert fused.head_of(tiny("granite, divided")).scale == 4.0
    assert fused.head_of(tiny("gemma2, soft-capped")).softcap == 0.5
    model = tiny()
    model.lm_head = torch.nn.Linear(WIDTH, VOCABULARY)
    assert fused.head_of(model).bias is model.lm_head.bias


def test_lora_adapters_are_seen_and_refused_on_the_head():
    peft = pytest.importorskip("peft")
    batch, plain = batch_of(), losses.next_token_loss(tiny(), batch_of())
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    loss = losses.next_token_loss(model, batch)
    torch.testing.assert_close(loss, model(**batch).loss)
    assert abs(loss - plain) > 1e-4
    with pytest.raises(ValueError, match="plain linear layer"):
        fused.head_of(peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["lm_head"])))


@pytest.mark.parametrize("loss_of", ["next token", "KL"])
def test_padding_never_changes_a_loss(loss_of):
    model, reference, batch = tiny(), tiny(seed=1), batch_of()

    def loss(b):
        return losses.next_token_loss(model, b) if loss_of == "next token" else losses.kl_loss(model, reference, b)

    ours, theirs = loss(batch), loss(padded(batch, 4))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model), rtol=1e-4, atol=1e-6)


def test_counts_divide_the_sum():
    model, batch = tiny(), batch_of(3, 7)  # 18 predicted tokens
    mean = losses.next_token_loss(model, batch)
    torch.testing.assert_close(losses.next_token_loss(model, batch, 18), mean)
    torch.testing.assert_close(losses.next_token_loss(model, batch, 36), mean / 2)


def test_a_batch_without_predicted_tokens_costs_nothing():
    model, batch = tiny(), batch_of()
    batch["labels"][:] = -100
    loss = losses.next_token_loss(model, batch)
    assert loss.item() == 0
    assert all(not g.any() for g in gradients(loss, model).values())


def test_kl_is_zero_to_itself_positive_to_others_and_spares_the_reference():
    model, reference, batch = tiny(), tiny(seed=1), padded(batch_of(), 2)
    assert abs(losses.kl_loss(model, model, batch).item()) < 1e-6
    log_p, log_q = (m(**batch).logits.log_softmax(-1)[:, :-1] for m in (reference, model))
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)[batch["labels"][:, 1:] != -100].mean()
    loss = losses.kl_loss(model, reference, batch)
    assert loss > 0.1
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in reference.parameters())


def test_the_reference_s_hidden_states_may_come_with_the_batch(monkeypatch):
    """The same loss and gradients; the reference is not read again, and its padding is not counted."""
    model, reference, batch = tiny(), tiny(seed=1), padded(batch_of(), 2)
    with torch.no_grad():
        fixed = reference.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    official = losses.official_kl_loss(model, reference, batch)
    expected = losses.kl_loss(model, reference, batch)
    theirs = gradients(expected, model)
    monkeypatch.setattr(reference.model, "forward", None)  # reading it would fail
    torch.testing.assert_close(losses.official_kl_loss(model, reference, batch | {"reference_hidden": fixed}), official)
    fixed = fixed.clone()
    fixed[:, -2:] = 1e3
    loss = losses.kl_loss(model, reference, batch | {"reference_hidden": fixed})
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), theirs)
    own = fused.hidden_states(model, batch["input_ids"], batch["attention_mask"]).detach()
    other = losses.kl_loss(model, reference, batch | {"reference_hidden": own})
    assert abs(other - expected) > 1e-2  # it is the states that count


def test_official_kl_is_a_cross_entropy_over_every_position():
    model, reference, batch = tiny(), tiny(seed=1), padded(batch_of(), 2)
    p, q = (m(**batch).logits.softmax(-1) for m in (reference, model))
    expected = -(p * (q + 1e-12).log()).sum(-1).mean()
    loss = losses.official_kl_loss(model, reference, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model), rtol=1e-4, atol=1e-6)
    assert abs(losses.official_kl_loss(model, reference, padded(batch, 3)) - loss) > 1e-3  # padding does change this one


def test_official_epsilon_kills_the_gradient_where_q_underflows():
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    head = Head(torch.tensor([[60.0], [0.0]], dtype=torch.float64))  # q = (1, e^-60), p = (e^-60, 1)
    fixed = Head(-head.weight)
    (corrected,) = torch.autograd.grad(fused.fused_loss(hidden, head, fused.divergence(hidden.detach(), fixed)), hidden)
    (official,) = torch.autograd.grad(fused.fused_loss(hidden, head, fused.official_divergence(hidden.detach(), fixed)), hidden)
    assert corrected.item() == pytest.approx(60)
    assert abs(official.item()) < 1e-10


# ---------------------------------------------------------------------------------------------- labels


def test_adversarial_labels_by_hand():
    ids = torch.tensor([[0, 2, 1, 3]])
    labels = torch.tensor([[0, 2, -100, 3]])
    logits = torch.tensor([[[1.0, 0, 5, 9], [0, 9, 8, 0], [0, 1, 3, 4], [7, 0, 0, 0]]])
    # logits 0 predict entry 1: 3 is best, and not the true 2; entry 2 is not counted; logits 2: 3 is true, so 2; logits 3 are unused
    assert replacement.adversarial_labels(logits, ids, labels).tolist() == [[0, 3, -100, 2]]
    # official: logits j -> entry j, without token j and without the last id 3
    assert replacement.official_adversarial_labels(logits, ids, labels).tolist() == [[2, 1, -100, 0]]


def test_adversarial_labels_are_never_special():
    ids, labels = torch.tensor([[0, 2, 1, 3]]), torch.tensor([[0, 2, -100, 3]])
    logits = torch.tensor([[[1.0, 0, 5, 9], [0, 9, 8, 0], [0, 1, 3, 4], [7, 0, 0, 0]]])
    # logits 0 without the true 2: 3, then 0, then 1; logits 2 without the true 3: 2, then 1, then 0
    assert replacement.adversarial_labels(logits, ids, labels, (3,)).tolist() == [[0, 0, -100, 2]]
    assert replacement.adversarial_labels(logits, ids, labels, (2,)).tolist() == [[0, 3, -100, 1]]
    assert replacement.official_adversarial_labels(logits, ids, labels, (3, 0)).tolist() == [
        [2, 1, -100, 0]
    ]  # the released code does not ask


def test_adversarial_labels_are_the_likeliest_but_the_true_one():
    batch = padded(batch_of(4, 30), 3)
    logits, ids = random(4, 33, VOCABULARY), batch["input_ids"]
    logits[:, :-1].scatter_add_(2, ids[:, 1:, None], torch.full((4, 32, 1), 3.0))  # a model that is often right
    labels = replacement.adversarial_labels(logits, ids, batch["labels"])
    counted = batch["labels"] != -100
    assert ((labels == -100) == ~counted).all()
    assert (labels[:, 1:] != ids[:, 1:])[counted[:, 1:]].all()
    expected = logits[:, :-1].scatter(2, ids[:, 1:, None], -math.inf).argmax(-1)
    assert (labels[:, 1:] == expected)[counted[:, 1:]].all()


@pytest.mark.parametrize("special", [(), (0, 1, 2), (1, 5, 63)])
def test_random_labels_are_uniform_over_the_other_ordinary_tokens(special):
    ids = torch.full((200, 60), 7)
    ids[:, :10] = 1  # special in two of the cases
    labels = torch.where(torch.arange(60) == 59, -100, ids)
    drawn = replacement.random_labels(ids, labels, VOCABULARY, torch.Generator().manual_seed(0), special)
    assert (drawn[:, 59] == -100).all() and (drawn[:, :59] != ids[:, :59]).all()
    for true, columns in ((1, slice(0, 10)), (7, slice(10, 59))):
        counts = drawn[:, columns].flatten().bincount(minlength=VOCABULARY)
        allowed = torch.ones(VOCABULARY, dtype=torch.bool)
        allowed[[true, *special]] = False
        assert (counts[~allowed] == 0).all()
        expected = counts.sum() / allowed.sum()
        assert ((counts[allowed] - expected).abs() < 5 * expected.sqrt()).all()  # and so each is drawn


def test_random_labels_repeat_with_the_generator_and_not_with_the_global_seed():
    ids = batch_of(2, 40)["input_ids"]
    draw = [replacement.random_labels(ids, ids, VOCABULARY, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert (draw[0] == draw[1]).all() and (draw[0] != draw[2]).any()
    with pytest.raises(ValueError, match="at least 2"):
        replacement.random_labels(ids, ids, 3, torch.Generator(), (0, 1))


def test_official_random_labels_keep_special_positions_and_hit_the_true_token():
    ids = torch.full((100, 50), 7)
    ids[:, 0], labels = 1, ids.clone()
    labels[:, 0], labels[:, 49] = 1, -100
    drawn = replacement.official_random_labels(ids, labels, VOCABULARY, torch.Generator().manual_seed(0), (0, 1))
    assert (drawn[:, 0] == 1).all() and (drawn[:, 49] == -100).all()
    counts = drawn[:, 1:49].flatten().bincount(minlength=VOCABULARY)
    expected = 4800 / VOCABULARY
    assert (abs(counts - expected) < 5 * math.sqrt(expected)).all()  # the whole vocabulary: 7, 0 and 1 too
