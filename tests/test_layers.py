"""The quicker layers against those of transformers that they stand in for."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)

from unlearn_utils.core import fused, losses
from unlearn_utils.data import tokens
from unlearn_utils.engine import layers, models, training

BATCH = tokens.collate([list(range(3, 30)), list(range(40, 50)), list(range(60, 80))], 0)
# no padding: transformers makes no mask
EVEN = tokens.collate([list(range(3, 30)), list(range(40, 67))], 0)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quickened(model, monkeypatch):
    """A copy with the quicker layers, whatever this machine is."""
    monkeypatch.setattr(models, "half_precision", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    quick = copy.deepcopy(model)
    layers.quicken(quick)
    return quick


KINDS = {layers.QuickNorm, layers.QuickAttention, LlamaRMSNorm, LlamaAttention}


def kinds(model):
    return {type(layer) for layer in model.modules()} & KINDS


@pytest.mark.parametrize(
    ("native", "context", "attention"),
    [
        (True, 32, layers.QuickAttention),
        (True, 1024, layers.QuickAttention),  # a text's length decides, not the model's context
        (False, 32, LlamaAttention),
    ],
)
def test_attention_is_switched_only_in_bfloat16(build, monkeypatch, native, context, attention):
    monkeypatch.setattr(models, "half_precision", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = build(0, context=context)
    layers.quicken(model)
    assert kinds(model) == {layers.QuickNorm, attention}


def test_nothing_is_switched_on_a_gpu_and_no_attention_but_the_fused_one(build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = build(0)
    layers.quicken(model)
    assert kinds(model) == {LlamaRMSNorm, LlamaAttention}
    model.set_attn_implementation("eager")
    assert kinds(quickened(model, monkeypatch)) == {layers.QuickNorm, LlamaAttention}


@pytest.mark.parametrize("batch", [BATCH, EVEN], ids=["padded", "even"])
@pytest.mark.parametrize(
    ("key_heads", "some"), [(2, 2**20), (1, 2**20), (2, 2 * 2 * 27 * 27), (2, 1)]
)
def test_a_quickened_model_has_the_states_and_gradients_of_the_plain_one(
    build, monkeypatch, batch, key_heads, some
):
    """Also with fewer key heads than heads, and with scores of a few sequences at a time."""
    monkeypatch.setattr(layers, "SCORES", some)
    config = build(0).config
    config.num_key_value_heads = key_heads
    plain = type(build(0))(config)
    for n, parameter in enumerate(plain.parameters()):
        torch.nn.init.normal_(
            parameter,
            mean=float(parameter.ndim == 1),
            std=0.3,
            generator=torch.Generator().manual_seed(n),
        )
    quick = quickened(plain, monkeypatch)
    counted = batch["attention_mask"].bool()
    assert kinds(quick) == {layers.QuickNorm, layers.QuickAttention}
    hidden = [
        fused.hidden_states(m, batch["input_ids"], batch["attention_mask"])[counted]
        for m in (plain, quick)
    ]
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-4, atol=1e-5)
    for states in hidden:
        (states * random(*states.shape, dtype=torch.float32)).sum().backward()
    theirs, ours = ({name: p.grad for name, p in m.named_parameters()} for m in (plain, quick))
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        assert expected is None or (ours[name] - expected).norm() < 1e-4 * expected.norm(), name


@pytest.mark.parametrize(("short", "in_steps"), [(27, True), (26, False)])
def test_attention_comes_in_plain_steps_as_long_as_the_text_is_short(
    build, monkeypatch, short, in_steps
):
    """The text has 27 tokens."""
    called = []
    attended = layers.attended
    monkeypatch.setattr(layers, "SHORT", short)
    monkeypatch.setattr(layers, "attended", lambda *given: called.append(1) or attended(*given))
    quick = quickened(build(0), monkeypatch)
    fused.hidden_states(quick, EVEN["input_ids"], EVEN["attention_mask"])
    assert bool(called) is in_steps


def test_a_quickened_model_without_gradients_is_transformers_own(build, monkeypatch):
    """So that evaluation takes the fused attention, and generation its cache."""
    quick = quickened(build(0), monkeypatch)
    monkeypatch.setattr(layers, "attended", None)
    prompt = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        expected = build(0).generate(prompt, **options)
        assert torch.equal(quick.generate(prompt, **options), expected)
    with pytest.raises(TypeError):
        fused.hidden_states(quick, BATCH["input_ids"])


def test_a_quickened_model_takes_gradients_through_a_cache(build, monkeypatch):
    """What it cannot do itself it leaves to transformers.

    That is cached keys, and masks of other kinds of attention.
    """
    plain, quick = build(0), quickened(build(0), monkeypatch)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    cache = quick(ids[:, :4], use_cache=True).past_key_values
    torch.testing.assert_close(quick(ids[:, 4:], cache=cache).logits[:, 0], plain(ids).logits[:, 4])
    quick.set_attn_implementation("eager")
    torch.testing.assert_close(quick(ids).logits, plain(ids).logits)


def test_attention_with_dropout_is_left_alone(build, monkeypatch):
    model = build(0)
    model.config.attention_dropout = 0.5
    assert kinds(quickened(model, monkeypatch)) == {layers.QuickNorm, LlamaAttention}


@pytest.mark.parametrize("batch", [BATCH, EVEN], ids=["padded", "even"])
def test_a_model_does_not_diverge_from_itself_in_bfloat16(build, monkeypatch, batch):
    """Model and reference are computed alike, with gradients and without.

    That is so whether the reference's states come with the batch or not.
    """
    model = quickened(build(0), monkeypatch)
    reference = build(0)
    layers.quicken(reference, reference=True)
    retain = [row[row != 0].tolist() for row in batch["input_ids"]]
    visits = [0, 0, 1, 1, 2, 2][: 2 * len(retain)]
    kept = training.hidden_of(reference, retain, visits, 0)
    states = torch.nn.utils.rnn.pad_sequence(list(kept.values()), batch_first=True)
    for sides in (batch, batch | {"reference_hidden": states}):
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses.kl_loss(model, reference, sides)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        assert loss == 0
        assert not any(grad.count_nonzero() for grad in grads)


def test_a_quickened_model_is_saved_as_any(build, monkeypatch, tmp_path):
    quick = quickened(build(0), monkeypatch)
    models.save(quick, tmp_path)
    loaded = models.load(tmp_path)
    assert kinds(loaded) == {LlamaRMSNorm, LlamaAttention}
    for one, other in zip(build(0).parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("trained", [True, False])
def test_norm_by_hand(trained):
    x = random(2, 3, 8, seed=1).requires_grad_()
    norm = layers.QuickNorm(8, 0.1).double()
    norm.weight.data = random(8, seed=2)
    norm.weight.requires_grad_(trained)
    scale = (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), x / scale * norm.weight)

    def apply(x, weight=norm.weight):
        return layers._Norm.apply(x, weight, 0.1, x.dtype)

    inputs = [x, norm.weight] if trained else [x]
    assert torch.autograd.gradcheck(apply, inputs)


def test_norm_gives_autocast_s_type_and_sums_in_float32():
    x = random(40, 64, seed=1, dtype=torch.float32).requires_grad_()
    norm = layers.QuickNorm(64)
    exact = norm(x)
    (expected,) = torch.autograd.grad(exact.sin().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = norm(x)
    assert narrow.dtype == torch.bfloat16 and torch.equal(narrow, exact.bfloat16())
    (grad,) = torch.autograd.grad(narrow.float().sin().sum(), x)
    assert grad.dtype == torch.float32 and 0 < (grad - expected).norm() / expected.norm() < 0.01
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_rotation_equals_transformers_and_its_gradient():
    angles = torch.cat([random(1, 5, 4, seed=1)] * 2, -1)
    cos = angles.cos()
    sin = angles.sin()
    x = random(2, 3, 5, 8, seed=2).requires_grad_()
    torch.testing.assert_close(
        layers._Rotation.apply(x, cos, sin), apply_rotary_pos_emb(x, x, cos, sin)[0]
    )
    assert torch.autograd.gradcheck(lambda x: layers._Rotation.apply(x, cos, sin), [x])
