"""What a method costs: FLOPs by hand at a scale of seconds, how they grow, and the memory of a process. No second is asserted."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from unlearn_utils.cache import memory
from unlearn_utils.core import efficiency, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import models, training
from unlearn_utils.profiles import PROFILES, Corpus, Pretraining, Shape, Unlearning
from unlearn_utils.study import costs, extra_measurements, single_run, study_documents

ROOT = Path(__file__).resolve().parents[1]
TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),  # every document has 48 tokens
    pretraining=Pretraining(epochs=3, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=3),
    domains=("arxiv", "github"),
    noise_domain="github",
    seeds=2,
    workers=1,
    resamples=20,
)
ASCENT, DESCENT, KL = "gradient_ascent", "ascent_descent_in_distribution", "ascent_kl_in_distribution"
WIDER = replace(TINY.shape, hidden=32, layers=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of its own, where nothing is trained but a tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("costs") / "store"))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(models, "half_precision", lambda: False)
        for function in (study_documents.data, study_documents.fingerprint, study_documents.tokenizer):
            function.cache_clear()
        yield


@pytest.fixture(scope="module")
def whole(store):
    """One epoch of each method, and retraining, by name."""
    steps = [costs.flops(TINY, "arxiv", m) for m in (*methods.METHODS, costs.RETRAINING)]
    return extra_measurements.rows_of(steps).set_index("method")


def one(step):
    """The only row of a step."""
    (row,) = pd.read_parquet(step.folder() / "rows.parquet").itertuples()
    return row


def of_a_batch(rows, shape=TINY.shape):
    """FLOPs of one optimizer batch of training on so many documents of 48 tokens."""
    model = models.build(shape, study_documents.tokenizer(TINY), 0)
    model.set_attn_implementation("eager")
    sides = {"text": tokens.collate([list(range(48))] * rows, 1)}
    return efficiency.step_flops(model, training.pretraining_objective, sides)["flops_per_step"]


# ---------------------------------------------------------------------------------------------- FLOPs of an epoch


def test_an_epoch_is_the_sum_of_its_batches(whole):
    """Four documents, three at a time: a batch of three and a batch of one."""
    row = whole.loc[ASCENT]
    assert row.flops == of_a_batch(3) + of_a_batch(1) and row.steps == 2
    assert (row.target_domain, row.tokens) == ("arxiv", 4 * 48)


def test_the_estimate_by_hand(whole):
    """6 N D over all sides: 400 x 16 embeddings (tied), two layers of 4 x 16^2 + 3 x 16 x 32 and two norms of 16, a last norm."""
    parameters = 400 * 16 + 2 * (4 * 16**2 + 3 * 16 * 32 + 2 * 16) + 16
    assert set(whole.parameters) == {parameters}
    for name, sides in ((ASCENT, 1), ("random_label", 1), (DESCENT, 2), (KL, 2)):
        assert whole.estimate[name] == 6 * parameters * sides * 4 * 48


def test_half_of_the_documents_cost_half(store):
    """The batch divides both: twice as many equal batches."""
    pairwise = replace(TINY, unlearning=replace(TINY.unlearning, batch=1))
    for method in (ASCENT, KL):
        half, full, same = (one(costs.flops(pairwise, "arxiv", method, n)) for n in (2, 4, None))
        assert (half.tokens, full.tokens, same.tokens) == (2 * 48, 4 * 48, 4 * 48)
        assert (half.steps, full.steps, same.steps) == (2, 4, 4)
        assert 2 * half.flops == full.flops == same.flops and 2 * half.estimate == full.estimate


def test_flops_grow_with_the_first_power_of_the_forget_set(store):
    rows = [one(costs.flops(TINY, "arxiv", ASCENT, n)) for n in (1, 2, 3, 4)]
    found = efficiency.exponent([r.tokens for r in rows], [r.flops for r in rows])
    assert found.value == pytest.approx(1, abs=0.01) and found.n == 4


def test_methods_cost_their_passes(whole):
    """Within 1%, the rest being what is not a matrix product of the model: twice with descent, 7/3 with KL, whose reference reads only."""
    for name, method in methods.METHODS.items():
        assert whole.flops[name] / whole.flops[ASCENT] == pytest.approx(efficiency.PASSES[method.retain], rel=0.01)
    assert whole.flops[DESCENT] / whole.flops[ASCENT] == pytest.approx(2, rel=0.01)
    assert whole.flops[KL] / whole.flops[ASCENT] == pytest.approx(7 / 3, rel=0.01)
    assert whole.tokens[list(methods.METHODS)].tolist() == [4 * 48] * 7  # of the forget set, whatever else is read


def test_retraining_reads_every_document_but_the_forget_set_in_every_epoch(whole):
    row = whole.loc[costs.RETRAINING]
    text = study_documents.tokenized(TINY, study_documents.training_parts(TINY, "arxiv"))
    assert ("arxiv", "forget") not in set(zip(text.domain, text.split, strict=True)) and len(text) == 6 + 4 + 6 + 6
    assert row.tokens == 3 * text.ids.map(len).sum() == 3 * 22 * 48
    assert row.steps == 17 and row.flops == 17 * of_a_batch(4)  # 66 documents, 4 at a time
    assert row.estimate == 6 * row.parameters * 17 * 4 * 48


def test_epochs_are_of_retraining_alone(store, whole):
    """An epoch of unlearning is one epoch, whatever the recipe; a retraining of twice the epochs costs twice the tokens."""
    longer = replace(TINY, unlearning=replace(TINY.unlearning, epochs=5), pretraining=Pretraining(epochs=6, batch=4))
    assert one(costs.flops(longer, "arxiv", ASCENT)).flops == whole.flops[ASCENT]
    row = one(costs.flops(longer, "arxiv", costs.RETRAINING))
    assert row.tokens == 2 * whole.tokens[costs.RETRAINING] and row.steps == 33


def test_a_larger_shape_is_counted_as_such(store, whole):
    row = one(costs.flops(TINY, "arxiv", ASCENT, 3, WIDER))
    assert (
        row.parameters == efficiency.parameter_count(models.build(WIDER, study_documents.tokenizer(TINY), 0)) > 2 * whole.parameters[ASCENT]
    )
    assert row.flops == of_a_batch(3, WIDER) > 2 * of_a_batch(3) and row.steps == 1


def test_keys_of_costs_follow_what_changes_them_and_nothing_else(store):
    def paths(make, *more):
        cases = [("arxiv", ASCENT), ("github", ASCENT), ("arxiv", DESCENT), ("arxiv", costs.RETRAINING), *more]
        return [make(TINY, *case).path for case in cases]

    found = paths(costs.flops, ("arxiv", ASCENT, 2), ("arxiv", ASCENT, None, WIDER))
    found += paths(costs.step_costs, ("arxiv", ASCENT, WIDER))
    changed = replace(TINY, unlearning=replace(TINY.unlearning, batch=2))
    found += [costs.flops(changed, "arxiv", ASCENT).path, costs.step_costs(changed, "arxiv", ASCENT).path]
    assert len(set(found)) == len(found) == 13
    other = replace(TINY, name="other", resamples=7, seeds=9, workers=2, pretraining=Pretraining())
    assert costs.flops(other, "arxiv", ASCENT).path == found[0]
    assert costs.flops(other, "arxiv", costs.RETRAINING).path != found[3]
    assert costs.flops(TINY, "arxiv", ASCENT, shape=TINY.shape).path == found[0]


# ---------------------------------------------------------------------------------------------- seconds and memory


def watched_training(monkeypatch):
    """Lengths of the histories of every training from now on."""
    lengths = []

    def watched(real):
        def training_of(*args, **kwargs):
            history = real(*args, **kwargs)
            lengths.append(len(history))
            return history

        return training_of

    for name in ("unlearn", "pretrain"):
        monkeypatch.setattr(training, name, watched(getattr(training, name)))
    return lengths


@pytest.mark.parametrize(
    ("method", "size"), [(ASCENT, 3 * 48), ("adversarial", 3 * 48), (DESCENT, 3 * 96), (KL, 3 * 96), (costs.RETRAINING, 4 * 48)]
)
def test_steps_are_measured_but_the_first(store, monkeypatch, method, size):
    lengths = watched_training(monkeypatch)
    found = costs.measured_step_costs(TINY, "arxiv", method)
    assert list(found) == ["method", "parameters", "seconds", "low", "high", "n", "growth_mb", "tokens"]
    assert (found["method"], found["n"], found["tokens"]) == (method, costs.STEPS - 1, size) and lengths == [costs.STEPS]
    assert 0 < found["low"] <= found["seconds"] <= found["high"] < math.inf
    assert -SLACK <= found["growth_mb"] < math.inf and found["parameters"] == 11600


def test_no_more_steps_are_run_than_are_measured(store, monkeypatch):
    """Of a recipe of several epochs too."""
    lengths = watched_training(monkeypatch)
    for method in (ASCENT, costs.RETRAINING):
        costs.measured_step_costs(replace(TINY, unlearning=Unlearning(batch=1, epochs=2)), "arxiv", method)
    assert lengths == [costs.STEPS] * 2


def test_the_reference_is_read_in_each_measured_step(store, monkeypatch):
    """Its hidden states, were they kept from before, would not be part of a step's seconds."""
    seen, real = [], training.hidden_of
    monkeypatch.setattr(training, "hidden_of", lambda *args: seen.append(real(*args)) or seen[-1])
    costs.measured_step_costs(TINY, "arxiv", KL)
    assert seen == [{}]


def test_documents_of_a_measured_step_are_the_longest_cut_to_one_length():
    ids = [[1] * 5, [2] * 9, [3] * 7, [4] * 8]
    assert costs._longest(ids, 2) == [[2] * 8, [4] * 8]
    assert costs._longest(ids, 6) == [[2] * 5, [4] * 5, [3] * 5, [1] * 5, [2] * 5, [4] * 5]
    assert costs._longest([], 3) == []


def test_seconds_are_measured_in_a_process_of_its_own(store, monkeypatch):
    """A fresh one: what is changed in this process does not reach it."""

    def refuse(*args):
        raise AssertionError("measured here")

    monkeypatch.setattr(costs, "_runner", refuse)
    step = costs.step_costs(TINY, "arxiv", ASCENT)
    row = one(step)
    assert (row.method, row.n, row.tokens, row.parameters) == (ASCENT, costs.STEPS - 1, 3 * 48, 11600)
    assert 0 < row.low <= row.seconds <= row.high < math.inf and -SLACK <= row.growth_mb < math.inf
    assert step.done() and one(costs.step_costs(TINY, "arxiv", ASCENT)) == row  # stored: not measured again


def test_methods_read_what_their_runs_read(store):
    """The tokens of a measured step are of both sides where there are two."""
    for name, method in methods.METHODS.items():
        _, model, size = costs._runner(TINY, "arxiv", name, None)
        assert size == 3 * 48 * (2 if method.retain else 1) and efficiency.parameter_count(model) == 11600
        assert bool(single_run.token_ids_of_sides(TINY, "arxiv", name)[1]) == bool(method.retain)


# ---------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, -1.5])
def test_the_exponent_of_an_exact_power_law(power):
    x = [1, 2, 4, 8, 100]
    found = efficiency.exponent(x, [7e9 * value**power for value in x])
    assert (found.value, found.low, found.high) == tuple([pytest.approx(power, rel=1e-6)] * 3) and found.n == 5


def test_the_exponent_of_a_noisy_power_law():
    """Least squares on logarithms, with the t interval that scipy gives for the textbook's standard error."""
    generator = np.random.default_rng(0)
    x = np.array([1e3, 2e3, 4e3, 9e3, 2e4, 7e4])
    y = 3 * x**1.2 * np.exp(0.1 * generator.normal(size=6))
    found, u, v = efficiency.exponent(list(x), list(y)), np.log(x), np.log(y)
    slope, intercept = np.polyfit(u, v, 1)
    error = math.sqrt(((v - slope * u - intercept) ** 2).sum() / 4 / ((u - u.mean()) ** 2).sum())
    low, high = stats.t.interval(0.95, 4, slope, error)
    assert found == efficiency.Interval(*map(pytest.approx, (slope, low, high)), 6)
    assert found.low < 1.2 < found.high and found.high - found.low > 0.05


@pytest.mark.parametrize(("retain", "expected"), [(None, 120), ("descent", 60), ("kl", 120 * 3 / 7)])
def test_the_computed_ratio_by_hand(retain, expected):
    """20 bytes at 4 a token are 5 tokens; 600 tokens of training are 120 times as many."""
    assert efficiency.computed_ratio(retain, 20, 4, tokens=600) == pytest.approx(expected)


def test_the_computed_ratio_of_the_paper_s_model():
    """3.1e12 tokens; arXiv's forget set of 22.1 MB is 5.525e6 tokens at 4 bytes each."""
    assert efficiency.computed_ratio(None, efficiency.FORGET_BYTES["arxiv"], 4) == pytest.approx(3.1e12 / 5.525e6)
    low, assumed, high = efficiency.BYTES_PER_TOKEN
    assert low < assumed < high


def test_there_are_passes_for_each_retain_term():
    assert set(efficiency.PASSES) == {m.retain for m in methods.METHODS.values()}
    assert efficiency.PASSES[None] == 1 < efficiency.PASSES["descent"] < efficiency.PASSES["kl"]


# ---------------------------------------------------------------------------------------------- a process's memory

SCRIPT = """
from unlearn_utils import memory
def used(mb):
    block = bytearray(mb * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    return memory.own_peak()
print(memory.own_peak(), used(50), memory.own_peak(), used(20))
"""
SLACK = 4  # MB: Linux counts pages in batches, a few a core


def test_the_peak_never_decreases():
    found = [memory.own_peak() for _ in range(3)]
    assert 0 < found[0] <= found[1] + SLACK <= found[2] + 2 * SLACK < math.inf


def test_the_peak_is_of_this_process_alone():
    """A child fills 50 MB and frees them: its peak rises by as much and stays; ours does not; nor does it start with ours."""
    block = np.ones(16 * 2**20)  # 128 MB, more than the child ever has
    before = memory.own_peak()
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    start, filled, freed, again = map(float, done.stdout.split())
    assert 0 < start < before - 50 and 45 < filled - start < 90
    assert filled <= freed + SLACK and again + SLACK >= filled and max(freed, again) < filled + 10
    assert before - SLACK <= memory.own_peak() < before + 25 and block.size
