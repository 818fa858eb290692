"""What a method costs: FLOPs by hand at a scale of seconds, how they grow, a process's memory.

No second is asserted.
"""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys
from scipy import stats

from unlearn_utils.cache import memory, paths
from unlearn_utils.core import efficiency
from unlearn_utils.core.methods import METHODS
from unlearn_utils.data import tokens
from unlearn_utils.engine import models, training
from unlearn_utils.profiles import PROFILES, Corpus, Pretraining, Shape, Unlearning
from unlearn_utils.study import costs, extra_measurements, single_run, study_documents

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    # every document has 48 tokens
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=3, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=3),
    domains=("arxiv", "github"),
    workers=1,
    resamples=20,
)
PARAMETERS = 11600
ASCENT = "gradient_ascent"
DESCENT = "ascent_descent_in_distribution"
KL = "ascent_kl_in_distribution"
WIDER = replace(TINY.shape, hidden=32, layers=3)
SLACK = 4  # MB: Linux counts pages in batches, a few a core


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of its own, where nothing is trained but a tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("costs") / "store"))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(models, "half_precision", lambda: False)
        toys.forget_documents()
        yield


@pytest.fixture(scope="module")
def whole(store):
    """One epoch of each method, and retraining, by name."""
    counts = [costs.flops(TINY, "arxiv", name) for name in (*METHODS, costs.RETRAINING)]
    return extra_measurements.rows_of(counts).set_index("method")


def one(artifact):
    """Return the only row of an artifact."""
    (row,) = pd.read_parquet(artifact.folder() / "rows.parquet").itertuples()
    return row


def of_a_batch(documents, shape=TINY.shape):
    """Return the FLOPs of one batch of training on so many documents of 48 tokens."""
    model = models.build(shape, study_documents.tokenizer(TINY), 0)
    model.set_attn_implementation("eager")
    sides = {"text": tokens.collate([list(range(48))] * documents, 1)}
    goal = training.pretraining_goal()
    return efficiency.step_flops(model, goal.loss, sides, goal.count)["flops_per_step"]


# ------------------------------------------------------------------------------- FLOPs of an epoch


def test_an_epoch_is_the_sum_of_its_batches(whole):
    """Four documents, three at a time: a batch of three and a batch of one."""
    row = whole.loc[ASCENT]
    assert row.flops == of_a_batch(3) + of_a_batch(1)
    assert row.steps == 2
    assert row.target_domain == "arxiv"
    assert row.tokens == 4 * 48


def test_the_estimate_by_hand(whole):
    """6 N D over all sides.

    N: 400 x 16 embeddings (tied), two layers of 4 x 16^2 + 3 x 16 x 32 and two norms of 16, and a
    last norm.
    """
    parameters = 400 * 16 + 2 * (4 * 16**2 + 3 * 16 * 32 + 2 * 16) + 16
    assert parameters == PARAMETERS
    assert set(whole.parameters) == {parameters}
    for name, sides in ((ASCENT, 1), ("random_label", 1), (DESCENT, 2), (KL, 2)):
        assert whole.estimate[name] == 6 * parameters * sides * 4 * 48


@pytest.mark.parametrize("method", [ASCENT, KL])
def test_half_of_the_documents_cost_half(store, method):
    """The batch divides both: twice as many equal batches."""
    pairwise = replace(TINY, unlearning=replace(TINY.unlearning, batch=1))
    half = one(costs.flops(pairwise, "arxiv", method, 2))
    full = one(costs.flops(pairwise, "arxiv", method, 4))
    same = one(costs.flops(pairwise, "arxiv", method, None))
    assert (half.tokens, full.tokens, same.tokens) == (2 * 48, 4 * 48, 4 * 48)
    assert (half.steps, full.steps, same.steps) == (2, 4, 4)
    assert 2 * half.flops == full.flops == same.flops
    assert 2 * half.estimate == full.estimate


def test_flops_grow_with_the_first_power_of_the_forget_set(store):
    rows = [one(costs.flops(TINY, "arxiv", ASCENT, documents)) for documents in (1, 2, 3, 4)]
    found = efficiency.exponent([row.tokens for row in rows], [row.flops for row in rows])
    assert found.value == pytest.approx(1, abs=0.01)
    assert found.n == 4


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_cost_their_passes(whole, name):
    """Within 1%, the rest being what is not a matrix product of the model."""
    assert whole.flops[name] / whole.flops[ASCENT] == pytest.approx(METHODS[name].passes, rel=0.01)
    assert whole.tokens[name] == 4 * 48  # of the forget set, whatever else is read


def test_passes_by_hand(whole):
    """Twice as many with descent, 7/3 with KL, whose reference reads only."""
    assert whole.flops[DESCENT] / whole.flops[ASCENT] == pytest.approx(2, rel=0.01)
    assert whole.flops[KL] / whole.flops[ASCENT] == pytest.approx(7 / 3, rel=0.01)


def test_retraining_reads_every_document_but_the_forget_set_in_every_epoch(whole):
    row = whole.loc[costs.RETRAINING]
    parts = study_documents.training_parts(TINY, ["github"])  # every other forget set
    assert ("arxiv", "forget") not in parts
    text = study_documents.tokenized(TINY, parts)
    assert len(text) == 6 + 4 + 6 + 6
    assert row.tokens == 3 * text.ids.map(len).sum() == 3 * 22 * 48
    assert row.steps == 17  # 66 documents, 4 at a time
    assert row.flops == 17 * of_a_batch(4)
    assert row.estimate == 6 * row.parameters * 17 * 4 * 48


def test_epochs_are_of_retraining_alone(store, whole):
    """An epoch of unlearning is one epoch, whatever the recipe.

    A retraining of twice the epochs costs twice the tokens.
    """
    longer = replace(
        TINY,
        unlearning=replace(TINY.unlearning, epochs=5),
        pretraining=Pretraining(epochs=6, batch=4),
    )
    assert one(costs.flops(longer, "arxiv", ASCENT)).flops == whole.flops[ASCENT]
    row = one(costs.flops(longer, "arxiv", costs.RETRAINING))
    assert row.tokens == 2 * whole.tokens[costs.RETRAINING]
    assert row.steps == 33


def test_a_larger_shape_is_counted_as_such(store):
    row = one(costs.flops(TINY, "arxiv", ASCENT, 3, WIDER))
    wider = models.build(WIDER, study_documents.tokenizer(TINY), 0)
    assert row.parameters == efficiency.parameter_count(wider)
    assert row.parameters > 2 * PARAMETERS
    assert row.flops == of_a_batch(3, WIDER)
    assert row.flops > 2 * of_a_batch(3)
    assert row.steps == 1


def test_keys_of_costs_follow_what_changes_them_and_nothing_else(store):
    cases = [("arxiv", ASCENT), ("github", ASCENT), ("arxiv", DESCENT), ("arxiv", costs.RETRAINING)]
    found = []
    for case in cases:
        found += [costs.flops(TINY, *case), costs.step_costs(TINY, *case)]
    found.append(costs.flops(TINY, "arxiv", ASCENT, 2))
    found.append(costs.flops(TINY, "arxiv", ASCENT, None, WIDER))
    found.append(costs.step_costs(TINY, "arxiv", ASCENT, WIDER))
    changed = replace(TINY, unlearning=replace(TINY.unlearning, batch=2))
    found.append(costs.flops(changed, "arxiv", ASCENT))
    found.append(costs.step_costs(changed, "arxiv", ASCENT))
    assert len({artifact.path for artifact in found}) == len(found) == 13

    first = costs.flops(TINY, "arxiv", ASCENT).path
    retraining = costs.flops(TINY, "arxiv", costs.RETRAINING).path
    other = replace(TINY, name="other", resamples=7, workers=2, pretraining=Pretraining())
    assert costs.flops(other, "arxiv", ASCENT).path == first
    assert costs.flops(other, "arxiv", costs.RETRAINING).path != retraining
    assert costs.flops(TINY, "arxiv", ASCENT, shape=TINY.shape).path == first


# ------------------------------------------------------------------------------ seconds and memory


def measured(profile, method):
    return costs.measured_step_costs(costs.case_of(profile, "arxiv", method))


@pytest.fixture
def lengths(monkeypatch):
    """The lengths of the histories of every training from now on."""
    found = []

    def watched(real):
        def training_of(*args):
            history = real(*args)
            found.append(len(history))
            return history

        return training_of

    for name in ("unlearn", "pretrain"):
        monkeypatch.setattr(training, name, watched(getattr(training, name)))
    return found


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (ASCENT, 3 * 48),
        ("adversarial", 3 * 48),
        (DESCENT, 3 * 96),
        (KL, 3 * 96),
        (costs.RETRAINING, 4 * 48),
    ],
)
def test_steps_are_measured_but_the_first(store, lengths, method, size):
    found = measured(TINY, method)
    assert lengths == [costs.STEPS]
    columns = ["method", "parameters", "seconds", "low", "high", "n", "growth_mb", "tokens"]
    assert list(found) == columns
    assert found["method"] == method
    assert found["parameters"] == PARAMETERS
    assert found["n"] == costs.STEPS - 1
    assert found["tokens"] == size
    assert 0 < found["low"] <= found["seconds"] <= found["high"] < math.inf
    assert -SLACK <= found["growth_mb"] < math.inf


@pytest.mark.parametrize("method", [ASCENT, costs.RETRAINING])
def test_no_more_steps_are_run_than_are_measured(store, lengths, method):
    """They are as many of a recipe of several epochs, too."""
    measured(replace(TINY, unlearning=Unlearning(batch=1, epochs=2)), method)
    assert lengths == [costs.STEPS]


def test_the_reference_is_read_in_each_measured_step(store, monkeypatch):
    """Its hidden states, were they kept from before, would not be part of a step's seconds."""
    seen = []
    real = training.hidden_of

    def hidden_of(*args):
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(training, "hidden_of", hidden_of)
    measured(TINY, KL)
    assert seen == [{}]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2, [[2] * 8, [4] * 8]),
        (6, [[2] * 5, [4] * 5, [3] * 5, [1] * 5, [2] * 5, [4] * 5]),
    ],
)
def test_documents_of_a_measured_step_are_the_longest_cut_to_one_length(n, expected):
    ids = [[1] * 5, [2] * 9, [3] * 7, [4] * 8]
    assert costs._longest(ids, n) == expected
    assert costs._longest([], n) == []


def test_seconds_are_measured_in_a_process_of_its_own(store, monkeypatch):
    """It is a fresh one: what is changed in this process does not reach it."""

    def refuse(*args):
        raise AssertionError("measured here")

    monkeypatch.setattr(costs, "_ready", refuse)
    artifact = costs.step_costs(TINY, "arxiv", ASCENT)
    row = one(artifact)
    assert row.method == ASCENT
    assert row.parameters == PARAMETERS
    assert row.n == costs.STEPS - 1
    assert row.tokens == 3 * 48
    assert 0 < row.low <= row.seconds <= row.high < math.inf
    assert -SLACK <= row.growth_mb < math.inf
    assert artifact.done()
    again = one(costs.step_costs(TINY, "arxiv", ASCENT))
    assert again == row  # stored: not measured again


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_read_what_their_runs_read(store, name):
    """The tokens of a measured step are of both sides where there are two."""
    reads_retain = METHODS[name].retain is not None
    ready = costs._ready(costs.case_of(TINY, "arxiv", name))
    assert ready.tokens == 3 * 48 * (1 + reads_retain)
    assert efficiency.parameter_count(ready.model) == PARAMETERS
    _, retain = single_run.token_ids_of_sides(TINY, "arxiv", name)
    assert bool(retain) is reads_retain


# -------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, -1.5])
def test_the_exponent_of_an_exact_power_law(power):
    x = [1, 2, 4, 8, 100]
    found = efficiency.exponent(x, [7e9 * value**power for value in x])
    for bound in (found.value, found.low, found.high):
        assert bound == pytest.approx(power, rel=1e-6)
    assert found.n == 5


def test_the_exponent_of_a_noisy_power_law():
    """Least squares on logarithms, with the t interval of the textbook's standard error."""
    generator = np.random.default_rng(0)
    x = np.array([1e3, 2e3, 4e3, 9e3, 2e4, 7e4])
    y = 3 * x**1.2 * np.exp(0.1 * generator.normal(size=6))
    found = efficiency.exponent(list(x), list(y))

    u, v = np.log(x), np.log(y)
    slope, intercept = np.polyfit(u, v, 1)
    residual = ((v - slope * u - intercept) ** 2).sum()
    error = math.sqrt(residual / 4 / ((u - u.mean()) ** 2).sum())
    low, high = stats.t.interval(0.95, 4, slope, error)
    assert found.value == pytest.approx(slope)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert found.n == 6
    assert found.low < 1.2 < found.high
    assert found.high - found.low > 0.05


@pytest.mark.parametrize(("method", "expected"), [(ASCENT, 120), (DESCENT, 60), (KL, 120 * 3 / 7)])
def test_the_computed_ratio_by_hand(method, expected):
    """20 bytes at 4 a token are 5 tokens; 600 tokens of training are 120 times as many."""
    passes = METHODS[method].passes
    assert efficiency.computed_ratio(passes, 20, 4, tokens=600) == pytest.approx(expected)


def test_the_computed_ratio_of_the_paper_s_model():
    """3.1e12 tokens; arXiv's forget set of 22.1 MB is 5.525e6 tokens at 4 bytes each."""
    ratio = efficiency.computed_ratio(1, efficiency.FORGET_BYTES["arxiv"], 4)
    assert ratio == pytest.approx(3.1e12 / 5.525e6)
    low, assumed, high = efficiency.BYTES_PER_TOKEN
    assert low < assumed < high


# ------------------------------------------------------------------------------ a process's memory

SCRIPT = """
from unlearn_utils.cache import memory

def used(mb):
    block = bytearray(mb * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    return memory.own_peak()

print(memory.own_peak(), used(50), memory.own_peak(), used(20))
"""


def test_the_peak_never_decreases():
    found = [memory.own_peak() for _ in range(3)]
    assert 0 < found[0] <= found[1] + SLACK <= found[2] + 2 * SLACK < math.inf


def test_the_peak_is_of_this_process_alone():
    """A child fills 50 MB and frees them: its peak rises by as much and stays, and ours does not.

    Nor does it start with ours.
    """
    block = np.ones(16 * 2**20)  # 128 MB, more than the child ever has
    before = memory.own_peak()
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=paths.PROJECT, capture_output=True, text=True, check=True)
    start, filled, freed, again = map(float, done.stdout.split())
    assert 0 < start < before - 50
    assert 45 < filled - start < 90
    assert filled <= freed + SLACK
    assert filled <= again + SLACK
    assert max(freed, again) < filled + 10
    assert before - SLACK <= memory.own_peak() < before + 25
    assert block.all()  # kept until here
