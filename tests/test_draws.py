"""What draws of documents make of models and paths, on rows set by hand. No model is trained."""

import json
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.findings import draws
from unlearn_utils.profiles import PROFILES, Grid
from unlearn_utils.study import method_paths, pool, selection, single_run
from unlearn_utils.study.single_run import Run

PROFILE = replace(
    PROFILES["smoke"],
    name="drawn",
    domains=("arxiv", "github"),
    grid=Grid(learning_rates=(1e-3, 2e-3), chosen_on=2),
    replicates=(3, 4),
    resamples=50,
)
SPLITS = ("forget", "approximate", "retain", "evaluation")
COUNT = 8  # documents of a split; every second one is of a half
TOKENS = np.array([1, 2, 3, 4, 5, 6, 7, 8])
SELECTION, REPORT = selection.SELECTION, selection.REPORT


def rows_of(domain, loss=1.0, **of_split):
    """Return rows of a model on a domain's documents and the general ones.

    Args:
        loss: nats a token, on every document.
        of_split: the same of one split; one number, or one of each document.
    """
    frames = []
    for split in SPLITS:
        where = "general" if split == "evaluation" else domain
        each = np.broadcast_to(np.array(of_split.get(split, loss), float), COUNT)
        names = [f"{where}-{split}-{rank}" for rank in range(COUNT)]
        part = {"id": names, "family": names, "rank": range(COUNT), "domain": where}
        part |= {"split": split, "tokens": TOKENS, "nll": TOKENS * each}
        part |= {"min_k_40": -each, "extraction": each / 10, "correct": 0}
        frames.append(pd.DataFrame(part))
    return pd.concat(frames, ignore_index=True)


def shuffled(rows, seed=0):
    return rows.sample(frac=1, random_state=seed)


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    """Let the target and the retrained models have rows by hand; nothing is remembered."""
    known = {"target": 1.0, "retrained": 2.0}

    def target_rows(profile, domain, replicate):
        return shuffled(rows_of(domain, known["target"]), replicate)

    def truth_rows(profile, domain, replicate):
        return shuffled(rows_of(domain, known["retrained"] + replicate), replicate)

    monkeypatch.setattr(pool, "target_rows", target_rows)
    monkeypatch.setattr(pool, "truth_rows", truth_rows)
    forget()
    yield
    forget()


def forget():
    draws.sample.cache_clear()
    draws.proxy_gap.cache_clear()


# --------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    ("half", "ranks"), [(draws.ALL, range(8)), (SELECTION, [0, 2]), (REPORT, [1, 3, 5, 7])]
)
def test_a_sample_holds_the_documents_that_a_path_reads(half, ranks):
    """Of the selection half the first `chosen_on`, the report half whole."""
    found = draws.sample(PROFILE, "arxiv", "forget", half)
    assert sorted(found.ids) == [f"arxiv-forget-{rank}" for rank in ranks]
    assert found.weights.shape == (51, len(ranks))
    assert found.families == len(ranks)


def test_the_first_draw_is_the_documents_as_they_are():
    for one in draws.samples(PROFILE, "github", REPORT):
        assert one.weights[0].tolist() == [1.0] * 4
        assert (one.weights.sum(1) == 4).all()
        assert len(np.unique(one.weights, axis=0)) > 5


def test_general_documents_are_drawn_alike_in_every_domain():
    of_arxiv = draws.samples(PROFILE, "arxiv", REPORT)
    of_github = draws.samples(PROFILE, "github", REPORT)
    assert of_arxiv[3].ids.tolist() == of_github[3].ids.tolist()
    assert np.array_equal(of_arxiv[3].weights, of_github[3].weights)
    assert not np.array_equal(of_arxiv[0].weights, of_github[0].weights)


def test_splits_and_halves_are_drawn_apart():
    """With as many documents in either half, else their weights could not be the same."""
    alike = replace(PROFILE, grid=replace(PROFILE.grid, chosen_on=4))
    weights = []
    for half in (SELECTION, REPORT):
        weights += [one.weights for one in draws.samples(alike, "arxiv", half)]
    assert {one.shape for one in weights} == {(51, 4)}
    for place, one in enumerate(weights):
        assert not any(np.array_equal(one, other) for other in weights[place + 1 :])


def test_a_family_is_drawn_whole(monkeypatch):
    def in_families(profile, domain, replicate):
        rows = rows_of(domain)
        return rows.assign(family=rows.domain + rows.split + (rows["rank"] // 4).astype(str))

    monkeypatch.setattr(pool, "target_rows", in_families)
    found = draws.sample(PROFILE, "arxiv", "forget", REPORT)
    assert found.families == 2
    assert np.array_equal(found.weights[:, 0], found.weights[:, 1])
    assert np.array_equal(found.weights[:, 2], found.weights[:, 3])
    assert set(found.weights[:, 0]) == {0, 1, 2}
    assert draws.families(PROFILE, "arxiv", REPORT) == 2


def test_families_are_those_of_the_smallest_split(monkeypatch):
    def fewer(profile, domain, replicate):
        rows = rows_of(domain)
        return rows[(rows.split != "retain") | (rows["rank"] < 6)]

    monkeypatch.setattr(pool, "target_rows", fewer)
    assert draws.families(PROFILE, "arxiv", REPORT) == 3
    assert draws.families(PROFILE, "arxiv", SELECTION) == 2


# ------------------------------------------------------------------------------------- one model


def test_levels_weigh_tokens_not_documents():
    """The report half has 2, 4, 6 and 8 tokens; of losses 1, 2, 3, 4 a token that is 60 / 20."""
    each = [9, 1, 9, 2, 9, 3, 9, 4]
    found = draws.levels(PROFILE, rows_of("arxiv", 5.0, forget=each), "arxiv", REPORT)
    assert found.shape == (51, 4)
    assert found[0] == pytest.approx([60 / 20, 5, 5, 5])
    assert found[:, 1:] == pytest.approx(5.0)


def test_levels_of_each_draw_follow_its_weights():
    each = np.arange(8) ** 2.0
    rows = rows_of("arxiv", approximate=each)
    found = draws.levels(PROFILE, rows, "arxiv", draws.ALL)[:, 1]
    weights = draws.sample(PROFILE, "arxiv", "approximate", draws.ALL)
    place = [int(name.rsplit("-", 1)[1]) for name in weights.ids]
    for level, times in zip(found, weights.weights, strict=True):
        expected = (times * TOKENS[place] * each[place]).sum() / (times * TOKENS[place]).sum()
        assert level == pytest.approx(expected)
    assert len(np.unique(found.round(9))) > 20


def test_models_share_draws_whatever_the_order_of_their_rows():
    """A model that is 0.5 above another on each document is so in each draw."""
    generator = np.random.default_rng(0)
    each = {split: generator.uniform(1, 3, COUNT) for split in SPLITS}
    above = {split: values + 0.5 for split, values in each.items()}
    for half in (draws.ALL, SELECTION, REPORT):
        one = draws.levels(PROFILE, shuffled(rows_of("arxiv", **each)), "arxiv", half)
        other = draws.levels(PROFILE, shuffled(rows_of("arxiv", **above), 1), "arxiv", half)
        assert other - one == pytest.approx(0.5)


def test_draws_are_the_same_in_every_run_and_for_rows_in_any_order():
    """Another profile's first replicate has its rows in another order here."""

    def by_document(profile):
        found = draws.sample(profile, "arxiv", "forget", REPORT)
        return pd.DataFrame(found.weights, columns=found.ids).sort_index(axis=1)

    first = by_document(PROFILE)
    forget()
    assert by_document(PROFILE).equals(first)
    assert by_document(replace(PROFILE, name="other", replicates=(7,))).equals(first)


# ------------------------------------------------------------------------------------------- AUC


def test_auc_of_a_half_is_forget_against_unseen():
    """The report half of the members, ranks 1, 3, 5, 7, scores above, the other half below."""
    members = [3, 1, 3, 1, 3, 1, 3, 1]  # losses: a low one speaks for a member
    rows = shuffled(rows_of("arxiv", forget=members, approximate=2.0))
    assert draws.auc(PROFILE, rows, "arxiv", REPORT) == pytest.approx(1.0)
    assert draws.auc(PROFILE, rows, "arxiv", SELECTION) == pytest.approx(0.0)
    every = draws.auc(PROFILE, rows, "arxiv", draws.ALL)
    assert every[0] == pytest.approx(0.5)
    assert every.shape == (51,) and every.std() > 0.02


def test_auc_of_another_score():
    rows = rows_of("arxiv").assign(zlib=0.0)
    rows.loc[rows.split == "forget", "zlib"] = 1.0
    assert draws.auc(PROFILE, rows, "arxiv", REPORT, "zlib") == pytest.approx(1.0)
    assert draws.auc(PROFILE, rows, "arxiv", REPORT) == pytest.approx(0.5)


# --------------------------------------------------------------------------------------- the proxy


def test_proxy_gap_is_the_target_on_unseen_less_the_truth_on_the_forget_set(monkeypatch):
    def target_rows(profile, domain, replicate):
        return rows_of(domain, 9.0, approximate=1.5)

    def truth_rows(profile, domain, replicate):
        return rows_of(domain, 9.0, forget=2.0 + replicate / 10)

    monkeypatch.setattr(pool, "target_rows", target_rows)
    monkeypatch.setattr(pool, "truth_rows", truth_rows)
    assert draws.proxy_gap(PROFILE, "arxiv", 3, SELECTION) == pytest.approx(-0.8)
    assert draws.proxy_gap(PROFILE, "arxiv", 4, REPORT) == pytest.approx(-0.9)


# --------------------------------------------------------------------------------------- one path


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Store paths by hand: rows by step, and the mark at which a path ended."""
    files = {}

    def store(run, by_step, ended=None):
        folder = tmp_path / str(len(files))
        folder.mkdir()
        frames = [rows.assign(step=step) for step, rows in by_step.items()]
        pd.concat(frames, ignore_index=True).to_parquet(folder / "rows.parquet")
        (folder / "ended.json").write_text(json.dumps({"ended": ended, "kept": None}))
        files[run] = types.SimpleNamespace(path=folder)

    monkeypatch.setattr(method_paths, "make_all", lambda runs, what: [files[run] for run in runs])
    monkeypatch.setattr(single_run, "steps_of_run", lambda run: 4 * run.recipe.epochs)
    return store


def run_of(replicate, domain="arxiv"):
    return Run(PROFILE, domain, "gradient_ascent", PROFILE.unlearning, replicate)


def test_a_path_by_hand(stored):
    """The retrained model of replicate 3 has a loss of 5 a token, that of replicate 4 of 6."""
    marks = {2: rows_of("arxiv", 7.0, forget=5.5), 0: rows_of("arxiv", 4.0), 1: rows_of("arxiv")}
    stored(run_of(3), marks, ended=2)
    stored(run_of(4), {0: rows_of("arxiv", 4.0), 4: rows_of("arxiv", 6.0)})
    first, second = draws.drawn_paths([run_of(3), run_of(4)])
    assert first.run == run_of(3)
    assert first.steps.tolist() == [0, 1, 2]
    for half in (SELECTION, REPORT):
        assert first.gaps[half].shape == (51, 3, 4)
        assert first.gaps[half][:, 0] == pytest.approx(-1.0)
        assert first.gaps[half][:, 1] == pytest.approx(-4.0)
        assert first.gaps[half][:, 2] == pytest.approx(np.broadcast_to([0.5, 2, 2, 2], (51, 4)))
        assert first.auc[half][:, 0] == pytest.approx(0.5)
        assert first.auc[half][:, 2] == pytest.approx(1.0)
        assert first.target(half) == pytest.approx(-1.0)
        assert second.gaps[half][:, 1] == pytest.approx(0.0)
    assert first.extraction[0] == pytest.approx([0.4, 0.1, 0.55])
    assert (first.total, first.ended, second.ended) == (4, True, False)


def test_a_path_without_its_target(stored):
    stored(run_of(3), {0: rows_of("arxiv", 4.0), 1: rows_of("arxiv", 4.5)}, ended=1)
    (drawn,) = draws.drawn_paths([run_of(3)])
    found = drawn.path(REPORT)
    assert found.steps.tolist() == [1]
    assert found.gaps == pytest.approx(np.full((51, 1, 4), -0.5))
    assert (found.total, found.ended) == (4, True)


def test_halves_of_a_path_are_their_own_documents(stored):
    by_rank = np.array([1.0, 3, 1, 3, 1, 3, 1, 3])
    stored(run_of(3), {0: rows_of("arxiv", 4.0), 1: rows_of("arxiv", 4.0, forget=by_rank)})
    (drawn,) = draws.drawn_paths([run_of(3)])
    assert drawn.gaps[SELECTION][:, 1, 0] == pytest.approx(-4.0)
    assert drawn.gaps[REPORT][:, 1, 0] == pytest.approx(-2.0)
    assert drawn.extraction[:, 1] == pytest.approx(0.3)


def test_gaps_of_two_paths_are_of_the_same_draws(stored):
    """They differ by a constant on each document, so they do in each draw."""
    generator = np.random.default_rng(0)
    each = {split: generator.uniform(1, 3, COUNT) for split in SPLITS}
    above = {split: values + 0.25 for split, values in each.items()}
    target = rows_of("arxiv", 4.0)
    stored(run_of(3), {0: target, 1: rows_of("arxiv", **each)})
    other = replace(run_of(3), method="adversarial")
    stored(other, {0: target, 2: shuffled(rows_of("arxiv", **above))})
    one, two = draws.drawn_paths([run_of(3), other])
    for half in (SELECTION, REPORT):
        assert two.gaps[half][:, 1] - one.gaps[half][:, 1] == pytest.approx(0.25)
        assert one.gaps[half][:, 1].std() > 0.01
