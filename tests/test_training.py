"""The optimizers, and runs of a few steps on the Trainer.

Their losses, order, micro-batches and watchers.
"""

import hashlib
import os
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import get_cosine_schedule_with_warmup

from unlearn_utils.core import fused, losses, methods
from unlearn_utils.core.methods import METHODS, get_method
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
TURNED = [ids[::-1] for ids in FORGET]  # the labels of methods that replace them


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_loss(model, ids, labels=None):
    """Summed next-token loss of each document, and its predicted tokens."""
    sums = []
    for row, targets in zip(ids, labels or ids, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, :-1]
        sums.append(F.cross_entropy(logits, torch.tensor(targets[1:]), reduction="sum"))
    return torch.stack(sums), torch.tensor([len(row) - 1 for row in ids])


def total_loss(model, ids, labels=None):
    return plain_loss(model, ids, labels)[0].sum()


def job(method, recipe=None, reference=None, seed=SEED, forget=FORGET, retain=RETAIN):
    """One small run, with labels where the method needs them."""
    method = get_method(method)
    labels = TURNED if method.replaces_labels else None
    recipe = recipe or Unlearning(batch=2)
    return training.Job(method, forget, retain, recipe, PAD_ID, seed, reference, labels)


def run(build, method, recipe, seed=SEED, reference=None, **execution):
    """(model, history) of one small run with everything that the method needs."""
    model = build(0)
    given = job(method, recipe, reference or build(1), seed)
    return model, training.unlearn(model, given, training.Execution(**execution))


def collated(method, chosen):
    """The sides of a batch of such a run."""
    return training.paired(job(method))(chosen)


def expected_loss(method, model, sides, reference, **options):
    """What a method minimises, by the function of `core.methods`."""
    forget, retain = sides["forget"], sides.get("retain")
    return methods.unlearning_loss(method, model, forget, retain, reference, **options).item()


def distance(build, one, other):
    """How far two models have come apart, as a share of how far the first has moved."""
    moved = weights(one) - weights(build(0))
    return ((weights(one) - weights(other)).norm() / moved.norm()).item()


# ------------------------------------------------------------------------------------ optimizers


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
    assert kept.float().mean() > 0.8
    assert levels[kept].min() > 0.6
    assert levels[kept].max() < 1.25
    assert levels.max() < 1.25
    torch.testing.assert_close(optimizers.orthogonal(1000 * x), found, rtol=1e-3, atol=1e-4)


def test_orthogonal_of_nothing_is_nothing():
    assert (optimizers.orthogonal(torch.zeros(1, 4, 4)) == 0).all()


def test_muon_s_first_step_by_hand():
    """Gradient g = diag(3, 4): momentum 0.05 g, looked ahead 0.05 * 0.95 g + 0.05 g.

    The direction alone matters; 4 x 2 is scaled by sqrt 2.
    """
    p = torch.zeros(4, 2, requires_grad=True)
    p.grad = torch.tensor([[3.0, 0], [0, 4], [0, 0], [0, 0]])
    optimizers.Muon([p], lr=0.1).step()
    inside = -p.detach()[:2] / (0.1 * 2**0.5)
    assert (p[2:] == 0).all() and inside[0, 1].abs() < 1e-6 and inside[1, 0].abs() < 1e-6
    assert 0.6 < inside[0, 0] < 1.25 and 0.6 < inside[1, 1] < 1.25


def test_muon_agrees_with_pytorch_s():
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8)]
    before = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    ours = [torch.nn.Parameter(x.clone()) for x in before]
    theirs = [torch.nn.Parameter(x.clone()) for x in before]
    our_muon = optimizers.Muon(ours, lr=0.05)
    their_muon = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.0, momentum=0.95)
    for n in range(4):
        for side, optimizer in ((ours, our_muon), (theirs, their_muon)):
            for i, p in enumerate(side):
                p.grad = random(*p.shape, seed=100 * n + i)
            optimizer.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert (a - b).norm() < 0.03 * (a - start).norm()  # bfloat16 there, float32 here


def test_muon_leaves_what_has_no_gradient():
    moved = torch.nn.Parameter(random(3, 3))
    still = torch.nn.Parameter(random(3, 3))
    moved.grad = random(3, 3, seed=1)
    before = still.detach().clone()
    optimizers.Muon([moved, still], lr=0.1).step()
    assert torch.equal(still, before) and not torch.equal(moved, before)


def test_matrices_go_to_muon_and_the_rest_to_adamw(build):
    model = build(0)
    both = optimizers.muon_and_adamw(model, 0.02, 3e-3)
    muon, adamw = both.optimizers
    names = {id(p): name for name, p in model.named_parameters()}
    (hidden,) = ([names[id(p)] for p in group["params"]] for group in muon.param_groups)
    (rest,) = ([names[id(p)] for p in group["params"]] for group in adamw.param_groups)
    assert len(hidden) == 2 * 7  # q, k, v, o, gate, up, down
    assert all("_proj" in name for name in hidden)
    assert sorted(hidden + rest) == sorted(names.values())
    assert "model.embed_tokens.weight" in rest
    assert [g["lr"] for g in both.param_groups] == [0.02, 3e-3]
    assert adamw.param_groups[0]["weight_decay"] == 0


def small_steps(model, optimizer, first, last):
    get_cosine_schedule_with_warmup(optimizer, 0, 10)  # sets the rates of step 0
    for n in range(first, last):
        for i, p in enumerate(model.parameters()):
            p.grad = random(*p.shape, seed=100 * n + i)
        optimizer.step()


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
    one = optimizers.muon_and_adamw(straight, 0.02, 3e-3)
    two = optimizers.muon_and_adamw(resumed, 0.02, 3e-3)
    small_steps(straight, one, 0, 2)
    small_steps(resumed, two, 0, 2)
    fresh = optimizers.muon_and_adamw(resumed, 0.5, 0.5)
    fresh.load_state_dict(two.state_dict())
    # a schedule still moves them
    assert fresh.param_groups[0] is fresh.optimizers[0].param_groups[0]
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


# ---------------------------------------------------------------------------------------- orders


def test_each_pass_holds_every_document_once_in_an_order_of_its_own():
    order = training.orders(20, 3, np.random.default_rng(0))
    passes = [order[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(p) == list(range(20)) for p in passes)
    assert len(set(map(tuple, passes))) == 3
    assert order == training.orders(20, 3, np.random.default_rng(0))
    assert order != training.orders(20, 3, np.random.default_rng(1))


def test_hashed_orders_hold_every_document_once_a_pass_in_an_order_of_its_own():
    names = [f"name {number}" for number in range(20)]
    order = training.hashed_orders(names, 3, 0)
    passes = [order[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(p) == list(range(20)) for p in passes)
    assert len(set(map(tuple, passes))) == 3
    assert order == training.hashed_orders(names, 3, 0)
    assert order != training.hashed_orders(names, 3, 1)


def test_the_order_of_documents_does_not_change_when_others_are_left_out():
    names = [f"name {number}" for number in range(20)]
    fewer = names[:4] + names[9:]
    every = [names[i] for i in training.hashed_orders(names, 2, 5)]
    found = [fewer[i] for i in training.hashed_orders(fewer, 2, 5)]
    assert found == [name for name in every if name in fewer]


@pytest.mark.parametrize(
    ("forget", "retain", "epochs"), [(6, 4, 1), (6, 4, 3), (4, 18, 2), (3, 3, 2), (5, 1, 2)]
)
def test_pairs_use_every_retain_document_before_repeating(forget, retain, epochs):
    found = training.pairs(forget, retain, epochs, np.random.default_rng(0))
    ours, theirs = map(list, zip(*found, strict=True))
    assert len(found) == forget * epochs
    for start in range(0, len(ours), forget):
        assert sorted(ours[start : start + forget]) == list(range(forget))
    uses = Counter(theirs)
    assert set(theirs) <= set(range(retain))
    assert len(uses) == min(retain, len(ours))
    assert max(uses.values()) - min(uses[i] for i in range(retain)) <= 1


def test_pairs_without_retain_text():
    assert sorted(training.pairs(3, 0, 1, np.random.default_rng(0))) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(("forget", "retain"), [(6, 4), (4, 18), (3, 3), (5, 1), (3, 0)])
def test_nested_pairs_are_the_first_of_every_longer_run(forget, retain):
    long = training.nested_pairs(forget, retain, 4 * forget, np.random.default_rng(0))
    for number in range(len(long) + 1):
        found = training.nested_pairs(forget, retain, number, np.random.default_rng(0))
        assert found == long[:number]
    assert long[:forget] == training.pairs(forget, retain, 1, np.random.default_rng(0))
    ours, theirs = map(list, zip(*long, strict=True))
    for start in range(0, len(ours), forget):
        assert sorted(ours[start : start + forget]) == list(range(forget))
    for start in range(0, len(theirs) - retain, max(1, retain)):
        assert len(set(theirs[start : start + retain])) == retain


def test_a_shorter_nested_run_has_the_first_steps_of_a_longer_one(build):
    """Of 6 documents in batches of 2: half an epoch, one and a half, three."""
    histories = []
    for epochs in (1 / 2, 1.5, 3):
        given = job("ascent_descent_general", Unlearning(batch=2, epochs=epochs))
        histories.append(training.unlearn(build(0), replace(given, nested=True)))
    short, middle, long = histories
    assert [len(history) for history in histories] == [2, 5, 9]
    assert short[:1] == middle[:1]
    assert middle[:4] == long[:4]
    assert short[1] != middle[1]  # its last batch has one document


def test_steps_by_hand():
    assert training.steps_of(6, 4, 0.5) == 1
    assert training.steps_of(60, 4, 1.5) == 23  # 90 documents, the last two alone
    assert training.steps_of(30, 3, 0.1) == 1  # 3 documents, though 30 * 0.1 is more than 3
    assert training.documents_of(13, 1.5) == 20
    assert training.steps_of(6, 4, 1) == 2
    assert training.steps_of(8, 4, 1) == 2
    assert training.steps_of(6, 4, 2) == 3
    assert training.steps_of(1, 4, 1) == 1
    assert training.steps_of(60, 4, 1) == 15


def test_collated_pairs_hold_the_retain_side_only_if_it_is_read():
    chosen = [(1, 2), (3, 0)]
    both = collated("ascent_kl_general", chosen)
    assert set(collated("gradient_ascent", chosen)) == {"forget"}
    assert set(both) == {"forget", "retain"}
    expected = tokens.collate([RETAIN[2], RETAIN[0]], PAD_ID)
    assert all(torch.equal(both["retain"][k], v) for k, v in expected.items())
    labels = [[7] * len(ids) for ids in FORGET]
    found = training.paired(replace(job("random_label"), labels=labels))(chosen)["forget"]
    assert found["labels"].tolist() == [[7, 7, 7, 7], [7, 7, 7, -100]]
    assert found["input_ids"][0].tolist() == FORGET[1]


def test_labels_are_drawn_once_from_the_original_model(build, tokenizer):
    model = build(0)

    def draw(method, seed=0):
        return training.draw_labels(get_method(method), FORGET, model, tokenizer, seed)

    assert draw("gradient_ascent") is None
    assert draw("ascent_kl_general") is None
    assert draw("random_label") == draw("random_label") != draw("random_label", 1)
    assert draw("adversarial") == draw("adversarial", 1)
    assert [len(x) for x in draw("random_label")] == [len(x) for x in FORGET]
    for method in ("random_label", "adversarial"):
        for labels, ids in zip(draw(method), FORGET, strict=True):
            assert len(labels) == len(ids)
            assert all(label != token for label, token in zip(labels[1:], ids[1:], strict=True))
            assert not set(tokenizer.all_special_ids) & set(labels)


# ------------------------------------------------------------------------------- what is refused


def assert_refused(build, message, given):
    """Assert that a run is refused with this message, before the first step."""
    model = build(0)
    with pytest.raises(ValueError, match=message):
        training.unlearn(model, given)
    assert torch.equal(weights(model), weights(build(0)))


@pytest.mark.parametrize("method", METHODS)
def test_documents_in_both_sets_are_named(build, method):
    both = [RETAIN[0], FORGET[2], RETAIN[1], FORGET[0]]
    message = "both sets.*: forget 0 = retain 3, forget 2 = retain 1; remove"
    assert_refused(build, message, job(method, reference=build(1), retain=both))


def check_sets(forget, retain, method="ascent_descent_general"):
    training.check_sets(get_method(method), forget, retain)


def test_a_retain_set_that_is_the_forget_set_is_refused(build):
    turned = [f"forget {i} = retain {5 - i}" for i in range(6)]
    with pytest.raises(ValueError) as caught:
        check_sets(FORGET, FORGET[::-1])
    # five are enough
    assert str(caught.value).count("retain") == 5
    assert all(pair in str(caught.value) for pair in turned[:5])
    assert_refused(build, "both sets", job("ascent_descent_general", retain=FORGET[::-1]))


def test_sets_that_share_only_a_beginning_are_accepted():
    check_sets([[2, 3, 4]], [[2, 3], [2, 3, 4, 5], [4, 3, 2]])
    check_sets([[2, 3, 4]], [], "gradient_ascent")
    with pytest.raises(ValueError, match="forget 1 = retain 0"):
        check_sets([[2, 3, 4], [2, 3]], [[2, 3]])


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_forget_set_is_refused(build, method):
    given = job(method, reference=build(1), forget=[])
    assert_refused(build, "forget set is empty", given)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.retain])
def test_an_empty_retain_set_is_refused(build, method):
    given = job(method, reference=build(1), retain=[])
    assert_refused(build, f"retain set is empty.*{method}", given)


@pytest.mark.parametrize("method", ["ascent_kl_general", "ascent_kl_in_distribution"])
def test_kl_without_a_reference_is_refused(build, method):
    assert_refused(build, f"{method} needs the original model", job(method))


@pytest.mark.parametrize("name", ["learning_rate", "epochs", "batch", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_rates_and_counts_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, not {value}"):
        Unlearning(**{name: value})


def test_an_unknown_schedule_is_refused_with_the_names():
    with pytest.raises(ValueError, match="'linear'.*constant, cosine, cosine, idle warm-up"):
        Unlearning(schedule="linear")


# ------------------------------------------------------------------------------- unlearning runs


@pytest.mark.parametrize("method", METHODS)
def test_losses_of_a_run_are_the_method_s_by_hand(build, method):
    """The first step's from the model as it came.

    The second, smaller batch's from the model as the first step left it.
    """
    recipe = Unlearning(batch=4, learning_rate=1e-3, retain_weight=0.5)
    seen = {}

    def watch(step, model):
        seen[step] = weights(model).clone()

    model, history = run(build, method, recipe, watch=watch, watched=[0, 1, 2])
    order = training.pairs(6, 4, 1, np.random.default_rng(SEED))
    assert [row["step"] for row in history] == [1, 2]
    assert {row["learning_rate"] for row in history} == {1e-3}
    for step, chosen in enumerate((order[:4], order[4:])):
        then = build(0)
        torch.nn.utils.vector_to_parameters(seen[step], then.parameters())
        sides = collated(method, chosen)
        expected = expected_loss(method, then, sides, build(1), retain_weight=0.5)
        assert history[step]["loss"] == pytest.approx(expected, abs=2e-4)
    assert torch.equal(seen[2], weights(model))
    assert torch.equal(seen[0], weights(build(0)))


@pytest.mark.parametrize(
    ("method", "micro_batch"), [(m, 1) for m in METHODS] + [("ascent_kl_general", 2)]
)
def test_corrected_micro_batches_of_unequal_token_counts_are_one_batch(build, method, micro_batch):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    whole, history = run(build, method, recipe)
    parts, theirs = run(build, method, recipe, micro_batch=micro_batch)
    assert distance(build, whole, parts) < 1e-3
    assert [r["loss"] for r in theirs] == pytest.approx([r["loss"] for r in history], abs=2e-4)


OFFICIAL = {
    "ascent_descent_in_distribution": True,
    "gradient_ascent": False,
    "ascent_kl_general": False,
}


@pytest.mark.parametrize("method", OFFICIAL)
def test_official_micro_batches_are_averages_of_their_own(build, method):
    """Means of sequences' means are equal for micro-batches of equal size.

    Means over tokens or padding are not. Six documents in one batch: the released code divides by
    the number of micro-batches that a full batch has.
    """
    recipe = Unlearning(batch=6, learning_rate=1e-3, variant="official")
    whole, history = run(build, method, recipe)
    parts, theirs = run(build, method, recipe, micro_batch=2)
    assert (abs(theirs[0]["loss"] - history[0]["loss"]) < 3e-4) == OFFICIAL[method]
    apart = distance(build, whole, parts)
    assert (apart < 1e-3) == OFFICIAL[method]
    assert (apart > 1e-2) != OFFICIAL[method]
    order = training.pairs(6, 4, 1, np.random.default_rng(SEED))
    means = []
    for start in (0, 2, 4):
        sides = collated(method, order[start : start + 2])
        means.append(expected_loss(method, build(0), sides, build(1), variant="official"))
    assert theirs[0]["loss"] == pytest.approx(np.mean(means), abs=2e-4)


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(build):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    with pytest.raises(ValueError, match="micro_batch 3 does not divide the batch of 4 documents"):
        run(build, "gradient_ascent", recipe, micro_batch=3)


def test_ascent_raises_the_forget_loss_and_descent_holds_the_retain_loss(build):
    recipe = Unlearning(batch=2, learning_rate=2e-2, epochs=2)
    ascent, _ = run(build, "gradient_ascent", recipe)
    both, _ = run(build, "ascent_descent_in_distribution", recipe)
    for model in (ascent, both):
        assert total_loss(model, FORGET) > 1.1 * total_loss(build(0), FORGET)
    before = total_loss(build(0), RETAIN)
    assert total_loss(both, RETAIN) < before < total_loss(ascent, RETAIN)


def test_label_methods_descend_on_their_labels(build):
    recipe = Unlearning(batch=2, learning_rate=2e-2, epochs=2)
    model, _ = run(build, "random_label", recipe)
    before = total_loss(build(0), FORGET, TURNED)
    assert total_loss(model, FORGET, TURNED) < 0.95 * before


@pytest.mark.parametrize("method", METHODS)
def test_layers_computed_again_give_the_same_losses_and_weights(build, method):
    """And are computed twice: once more in the backward pass; afterwards the model is as it was."""
    recipe = Unlearning(batch=4, epochs=2, learning_rate=1e-3)
    histories, ends, calls = [], [], []
    for recompute in (False, True):
        model = build(0)
        count = Counter()
        fused.reading_of(model)  # which computes, too
        layer = model.model.layers[1]
        layer.self_attn.register_forward_hook(lambda *_, count=count: count.update("f"))
        execution = training.Execution(recompute_layers=recompute)
        histories.append(training.unlearn(model, job(method, recipe, build(1)), execution))
        ends.append(weights(model))
        calls.append(count["f"])
        assert not layer.gradient_checkpointing
    assert histories[0] == histories[1]
    assert torch.equal(*ends)
    assert calls[1] == 2 * calls[0] > 0


def test_a_model_that_cannot_compute_again_says_so(build, monkeypatch):
    monkeypatch.setattr(type(build(0)), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="does not support"):
        run(build, "gradient_ascent", Unlearning(), recompute_layers=True)


def test_gradients_are_clipped(build):
    """AdamW forgets a gradient's scale but not its direction.

    With nothing left of it, eps is all that counts.
    """
    moves = {}
    for most in (1e-9, 1.0):
        recipe = Unlearning(batch=6, learning_rate=1e-3, max_grad_norm=most)
        model, _ = run(build, "gradient_ascent", recipe)
        moves[most] = (weights(model) - weights(build(0))).abs().max()
    assert moves[1e-9] < 0.2 * moves[1.0]
    assert moves[1.0] == pytest.approx(1e-3, rel=0.05)


def test_runs_repeat_and_follow_the_seed(build):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    one, history = run(build, "gradient_ascent", recipe, seed=0)
    again, same = run(build, "gradient_ascent", recipe, seed=0)
    other, _ = run(build, "gradient_ascent", recipe, seed=1)
    assert torch.equal(weights(one), weights(again))
    assert history == same
    assert not torch.equal(weights(one), weights(other))


def test_a_watcher_sees_the_model_at_its_steps_and_changes_nothing(build):
    recipe = Unlearning(batch=2, learning_rate=1e-3)
    seen = {}
    given = []

    def watch(step, model):
        given.append(model)
        seen[step] = weights(model).clone()
        model.eval()
        with torch.no_grad():
            model(torch.tensor(FORGET[:1]))

    model, _ = run(build, "ascent_kl_general", recipe, watch=watch, watched=[0, 2, 3, 9])
    assert list(seen) == [0, 2, 3]
    assert len(given) == 3
    assert all(m is model for m in given)
    assert not model.training
    assert all(not torch.equal(a, b) for a, b in pairwise(seen.values()))
    assert torch.equal(seen[3], weights(run(build, "ascent_kl_general", recipe)[0]))


@pytest.mark.parametrize("method", ["gradient_ascent", "ascent_kl_general"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_run_of_n_steps_is_the_long_run_at_step_n(build, method, steps):
    """Bit for bit.

    Also where the short run meets each retain document once and the long one meets them again.
    """
    recipe = Unlearning(batch=2, learning_rate=1e-3, epochs=2)
    seen = {}

    def watch(step, model):
        seen[step] = weights(model).clone()

    _, history = run(build, method, recipe, watch=watch, watched=range(7))
    model, short = run(build, method, recipe, steps=steps)
    assert len(history) == 6
    assert short == history[:steps]
    assert torch.equal(weights(model), seen[steps])
    assert not torch.equal(seen[steps], seen[steps - 1])


def test_a_run_of_n_steps_follows_the_long_run_s_schedule(build):
    recipe = Unlearning(batch=2, learning_rate=1e-3, epochs=2, schedule="cosine")
    seen = {}

    def watch(step, model):
        seen[step] = weights(model).clone()

    _, history = run(build, "gradient_ascent", recipe, watch=watch, watched=[3])
    model, short = run(build, "gradient_ascent", recipe, steps=3)
    assert short == history[:3]
    assert torch.equal(weights(model), seen[3])


def test_a_run_of_no_steps_changes_nothing(build):
    model, history = run(build, "gradient_ascent", Unlearning(batch=2), steps=0)
    assert history == []
    assert torch.equal(weights(model), weights(build(0)))


def test_schedules_by_hand(build):
    """6 steps. The released code's warm-up, 3% rounded up, is one step at rate 0."""

    def rates(schedule):
        optimizer = torch.optim.AdamW(build(0).parameters(), lr=1e-3)
        moves = training._schedule(optimizer, Unlearning(schedule=schedule), 6)
        found = []
        for _ in range(6):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            moves.step()
        return found

    def cosine(n):
        return [5e-4 * (1 + np.cos(np.pi * i / n)) for i in range(n)]

    recipe = Unlearning(batch=2, learning_rate=1e-3, schedule="cosine")
    _, history = run(build, "gradient_ascent", recipe)
    assert [row["learning_rate"] for row in history] == pytest.approx(cosine(3))
    assert rates("constant") == [1e-3] * 6
    assert rates("cosine") == pytest.approx(cosine(6))
    assert rates("cosine, idle warm-up") == pytest.approx([0, *cosine(5)])


# ------------------------------------------------------------------ the reference, computed once


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
    given = job("ascent_kl_general")
    sides = training.paired(given, kept)([(1, 2), (3, 0)])
    states = sides["retain"]["reference_hidden"]
    assert states.shape == (*sides["retain"]["input_ids"].shape, 16)
    assert "reference_hidden" not in sides["forget"]
    assert (states[0, :3] == 2).all()
    assert (states[0, 3:] == 0).all()
    assert (states[1] == 0).all()
    plain = training.paired(given, {})([(1, 2)])
    assert "reference_hidden" not in plain["retain"]


def reads_of(reference, monkeypatch):
    """Return a list that gets an entry whenever the reference is read."""
    real = fused.hidden_states
    reads = []

    def hidden_states(model, *rest):
        if model is reference:
            reads.append(model)
        return real(model, *rest)

    monkeypatch.setattr(fused, "hidden_states", hidden_states)
    return reads


@pytest.mark.parametrize(("variant", "kept_reads"), [("corrected", 1), ("official", 6)])
def test_kept_states_give_the_weights_of_computed_ones(build, monkeypatch, variant, kept_reads):
    """4 retain documents, met three times each in 6 steps of 2.

    They are of unequal lengths, so that batches are padded. The official KL also counts the
    reference's states at padding, which change with the batch: it keeps none.
    """
    reference = build(1)
    recipe = Unlearning(batch=2, learning_rate=1e-3, epochs=2, variant=variant)
    reads = reads_of(reference, monkeypatch)
    kept, history = run(build, "ascent_kl_general", recipe, reference=reference)
    assert len(reads) == kept_reads  # eight documents at a time, or one batch
    reads.clear()
    monkeypatch.setattr(training, "REFERENCE_BYTES", 0)
    computed, theirs = run(build, "ascent_kl_general", recipe, reference=reference)
    assert len(reads) == 6
    assert distance(build, computed, kept) < 1e-3
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in theirs], abs=2e-4)


def test_states_are_computed_where_no_document_comes_twice(build, monkeypatch):
    reference = build(1)
    reads = reads_of(reference, monkeypatch)
    given = job("ascent_kl_general", reference=reference, forget=FORGET[:4])
    training.unlearn(build(0), given)
    assert len(reads) == 2  # one a step


def test_kept_states_give_the_weights_of_computed_ones_in_bfloat16_too(build, monkeypatch):
    """The reference is the model itself at first.

    What rounding alone sets apart must be rounded alike on both sides.
    """
    monkeypatch.setattr(training.models, "half_precision", lambda: True)
    recipe = Unlearning(batch=2, learning_rate=1e-3, epochs=2)
    kept, _ = run(build, "ascent_kl_general", recipe, reference=build(0))
    monkeypatch.setattr(training, "REFERENCE_BYTES", 0)
    computed, _ = run(build, "ascent_kl_general", recipe, reference=build(0))
    assert distance(build, computed, kept) < 5e-3


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_watch_that_returns_true_ends_the_run(build, last):
    recipe = Unlearning(batch=2, learning_rate=1e-3, epochs=2)
    seen = {}

    def watch(step, model):
        seen[step] = weights(model).clone()
        return step == last

    model, history = run(build, "gradient_ascent", recipe, watch=watch, watched=range(1, 7))
    assert list(seen) == list(range(1, last + 1))
    assert [row["step"] for row in history] == list(seen)
    assert torch.equal(weights(model), seen[last])
    assert not model.training
    assert torch.equal(seen[last], weights(run(build, "gradient_ascent", recipe, steps=last)[0]))


@pytest.mark.parametrize("answer", [None, False])
def test_a_watch_that_returns_nothing_ends_nothing(build, answer):
    def watch(step, model):
        return answer

    recipe = Unlearning(batch=2)
    _, history = run(build, "gradient_ascent", recipe, watch=watch, watched=range(4))
    assert len(history) == 3


def test_a_watch_ends_the_run_at_step_0_too(build):
    def watch(step, model):
        return True

    recipe = Unlearning(batch=2)
    model, history = run(build, "gradient_ascent", recipe, watch=watch, watched=[0, 1])
    assert history == []
    assert torch.equal(weights(model), weights(build(0)))


def test_the_reference_stays_as_it_was(build):
    reference = build(1)
    run(build, "ascent_kl_general", Unlearning(batch=3, learning_rate=1e-2), reference=reference)
    assert torch.equal(weights(reference), weights(build(1)))
    assert all(p.grad is None for p in reference.parameters())


def test_bfloat16_changes_a_loss_by_its_rounding_only(build, monkeypatch):
    recipe = Unlearning(batch=4, learning_rate=1e-3)
    _, exact = run(build, "ascent_kl_general", recipe)
    monkeypatch.setattr(training.models, "half_precision", lambda: True)
    model, rounded = run(build, "ascent_kl_general", recipe)
    assert rounded[0]["loss"] != exact[0]["loss"]
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------- pre-training


def test_pretraining_learns_and_repeats(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Pretraining(epochs=6, batch=4, warmup=0.1, adamw_learning_rate=3e-2)

    def train(seed):
        model = build(0)
        return model, training.pretrain(model, FORGET + RETAIN, recipe, PAD_ID, seed)

    model, history = train(0)
    again, same = train(0)
    _, other = train(1)
    assert torch.equal(weights(model), weights(again))
    assert history == same != other
    # 10 documents, 6 passes, 4 at a time: batches run across passes
    assert [row["step"] for row in history] == list(range(1, 16))
    course = [row["loss"] for row in history]
    assert np.mean(course[-3:]) < 0.9 * np.mean(course[:3])
    assert not model.training
    assert os.listdir(tmp_path) == []


def test_pretraining_s_first_loss_and_rates_by_hand(build):
    recipe = Pretraining(epochs=2, batch=4, warmup=0.4, muon_learning_rate=0.01)
    history = training.pretrain(build(0), FORGET + RETAIN, recipe, PAD_ID, seed=3)
    first = sorted(range(10), key=lambda i: hashlib.sha256(f"3/0/{i}".encode()).digest())[:4]
    sums, counts = plain_loss(build(0), [(FORGET + RETAIN)[i] for i in first])
    assert history[0]["loss"] == pytest.approx((sums.sum() / counts.sum()).item(), abs=2e-4)
    warm_up = [0, 0.005]
    cosine = [0.01 * 0.5 * (1 + np.cos(np.pi * x / 3)) for x in (0, 1, 2)]
    rates = [row["learning_rate"] for row in history]
    assert rates == pytest.approx(warm_up + cosine, abs=1e-9)


def test_pretraining_is_ordered_by_the_documents_names_not_by_their_places(build):
    documents = FORGET + RETAIN
    names = [f"document {number}" for number in range(len(documents))]

    def first_loss(documents, names):
        recipe = Pretraining(epochs=1, batch=2)
        return training.pretrain(build(0), documents, recipe, PAD_ID, 0, names=names)[0]["loss"]

    given = first_loss(documents, names)
    assert first_loss(documents[::-1], names[::-1]) == pytest.approx(given, abs=1e-5)
    assert first_loss(documents, names[::-1]) != pytest.approx(given, abs=1e-2)


def test_a_step_of_pretraining_is_one_of_its_optimizers(build):
    """One batch, no warm-up.

    The model moves as when the gradient of the mean loss, clipped, is handed to the optimizers.
    """
    recipe = Pretraining(epochs=1, batch=10, warmup=0.0, max_grad_norm=0.5)
    model, plain = build(0), build(0)
    training.pretrain(model, FORGET + RETAIN, recipe, PAD_ID, seed=0)
    batch = tokens.collate(FORGET + RETAIN, PAD_ID)
    losses.next_token_loss(plain, batch).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    optimizers.muon_and_adamw(plain, recipe.muon_learning_rate, recipe.adamw_learning_rate).step()
    assert distance(build, plain, model) < 1e-3
