"""Facts of a model are read from the model: its logits, its tokens, its sizes, its precision."""

import pandas as pd
import peft
import pytest
import torch
import torch.nn.functional as F
from architectures import config_of, model_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BloomConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MptConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    WhisperConfig,
    XLNetConfig,
)
from user_models import POSITIONS, SMALL

from unlearn_utils.app import memory_plan
from unlearn_utils.core import fused, losses, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import architecture, evaluation, training

VOCABULARY = 40
DOCUMENTS = [[2, 9, 30, 4, 11, 5], [7, 3, 21], list(range(5, 31, 2))]


class Changed(LlamaForCausalLM):
    """A Llama whose states and logits are changed, as no config says."""

    def __init__(self, config, states=None, logits=None):
        super().__init__(config)
        self.change_of_logits = logits or (lambda found: found)
        if states is not None:
            self.lm_head.register_forward_pre_hook(lambda _, given: (states(given[0]),))

    def forward(self, *given, **named):
        output = super().forward(*given, **named)
        output.logits = self.change_of_logits(output.logits)
        return output


def changed(seed=0, std=0.3, **changes):
    """Return a tiny model of random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SMALL, **POSITIONS, vocab_size=VOCABULARY, tie_word_embeddings=True)
    model = Changed(config, **changes).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)
    return model


def batch():
    return tokens.collate(DOCUMENTS, 1)


def added(found):
    """Return logits with more for each of the later tokens."""
    return found + 3 * (torch.arange(found.shape[-1]) >= 30)


KNOWN = {
    "nothing": ({}, (1.0, None)),
    "scale": ({"logits": lambda found: found / 26.7}, (1 / 26.7, None)),
    "cap": ({"logits": lambda found: 7 * torch.tanh(found / 7)}, (1.0, 7.0)),
    "both": ({"logits": lambda found: 5 * torch.tanh(found * 0.37 / 5)}, (0.37, 5.0)),
}
UNKNOWN = {
    "each its own": {"logits": added},
    "clamp": {"logits": lambda found: found.clamp(-0.5, 0.5)},
    "cut": {"logits": lambda found: found[..., :35]},
    "normed": {"logits": lambda found: found / found.norm(dim=-1, keepdim=True)},
    "states": {"states": lambda found: found / 3},
}


# ---------------------------------------------------------------------------- from head to logits


@pytest.mark.parametrize(("given", "expected"), KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("std", [0.3, 1e-4])
def test_scale_and_cap_are_found_whatever_their_name(given, expected, std):
    """Also where logits are so small that the cap does not bend them yet."""
    head = fused.head_of(changed(std=std, **given))
    assert head.weight is not None
    for found, stated in zip((head.scale, head.softcap), expected, strict=True):
        assert found == (stated and pytest.approx(stated, rel=1e-6))


@pytest.mark.parametrize("given", UNKNOWN.values(), ids=UNKNOWN)
def test_what_no_head_reproduces_is_read_from_the_model_itself(given):
    assert fused.head_of(changed(**given)).weight is None


def plain(model, found):
    """Return log-probabilities of the predicted positions of a batch, and their tokens."""
    mask = losses.predicted_mask(found["labels"])
    given = {name: found[name] for name in ("input_ids", "attention_mask")}
    log_p = model(**given).logits[:, :-1][mask].log_softmax(-1)
    return log_p, found["labels"][:, 1:][mask]


EVERY = {name: given for name, (given, _) in KNOWN.items()} | UNKNOWN


@pytest.mark.parametrize("given", EVERY.values(), ids=EVERY)
def test_losses_and_gradients_are_those_of_the_model_s_own_logits(given):
    found = batch()
    model, reference = changed(**given), changed(1, **given)
    log_q, targets = plain(model, found)
    with torch.no_grad():
        log_p, _ = plain(reference, found)
    kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    pairs = (
        (losses.next_token_loss(model, found), F.nll_loss(log_q, targets)),
        (losses.kl_loss(model, reference, found), kl),
    )
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected)
        weights = list(model.parameters())
        grads = torch.autograd.grad(ours, weights)
        theirs = torch.autograd.grad(expected, weights, retain_graph=True)
        for one, other in zip(grads, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", EVERY.values(), ids=EVERY)
def test_measured_from_the_model_s_own_logits(given, tokenizer):
    model = changed(**given)
    rows = evaluation.measure(model, pd.DataFrame({"ids": DOCUMENTS}), tokenizer)
    for row, ids in zip(rows.itertuples(), DOCUMENTS, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        nll = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        assert row.nll == pytest.approx(nll, rel=1e-5)


def test_an_adapter_on_the_head_counts():
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(changed(), config)
    assert fused.head_of(model).weight is None
    torch.testing.assert_close(losses.next_token_loss(model, batch()), model(**batch()).loss)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_model_that_sees_what_it_shall_predict_is_refused(kind):
    with pytest.raises(ValueError, match="no causal language model"):
        fused.head_of(model_of(kind, is_decoder=False))


def test_looking_at_a_model_leaves_it_as_it_was():
    model = changed().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    fused.examine(model, torch.arange(9))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.lm_head._forward_hooks
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_that_gives_no_numbers_is_left_to_the_measurement():
    model = changed()
    model.model.norm.weight.data.fill_(torch.nan)
    assert fused.head_of(model).weight is not None


# ----------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("pad_id", [VOCABULARY, 10**6])
def test_padding_may_have_an_id_that_the_model_has_not(pad_id):
    model = changed()
    expected = losses.next_token_loss(model, batch())
    assert torch.equal(losses.next_token_loss(model, tokens.collate(DOCUMENTS, pad_id)), expected)
    with pytest.raises(IndexError):  # a token of the text is not padding
        losses.next_token_loss(model, tokens.collate([[1, VOCABULARY, 2]], 0))


@pytest.mark.parametrize("method", ["random_label", "adversarial"])
def test_no_label_is_a_token_that_the_tokenizer_has_not(method):
    """It has 1 to 29 less 13, of which two are special; later rows of the head are the likeliest.

    A special id beyond the head is nothing to forbid.
    """
    words = {f"w{number}": number for number in range(1, 30) if number != 13}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), unk_token="w1", eos_token="w2"
    )
    tokenizer.pad_token_id = 1
    model = changed(logits=added)
    texts = [torch.randint(3, 12, (40,)).tolist() for _ in range(20)]
    drawn = training.draw_labels(methods.get_method(method), texts, model, tokenizer, 0)
    labels = {label for row in drawn for label in row[1:]}
    assert labels <= set(words.values()) - {1, 2}
    assert len(labels) > 1


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (MptConfig(max_seq_len=128, d_model=32, n_heads=4, n_layers=1), 128),
        (BloomConfig(seq_length=96, hidden_size=32, n_head=4, n_layer=1), 96),
        (RobertaConfig(max_position_embeddings=130, pad_token_id=1), 128),
        (BertConfig(max_position_embeddings=128), 128),
        (OPTConfig(max_position_embeddings=128), 128),
        (WhisperConfig(max_target_positions=96), 96),
        (BloomConfig(hidden_size=32, n_head=4, n_layer=1), None),
        (MambaConfig(), None),
        (XLNetConfig(), None),
    ],
)
def test_how_much_a_model_reads(config, expected):
    assert architecture.longest_text(config) == expected


def test_numbers_of_a_config_may_be_lists():
    assert architecture.most_of([4, [16, 8]]) == 16
    assert (
        architecture.most_of(None) == architecture.most_of("all") == architecture.most_of([]) == 0
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", (2, 32, 64)),
        ("gpt2", (2, 32, 128)),
        ("falcon", (2, 32, 128)),
        ("mixtral", (2, 32, 32 + 2 * 64)),  # two experts a token
        ("gpt_oss", (2, 32, 32 + 2 * 64)),  # whose weights lie the other way round
        ("qwen3_moe", (2, 32, 32 + 2 * 32)),
        ("mamba", (2, 64, 64)),  # it has no attention, and is twice as wide inside
        ("gemma3n_text", (2, 32, 64)),  # a list of widths
    ],
)
def test_sizes_are_those_of_the_modules(kind, expected):
    assert architecture.sizes_of(memory_plan.empty_model(config_of(kind))) == expected


def test_a_config_that_makes_no_model_is_one_line():
    config = LlamaConfig(**SMALL)
    config.hidden_act = "none such"
    with pytest.raises(ValueError, match=r"config.json: no model can be made of it: KeyError"):
        memory_plan.empty_model(config)


# -------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("kind", ["gemma2", "mixtral", "mamba2", "zamba", "hrm_text"])
def test_weights_of_16_bits_are_measured_as_if_they_had_32(kind, tokenizer):
    narrow, wide = model_of(kind).bfloat16(), model_of(kind).bfloat16().float()
    types = [weight.dtype for weight in narrow.parameters()]
    table = pd.DataFrame({"ids": DOCUMENTS})
    found = [evaluation.measure(model, table, tokenizer, half=False) for model in (narrow, wide)]
    pd.testing.assert_frame_equal(*found, rtol=1e-6)
    assert [weight.dtype for weight in narrow.parameters()] == types
    for weight, other in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(weight.float(), other)


def test_weights_get_their_type_back_after_an_error():
    model = changed().bfloat16()
    with pytest.raises(ValueError, match="stop"), evaluation.widened(model):
        raise ValueError("stop")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
