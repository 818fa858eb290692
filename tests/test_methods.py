"""The seven methods: their table, their losses against plain formulas, and the released code's conventions."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_utils.core import fused, losses, methods, replacement
from unlearn_utils.core.methods import METHODS, Method, unlearning_loss

VOCABULARY = 64
DEFECTS = (1, 2, 3, 7)
CLOSE = dict(rtol=1e-4, atol=1e-6)


def tiny(seed):
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():  # the default initialisation is nearly uniform over tokens
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(lengths, seed, time=9):
    """Sequences of these lengths, padded on the right."""
    ids = torch.randint(3, VOCABULARY, (len(lengths), time), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(time) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def rows(batch, part):
    return {name: tensor[part] for name, tensor in batch.items()}


def padded(batch, extra):
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    return {name: F.pad(tensor, (0, extra), value=fill[name]) for name, tensor in batch.items()}


def tokens(batch):
    return (batch["labels"][:, 1:] != -100).sum().item()


def plain_losses(model, batch):
    """Next-token losses (batch, time - 1), 0 where not counted."""
    logits, labels = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def world():
    """(model, reference, forget, retain); the sides' token counts differ, and so do those of their rows."""
    return tiny(0), tiny(1), batch_of([9, 4, 3], 2), batch_of([3, 9, 8, 5], 3)


def test_the_paper_s_seven_in_order():
    table = [(m.name, m.forget, m.retain, m.retain_text) for m in METHODS.values()][:7]
    assert table == [
        ("gradient_ascent", "ascent", None, None),
        ("random_label", "random_label", None, None),
        ("adversarial", "adversarial", None, None),
        ("ascent_descent_general", "ascent", "descent", "general"),
        ("ascent_descent_in_distribution", "ascent", "descent", "in_distribution"),
        ("ascent_kl_general", "ascent", "kl", "general"),
        ("ascent_kl_in_distribution", "ascent", "kl", "in_distribution"),
    ]
    assert list(METHODS) == [m.name for m in METHODS.values()]


@pytest.mark.parametrize(("extra", "passes"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.retain])
def test_sides_of_one_length_share_a_forward_pass(world, monkeypatch, name, extra, passes):
    model, reference, forget, retain = world
    seen, original = [], fused.hidden_states
    monkeypatch.setattr(fused, "hidden_states", lambda m, *batch: seen.append(m) or original(m, *batch))
    loss = unlearning_loss(name, model, forget, padded(retain, extra), reference)
    assert seen.count(model) == passes
    with_two = unlearning_loss(name, model, padded(forget, 1), retain, reference)
    torch.testing.assert_close(gradients(loss, model), gradients(with_two, model), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, with_two, **CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_the_corrected_loss_is_its_formula(world, name):
    model, reference, forget, retain = world
    method = METHODS[name]
    expected = plain_losses(model, forget).sum() / tokens(forget) * (-1 if method.forget == "ascent" else 1)
    if method.retain == "descent":
        expected = expected + 0.7 * plain_losses(model, retain).sum() / tokens(retain)
    if method.retain == "kl":
        log_p, log_q = (m(retain["input_ids"], retain["attention_mask"]).logits.log_softmax(-1)[:, :-1] for m in (reference, model))
        kl = (log_p.detach().exp() * (log_p.detach() - log_q)).sum(-1)
        expected = expected + 0.7 * kl[retain["labels"][:, 1:] != -100].mean()
    loss = unlearning_loss(name, model, forget, retain, reference, retain_weight=0.7)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model), **CLOSE)
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_padding_never_changes_a_loss(world, name):
    model, reference, forget, retain = world
    ours = unlearning_loss(name, model, forget, retain, reference)
    theirs = unlearning_loss(name, model, padded(forget, 3), padded(retain, 5), reference)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model), **CLOSE)


@pytest.mark.parametrize("variant", ["corrected", {1, 7}])
@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_of_unequal_token_counts_add_up_to_one_batch(world, name, variant):
    model, reference, forget, retain = world
    whole = unlearning_loss(name, model, forget, retain, reference, variant)
    counts = tokens(forget), torch.tensor(tokens(retain))
    cuts = [(slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, 4))]
    parts = [unlearning_loss(name, model, rows(forget, f), rows(retain, r), reference, variant, counts) for f, r in cuts]
    torch.testing.assert_close(sum(parts), whole, **CLOSE)
    torch.testing.assert_close(gradients(sum(parts), model), gradients(whole, model), **CLOSE)
    means = [unlearning_loss(name, model, rows(forget, f), rows(retain, r), reference, variant) for f, r in cuts]
    assert abs(sum(means) / 2 - whole) > 1e-3  # which a mean of the micro-batches' means does not


def test_a_defect_changes_a_loss_exactly_where_it_should(world):
    model, reference, forget, retain = world
    for name, method in METHODS.items():
        corrected = unlearning_loss(name, model, forget, retain, reference)
        for defect in DEFECTS:
            changed = abs(unlearning_loss(name, model, forget, retain, reference, {defect}) - corrected).item() > 1e-3
            assert changed == ((defect, method.retain) in {(2, "kl"), (3, "descent")}), (name, defect)
        alone = {2: "kl", 3: "descent"}
        expected = unlearning_loss(name, model, forget, retain, reference, {d for d, r in alone.items() if r == method.retain})
        torch.testing.assert_close(unlearning_loss(name, model, forget, retain, reference, "official"), expected)


def test_a_defect_changes_labels_exactly_where_it_should(world):
    _, reference, forget, _ = world

    def labels(name, variant):
        generator = torch.Generator().manual_seed(5)
        return methods.replacement_labels(name, forget, reference, generator, VOCABULARY, (0,), variant)

    for name, method in METHODS.items():
        assert torch.equal(labels(name, "corrected"), labels(name, "corrected"))
        for defect in DEFECTS:
            changed = not torch.equal(labels(name, {defect}), labels(name, "corrected"))
            assert changed == ((defect, method.forget) in {(1, "adversarial"), (7, "random_label")}), (name, defect)


def test_official_ascent_and_descent_average_signed_sequence_means(world):
    model, reference, forget, retain = world
    f, r = (plain_losses(model, b).sum(1) / (b["labels"][:, 1:] != -100).sum(1) for b in (forget, retain))
    loss = unlearning_loss("ascent_descent_general", model, forget, retain, variant="official", retain_weight=0.7)
    torch.testing.assert_close(loss, (0.7 * r.sum() - f.sum()) / 7, **CLOSE)
    single = unlearning_loss("ascent_descent_general", model, rows(forget, [0]), rows(retain, [1]), variant="official")
    torch.testing.assert_close(single, (r[1] - f[0]) / 2, **CLOSE)  # each side weighs 1/2 ...
    both = unlearning_loss("ascent_kl_general", model, rows(forget, [0]), rows(retain, [1]), reference, "official")
    official_kl = losses.official_kl_loss(model, reference, rows(retain, [1]))
    torch.testing.assert_close(both, official_kl - f[0], **CLOSE)  # ... but with KL each weighs 1


def test_official_weights_ignore_counts_and_say_so(world):
    model, reference, forget, retain = world
    assert [methods.averages_micro_batches(v) for v in ("corrected", "official", {3}, {1, 2, 7})] == [False, True, True, False]
    for name in METHODS:
        official = unlearning_loss(name, model, forget, retain, reference, "official")
        torch.testing.assert_close(unlearning_loss(name, model, forget, retain, reference, "official", (1000, 1000)), official)


def test_the_official_divergence_alone_keeps_the_scale_of_micro_batches(world):
    model, reference, forget, retain = world
    cuts = [(forget, retain)] * 2  # twice the same micro-batch is that batch
    counts = 2 * tokens(forget), 2 * tokens(retain)
    parts = [unlearning_loss("ascent_kl_general", model, f, r, reference, {2}, counts) for f, r in cuts]
    torch.testing.assert_close(sum(parts), unlearning_loss("ascent_kl_general", model, forget, retain, reference, {2}), **CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_one_small_step_goes_the_method_s_way(name):
    model, reference, forget, retain = tiny(0), tiny(0), batch_of([9, 7], 2), batch_of([9, 9], 3)
    labels = methods.replacement_labels(name, forget, reference, torch.Generator().manual_seed(0), VOCABULARY)
    batch = forget | {"labels": labels}
    before = plain_losses(model, forget).sum().item(), plain_losses(model, batch).sum().item()
    unlearning_loss(name, model, batch, retain, reference).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    after = plain_losses(model, forget).sum().item(), plain_losses(model, batch).sum().item()
    if METHODS[name].forget == "ascent":
        assert torch.equal(labels, forget["labels"]) and after[0] > before[0]
    else:
        assert not torch.equal(labels, forget["labels"]) and after[1] < before[1]


def test_adversarial_labels_come_from_the_original_model(world):
    _, reference, forget, _ = world
    logits = reference(forget["input_ids"], forget["attention_mask"]).logits
    expected = replacement.adversarial_labels(logits, forget["input_ids"], forget["labels"])
    labels = methods.replacement_labels("adversarial", forget, reference)
    assert torch.equal(labels, expected) and not torch.equal(labels, forget["labels"])
    special = tuple(labels[labels >= 0].unique()[:5].tolist())
    ordinary = methods.replacement_labels("adversarial", forget, reference, special_ids=special)
    assert not torch.isin(ordinary[:, 1:], torch.tensor(special)).any() and torch.equal(ordinary == -100, labels == -100)


def test_an_own_method_needs_no_registration(world):
    model, reference, forget, retain = world
    own = Method("own", "Random labels + KL", "random_label", "kl", "general")
    plain = losses.next_token_loss(model, forget) + losses.kl_loss(model, reference, retain)
    torch.testing.assert_close(unlearning_loss(own, model, forget, retain, reference), plain)


def test_errors_name_what_is_missing(world):
    model, reference, forget, retain = world
    with pytest.raises(ValueError, match="unknown method 'ascent'.*gradient_ascent, random_label.*ascent_kl_in_distribution"):
        unlearning_loss("ascent", model, forget)
    for variant in ("offical", {4}, {1, 99}):
        with pytest.raises(ValueError, match="unknown variant.*corrected.*official"):
            unlearning_loss("gradient_ascent", model, forget, variant=variant)
    with pytest.raises(ValueError, match="ascent_descent_general needs retain text"):
        unlearning_loss("ascent_descent_general", model, forget)
    with pytest.raises(ValueError, match="ascent_kl_general needs the original model"):
        unlearning_loss("ascent_kl_general", model, forget, retain)
    with pytest.raises(ValueError, match="generator"):
        methods.replacement_labels("random_label", forget, vocab_size=VOCABULARY)
    with pytest.raises(ValueError, match="original model"):
        methods.replacement_labels("adversarial", forget)
