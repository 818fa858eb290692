"""The optimizers, and runs of a few steps on the Trainer: their losses, order, micro-batches and watchers."""

import os
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import get_cosine_schedule_with_warmup

from unlearn_utils.core import fused, losses, methods
from unlearn_utils.core.methods import METHODS
from unlearn_utils.data import tokens
from unlearn_utils.engine import optimizers, training
from unlearn_utils.profiles import Pretraining, Unlearning

PAD_ID = 1
SEED = 0
pytestmark = pytest.mark.usefixtures("float32")


def documents(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, n).tolist() for n in lengths]


FORGET = documents([12, 4, 7, 3, 9, 5], 1)
RETAIN = documents([6, 11, 3, 8], 2)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_loss(model, ids, labels=None):
    """Summed next-token loss of each document, and its predicted tokens."""
    with torch.no_grad():
        logits = [model(torch.tensor([x])).logits[0, :-1] for x in ids]
    targets = [torch.tensor(y)[1:] for y in (ids if labels is None else labels)]
    sums = [F.cross_entropy(x, y, reduction="sum") for x, y in zip(logits, targets, strict=True)]
    return torch.stack(sums), torch.tensor([len(x) - 1 for x in ids])


def run(build, method, recipe, **changes):
    """(model, history) of one small run with everything that the method needs."""
    model, reference = build(0), build(1)
    labels = None if METHODS[method].forget == "ascent" else [ids[::-1] for ids in FORGET]
    own = {"seed": SEED, "reference": reference, "labels": labels} | changes
    history = training.unlearn(model, method, FORGET, RETAIN, recipe, PAD_ID, **own)
    return model, history


def distance(build, one, other):
    """How far two models have come apart, as a share of how far the first has moved."""
    moved = weights(one) - weights(build(0))
    return ((weights(one) - weights(other)).norm() / moved.norm()).item()


# ---------------------------------------------------------------------------------------------- optimizers


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 20), (2, 20, 5), (1, 64, 32)])
def test_orthogonal_keeps_directions_and_levels_singular_values(shape):
    x = random(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    found = optimizers.orthogonal(x)
    # The same singular vectors: u' found v is diagonal ...
    inner = u.mT @ found @ vh.mT
    levels = inner.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.diag_embed(levels), rtol=0, atol=1e-3)
    kept = s > 0.03 * s.norm(dim=1, keepdim=True)  # ... and but for the very smallest, near 1
    assert kept.float().mean() > 0.8 and levels[kept].min() > 0.6 and levels[kept].max() < 1.25
    assert levels.max() < 1.25
    torch.testing.assert_close(optimizers.orthogonal(1000 * x), found, rtol=1e-3, atol=1e-4)


def test_orthogonal_of_nothing_is_nothing():
    assert (optimizers.orthogonal(torch.zeros(1, 4, 4)) == 0).all()


def test_muon_s_first_step_by_hand():
    """Gradient diag(3, 4): momentum 0.05 g, looked ahead 0.05 * 0.95 g + 0.05 g; the direction alone matters; 4 x 2 is scaled by sqrt 2."""
    p = torch.zeros(4, 2, requires_grad=True)
    p.grad = torch.tensor([[3.0, 0], [0, 4], [0, 0], [0, 0]])
    optimizers.Muon([p], lr=0.1).step()
    inside = -p.detach()[:2] / (0.1 * 2**0.5)
    assert (p[2:] == 0).all() and inside[0, 1].abs() < 1e-6 and inside[1, 0].abs() < 1e-6
    assert 0.6 < inside[0, 0] < 1.25 and 0.6 < inside[1, 1] < 1.25


def test_muon_agrees_with_pytorch_s():
    ours, theirs = ([torch.nn.Parameter(random(*s, seed=i)) for i, s in enumerate([(8, 8), (24, 8), (8, 24), (8, 8)])] for _ in range(2))
    steps = optimizers.Muon(ours, lr=0.05), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.0, momentum=0.95)
    before = [p.detach().clone() for p in ours]
    for n in range(4):
        for side, optimizer in zip((ours, theirs), steps, strict=True):
            for i, p in enumerate(side):
                p.grad = random(*p.shape, seed=100 * n + i)
            optimizer.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert (a - b).norm() < 0.03 * (a - start).norm()  # bfloat16 there, float32 here


def test_muon_leaves_what_has_no_gradient():
    moved, still = torch.nn.Parameter(random(3, 3)), torch.nn.Parameter(random(3, 3))
    moved.grad = random(3, 3, seed=1)
    before = still.detach().clone()
    optimizers.Muon([moved, still], lr=0.1).step()
    assert torch.equal(still, before) and not torch.equal(moved, before)


def test_matrices_go_to_muon_and_the_rest_to_adamw(build):
    model = build(0)
    both = optimizers.muon_and_adamw(model, 0.02, 3e-3)
    muon, adamw = both.optimizers
    names = {id(p): name for name, p in model.named_parameters()}
    hidden, rest = (sorted(names[id(p)] for g in o.param_groups for p in g["params"]) for o in (muon, adamw))
    assert len(hidden) == 2 * 7 and all("_proj" in name for name in hidden)  # q, k, v, o, gate, up, down
    assert sorted(hidden + rest) == sorted(names.values()) and "model.embed_tokens.weight" in rest
    assert [g["lr"] for g in both.param_groups] == [0.02, 3e-3] and adamw.param_groups[0]["weight_decay"] == 0


def small_steps(model, optimizer, first, last):
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, 10, last_epoch=-1)
    for n in range(first, last):
        for i, p in enumerate(model.parameters()):
            p.grad = random(*p.shape, seed=100 * n + i)
        optimizer.step()
    return schedule


def test_a_schedule_moves_both(build):
    both = optimizers.muon_and_adamw(build(0), 0.02, 3e-3)
    schedule = get_cosine_schedule_with_warmup(both, 2, 6)
    rates = []
    for _ in range(6):
        rates.append([o.param_groups[0]["lr"] for o in both.optimizers])
        both.step()
        schedule.step()
    shape = [0, 0.5, 1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]
    assert np.array(rates) == pytest.approx(np.outer(shape, [0.02, 3e-3]))


def test_a_loaded_state_continues_identically(build):
    straight, resumed = build(0), build(0)
    one, two = (optimizers.muon_and_adamw(m, 0.02, 3e-3) for m in (straight, resumed))
    small_steps(straight, one, 0, 2)
    small_steps(resumed, two, 0, 2)
    fresh = optimizers.muon_and_adamw(resumed, 0.5, 0.5)
    fresh.load_state_dict(two.state_dict())
    assert fresh.param_groups[0] is fresh.optimizers[0].param_groups[0]  # a schedule still moves them
    assert [g["lr"] for g in fresh.param_groups] == [g["lr"] for g in two.param_groups]
    for optimizer, model in ((one, straight), (fresh, resumed)):
        small_steps(model, optimizer, 2, 4)
    assert torch.equal(weights(straight), weights(resumed))
    lost = build(0)
    small_steps(lost, optimizers.muon_and_adamw(lost, 0.02, 3e-3), 0, 2)
    small_steps(lost, optimizers.muon_and_adamw(lost, 0.02, 3e-3), 2, 4)
    assert not torch.equal(weights(straight), weights(lost))  # which it would not without the state


def test_clearing_gradients_clears_both(build):
    model = build(0)
    both = optimizers.muon_and_adamw(model, 0.02, 3e-3)
    small_steps(model, both, 0, 1)
    both.zero_grad()
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------------------------------- orders


def test_each_pass_holds_every_document_once_in_an_order_of_its_own():
    order = training.orders(20, 3, np.random.default_rng(0))
    passes = [order[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(p) == list(range(20)) for p in passes) and len(set(map(tuple, passes))) == 3
    assert order == training.orders(20, 3, np.random.default_rng(0)) != training.orders(20, 3, np.random.default_rng(1))


@pytest.mark.parametrize(("forget", "retain", "epochs"), [(6, 4, 1), (6, 4, 3), (4, 18, 2), (3, 3, 2), (5, 1, 2)])
def test_pairs_use_every_retain_document_before_repeating(forget, retain, epochs):
    found = training.pairs(forget, retain, epochs, np.random.default_rng(0))
    ours, theirs = map(list, zip(*found, strict=True))
    assert len(found) == forget * epochs and Counter(ours) == {i: epochs for i in range(forget)}
    assert all(sorted(ours[i : i + forget]) == list(range(forget)) for i in range(0, len(ours), forget))
    uses = Counter(theirs)
    assert set(theirs) <= set(range(retain)) and len(uses) == min(retain, len(ours))
    assert max(uses.values()) - min(uses[i] for i in range(retain)) <= 1


def test_pairs_without_retain_text():
    assert sorted(training.pairs(3, 0, 1, np.random.default_rng(0))) == [(0, 0), (1, 0), (2, 0)]


def test_steps_by_hand():
    assert [training.steps_of(*x) for x in ((6, 4, 1), (8, 4, 1), (6, 4, 2), (1, 4, 1), (60, 4, 1))] == [2, 2, 3, 1, 15]


def test_collated_pairs_hold_the_retain_side_only_if_it_is_read():
    chosen = [(1, 2), (3, 0)]
    plain, both = (training.paired(m, FORGET, RETAIN, PAD_ID)(chosen) for m in ("gradient_ascent", "ascent_kl_general"))
    assert set(plain) == {"forget"} and set(both) == {"forget", "retain"}
    expected = tokens.collate([RETAIN[2], RETAIN[0]], PAD_ID)
    assert all(torch.equal(both["retain"][k], v) for k, v in expected.items())
    labels = [[7] * len(ids) for ids in FORGET]
    found = training.paired("random_label", FORGET, RETAIN, PAD_ID, labels)(chosen)["forget"]
    assert found["labels"].tolist() == [[7, 7, 7, 7], [7, 7, 7, -100]] and found["input_ids"][0].tolist() == FORGET[1]


def test_labels_are_drawn_once_from_the_original_model(build, tokenizer):
    model = build(0)

    def draw(method, seed=0):
        return training.draw_labels(method, FORGET, model, tokenizer, seed)

    assert draw("gradient_ascent") is None and draw("ascent_kl_general") is None
    assert draw("random_label") == draw("random_label") != draw("random_label", 1)
    assert draw("adversarial") == draw("adversarial", 1)
    assert [len(x) for x in draw("random_label")] == [len(x) for x in FORGET]
    for method in ("random_label", "adversarial"):
        assert all(a != b for ours, ids in zip(draw(method), FORGET, strict=True) for a, b in list(zip(ours, ids, strict=True))[1:])
        assert not set(tokenizer.all_special_ids) & {i for x in draw("random_label") for i in x}


# ---------------------------------------------------------------------------------------------- what is refused


def unchanged_after(build, message, *arguments, **changes):
    """Asserts that a run is refused with this message, before the first step."""
    model = build(0)
    with pytest.raises(ValueError, match=message):
        training.unlearn(model, *arguments, **({"recipe": Unlearning(batch=2), "pad_id": PAD_ID, "seed": 0} | changes))
    assert torch.equal(weights(model), weights(build(0)))


def test_documents_in_both_sets_are_named(build):
    both = [RETAIN[0], FORGET[2], RETAIN[1], FORGET[0]]
    message = "both sets.*: forget 0 = retain 3, forget 2 = retain 1; remove"
    for method in METHODS:
        unchanged_after(build, message, method, FORGET, both, reference=build(1))


def test_a_retain_set_that_is_the_forget_set_is_refused(build):
    turned = [f"forget {i} = retain {5 - i}" for i in range(6)]
    with pytest.raises(ValueError) as caught:
        training.check_sets("ascent_descent_general", FORGET, FORGET[::-1])
    assert str(caught.value).count("retain") == 5 and all(pair in str(caught.value) for pair in turned[:5])  # five are enough
    unchanged_after(build, "both sets", "ascent_descent_general", FORGET, FORGET[::-1])


def test_sets_that_share_only_a_beginning_are_accepted():
    training.check_sets("ascent_descent_general", [[2, 3, 4]], [[2, 3], [2, 3, 4, 5], [4, 3, 2]])
    training.check_sets("gradient_ascent", [[2, 3, 4]], [])
    with pytest.raises(ValueError, match="forget 1 = retain 0"):
        training.check_sets("ascent_descent_general", [[2, 3, 4], [2, 3]], [[2, 3]])


@pytest.mark.parametrize("method", METHODS)
def test_empty_sets_are_refused(build, method):
    unchanged_after(build, "forget set is empty", method, [], RETAIN, reference=build(1))
    if METHODS[method].retain:
        unchanged_after(build, f"retain set is empty.*{method}", method, FORGET, [], reference=build(1))


@pytest.mark.parametrize("method", ["ascent_kl_general", "ascent_kl_in_distribution"])
def test_kl_without_a_reference_is_refused(build, method):
    unchanged_after(build, f"{method} needs the original model", method, FORGET, RETAIN)


def test_an_unknown_method_is_refused_with_the_names(build):
    unchanged_after(build, "unknown method 'ascend'.*gradient_ascent.*ascent_kl_in_distribution", "ascend", FORGET, RETAIN)


@pytest.mark.parametrize("name", ["learning_rate", "epochs", "batch", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_rates_and_counts_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, not {value}"):
        Unlearning(**{name: value})


def test_an_unknown_schedule_is_refused_with_the_names():
    with pytest.raises(ValueError, match="'linear'.*constant, cosine, cosine, idle warm-up"):
        Unlearning(schedule="linear")


# ---------------------------------------------------------------------------------------------- unlearning runs


@pytest.mark.parametrize("method", METHODS)
def test_losses_of_a_run_are_the_method_s_by_hand(build, method):
    """The first step's from the model as it came; the second, smaller batch's from the model as the first step left it."""
    recipe, seen = Unlearning(batch=4, learning_rate=1e-3, retain_weight=0.5), {}

    def watch(step, model):
        seen[step] = weights(model).clone()

    model, history = run(build, method, recipe, watch=watch, watched=[0, 1, 2])
    order = training.pairs(6, 4, 1, np.random.default_rng(SEED))
    labels = None if METHODS[method].forget == "ascent" else [ids[::-1] for ids in FORGET]
    assert [row["step"] for row in history] == [1, 2] and {row["learning_rate"] for row in history} == {1e-3}
    for row, chosen, before in zip(history, (order[:4], order[4:]), (seen[0], seen[1]), strict=True):
        sides = training.paired(method, FORGET, RETAIN, PAD_ID, labels)(chosen)
        then = build(0)
        torch.nn.utils.vector_to_parameters(before, then.parameters())
        expected = methods.unlearning_loss(method, then, sides["forget"], sides.get("retain"), build(1), retain_weight=0.5).item()
        assert row["loss"] == pytest.approx(expected, abs=2e-4)
    assert torch.equal(seen[2], weights(model)) and torch.equal(seen[0], weights(build(0)))


@pytest.mark.parametrize(("method", "micro_batch"), [(m, 1) for m in METHODS] + [("ascent_kl_general", 2)])
def test_corrected_micro_batches_of_unequal_token_counts_are_one_batch(build, method, micro_batch):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    whole, history = run(build, method, recipe)
    parts, theirs = run(build, method, recipe, micro_batch=micro_batch)
    assert distance(build, whole, parts) < 1e-3
    assert [r["loss"] for r in theirs] == pytest.approx([r["loss"] for r in history], abs=2e-4)


OFFICIAL = {"ascent_descent_in_distribution": True, "gradient_ascent": False, "ascent_kl_general": False}


@pytest.mark.parametrize("method", OFFICIAL)
def test_official_micro_batches_are_averages_of_their_own(build, method):
    """Means of sequences' means are equal for micro-batches of equal size; means over tokens or padding are not. Six documents in one
    batch: the released code divides by the number of micro-batches that a full batch has."""
    recipe = Unlearning(batch=6, learning_rate=1e-3, variant="official")
    whole, history = run(build, method, recipe)
    parts, theirs = run(build, method, recipe, micro_batch=2)
    assert (abs(theirs[0]["loss"] - history[0]["loss"]) < 3e-4) == OFFICIAL[method]
    apart = distance(build, whole, parts)
    assert apart < 1e-3 if OFFICIAL[method] else apart > 1e-2
    order = training.pairs(6, 4, 1, np.random.default_rng(SEED))
    sides = [training.paired(method, FORGET, RETAIN, PAD_ID)(order[i : i + 2]) for i in (0, 2, 4)]
    means = [methods.unlearning_loss(method, build(0), s["forget"], s.get("retain"), build(1), "official").item() for s in sides]
    assert theirs[0]["loss"] == pytest.approx(np.mean(means), abs=2e-4)


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused_or_harmless(build):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    try:
        parts, _ = run(build, "gradient_ascent", recipe, micro_batch=3)
    except ValueError:
        return
    assert distance(build, run(build, "gradient_ascent", recipe)[0], parts) < 1e-3


def test_ascent_raises_the_forget_loss_and_descent_holds_the_retain_loss(build):
    recipe = Unlearning(batch=2, learning_rate=2e-2, epochs=2)
    before = {side: plain_loss(build(0), ids)[0].sum() for side, ids in (("forget", FORGET), ("retain", RETAIN))}
    ascent, _ = run(build, "gradient_ascent", recipe)
    both, _ = run(build, "ascent_descent_in_distribution", recipe)
    for model in (ascent, both):
        assert plain_loss(model, FORGET)[0].sum() > 1.1 * before["forget"]
    assert plain_loss(both, RETAIN)[0].sum() < before["retain"] < plain_loss(ascent, RETAIN)[0].sum()


def test_label_methods_descend_on_their_labels(build):
    recipe, labels = Unlearning(batch=2, learning_rate=2e-2, epochs=2), [ids[::-1] for ids in FORGET]
    model, _ = run(build, "random_label", recipe)
    assert plain_loss(model, FORGET, labels)[0].sum() < 0.95 * plain_loss(build(0), FORGET, labels)[0].sum()


@pytest.mark.parametrize("method", METHODS)
def test_layers_computed_again_give_the_same_losses_and_weights(build, method):
    """And are computed twice: once more in the backward pass; afterwards the model is as it was."""
    recipe, calls, ends = Unlearning(batch=4, epochs=2, learning_rate=1e-3), [], []
    for checkpointing in (False, True):
        model, count = build(0), Counter()
        model.model.layers[1].self_attn.register_forward_hook(lambda *_, count=count: count.update("f"))
        labels = None if METHODS[method].forget == "ascent" else [ids[::-1] for ids in FORGET]
        given = (model, method, FORGET, RETAIN, recipe, PAD_ID, SEED, build(1), labels)
        ends.append((training.unlearn(*given, checkpointing=checkpointing), weights(model)))
        calls.append(count["f"])
        assert not model.model.layers[1].gradient_checkpointing
    (ours, one), (theirs, other) = ends
    assert ours == theirs and torch.equal(one, other) and calls[1] == 2 * calls[0] > 0


def test_a_model_that_cannot_compute_again_says_so(build, monkeypatch):
    monkeypatch.setattr(type(build(0)), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="does not support"):
        run(build, "gradient_ascent", Unlearning(), checkpointing=True)


def test_gradients_are_clipped(build):
    """AdamW forgets a gradient's scale but not its direction: with nothing left of it, eps is all that counts."""
    model, _ = run(build, "gradient_ascent", Unlearning(batch=6, learning_rate=1e-3, max_grad_norm=1e-9))
    other, _ = run(build, "gradient_ascent", Unlearning(batch=6, learning_rate=1e-3))
    still, moved = ((weights(m) - weights(build(0))).abs().max() for m in (model, other))
    assert still < 0.2 * moved and moved == pytest.approx(1e-3, rel=0.05)


def test_runs_repeat_and_follow_the_seed(build):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    (one, a), (two, b), (other, _) = (run(build, "gradient_ascent", recipe, seed=s) for s in (0, 0, 1))
    assert torch.equal(weights(one), weights(two)) and a == b and not torch.equal(weights(one), weights(other))


def test_a_watcher_sees_the_model_at_its_steps_and_changes_nothing(build):
    recipe, seen, given = Unlearning(batch=2, learning_rate=1e-3), {}, []

    def watch(step, model):
        given.append(model)
        seen[step] = weights(model).clone()
        model.eval()
        with torch.no_grad():
            model(torch.tensor(FORGET[:1]))

    model, _ = run(build, "ascent_kl_general", recipe, watch=watch, watched=[0, 2, 3, 9])
    assert list(seen) == [0, 2, 3] and len(given) == 3 and all(m is model for m in given) and not model.training
    assert all(not torch.equal(a, b) for a, b in pairwise(seen.values()))
    assert torch.equal(seen[3], weights(run(build, "ascent_kl_general", recipe)[0]))


@pytest.mark.parametrize("method", ["gradient_ascent", "ascent_kl_general"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_run_of_n_steps_is_the_long_run_at_step_n(build, method, steps):
    """Bit for bit: also where the short run meets each retain document once and the long one meets them again."""
    recipe, seen = Unlearning(batch=2, learning_rate=1e-3, epochs=2), {}

    def watch(step, model):
        seen[step] = weights(model).clone()

    _, history = run(build, method, recipe, watch=watch, watched=range(7))
    model, short = run(build, method, recipe, steps=steps)
    assert len(history) == 6 and short == history[:steps]
    assert torch.equal(weights(model), seen[steps]) and not torch.equal(seen[steps], seen[steps - 1])


def test_a_run_of_n_steps_follows_the_long_run_s_schedule(build):
    recipe, seen = Unlearning(batch=2, learning_rate=1e-3, epochs=2, schedule="cosine"), {}

    def watch(step, model):
        seen[step] = weights(model).clone()

    _, history = run(build, "gradient_ascent", recipe, watch=watch, watched=[3])
    model, short = run(build, "gradient_ascent", recipe, steps=3)
    assert short == history[:3] and torch.equal(weights(model), seen[3])


def test_a_run_of_no_steps_changes_nothing(build):
    model, history = run(build, "gradient_ascent", Unlearning(batch=2), steps=0)
    assert history == [] and torch.equal(weights(model), weights(build(0)))


def test_schedules_by_hand(build):
    """6 steps. The released code's warm-up, 3% rounded up, is one step at rate 0."""

    def rates(schedule):
        optimizer = torch.optim.AdamW(build(0).parameters(), lr=1e-3)
        moves, found = training._schedule(optimizer, Unlearning(schedule=schedule), 6), []
        for _ in range(6):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            moves.step()
        return found

    def cosine(n):
        return [5e-4 * (1 + np.cos(np.pi * i / n)) for i in range(n)]

    _, history = run(build, "gradient_ascent", Unlearning(batch=2, learning_rate=1e-3, schedule="cosine"))
    assert [row["learning_rate"] for row in history] == pytest.approx(cosine(3))
    assert rates("constant") == [1e-3] * 6
    assert rates("cosine") == pytest.approx(cosine(6)) and rates("cosine, idle warm-up") == pytest.approx([0, *cosine(5)])


# ---------------------------------------------------------------------------------------------- the reference, computed once


def test_the_reference_is_kept_where_a_document_comes_twice_and_fits(build, monkeypatch):
    reference = build(1)
    assert training.hidden_of(reference, RETAIN, [0, 1, 3], PAD_ID) == {}
    found = training.hidden_of(reference, RETAIN, [3, 0, 3], PAD_ID)
    assert set(found) == {0, 3}
    for j, states in found.items():
        with torch.no_grad():
            expected = reference.model(torch.tensor([RETAIN[j]])).last_hidden_state[0]
        torch.testing.assert_close(states, expected)
        assert not states.requires_grad
    size = 4 * 16 * (len(RETAIN[0]) + len(RETAIN[3]))
    for bound, kept in ((size, True), (size - 1, False)):
        monkeypatch.setattr(training, "REFERENCE_BYTES", bound)
        assert bool(training.hidden_of(reference, RETAIN, [3, 0, 3], PAD_ID)) is kept


def test_a_batch_holds_the_kept_states_beside_their_documents(build):
    kept = {j: torch.full((len(RETAIN[j]), 16), float(j)) for j in (0, 2)}
    sides = training.paired("ascent_kl_general", FORGET, RETAIN, PAD_ID, None, kept)([(1, 2), (3, 0)])
    states = sides["retain"]["reference_hidden"]
    assert states.shape == (*sides["retain"]["input_ids"].shape, 16) and "reference_hidden" not in sides["forget"]
    assert (states[0, :3] == 2).all() and (states[0, 3:] == 0).all() and (states[1] == 0).all()
    plain = training.paired("ascent_kl_general", FORGET, RETAIN, PAD_ID, None, {})([(1, 2)])
    assert "reference_hidden" not in plain["retain"]


def reads_of(reference, monkeypatch):
    """Counts how often the reference is read."""
    real, reads = fused.hidden_states, []

    def hidden_states(model, *rest):
        reads.extend([1] * (model is reference))
        return real(model, *rest)

    monkeypatch.setattr(fused, "hidden_states", hidden_states)
    return reads


@pytest.mark.parametrize("variant", ["corrected", "official"])
def test_kept_states_give_the_weights_of_computed_ones(build, monkeypatch, variant):
    """4 retain documents, met three times each in 6 steps of 2; of unequal lengths, so that batches are padded. The official KL also
    counts the reference's states at padding, which change with the batch: it keeps none."""
    reference, recipe = build(1), Unlearning(batch=2, learning_rate=1e-3, epochs=2, variant=variant)
    reads = reads_of(reference, monkeypatch)
    kept, history = run(build, "ascent_kl_general", recipe, reference=reference)
    assert len(reads) == (1 if variant == "corrected" else 6)  # eight documents at a time
    reads.clear()
    monkeypatch.setattr(training, "REFERENCE_BYTES", 0)
    computed, theirs = run(build, "ascent_kl_general", recipe, reference=reference)
    assert len(reads) == 6
    assert distance(build, computed, kept) < 1e-3
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in theirs], abs=2e-4)


def test_states_are_computed_where_no_document_comes_twice(build, monkeypatch):
    reference = build(1)
    reads = reads_of(reference, monkeypatch)
    training.unlearn(build(0), "ascent_kl_general", FORGET[:4], RETAIN, Unlearning(batch=2), PAD_ID, SEED, reference)
    assert len(reads) == 2  # one a step


def test_kept_states_give_the_weights_of_computed_ones_in_bfloat16_too(build, monkeypatch):
    """The reference is the model itself at first: what rounding alone sets apart must be rounded alike on both sides."""
    monkeypatch.setattr(training.models, "half_precision", lambda: True)
    recipe = Unlearning(batch=2, learning_rate=1e-3, epochs=2)
    kept, _ = run(build, "ascent_kl_general", recipe, reference=build(0))
    monkeypatch.setattr(training, "REFERENCE_BYTES", 0)
    computed, _ = run(build, "ascent_kl_general", recipe, reference=build(0))
    assert distance(build, computed, kept) < 5e-3


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_watch_that_returns_true_ends_the_run(build, last):
    recipe, seen = Unlearning(batch=2, learning_rate=1e-3, epochs=2), {}

    def watch(step, model):
        seen[step] = weights(model).clone()
        return step == last

    model, history = run(build, "gradient_ascent", recipe, watch=watch, watched=range(1, 7))
    assert list(seen) == list(range(1, last + 1)) and [row["step"] for row in history] == list(seen)
    assert torch.equal(weights(model), seen[last]) and not model.training
    assert torch.equal(seen[last], weights(run(build, "gradient_ascent", recipe, steps=last)[0]))


def test_a_watch_that_returns_nothing_ends_nothing(build):
    recipe = Unlearning(batch=2)
    for answer in (None, False):
        _, history = run(build, "gradient_ascent", recipe, watch=lambda step, model, answer=answer: answer, watched=range(4))
        assert len(history) == 3


def test_a_watch_ends_the_run_at_step_0_too(build):
    model, history = run(build, "gradient_ascent", Unlearning(batch=2), watch=lambda step, model: True, watched=[0, 1])
    assert history == [] and torch.equal(weights(model), weights(build(0)))


def test_the_reference_stays_as_it_was(build):
    reference = build(1)
    run(build, "ascent_kl_general", Unlearning(batch=3, learning_rate=1e-2), reference=reference)
    assert torch.equal(weights(reference), weights(build(1))) and all(p.grad is None for p in reference.parameters())


def test_bfloat16_changes_a_loss_by_its_rounding_only(build, monkeypatch):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    _, exact = run(build, "ascent_kl_general", recipe)
    monkeypatch.setattr(training.models, "half_precision", lambda: True)
    model, rounded = run(build, "ascent_kl_general", recipe)
    assert rounded[0]["loss"] != exact[0]["loss"] and rounded[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------- pre-training


def test_pretraining_learns_and_repeats(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Pretraining(epochs=6, batch=4, warmup=0.1, adamw_learning_rate=3e-2)

    def train(seed):
        model = build(0)
        return model, training.pretrain(model, FORGET + RETAIN, recipe, PAD_ID, seed)

    (model, history), (again, same), (_, other) = train(0), train(0), train(1)
    assert torch.equal(weights(model), weights(again)) and history == same != other
    assert [row["step"] for row in history] == list(range(1, 16))  # 10 documents, 6 passes, 4 at a time: batches run across passes
    losses = [row["loss"] for row in history]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3]) and not model.training
    assert os.listdir(tmp_path) == []


def test_pretraining_s_first_loss_and_rates_by_hand(build):
    recipe = Pretraining(epochs=2, batch=4, warmup=0.4, muon_learning_rate=0.01)
    history = training.pretrain(build(0), FORGET + RETAIN, recipe, PAD_ID, seed=3)
    first = training.orders(10, 2, np.random.default_rng(3))[:4]
    sums, counts = plain_loss(build(0), [(FORGET + RETAIN)[i] for i in first])
    assert history[0]["loss"] == pytest.approx((sums.sum() / counts.sum()).item(), abs=2e-4)
    cosine = [0.5 * (1 + np.cos(np.pi * x / 3)) for x in (0, 1, 2)]
    # 5 steps, 2 of them warm-up
    assert [row["learning_rate"] for row in history] == pytest.approx([0, 0.005, *(0.01 * c for c in cosine)], abs=1e-9)


def test_a_step_of_pretraining_is_one_of_its_optimizers(build):
    """One batch, no warm-up: the model moves as when the gradient of the mean loss, clipped, is handed to the optimizers."""
    recipe = Pretraining(epochs=1, batch=10, warmup=0.0, max_grad_norm=0.5)
    model, plain = build(0), build(0)
    training.pretrain(model, FORGET + RETAIN, recipe, PAD_ID, seed=0)
    batch = tokens.collate(FORGET + RETAIN, PAD_ID)
    losses.next_token_loss(plain, batch).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    optimizers.muon_and_adamw(plain, recipe.muon_learning_rate, recipe.adamw_learning_rate).step()
    assert distance(build, plain, model) < 1e-3
