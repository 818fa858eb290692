"""The losses against their plain definitions, and the replacement labels by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
)

from unlearn_utils.core import fused, losses, replacement
from unlearn_utils.core.fused import Head

VOCABULARY, WIDTH = 64, 16
PLAIN_SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
)
SHAPE = PLAIN_SHAPE | {"head_dim": 8}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=1),
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gpt_neox": GPTNeoXConfig(**PLAIN_SHAPE),
    "gemma2, soft-capped": Gemma2Config(
        **SHAPE, num_key_value_heads=1, final_logit_softcapping=0.5
    ),
    "cohere, scaled": CohereConfig(**SHAPE, logit_scale=3.0),
    "granite, divided": GraniteConfig(**SHAPE, logits_scaling=0.25),
}


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(family="llama", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = FAMILIES[family]
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():  # the default is nearly uniform over tokens
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
    if head.softcap is None:
        return logits
    return head.softcap * torch.tanh(logits / head.softcap)


HEADS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "both": {"scale": 1.7, "softcap": 3.0},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 3 rows, so that every loss here crosses several."""
    monkeypatch.setattr(fused, "CPU_LOGIT_BYTES", 3 * 4 * VOCABULARY)
    monkeypatch.setattr(fused, "CPU_ROWS", 1)


def leaves(dtype=torch.float64, bias=True, **choices):
    hidden = random(10, WIDTH, seed=1, dtype=dtype).requires_grad_()
    weight = random(VOCABULARY, WIDTH, seed=2, dtype=dtype).requires_grad_()
    head_bias = random(VOCABULARY, seed=3, dtype=dtype).requires_grad_() if bias else None
    return hidden, Head(weight, head_bias, **choices)


def terms():
    """Return each term beside its plain definition on log-probabilities."""
    targets = torch.randint(VOCABULARY, (10,), generator=torch.Generator().manual_seed(4))
    fixed = random(10, WIDTH, seed=5, dtype=torch.float64)
    head = Head(random(VOCABULARY, WIDTH, seed=6, dtype=torch.float64), softcap=4.0)
    p = plain_logits(fixed, head).softmax(-1)

    def cross_entropy(log_q):
        return F.nll_loss(log_q, targets, reduction="none")

    def kl(log_q):
        return (p * (p.log() - log_q)).sum(-1)

    def official_kl(log_q):
        return -(p * (log_q.exp() + 1e-2).log()).sum(-1)

    return {
        "cross-entropy": (fused.true_token(targets), cross_entropy),
        "KL": (fused.divergence(fixed, head), kl),
        "official KL": (fused.official_divergence(fixed, head, 1e-2), official_kl),
    }


@pytest.mark.parametrize("choices", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", terms())
@pytest.mark.parametrize("bias", [True, False])
def test_fused_loss_and_gradients_equal_the_plain_ones(name, choices, bias):
    hidden, head = leaves(bias=bias, **choices)
    term, plain = terms()[name]
    weights = random(10, seed=7, dtype=torch.float64)
    parameters = [hidden, head.weight] + ([head.bias] if bias else [])
    expected = (weights * plain(plain_logits(hidden, head).log_softmax(-1))).sum()
    loss = fused.fused_loss(hidden, head, term, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(2 * loss, parameters)
    theirs = torch.autograd.grad(2 * expected, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", terms())
def test_gradcheck(name):
    hidden, head = leaves(scale=1.3, softcap=2.5)
    given = tuple(x.detach()[:8].requires_grad_() for x in (hidden, head.weight, head.bias))
    fixed = random(8, WIDTH, seed=8, dtype=torch.float64)
    fixed_head = Head(random(8, WIDTH, seed=9, dtype=torch.float64))
    term = {
        "cross-entropy": fused.true_token(torch.arange(8)),
        "KL": fused.divergence(fixed, fixed_head),
        "official KL": fused.official_divergence(fixed, fixed_head),
    }[name]

    def loss(hidden, weight, bias):
        return fused.fused_loss(hidden, Head(weight, bias, 1.3, 2.5), term)

    assert torch.autograd.gradcheck(loss, given)


def test_only_what_needs_a_gradient_gets_one(monkeypatch):
    hidden, head = leaves()
    frozen = Head(head.weight.detach())
    fused.fused_loss(hidden, frozen, fused.true_token(torch.arange(10))).backward()
    assert hidden.grad is not None and frozen.weight.grad is None
    monkeypatch.delattr(fused, "_accumulate")  # without gradients none is computed
    with torch.no_grad():
        assert fused.fused_loss(hidden, head, fused.true_token(torch.arange(10))) > 0


@pytest.mark.parametrize(
    ("vocabulary", "rows"),
    [(64, 16384), (2048, 512), (32000, 96), (64000, 65), (256000, 16), (10**7, 1)],
)
def test_a_chunk_of_logits_fits_the_budget(vocabulary, rows, monkeypatch):
    monkeypatch.undo()  # the real one: 4 MiB; with many tokens 96 rows, or as many as fit 16 MiB
    assert fused.chunk_rows(vocabulary, torch.device("cpu")) == rows
    assert rows == 1 or rows * vocabulary * 4 <= 16 * 2**20
    assert fused.chunk_rows(vocabulary, torch.device("cuda")) == max(
        1, 256 * 2**20 // (4 * vocabulary)
    )


def test_logits_are_made_chunk_by_chunk(monkeypatch):
    seen, original = [], fused._logits

    def noted(states, *rest):
        seen.append(len(states))
        return original(states, *rest)

    monkeypatch.setattr(fused, "_logits", noted)
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
    expected = F.cross_entropy(narrow.float(), torch.arange(10), reduction="sum")
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, [hidden, head.weight])
    theirs = torch.autograd.grad(exact, [hidden, head.weight])
    for g, expected in zip(ours, theirs, strict=True):
        assert g.dtype == torch.float32
        assert 0 < (g - expected).norm() / expected.norm() < 0.01


def test_a_mean_keeps_its_digits_in_bfloat16():
    hidden, head = leaves(torch.bfloat16, bias=False)
    term = fused.true_token(torch.arange(10))

    def gradients_of_mean(n):
        return torch.autograd.grad(fused.fused_loss(hidden, head, term) / n, [hidden, head.weight])

    count = 1021  # one over it is not a number of bfloat16
    for one, mean in zip(gradients_of_mean(1), gradients_of_mean(count), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(mean, (one.float() / count).bfloat16())


@pytest.mark.parametrize("choices", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_reference_s_logits_are_multiplied_like_the_model_s(choices, bias):
    hidden, head = leaves(torch.float32, bias=bias, **choices)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused.fused_loss(hidden, head, fused.divergence(hidden.detach(), head))
    assert loss == 0  # KL to itself, in bfloat16 too
    assert not torch.autograd.grad(loss, hidden)[0].any()


# ------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_loss_equals_the_framework_s(family):
    model, batch = tiny(family), padded(batch_of(), 2)
    batch["labels"][0, 2] = -100
    expected = model(**batch).loss
    loss = losses.next_token_loss(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        gradients(loss, model), gradients(expected, model), rtol=1e-4, atol=1e-5
    )


def test_head_reads_scale_softcap_and_bias():
    assert fused.head_of(tiny())[1:] == (None, 1.0, None)
    assert fused.head_of(tiny("cohere, scaled")).scale == 3.0
    assert fused.head_of(tiny("granite, divided")).scale == 4.0
    assert fused.head_of(tiny("gemma2, soft-capped")).softcap == 0.5
    model = tiny()
    model.lm_head = torch.nn.Linear(WIDTH, VOCABULARY)
    assert fused.head_of(model).bias is model.lm_head.bias


def test_lora_adapters_are_seen_on_the_head_too():
    peft = pytest.importorskip("peft")
    batch = batch_of()
    plain = losses.next_token_loss(tiny(), batch)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny(), config)
    loss = losses.next_token_loss(model, batch)
    torch.testing.assert_close(loss, model(**batch).loss)
    assert abs(loss - plain) > 1e-4
    on_head = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["lm_head"]))
    torch.nn.init.normal_(on_head.get_output_embeddings().lora_B["default"].weight)
    assert fused.head_of(on_head).weight is None
    torch.testing.assert_close(losses.next_token_loss(on_head, batch), on_head(**batch).loss)


@pytest.mark.parametrize("loss_of", ["next token", "KL"])
def test_padding_never_changes_a_loss(loss_of):
    model, reference, batch = tiny(), tiny(seed=1), batch_of()

    def loss(some):
        if loss_of == "next token":
            return losses.next_token_loss(model, some)
        return losses.kl_loss(model, reference, some)

    ours, theirs = loss(batch), loss(padded(batch, 4))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        gradients(ours, model), gradients(theirs, model), rtol=1e-4, atol=1e-6
    )


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


def test_the_nll_of_each_sequence_is_its_own_sum():
    model, batch = tiny(), padded(batch_of(4), 2)
    batch["labels"][1, 3:] = -100
    batch["labels"][2] = -100  # predicts nothing, and is left out
    found = losses.sequence_nll(model, batch)
    expected = []
    for row in (0, 1, 3):
        one = {name: tensor[[row]] for name, tensor in batch.items()}
        expected.append(losses.next_token_loss(model, one, 1))
    torch.testing.assert_close(found, torch.stack(expected))
    assert losses.predicted_sequences(batch) == 3 and losses.predicted_tokens(batch) == 6 + 2 + 6
    ours, theirs = gradients(found.sum(), model), gradients(sum(expected), model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_kl_is_zero_to_itself_positive_to_others_and_spares_the_reference():
    model, reference, batch = tiny(), tiny(seed=1), padded(batch_of(), 2)
    assert abs(losses.kl_loss(model, model, batch).item()) < 1e-6
    log_p = reference(**batch).logits.log_softmax(-1)[:, :-1]
    log_q = model(**batch).logits.log_softmax(-1)[:, :-1]
    every = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    expected = every[batch["labels"][:, 1:] != -100].mean()
    loss = losses.kl_loss(model, reference, batch)
    assert loss > 0.1
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in reference.parameters())


def test_the_reference_s_hidden_states_may_come_with_the_batch(monkeypatch):
    model, reference, batch = tiny(), tiny(seed=1), padded(batch_of(), 2)
    read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        fixed = reference.model(**read).last_hidden_state
    official = losses.official_kl_loss(model, reference, batch)
    expected = losses.kl_loss(model, reference, batch)
    theirs = gradients(expected, model)
    monkeypatch.setattr(reference.model, "forward", None)  # reading it would fail
    again = losses.official_kl_loss(model, reference, batch | {"reference_hidden": fixed})
    torch.testing.assert_close(again, official)
    fixed = fixed.clone()
    fixed[:, -2:] = 1e3  # padding is not counted
    loss = losses.kl_loss(model, reference, batch | {"reference_hidden": fixed})
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), theirs)
    own = fused.hidden_states(model, batch["input_ids"], batch["attention_mask"]).detach()
    other = losses.kl_loss(model, reference, batch | {"reference_hidden": own})
    assert abs(other - expected) > 1e-2  # it is the states that count


def test_official_kl_is_a_cross_entropy_over_every_position():
    model, reference, batch = tiny(), tiny(seed=1), padded(batch_of(), 2)
    p = reference(**batch).logits.softmax(-1)
    q = model(**batch).logits.softmax(-1)
    expected = -(p * (q + 1e-12).log()).sum(-1).mean()
    loss = losses.official_kl_loss(model, reference, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        gradients(loss, model), gradients(expected, model), rtol=1e-4, atol=1e-6
    )
    more = losses.official_kl_loss(model, reference, padded(batch, 3))
    assert abs(more - loss) > 1e-3  # padding does change this one


def test_official_epsilon_kills_the_gradient_where_q_underflows():
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    head = Head(
        torch.tensor([[60.0], [0.0]], dtype=torch.float64)
    )  # q = (1, e^-60), p = (e^-60, 1)
    reference = Head(-head.weight)

    def gradient(divergence):
        loss = fused.fused_loss(hidden, head, divergence(hidden.detach(), reference))
        return torch.autograd.grad(loss, hidden)[0].item()

    assert gradient(fused.divergence) == pytest.approx(60)
    assert abs(gradient(fused.official_divergence)) < 1e-10


# ------------------------------------------------------------------------------------------- labels


def test_adversarial_labels_by_hand():
    ids = torch.tensor([[0, 2, 1, 3]])
    labels = torch.tensor([[0, 2, -100, 3]])
    logits = torch.tensor([[[1.0, 0, 5, 9], [0, 9, 8, 0], [0, 1, 3, 4], [7, 0, 0, 0]]])
    # logits 0 predict entry 1: 3 is best, and not the true 2; entry 2 is not counted;
    # logits 2: 3 is true, so 2; logits 3 are unused
    assert replacement.adversarial_labels(logits, ids, labels).tolist() == [[0, 3, -100, 2]]
    # official: logits j -> entry j, without token j and without the last id 3
    assert replacement.official_adversarial_labels(logits, ids, labels).tolist() == [
        [2, 1, -100, 0]
    ]


def test_adversarial_labels_are_never_special():
    ids, labels = torch.tensor([[0, 2, 1, 3]]), torch.tensor([[0, 2, -100, 3]])
    logits = torch.tensor([[[1.0, 0, 5, 9], [0, 9, 8, 0], [0, 1, 3, 4], [7, 0, 0, 0]]])
    # logits 0 without the true 2: 3, then 0, then 1; logits 2 without the true 3: 2, then 1, then 0
    assert replacement.adversarial_labels(logits, ids, labels, (3,)).tolist() == [[0, 0, -100, 2]]
    assert replacement.adversarial_labels(logits, ids, labels, (2,)).tolist() == [[0, 3, -100, 1]]
    official = replacement.official_adversarial_labels(logits, ids, labels, (3, 0))
    assert official.tolist() == [[2, 1, -100, 0]]  # the released code does not ask


def test_adversarial_labels_are_the_likeliest_but_the_true_one():
    batch = padded(batch_of(4, 30), 3)
    logits, ids = random(4, 33, VOCABULARY), batch["input_ids"]
    often_right = torch.full((4, 32, 1), 3.0)
    logits[:, :-1].scatter_add_(2, ids[:, 1:, None], often_right)
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
    generator = torch.Generator().manual_seed(0)
    drawn = replacement.random_labels(ids, labels, VOCABULARY, generator, special)
    assert (drawn[:, 59] == -100).all() and (drawn[:, :59] != ids[:, :59]).all()
    for true, columns in ((1, slice(0, 10)), (7, slice(10, 59))):
        counts = drawn[:, columns].flatten().bincount(minlength=VOCABULARY)
        allowed = torch.ones(VOCABULARY, dtype=torch.bool)
        allowed[[true, *special]] = False
        assert (counts[~allowed] == 0).all()
        expected = counts.sum() / allowed.sum()
        assert (
            (counts[allowed] - expected).abs() < 5 * expected.sqrt()
        ).all()  # and so each is drawn


def test_random_labels_repeat_with_the_generator_and_not_with_the_global_seed():
    ids = batch_of(2, 40)["input_ids"]

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return replacement.random_labels(ids, ids, VOCABULARY, generator)

    first = draw(0)
    assert (first == draw(0)).all() and (first != draw(1)).any()
    with pytest.raises(ValueError, match="at least 2"):
        replacement.random_labels(ids, ids, 3, torch.Generator(), (0, 1))


def test_official_random_labels_keep_special_positions_and_hit_the_true_token():
    ids = torch.full((100, 50), 7)
    ids[:, 0] = 1
    labels = ids.clone()
    labels[:, 49] = -100
    generator = torch.Generator().manual_seed(0)
    drawn = replacement.official_random_labels(ids, labels, VOCABULARY, generator, (0, 1))
    assert (drawn[:, 0] == 1).all() and (drawn[:, 49] == -100).all()
    counts = drawn[:, 1:49].flatten().bincount(minlength=VOCABULARY)
    expected = 4800 / VOCABULARY
    assert (
        abs(counts - expected) < 5 * math.sqrt(expected)
    ).all()  # the whole vocabulary: 7, 0 and 1 too
