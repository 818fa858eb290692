"""Slips of public code: each term by hand from plain logits, and the runs that show them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_defects import drawn
from test_losses import FAMILIES, batch_of, gradients, padded
from transformers import AutoModelForCausalLM

from unlearn_utils.core import losses, methods, slips
from unlearn_utils.findings import defects
from unlearn_utils.profiles import PROFILES
from unlearn_utils.study import released_code

PAD_ID = 1
SLIPS = list(methods.PUBLIC)


def two_models():
    """Return a model and its reference, of so many tokens that -100 is a place among them."""
    config = type(FAMILIES["llama"]).from_dict(
        FAMILIES["llama"].to_dict() | {"vocab_size": 160, "pad_token_id": PAD_ID}
    )
    found = []
    for seed in (0, 1):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        found.append(model)
    return found


def log_probs(model, batch):
    """Return the log-probabilities (batch, time - 1, V) of what each position predicts."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**given).logits[:, :-1].log_softmax(-1)


def counted(values, batch):
    return values[batch["labels"][:, 1:] != -100]


def over_padding(model, batch, label):
    """Return the mean log-probability at labels of texts with two more positions.

    label: stands for -100, which else is a place counted from the end.
    """
    whole = padded(batch, 2)
    if label is not None:
        whole["labels"][whole["labels"] == -100] = label
    labels = whole["labels"][:, 1:].flatten()
    return log_probs(model, whole).flatten(0, 1)[torch.arange(len(labels)), labels].mean()


def minus_logits(model, batch):
    """Return minus the sum of the true tokens' logits, of each sequence."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    index = batch["labels"][:, 1:].clamp(min=0)[..., None]
    logits = model(**given).logits[:, :-1].gather(-1, index)[..., 0]
    return -(logits * (batch["labels"][:, 1:] != -100)).sum(-1)


def by_hand(slip, model, reference, batch):
    """Return the slip's term as code that makes it would compute it, out of torch's own losses."""
    if slip == "padding":
        return over_padding(model, batch, PAD_ID)
    if slip == "index -100":
        return over_padding(model, batch, None)
    if slip == "raw logits in NPO":
        risen = minus_logits(model, batch) - minus_logits(reference, batch).detach()
        return -20 * F.logsigmoid(0.1 * risen).mean()
    log_q = log_probs(model, batch)
    if slip == "equal retain text":
        return F.nll_loss(log_q[0], batch["labels"][0, 1:], ignore_index=-100)
    p = log_probs(reference, batch).exp().detach()
    if slip == "batch mean":
        every = F.kl_div(log_q, p, reduction="none").sum(-1)
        return counted(every, batch).sum() / len(batch["labels"])
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    wrong = {"raw logits": model(**given).logits[:, :-1], "no logarithm": log_q.exp()}[slip]
    return counted(F.kl_div(wrong, p, reduction="none").sum(-1), batch).mean()


def term_of(slip):
    """Return the one term that has the slip."""
    (term,) = [term for term in methods.TERMS.values() if slip in term.official]
    return term


@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_is_that_of_plain_torch_and_no_longer_the_right_term(slip):
    model, reference = two_models()
    batch = padded(batch_of(time=6), 2)
    batch["labels"][1, 4:] = -100
    term = term_of(slip)
    count = term.count(batch)
    found = term.loss_function(frozenset({slip}))(model, batch, reference, count)
    expected = by_hand(slip, model, reference, batch)
    torch.testing.assert_close(found, expected)
    ours, theirs = gradients(found, model), gradients(expected, model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    right = term.loss_function()(model, batch, reference, count)
    assert abs(right - found) > 1e-3


def test_torch_s_own_batch_mean_is_the_slip():
    (model, reference), batch = two_models(), batch_of()
    p = log_probs(reference, batch).exp()
    expected = F.kl_div(log_probs(model, batch), p, reduction="batchmean")
    count = losses.predicted_tokens(batch)
    torch.testing.assert_close(slips.kl_batch_mean(model, batch, reference, count), expected)


@pytest.mark.parametrize("slip", SLIPS)
def test_a_method_has_it_by_its_name_beside_a_right_other_side(slip):
    """Also where both sides come from one forward pass."""
    model, reference = two_models()
    forget, retain = batch_of(seed=2), batch_of(seed=3)
    method = methods.get_method(released_code.PUBLIC[slip])
    found = methods.unlearning_loss(method, model, forget, retain, reference, variant=(slip,))
    sides = {"forget": forget, "retain": retain}
    expected = 0
    for side, term in method.terms.items():
        if term == term_of(slip):
            expected += by_hand(slip, model, reference, sides[side])
        else:
            count = term.count(sides[side])
            expected += term.loss_function()(model, sides[side], reference, count)
    torch.testing.assert_close(found, torch.as_tensor(expected))


def test_the_released_code_s_variant_has_no_slip_of_others():
    assert methods.defects("official") == frozenset(methods.REPRODUCIBLE)
    assert methods.defects(("padding",)) == {"padding"}
    with pytest.raises(ValueError, match="unknown variant.*'raw logits'"):
        methods.defects(("paddding",))


def test_a_method_since_has_a_slip_of_its_own_terms_alone():
    model, reference = two_models()
    forget, retain = batch_of(seed=2), batch_of(seed=3)
    given = (model, forget, retain, reference)
    for slips_ in ({"raw logits in NPO"}, {"equal retain text"}):
        assert torch.isfinite(methods.unlearning_loss("npo", *given, variant=slips_))
    told = "^npo: not in the released code; .* corrected, equal retain text, raw logits in NPO$"
    with pytest.raises(ValueError, match=told):
        methods.unlearning_loss("npo", *given, variant={"raw logits in NPO", "padding"})
    with pytest.raises(ValueError, match="^simnpo: .* corrected, equal retain text$"):
        methods.unlearning_loss("simnpo", *given, variant={"raw logits in NPO"})


# -------------------------------------------------------------------------------------- the runs


def test_every_slip_is_a_pair_that_differs_in_it_alone():
    assert list(released_code.PUBLIC) == list(released_code.public_pairs()) == SLIPS
    smoke = PROFILES["smoke"]
    runs = released_code.public_runs(smoke, 3, "github")
    for slip in SLIPS:
        wrong, right = runs[slip, "official"], runs[slip, "corrected"]
        assert wrong.recipe.variant == (slip,)
        variant = right.recipe.variant
        assert wrong == replace(right, recipe=replace(right.recipe, variant=(slip,)))
        assert variant == "corrected"
    two = replace(smoke, replicates=(2, 5))
    every = released_code.all_runs(two)
    assert len(every) == len(set(every)) == 2 * (11 + len(SLIPS) + 2)  # two of four were there
    assert every[:22] == released_code.every_run(two)


def test_the_table_has_the_run_with_the_slip_less_the_one_without(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path))
    profile = replace(PROFILES["smoke"], name="slips", replicates=(1, 2), resamples=2)
    right = drawn({0: -1, 1: 0, 16: 1}, auc=0.9)
    wrong = drawn({0: -1, 1: 0, 16: 3}, moved={16: 0.5}, auc=0.6)

    def drawn_paths(runs, what):
        return [right if run.recipe.variant == "corrected" else wrong for run in runs]

    monkeypatch.setattr(defects.draws, "drawn_paths", drawn_paths)
    n = {split: 7 for split in (*defects.SPLITS, defects.SIDES)}
    monkeypatch.setattr(defects, "families", lambda profile: n)
    found = defects.public_table(profile)
    assert list(dict.fromkeys(found.slip)) == SLIPS
    one = found[found.slip == "padding"].set_index("measure")["value"]
    assert one.to_dict() == pytest.approx(
        {
            "log perplexity of the forget set": 2,
            "damage to the domain": 2,
            "damage to general text": 2.5,
            "AUC": -0.3,
            defects.SHARED: 1,
        }
    )
    written = pd.read_csv(tmp_path / "table13_public.csv")
    assert np.isclose(written["value"], found["value"]).all()
