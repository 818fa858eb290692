"""The seven methods: their table, their losses against plain formulas, and the released code's."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_utils.core import efficiency, fused, losses, methods, replacement
from unlearn_utils.core.methods import METHODS, Method, Term, unlearning_loss

VOCABULARY = 64
SEVEN = list(METHODS)[:7]  # the paper's: a further method needs no row here
DEFECTS = (1, 2, 3, 7)
CLOSE = dict(rtol=1e-4, atol=1e-6)


def tiny(seed):
    """Return a small Llama, far from uniform over tokens, as the default initialisation is not."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(lengths, seed, time=9):
    """Return sequences of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (len(lengths), time), generator=generator)
    mask = (torch.arange(time) < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(mask == 1, ids, -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def rows(batch, part):
    return {name: tensor[part] for name, tensor in batch.items()}


def padded(batch, extra):
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    return {name: F.pad(tensor, (0, extra), value=fill[name]) for name, tensor in batch.items()}


def tokens(batch):
    return (batch["labels"][:, 1:] != -100).sum().item()


def plain_losses(model, batch):
    """Return next-token losses (batch, time - 1), 0 where not counted."""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = output.logits[:, :-1].transpose(1, 2)
    return F.cross_entropy(logits, batch["labels"][:, 1:], reduction="none")


def sequence_means(model, batch):
    """Return the mean next-token loss of each sequence."""
    return plain_losses(model, batch).sum(1) / (batch["labels"][:, 1:] != -100).sum(1)


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def world():
    """(model, reference, forget, retain); the sides' token counts differ, and so do the rows'."""
    return tiny(0), tiny(1), batch_of([9, 4, 3], 2), batch_of([3, 9, 8, 5], 3)


# ------------------------------------------------------------------------------------ the table


def test_the_paper_s_seven_in_order():
    table = []
    for method in list(METHODS.values())[:7]:
        retain = method.retain and method.retain.name
        table.append((method.name, method.forget.name, retain, method.retain_text))
    assert table == [
        ("gradient_ascent", "ascent", None, None),
        ("random_label", "random_label", None, None),
        ("adversarial", "adversarial", None, None),
        ("ascent_descent_general", "ascent", "descent", "general"),
        ("ascent_descent_in_distribution", "ascent", "descent", "in_distribution"),
        ("ascent_kl_general", "ascent", "kl", "general"),
        ("ascent_kl_in_distribution", "ascent", "kl", "in_distribution"),
    ]
    assert list(METHODS) == [method.name for method in METHODS.values()]


def test_what_follows_from_a_method_s_terms():
    found = {}
    for name in SEVEN:
        method = METHODS[name]
        found[name] = (
            method.replaces_labels,
            method.needs_reference,
            method.retain_domain("arxiv"),
        )
    assert found == {
        "gradient_ascent": (False, False, None),
        "random_label": (True, False, None),
        "adversarial": (True, False, None),
        "ascent_descent_general": (False, False, "general"),
        "ascent_descent_in_distribution": (False, False, "arxiv"),
        "ascent_kl_general": (False, True, "general"),
        "ascent_kl_in_distribution": (False, True, "arxiv"),
    }


def test_what_is_minimised_in_words():
    assert METHODS["gradient_ascent"].minimises == "minus the cross-entropy of the forget text"
    assert METHODS["ascent_descent_general"].minimises == (
        "minus the cross-entropy of the forget text + w * the cross-entropy of the retain text"
    )


def test_costs_are_classed_by_the_terms_that_they_follow_from():
    classes = efficiency.cost_classes([METHODS[name] for name in SEVEN])
    assert list(classes) == ["none", "descent", "kl"]
    assert list(classes.values()) == pytest.approx([1, 2, 7 / 3])
    compared = Term("compared", "x", "ascent", needs_reference=True, passes=4 / 3)
    own = [Method("a", "A", compared), Method("b", "B", compared, "kl", "general")]
    classes = efficiency.cost_classes([*own, METHODS["gradient_ascent"]])
    assert list(classes) == ["compared", "compared + kl", "none"]
    assert list(classes.values()) == pytest.approx([4 / 3, 8 / 3, 1])


# ----------------------------------------------------------------------------- corrected losses


@pytest.mark.parametrize("name", SEVEN)
def test_the_corrected_loss_is_its_formula(world, name):
    model, reference, forget, retain = world
    method = METHODS[name]
    sign = -1 if method.forget.ascends else 1
    expected = sign * plain_losses(model, forget).sum() / tokens(forget)
    if method.retain is methods.DESCENT:
        expected = expected + 0.7 * plain_losses(model, retain).sum() / tokens(retain)
    if method.retain is methods.KL:
        expected = expected + 0.7 * plain_kl(model, reference, retain)
    loss = unlearning_loss(name, model, forget, retain, reference, retain_weight=0.7)
    torch.testing.assert_close(loss, expected, **CLOSE)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model), **CLOSE)
    assert all(parameter.grad is None for parameter in reference.parameters())


def plain_kl(model, reference, batch):
    log_q = model(batch["input_ids"], batch["attention_mask"]).logits.log_softmax(-1)[:, :-1]
    with torch.no_grad():
        log_p = reference(batch["input_ids"], batch["attention_mask"]).logits.log_softmax(-1)
        log_p = log_p[:, :-1]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl[batch["labels"][:, 1:] != -100].mean()


@pytest.mark.parametrize(("extra", "passes"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.retain])
def test_sides_of_one_length_share_a_forward_pass(world, monkeypatch, name, extra, passes):
    model, reference, forget, retain = world
    seen, original = [], fused.hidden_states

    def noted(some_model, *batch):
        seen.append(some_model)
        return original(some_model, *batch)

    monkeypatch.setattr(fused, "hidden_states", noted)
    loss = unlearning_loss(name, model, forget, padded(retain, extra), reference)
    assert seen.count(model) == passes
    with_two = unlearning_loss(name, model, padded(forget, 1), retain, reference)
    ours, theirs = gradients(loss, model), gradients(with_two, model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, with_two, **CLOSE)


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
    term = METHODS[name].forget
    counts = term.count(forget).item(), torch.tensor(tokens(retain))
    micro_batches = [
        (rows(forget, slice(0, 1)), rows(retain, slice(0, 2))),
        (rows(forget, slice(1, 3)), rows(retain, slice(2, 4))),
    ]
    parts, means = [], []
    for few, some in micro_batches:
        parts.append(unlearning_loss(name, model, few, some, reference, variant, counts))
        means.append(unlearning_loss(name, model, few, some, reference, variant))
    torch.testing.assert_close(sum(parts), whole, **CLOSE)
    torch.testing.assert_close(gradients(sum(parts), model), gradients(whole, model), **CLOSE)
    assert abs(sum(means) / 2 - whole) > 1e-3  # which a mean of the micro-batches' means does not


@pytest.mark.parametrize("name", METHODS)
def test_one_small_step_goes_the_method_s_way(name):
    model, reference = tiny(0), tiny(0)
    forget, retain = batch_of([9, 7], 2), batch_of([9, 9], 3)
    generator = torch.Generator().manual_seed(0)
    labels = methods.replacement_labels(name, forget, reference, generator, VOCABULARY)
    batch = forget | {"labels": labels}

    def levels():
        return plain_losses(model, forget).sum().item(), plain_losses(model, batch).sum().item()

    true_before, replaced_before = levels()
    unlearning_loss(name, model, batch, retain, reference).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    true_after, replaced_after = levels()
    if METHODS[name].replaces_labels:
        assert not torch.equal(labels, forget["labels"])
        assert replaced_after < replaced_before
    else:
        assert torch.equal(labels, forget["labels"])
        assert true_after > true_before


# --------------------------------------------------------------------- the released code's losses


def test_a_defect_changes_a_loss_exactly_where_it_should(world):
    model, reference, forget, retain = world
    changing = {2: methods.KL, 3: methods.DESCENT}  # a defect and the retain term that it changes
    for name, method in METHODS.items():
        corrected = unlearning_loss(name, model, forget, retain, reference)
        for defect in DEFECTS:
            loss = unlearning_loss(name, model, forget, retain, reference, {defect})
            changed = abs(loss - corrected).item() > 1e-3
            should = defect in changing and method.retain is changing[defect]
            assert changed == should, (name, defect)
        alone = {defect for defect, term in changing.items() if method.retain is term}
        expected = unlearning_loss(name, model, forget, retain, reference, alone)
        official = unlearning_loss(name, model, forget, retain, reference, "official")
        torch.testing.assert_close(official, expected)


def test_a_defect_changes_labels_exactly_where_it_should(world):
    _, reference, forget, _ = world

    def labels(name, variant):
        generator = torch.Generator().manual_seed(5)
        return methods.replacement_labels(
            name, forget, reference, generator, VOCABULARY, (0,), variant
        )

    changing = {1: methods.ADVERSARIAL, 7: methods.RANDOM_LABEL}
    for name, method in METHODS.items():
        assert torch.equal(labels(name, "corrected"), labels(name, "corrected"))
        for defect in DEFECTS:
            changed = not torch.equal(labels(name, {defect}), labels(name, "corrected"))
            should = defect in changing and method.forget is changing[defect]
            assert changed == should, (name, defect)


def test_official_ascent_and_descent_average_signed_sequence_means(world):
    model, reference, forget, retain = world
    name = "ascent_descent_general"
    f, r = sequence_means(model, forget), sequence_means(model, retain)
    loss = unlearning_loss(name, model, forget, retain, variant="official", retain_weight=0.7)
    torch.testing.assert_close(loss, (0.7 * r.sum() - f.sum()) / 7, **CLOSE)
    one_forget, one_retain = rows(forget, [0]), rows(retain, [1])
    single = unlearning_loss(name, model, one_forget, one_retain, variant="official")
    torch.testing.assert_close(single, (r[1] - f[0]) / 2, **CLOSE)  # each side weighs 1/2 ...
    with_kl = unlearning_loss(
        "ascent_kl_general", model, one_forget, one_retain, reference, "official"
    )
    official_kl = losses.official_kl_loss(model, reference, one_retain)
    torch.testing.assert_close(with_kl, official_kl - f[0], **CLOSE)  # ... but with KL each is 1


def test_official_weights_ignore_counts_and_say_so(world):
    model, reference, forget, retain = world
    variants = ("corrected", "official", {3}, {1, 2, 7})
    averaged = [methods.averages_micro_batches(variant) for variant in variants]
    assert averaged == [False, True, True, False]
    for name in METHODS:
        found = []
        for counts in (None, (1000, 1000)):
            loss = unlearning_loss(name, model, forget, retain, reference, "official", counts)
            found.append(loss)
        torch.testing.assert_close(found[0], found[1])


def test_the_official_divergence_alone_keeps_the_scale_of_micro_batches(world):
    model, reference, forget, retain = world
    name = "ascent_kl_general"
    counts = 2 * tokens(forget), 2 * tokens(retain)  # of a batch that is twice this one
    half = unlearning_loss(name, model, forget, retain, reference, {2}, counts)
    whole = unlearning_loss(name, model, forget, retain, reference, {2})
    torch.testing.assert_close(half + half, whole, **CLOSE)


# --------------------------------------------------------------------------- labels, and own ones


def test_adversarial_labels_come_from_the_original_model(world):
    _, reference, forget, _ = world
    logits = reference(forget["input_ids"], forget["attention_mask"]).logits
    expected = replacement.adversarial_labels(logits, forget["input_ids"], forget["labels"])
    labels = methods.replacement_labels("adversarial", forget, reference)
    assert torch.equal(labels, expected)
    assert not torch.equal(labels, forget["labels"])
    special = tuple(labels[labels >= 0].unique()[:5].tolist())
    ordinary = methods.replacement_labels("adversarial", forget, reference, special_ids=special)
    assert not torch.isin(ordinary[:, 1:], torch.tensor(special)).any()
    assert torch.equal(ordinary == -100, labels == -100)


def test_an_own_method_of_known_terms_needs_no_registration(world):
    model, reference, forget, retain = world
    own = Method("own", "Random labels + KL", "random_label", "kl", "general")
    descent = losses.next_token_loss(model, forget)
    plain = descent + losses.kl_loss(model, reference, retain)
    loss = unlearning_loss(own, model, forget, retain, reference)
    torch.testing.assert_close(loss, plain)


def test_a_term_of_an_own_loss_is_given_what_it_counts(world):
    model, reference, forget, _ = world
    seen = []

    def loss(model, batch, reference, count):
        seen.append((reference, int(count)))
        return losses.sequence_nll(model, batch).sum() / count

    for counted, expected in (("sequences", 3), ("tokens", 13)):
        term = Term("own", "x", loss, counted, needs_reference=True)
        found = unlearning_loss(Method("own", "Own", term), model, forget, None, reference)
        assert seen[-1] == (reference, expected)
        torch.testing.assert_close(found * expected, plain_losses(model, forget).sum(), **CLOSE)


def test_errors_name_what_is_missing(world):
    model, reference, forget, retain = world
    names = "unknown method 'ascent'.*gradient_ascent, random_label.*ascent_kl_in_distribution"
    with pytest.raises(ValueError, match=names):
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


def test_a_method_or_a_term_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="own: counted is one of tokens, sequences, not 'words'"):
        Term("own", "x", "descent", counted="words")
    with pytest.raises(ValueError, match="unknown term 'ascend'.*one of: ascent, random_label"):
        Method("own", "Own", "ascend")
    with pytest.raises(ValueError, match="retain text 'general' without a retain term"):
        Method("own", "Own", "ascent", retain_text="general")
    with pytest.raises(ValueError, match="one of general, in_distribution, not None"):
        Method("own", "Own", "ascent", "kl")
