"""The methods since the paper: by hand, against plain formulas on full logits, and known slips."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import user_models
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_methods import CLOSE, VOCABULARY, batch_of, padded, rows, tiny, tokens

from unlearn_utils.app import commands
from unlearn_utils.app.lora_adapters import WithoutAdapters
from unlearn_utils.core import fused, losses, methods
from unlearn_utils.core.methods import METHODS, SINCE, Term, unlearning_loss
from unlearn_utils.data import tokens as collation
from unlearn_utils.engine import trainer, training
from unlearn_utils.profiles import Unlearning

LOGITS = torch.tensor([[0, math.log(2), math.log(5)]])  # probabilities 1/8, 2/8, 5/8
TRUE = torch.tensor([2])
ROW = slice(0, 1)
WEIGHT = 0.7  # of the retain term


@pytest.fixture(scope="module")
def world():
    """(model, reference, forget, retain); the sides' token counts differ, and so do the rows'."""
    return tiny(0), tiny(1), batch_of([9, 4, 3], 2), batch_of([3, 9, 8, 5], 3)


def gradients(loss, model):
    """Return the gradient of each weight: 0 where the loss does not reach, as before RMU's end."""
    model.zero_grad()
    loss.backward()
    found = {}
    for name, weight in model.named_parameters():
        found[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    return found


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
    ours = {"npo": 7 / 3, "simnpo": 2, "wga": 2, "satimp": 2, "ce_u": 1, "undial": 4 / 3}
    early = 1 / 3 + 1 / 6  # a forward pass, and a quarter of a backward pass
    ours |= {"rmu": 2 * early + 1 / 3, "pdu": 7 / 3, "task_vector": 1}
    assert passes == pytest.approx(ours)


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
    "rmu": 4,  # its hidden states are 0
    "pdu": 0,
    "task_vector": UNIFORM,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_forget_term_of_a_model_that_knows_nothing_by_hand(name):
    model = tiny(0)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    batch = batch_of([9, 4, 3], 2)
    term = SINCE[name].forget
    loss = term.loss_function()(model, batch, model, term.count(batch)).item()
    assert loss == pytest.approx(BY_HAND[name], rel=1e-5, abs=1e-30)


def test_npo_of_a_rise_by_hand():
    """A rise of 10 log 3: -(2 / 0.1) log sigmoid(log 3) = 20 log(4 / 3)."""
    found = losses._preference(torch.tensor([10 * math.log(3)]), beta=0.1)
    assert found.item() == pytest.approx(20 * math.log(4 / 3))


def test_the_largest_logit_less_the_mean_by_hand():
    logits = torch.tensor([[1.0, 2, 6]])
    found, slopes = fused.squared_peak()(logits, ROW)
    assert found.item() == 9
    torch.testing.assert_close(slopes, torch.tensor([[-2.0, -2, 4]]))  # 2 * 3 * (is largest - 1/3)


def test_a_multiplier_follows_its_loss_by_hand():
    rule = SINCE["pdu"].retain.multiplier
    assert (rule.start, rule.rate, rule.bound) == (100, 5, 0.3)
    assert rule.after(torch.tensor(100.0), torch.tensor(1.3)).item() == pytest.approx(105)
    assert rule.after(torch.tensor(100.0), torch.tensor(0.0)).item() == pytest.approx(98.5)
    assert rule.after(torch.tensor(1.0), torch.tensor(0.0)).item() == 0


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


def plain_early(model, batch):
    """Return the first layer's output at positions that predict, as a hook sees it."""
    seen = []
    hook = model.model.layers[0].register_forward_hook(lambda *given: seen.append(given[-1]))
    model(batch["input_ids"], batch["attention_mask"])
    hook.remove()
    return seen[0][:, :-1][batch["labels"][:, 1:] != -100]


def plain_rmu(model, reference, batch):
    drawn = torch.rand(16, generator=torch.Generator().manual_seed(0))
    target = 2 * drawn / drawn.norm()
    return ((plain_early(model, batch) - target) ** 2).sum(1).mean()


def plain_rmu_retain(model, reference, batch):
    fixed = plain_early(reference, batch).detach()
    return ((plain_early(model, batch) - fixed) ** 2).sum(1).mean()


def plain_pdu(model, reference, batch):
    logits, _, mask = logits_of(model, batch)
    return ((logits.max(-1).values - logits.mean(-1)) ** 2)[mask].mean()


def plain_rise(model, reference, batch):
    return plain_descent(model, None, batch) - plain_descent(reference, None, batch).detach()


PLAIN = {
    "npo": (plain_npo, plain_descent),
    "simnpo": (plain_simnpo, plain_descent),
    "wga": (plain_wga, plain_descent),
    "satimp": (plain_satimp, plain_descent),
    "ce_u": (plain_ce_u, None),
    "undial": (plain_undial, None),
    "rmu": (plain_rmu, plain_rmu_retain),
    "pdu": (plain_pdu, plain_rise),
    "task_vector": (plain_descent, None),
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
    reached = []
    for sides in ((forget, retain), idle):
        model.zero_grad()
        loss = unlearning_loss(name, model, *sides, reference, counts=(5, 5))
        loss.backward()
        reached.append({w for w, one in model.named_parameters() if one.grad is not None})
    assert loss.item() == 0
    assert reached[0] == reached[1] != set()
    assert not any(one.grad.any() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("name", ["npo", "simnpo", "wga", "satimp", "ce_u", "undial"])
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


def test_slip_a_mean_over_tokens_is_not_every_sum_over_every_length(world):
    """Sums (B,) over lengths (B, 1) are a (B, B) of each text's sum over each text's length."""
    model, reference, forget, _ = world
    for term in (methods.RMU, methods.RMU_RETAIN):
        function = term.loss_function()
        loss = function(model, forget, reference, term.count(forget)).item()
        lengths, sums = torch.tensor([8.0, 3, 2]), []
        for i, length in enumerate((9, 4, 3)):
            alone = {name: tensor[[i], :length] for name, tensor in forget.items()}
            sums.append(function(model, alone, reference, torch.tensor(1)).item())
        sums = torch.tensor(sums)
        assert loss == pytest.approx((sums.sum() / lengths.sum()).item(), rel=1e-4)
        slip = (sums / lengths[:, None]).mean().item()
        assert abs(loss - slip) > 0.1 * loss


# ------------------------------------------------------------------------------ runs of a few steps

PAD_ID = 1


def some_ids(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, n).tolist() for n in lengths]


FORGET, RETAIN = some_ids([12, 4, 7, 3, 9, 5], 1), some_ids([6, 11, 3, 8], 2)
RECIPE = Unlearning(batch=2, epochs=2, learning_rate=1e-2)


def a_job(method, model, reference):
    return training.Job(methods.get_method(method), FORGET, RETAIN, RECIPE, PAD_ID, 0, reference)


def run(build, method, layers=2, **execution):
    """Return the model and the history of a run of six steps."""
    model, reference = build(0, layers=layers), build(0, layers=layers)
    given = a_job(method, model, reference)
    return model, training.unlearn(model, given, training.Execution(**execution))


def state(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", ["npo", "task_vector"])
def test_a_run_makes_the_forget_text_less_likely(build, float32, name):
    model, history = run(build, name)
    batch = collation.collate(FORGET, PAD_ID)
    with torch.no_grad():
        before, after = (nll_of(one, batch)[0].sum() for one in (build(0), model))
    assert len(history) == 6 and after > 1.02 * before


@pytest.mark.parametrize("name", ["rmu"])
def test_a_run_lowers_its_own_forget_term(build, float32, name):
    model, _ = run(build, name)
    batch, term = collation.collate(FORGET, PAD_ID), SINCE[name].forget
    levels = []
    for one in (build(0), model):
        levels.append(term.loss_function()(one, batch, build(0), term.count(batch)).item())
    assert levels[1] < 0.98 * levels[0]


@pytest.mark.parametrize("name", ["rmu", "pdu"])
def test_micro_batches_of_a_run_are_one_batch(build, float32, name):
    whole, history = run(build, name)
    parts, theirs = run(build, name, micro_batch=1)
    moved = {key: weight - state(build(0))[key] for key, weight in state(whole).items()}
    apart = {key: weight - state(whole)[key] for key, weight in state(parts).items()}
    norms = [torch.cat([one.flatten() for one in some.values()]).norm() for some in (apart, moved)]
    assert norms[0] < 1e-3 * norms[1]
    ours = [row["loss"] for row in history]
    assert [row["loss"] for row in theirs] == pytest.approx(ours, rel=1e-4)


def test_layers_computed_again_give_the_same_early_states(build, float32):
    one, history = run(build, "rmu")
    again, theirs = run(build, "rmu", recompute_layers=True)
    assert history == theirs
    assert all(torch.equal(weight, state(again)[name]) for name, weight in state(one).items())


def test_rmu_trains_three_layers_alone_and_leaves_all_trainable(build, float32):
    model, _ = run(build, "rmu", layers=16)
    before = state(build(0, layers=16))
    changed = {name for name, weight in state(model).items() if not weight.equal(before[name])}
    layers = {name.split(".")[2] for name in changed}
    assert layers == {"1", "2", "3"} and all(".layers." in name for name in changed)
    assert all(weight.requires_grad for weight in model.parameters())


def test_rmu_refuses_a_model_whose_layers_it_cannot_read(world, monkeypatch):
    model, reference, forget, retain = world
    shut = SimpleNamespace(hidden_states=None)
    monkeypatch.setattr(fused, "body_of", lambda model: lambda **given: shut)
    with pytest.raises(ValueError, match="^this LlamaForCausalLM does not give the hidden states"):
        unlearning_loss("rmu", model, forget, retain, reference)


def test_the_multiplier_of_a_run_follows_the_rise_by_hand(build, float32):
    seen = {}

    def watch(step, model):
        seen[step] = state(model)

    _, history = run(build, "pdu", watch=watch, watched=range(7))
    given = a_job("pdu", build(0), build(0))
    order, value = given.order(), 100
    model = build(0)
    for step, row in enumerate(history):
        model.load_state_dict(seen[step], strict=False)
        sides = training.paired(given)(order[2 * step : 2 * step + 2])
        with torch.no_grad():
            forget = plain_pdu(model, None, sides["forget"]).item()
            rise = plain_rise(model, build(0), sides["retain"]).item()
        assert row["loss"] == pytest.approx(forget + value * rise, rel=1e-3, abs=2e-3)
        value = max(0, value + 5 * (rise - 0.3))
    assert value != 100


def test_a_run_goes_on_with_the_multiplier_that_it_had(build, float32, tmp_path):
    whole, history = run(build, "pdu")

    def watch(step, model):
        if step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(build, "pdu", watch=watch, watched=[4], checkpoints=tmp_path)
    (kept,) = tmp_path.rglob(trainer.WEIGHTS)
    assert kept.parent.name == "checkpoint-3"
    assert 0 < load_file(kept)["factor.value"].item() != 100
    model, again = run(build, "pdu", checkpoints=tmp_path)
    assert again == history
    ours, theirs = state(whole), state(model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_task_vector_is_taken_off_the_original_and_seen_so_on_the_way(build, float32):
    seen = {}

    def watch(step, model):
        seen[step] = state(model)

    model, history = run(build, "task_vector", watch=watch, watched=[0, 3, 6])
    plain = Term("plain", "x", "descent")
    tuned = build(0)
    given = a_job(methods.Method("plain", "Plain", plain), tuned, None)
    assert training.unlearn(tuned, given) == history
    original, ended = state(build(0)), state(model)
    for name, weight in state(tuned).items():
        torch.testing.assert_close(ended[name], 2 * original[name] - weight)
        torch.testing.assert_close(seen[0][name], original[name])
        assert torch.equal(seen[6][name], ended[name])
        assert not torch.equal(seen[3][name], ended[name])


def test_a_task_vector_says_what_it_cannot_do(build, float32, monkeypatch):
    with pytest.raises(ValueError, match="^task_vector needs the original model as reference$"):
        training.unlearn(build(0), a_job("task_vector", build(0), None))
    monkeypatch.setattr(training.distributed, "sharded", lambda: True)
    with pytest.raises(ValueError, match="^task_vector needs whole weights.*DDP"):
        training.unlearn(build(0), a_job("task_vector", build(0), build(0)))


# ------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", [name for name in SINCE if name != "task_vector"])
def test_adapters_have_the_model_without_them_as_reference(world, name):
    _, _, forget, retain = world
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = get_peft_model(tiny(0), config)
    for weight in model.parameters():
        if weight.requires_grad:
            generator = torch.Generator().manual_seed(weight.numel())
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    found = []
    for reference in (WithoutAdapters(model), tiny(0)):
        loss = unlearning_loss(name, model, forget, retain, reference)
        found.append((loss, gradients(loss, model)))
    torch.testing.assert_close(*found, **CLOSE)
    reached = {key for key, slope in found[0][1].items() if slope.any()}
    assert reached and all("lora_" in key for key in reached)


def test_rmu_trains_the_adapters_of_its_layers_alone(build, float32):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = get_peft_model(build(0, layers=8), config)
    training.unlearn(model, a_job("rmu", model, WithoutAdapters(model)))
    moved = {name for name, weight in model.named_parameters() if "lora_B" in name and weight.any()}
    assert {name.split(".layers.")[1][0] for name in moved} == {"0", "1"}
    assert all(one.requires_grad for name, one in model.named_parameters() if "lora_" in name)


# ------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("name", ["rmu", "pdu", "task_vector"])
def test_the_command_line_runs_them_and_the_card_says_what_and_whence(
    llama, documents, tmp_path, name, capsys
):
    out = tmp_path / "out"
    user_models.unlearn(llama, documents, out, name, "--steps", 2, "--learning-rate", 1e-3)
    card = (out / "README.md").read_text()
    method = SINCE[name]
    assert f"{method.title} (`{name}`). Minimised: {method.forget.minimises}" in card
    assert f"Source: {method.source}." in card
    assert user_models.record(out)["method"] == name


def test_a_task_vector_takes_no_adapters(llama, documents, tmp_path, capsys):
    given = (llama, documents, tmp_path / "out", "task_vector", "--lora", "rank=2")
    assert commands.main(user_models.arguments(*given)) == 2
    assert "--lora: task_vector takes the change of whole weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
