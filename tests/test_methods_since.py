"""The methods since the paper: by hand, against plain formulas on full logits, and known slips."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_methods import CLOSE, VOCABULARY, batch_of, gradients, padded, rows, tiny, tokens

from unlearn_utils.core import fused, losses, methods
from unlearn_utils.core.methods import METHODS, SINCE, unlearning_loss

LOGITS = torch.tensor([[0, math.log(2), math.log(5)]])  # probabilities 1/8, 2/8, 5/8
TRUE = torch.tensor([2])
ROW = slice(0, 1)
WEIGHT = 0.7  # of the retain term


@pytest.fixture(scope="module")
def world():
    """(model, reference, forget, retain); the sides' token counts differ, and so do the rows'."""
    return tiny(0), tiny(1), batch_of([9, 4, 3], 2), batch_of([3, 9, 8, 5], 3)


# ------------------------------------------------------------------------------------ the tables


def test_they_stand_beside_the_paper_s_seven_which_the_study_computes():
    assert not set(SINCE) & set(METHODS)
    assert list(methods.every()) == [*METHODS, *SINCE]
    assert list(SINCE) == [method.name for method in SINCE.values()]
    for name, method in SINCE.items():
        assert methods.get_method(name) is method
        assert "arXiv" in method.source
        assert method.forget.name == name


def test_their_costs_are_those_of_what_they_read():
    passes = {name: method.passes for name, method in SINCE.items()}
    assert passes == pytest.approx(
        {"npo": 7 / 3, "simnpo": 2, "wga": 2, "satimp": 2, "ce_u": 1, "undial": 4 / 3}
    )


def test_the_released_code_has_none_of_them(world):
    model, reference, forget, retain = world
    for name in SINCE:
        for variant in ("official", {3}):
            with pytest.raises(ValueError, match=f"^{name}: not in the released code"):
                unlearning_loss(name, model, forget, retain, reference, variant)


# --------------------------------------------------------------------------------------- by hand


def row_loss(term):
    return term(LOGITS.clone(), ROW)[0].item()


def test_terms_of_a_row_by_hand():
    weighted = fused.weighted_ascent(TRUE, lambda p: p)
    assert row_loss(weighted) == pytest.approx(5 / 8 * math.log(5 / 8))
    others = fused.without_targets(TRUE)  # 1/3, 2/3, 0
    assert row_loss(others) == pytest.approx(math.log(8) / 3 + 2 * math.log(4) / 3)
    states, head = torch.ones(1, 1), fused.Head(LOGITS.T)
    lowered = fused.lowered_reference(TRUE, states, head, penalty=math.log(5))  # 1/4, 1/2, 1/4
    expected = math.log(8) / 4 + math.log(4) / 2 + math.log(8 / 5) / 4
    assert row_loss(lowered) == pytest.approx(expected)


def test_slopes_of_a_row_by_hand():
    """Those of a cross-entropy with a distribution p are q - p, of ascent to y weight * (y - q)."""
    q = torch.tensor([1 / 8, 2 / 8, 5 / 8])
    others, true = torch.tensor([1 / 3, 2 / 3, 0]), torch.tensor([0.0, 0, 1])
    _, slopes = fused.without_targets(TRUE)(LOGITS.clone(), ROW)
    torch.testing.assert_close(slopes[0], q - others)
    _, slopes = fused.weighted_ascent(TRUE, lambda p: p)(LOGITS.clone(), ROW)
    torch.testing.assert_close(slopes[0], 5 / 8 * (true - q))


UNIFORM = math.log(VOCABULARY)  # of a model that knows nothing, for each token
BY_HAND = {
    "npo": 20 * math.log(2),  # no rise
    "simnpo": 2 / 4.5 * math.log1p(math.exp(-4.5 * UNIFORM)),
    "wga": -UNIFORM / VOCABULARY,
    "satimp": -UNIFORM * VOCABULARY**-5 * (1 - 1 / VOCABULARY),
    "ce_u": UNIFORM,
    "undial": UNIFORM,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_forget_term_of_a_model_that_knows_nothing_by_hand(name):
    model = tiny(0)
    torch.nn.init.zeros_(model.lm_head.weight)
    batch = batch_of([9, 4, 3], 2)
    term = SINCE[name].forget
    loss = term.loss_function()(model, batch, model, term.count(batch)).item()
    assert loss == pytest.approx(BY_HAND[name], rel=1e-5)


def test_npo_of_a_rise_by_hand():
    """A rise of 10 log 3: -(2 / 0.1) log sigmoid(log 3) = 20 log(4 / 3)."""
    found = losses._preference(torch.tensor([10 * math.log(3)]), beta=0.1)
    assert found.item() == pytest.approx(20 * math.log(4 / 3))


# ------------------------------------------------------------- against formulas on full logits


def logits_of(model, batch):
    """Return logits of positions that predict, their targets (0 where none) and the mask."""
    logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
    mask = batch["labels"][:, 1:] != -100
    return logits, batch["labels"][:, 1:].where(mask, 0), mask


def nll_of(model, batch):
    """Return the loss of each position, 0 where not counted, and the mask."""
    logits, targets, mask = logits_of(model, batch)
    each = -logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    return each * mask, mask


def log_sigmoid_mean(raised, beta):
    return -(2 / beta) * torch.log(1 / (1 + torch.exp(-beta * raised))).mean()


def plain_npo(model, reference, batch):
    with torch.no_grad():
        theirs = nll_of(reference, batch)[0].sum(1)
    return log_sigmoid_mean(nll_of(model, batch)[0].sum(1) - theirs, 0.1)


def plain_simnpo(model, reference, batch):
    each, mask = nll_of(model, batch)
    return log_sigmoid_mean(each.sum(1) / mask.sum(1), 4.5)


def plain_wga(model, reference, batch):
    each, mask = nll_of(model, batch)
    p = (-each.detach()).exp()
    return -(p * each).sum() / mask.sum()


def plain_satimp(model, reference, batch):
    each, mask = nll_of(model, batch)
    p = (-each.detach()).exp()
    return -(p**5 * (1 - p) * each).sum() / mask.sum()


def plain_ce_u(model, reference, batch):
    logits, targets, mask = logits_of(model, batch)
    others = logits.detach().softmax(-1) * (1 - F.one_hot(targets, VOCABULARY))
    others = others / others.sum(-1, keepdim=True)
    return -(others * logits.log_softmax(-1)).sum(-1)[mask].mean()


def plain_undial(model, reference, batch):
    logits, targets, mask = logits_of(model, batch)
    with torch.no_grad():
        fixed = logits_of(reference, batch)[0] - 10 * F.one_hot(targets, VOCABULARY)
    return -(fixed.softmax(-1) * logits.log_softmax(-1)).sum(-1)[mask].mean()


def plain_descent(model, reference, batch):
    each, mask = nll_of(model, batch)
    return each.sum() / mask.sum()


PLAIN = {
    "npo": (plain_npo, plain_descent),
    "simnpo": (plain_simnpo, plain_descent),
    "wga": (plain_wga, plain_descent),
    "satimp": (plain_satimp, plain_descent),
    "ce_u": (plain_ce_u, None),
    "undial": (plain_undial, None),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_loss_is_its_formula_on_full_logits(world, name, monkeypatch):
    monkeypatch.setattr(fused, "CPU_LOGIT_BYTES", 3 * 4 * VOCABULARY)  # several chunks
    monkeypatch.setattr(fused, "CPU_ROWS", 1)
    model, reference, forget, retain = world
    plain_forget, plain_retain = PLAIN[name]
    expected = plain_forget(model, reference, forget)
    if plain_retain is not None:
        expected = expected + WEIGHT * plain_retain(model, reference, retain)
    loss = unlearning_loss(name, model, forget, retain, reference, retain_weight=WEIGHT)
    torch.testing.assert_close(loss, expected, **CLOSE)
    ours, theirs = gradients(loss, model), gradients(expected, model)
    for weight, slope in theirs.items():
        apart = (ours[weight] - slope).norm()
        assert apart <= 1e-4 * slope.norm() + 1e-7, weight
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_every_one_of_them_is_compared_with_a_formula():
    assert list(PLAIN) == list(SINCE)


@pytest.mark.parametrize("name", SINCE)
def test_padding_never_changes_a_loss(world, name):
    model, reference, forget, retain = world
    ours = unlearning_loss(name, model, forget, retain, reference)
    theirs = unlearning_loss(name, model, padded(forget, 3), padded(retain, 5), reference)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model), **CLOSE)


@pytest.mark.parametrize("name", SINCE)
def test_micro_batches_of_unequal_token_counts_add_up_to_one_batch(world, name):
    model, reference, forget, retain = world
    whole = unlearning_loss(name, model, forget, retain, reference)
    counts = SINCE[name].forget.count(forget).item(), torch.tensor(tokens(retain))
    parts, means = [], []
    for ours, theirs in ((slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, 4))):
        few, some = rows(forget, ours), rows(retain, theirs)
        parts.append(unlearning_loss(name, model, few, some, reference, counts=counts))
        means.append(unlearning_loss(name, model, few, some, reference))
    torch.testing.assert_close(sum(parts), whole, **CLOSE)
    expected = gradients(whole, model)
    torch.testing.assert_close(gradients(sum(parts), model), expected, **CLOSE)
    of_means = gradients(sum(means) / 2, model)  # which a mean of means does not
    assert any(
        (of_means[name] - slope).norm() > 0.01 * slope.norm() > 0
        for name, slope in expected.items()
    )


@pytest.mark.parametrize("name", SINCE)
def test_a_part_without_documents_costs_nothing_and_has_every_gradient(world, name):
    """As a process has one for which no document is left: the others wait for its gradients."""
    model, reference, forget, retain = world
    idle = []
    for side in (forget, retain):
        idle.append(side | {"labels": torch.full_like(side["labels"], -100)})
    model.zero_grad()
    loss = unlearning_loss(name, model, *idle, reference, counts=(5, 5))
    loss.backward()
    assert loss.item() == 0
    reached = [weight.grad is not None for weight in model.parameters()]
    assert all(reached) and not any(weight.grad.any() for weight in model.parameters())


@pytest.mark.parametrize("name", SINCE)
def test_a_small_step_makes_the_forget_text_less_likely(name):
    model, reference = tiny(0), tiny(0)
    forget, retain = batch_of([9, 7], 2), batch_of([9, 9], 3)
    before = nll_of(model, forget)[0].sum().item()
    unlearning_loss(name, model, forget, retain, reference, retain_weight=0.01).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-4 * parameter.grad / parameter.grad.norm().clamp(min=1e-12)
    assert nll_of(model, forget)[0].sum().item() > before


# ------------------------------------------------------------------ slips of public implementations


def test_slip_the_length_of_a_text_is_that_of_its_predicted_tokens(world):
    """Not the number of its labels before the shift, of which nothing predicts the first."""
    model, _, forget, _ = world
    term = SINCE["simnpo"].forget
    loss = term.loss_function()(model, forget, None, term.count(forget))
    each, mask = nll_of(model, forget)
    slip = log_sigmoid_mean(each.sum(1) / (mask.sum(1) + 1), 4.5)
    assert abs(loss - slip) > 1e-3 * loss
    first_not_counted = forget["labels"].clone()
    first_not_counted[:, 0] = -100
    changed = forget | {"labels": first_not_counted}
    assert term.loss_function()(model, changed, None, term.count(changed)) == loss


def test_slip_what_is_not_counted_is_no_index_and_no_part_of_the_mean(world):
    """-100 as an index takes a token from the vocabulary's end; a mean over padding is too low."""
    model, reference, forget, _ = world
    term = SINCE["undial"].forget
    loss = term.loss_function()(model, forget, reference, term.count(forget)).detach()
    with torch.no_grad():
        logits, _, mask = logits_of(model, forget)
        index = forget["labels"][:, 1:] % VOCABULARY
        fixed = logits_of(reference, forget)[0] - 10 * F.one_hot(index, VOCABULARY)
        slip = F.cross_entropy(logits.flatten(0, 1), fixed.flatten(0, 1).softmax(-1))
    assert not mask.all() and abs(loss - slip) > 1e-3 * loss
    one_by_one = 0
    for i, length in enumerate((9, 4, 3)):
        alone = {name: tensor[[i], :length] for name, tensor in forget.items()}
        one_by_one += term.loss_function()(model, alone, reference, term.count(forget))
    torch.testing.assert_close(loss, one_by_one.detach(), **CLOSE)
