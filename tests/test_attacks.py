"""Attacks on a model that has unlearned: what they do, and what they are said to give back."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import Conv1D

from unlearn_utils.core import attacks as measures
from unlearn_utils.core import methods, metrics, tables
from unlearn_utils.engine import attacks, evaluation, models, training

DOCUMENTS = [[0, *range(first, first + 14)] for first in range(5, 65, 10)]


def table(documents):
    rows = {"id": [str(n) for n in range(len(documents))], "ids": documents}
    return pd.DataFrame(rows).assign(family=rows["id"], split="forget", text="")


# ------------------------------------------------------------------------ what an attack gives back


def test_levels_are_the_losses_of_the_tokens_of_each_draw():
    rows = pd.DataFrame(
        {"step": [0, 0, 2, 2], "nll": [10.0, 60.0, 5.0, 30.0], "tokens": [10, 20, 10, 20]}
    )
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    expected = [[70 / 30, 35 / 30], [1.0, 0.5], [3.0, 1.5]]
    assert measures.levels(rows, weights) == pytest.approx(np.array(expected))


def test_a_fall_is_to_the_lowest_mark_of_each_draw():
    levels = np.array([[3.0, 2.0, 2.5], [3.0, 3.5, 4.0], [3.0, 2.9, np.nan]])
    assert measures.fall(levels) == pytest.approx([1.0, 0.0, 0.1])


def test_recovery_is_over_the_control_s_own_fall():
    attacked = np.array([[3.0, 1.0, 2.0]])
    control = np.array([[4.0, 3.9, 3.5]])
    assert measures.recovery(attacked, control) == pytest.approx([1.5])


def test_the_area_between_is_a_mean_over_steps():
    """The control is flat and 1 above; the model falls by 2 in the last half of the steps."""
    control = np.array([[4.0, 4.0, 4.0]])
    attacked = np.array([[3.0, 3.0, 1.0]])
    found = measures.area_between([0, 2, 4], attacked, control)
    assert found == pytest.approx([(1 * 2 + (1 + 3) / 2 * 2) / 4])
    assert measures.area_between([0, 2, 4], control, control) == [0.0]
    broken = np.array([[3.0, np.nan, 1.0]])
    assert np.isnan(measures.area_between([0, 2, 4], broken, control)).all()


# ------------------------------------------------------------------------------------- relearning


def test_marks_double_from_the_first_step_to_the_last():
    assert attacks.marks(1) == [0, 1]
    assert attacks.marks(8) == [0, 1, 2, 4, 8]
    assert attacks.marks(11) == [0, 1, 2, 4, 8, 11]


@pytest.mark.parametrize(("steps", "batch", "documents"), [(1, 4, 30), (8, 4, 3), (7, 3, 11)])
def test_the_recipe_takes_so_many_steps(steps, batch, documents):
    recipe = attacks.recipe(1e-3, steps, batch, documents)
    assert training.steps_of(documents, recipe.batch, recipe.epochs) == steps
    assert recipe.schedule == "constant"


def relearn(model, source, documents, rate):
    """Return the rows of a run of five steps, measured at 0, 2 and 5."""
    marks = attacks.Marks(table(documents), 1, [0, 2, 5])
    recipe = attacks.recipe(rate, 5, 2, len(source))
    job = training.Job(attacks.RELEARNING, source, [], recipe, pad_id=1, seed=3, nested=True)
    history = training.unlearn(model, job, training.Execution(watch=marks, watched=marks.steps))
    assert len(history) == 5
    return marks.rows()


def test_relearning_is_ordinary_training_and_is_measured_on_the_way(build, float32):
    """What is learned becomes easier; the first mark is the model as it was."""
    model = build(0)
    before = evaluation.measure_briefly(model, table(DOCUMENTS[:2]), 1)
    rows = relearn(model, DOCUMENTS[:2], DOCUMENTS[:2], 1e-2)
    assert rows.step.tolist() == [0, 0, 2, 2, 5, 5]
    assert rows.nll[:2].tolist() == before.nll.tolist()
    levels = measures.levels(rows, np.ones((1, 2)))[0]
    assert levels[0] > levels[1] > levels[2]
    after = evaluation.measure_briefly(model, table(DOCUMENTS[:2]), 1)
    assert after.nll.tolist() == rows.nll[4:].tolist()


def test_a_model_that_hides_documents_gives_more_back_than_one_that_never_saw_them(build, float32):
    """One is trained on all documents, then unlearns them; the control was on none of them."""
    others = [[0, *range(200, 214)]]
    hides, control = build(0), build(0)
    for model, seen in ((hides, DOCUMENTS), (control, others)):
        recipe = attacks.recipe(1e-2, 20, 2, len(seen))
        job = training.Job(attacks.RELEARNING, seen, [], recipe, pad_id=1, seed=0, nested=True)
        training.unlearn(model, job)
    recipe = attacks.recipe(1e-2, 5, 2, len(DOCUMENTS))
    ascent = methods.METHODS["gradient_ascent"]
    training.unlearn(hides, training.Job(ascent, DOCUMENTS, [], recipe, 1, 0, nested=True))
    curves = []
    for model in (hides, control):
        rows = relearn(model, DOCUMENTS[:2], DOCUMENTS[2:], 3e-3)
        weights = tables.draw_weights(rows[rows.step == 0], np.random.default_rng(0), 50)
        curves.append(measures.levels(rows, weights))
    assert measures.recovery(*curves)[0] > 0.05
    assert measures.area_between([0, 2, 5], *curves)[0] > 0


# --------------------------------------------------------------------------------------- rounding


def test_weights_are_rounded_by_output_channel():
    """Three bits have the values -3 to 3, times the channel's largest weight over 3."""
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[3.0, -1.2, 0.4], [0.0, 0.0, 0.0]])
    bias = layer.bias.clone()
    holder = Holder(layer)
    share = attacks.round_weights(holder, 3)
    assert layer.weight.tolist() == [[3.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.equal(layer.bias, bias)
    assert share == 6 / (6 + 2 + len(holder.head.weight.flatten()))


def test_the_output_channels_of_gpt2_are_the_other_dimension():
    layer = Conv1D(2, 3)
    layer.weight.data = torch.tensor([[3.0, 0.3], [-1.2, 0.1], [0.4, 0.0]])
    attacks.round_weights(Holder(layer), 3)
    expected = torch.tensor([[3.0, 0.3], [-1.0, 0.1], [0.0, 0.0]])
    assert torch.allclose(layer.weight, expected)


class Holder(nn.Module):
    """A layer and a head."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(2, 5, bias=False)

    def get_output_embeddings(self):
        return self.head


def test_embedding_and_head_stay_and_fewer_bits_are_farther(build):
    model, eight, four = build(0), build(0), build(0)
    shares = [attacks.round_weights(eight, 8), attacks.round_weights(four, 4)]
    assert shares[0] == shares[1]
    far = {8: 0.0, 4: 0.0}
    for bits, rounded in ((8, eight), (4, four)):
        changed = 0
        ours = dict(model.named_parameters())
        for name, weight in rounded.named_parameters():
            if "proj" not in name:
                assert torch.equal(weight, ours[name])
                continue
            changed += weight.numel()
            far[bits] += float((weight - ours[name]).abs().sum())
            bound = ours[name].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1) / 2
            assert ((weight - ours[name]).abs() <= 1.001 * bound).all()
        assert changed / sum(w.numel() for w in ours.values()) == shares[0]
    assert far[4] > 10 * far[8] > 0


# ----------------------------------------------------------------------------------------- prefix


def test_a_prefix_is_continued_and_compared_with_the_document(build):
    model = build(0)
    documents = table([*DOCUMENTS[:2], DOCUMENTS[2][:9]])
    found = attacks.continued(model, documents, 4, 6, 1)
    assert found.id.tolist() == ["0", "1"]
    assert list(found.columns) == ["id", "family", "split", "prefix", "rouge_l", "exact_prefix"]
    for row, ids in zip(found.itertuples(), DOCUMENTS, strict=False):
        (written,) = evaluation.greedy_continuations(model, [ids[:4]], 6, 1)
        assert row.rouge_l == metrics.rouge_l(written, ids[4:10])
        assert row.exact_prefix == metrics.exact_prefix(written, ids[4:10])


def test_a_model_that_learned_a_document_writes_it(build, float32):
    model = build(0)
    recipe = attacks.recipe(1e-2, 40, 1, 1)
    job = training.Job(attacks.RELEARNING, DOCUMENTS[:1], [], recipe, 1, 0, nested=True)
    training.unlearn(model, job)
    found = attacks.continued(model, table(DOCUMENTS[:1]), 5, 10, 1)
    assert found.exact_prefix.tolist() == [10] and found.rouge_l.tolist() == [1.0]


def test_no_document_of_the_length(build):
    with pytest.raises(ValueError, match="no document has"):
        attacks.continued(build(0), table(DOCUMENTS), 10, 10, 1)


def test_rounding_of_a_stored_model_leaves_the_folder_alone(build, tokenizer, tmp_path):
    models.save(build(0), tmp_path)
    tokenizer.save_pretrained(tmp_path)
    attacks.round_weights(models.load(tmp_path), 4)
    fresh = models.load(tmp_path)
    for ours, theirs in zip(fresh.parameters(), build(0).parameters(), strict=True):
        assert torch.equal(ours.cpu(), theirs)
