"""The profile published at a scale of seconds: trained on from a base, two pairs side by side."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import profiles
from unlearn_utils.core.methods import METHODS
from unlearn_utils.data import base_models
from unlearn_utils.engine import models, training
from unlearn_utils.findings import comparison, elsewhere, method_page, plots, published, robustness
from unlearn_utils.study import method_paths, parts, pool, study_documents

TOY = replace(
    toys.TOY,
    name=profiles.PUBLISHED.name,
    replicates=(1, 2),
    base=profiles.PUBLISHED.base,
    pretraining=profiles.Pretraining(epochs=4, batch=4, muon_learning_rate=None),
    grid=replace(
        toys.TOY.grid,
        epochs=1,
        usual_epochs=1,
        domains=(),
        claimed_domains=("arxiv",),
        retain_documents=(),
    ),
    domains=("arxiv",),
    parts=profiles.PUBLISHED.parts,
)
THREE = {method_paths.ASCENT: None, "random_label": None, method_paths.CLAIMED: None}
RATES = TOY.grid.learning_rates


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with its tokenizer in the place of the published one, in bfloat16."""
    folder = tmp_path_factory.mktemp("base") / "a base"
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder.parent / "store")
        plain = replace(TOY, base=None)
        tokenizer = study_documents.tokenizer(plain)
        models.save(models.build(TOY.shape, tokenizer, seed=9), folder, torch.bfloat16)
        tokenizer.save_pretrained(folder)
    return SimpleNamespace(
        path=folder, folder=lambda: folder, done=lambda: True, fill=lambda wait=True: None
    )


@pytest.fixture(scope="module", autouse=True)
def world(base, tmp_path_factory):
    """A store and a folder of figures; the base is the toy, and there are three methods."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        patch.setattr(base_models, "base_model", lambda _: base)
        for module in (published, elsewhere):
            patch.setattr(module, "METHODS", THREE)
        yield folder


@pytest.fixture(scope="module")
def table(world):
    return published.published_table(TOY)


@pytest.fixture(scope="module")
def rates(world):
    return published.rates_table(TOY)


# ----------------------------------------------------------------------- models trained on from it


def test_models_begin_as_the_base_and_keep_its_type(world, base, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))
    monkeypatch.setattr(training, "pretrain", lambda *given, **named: [{"step": 1, "loss": 0.0}])
    folder = pool.target(TOY, 1).folder()
    assert models.stored_dtype(folder) is torch.bfloat16
    ours, theirs = models.load(folder), models.load(base.folder())
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not list(folder.glob("at_*"))  # no weights on the way, for they are large


def test_training_on_is_from_one_base_with_the_seeds_of_two_pairs(table, base, monkeypatch):
    targets = [pool.target(TOY, replicate) for replicate in TOY.replicates]
    retrained = [pool.retrained(TOY, "arxiv", replicate) for replicate in TOY.replicates]
    assert len({artifact.path for artifact in (*targets, *retrained)}) == 4
    other = SimpleNamespace(path=base.path.with_name("another base"))
    monkeypatch.setattr(base_models, "base_model", lambda _: other)
    assert pool.target(TOY, 1).path != targets[0].path


def test_weights_of_a_path_are_kept_of_the_first_pair_alone():
    runs = [method_paths.usual_run(TOY, number, "arxiv", "random_label") for number in (1, 2)]
    assert [method_paths.keeps(run) for run in runs] == [True, False]


# --------------------------------------------------------------------------------------- the tables


def test_every_measure_has_a_value_of_each_pair(table, world):
    written = pd.read_csv(world / "figures" / "table17_published.csv")
    assert written.columns.tolist() == table.columns.tolist()
    for measure in (elsewhere.MEMORISED, elsewhere.AUC, elsewhere.BIAS, published.SCORE):
        part = table[table.measure == measure]
        assert part["value"].notna().all() and part.pair.value_counts().to_dict().keys() == {
            "1",
            "2",
        }
        assert (part.low <= part["value"]).all() and (part["value"] <= part.high).all()
    of_general = table[table.measure == published.OF_GENERAL]
    assert of_general.method.tolist() == [method for method in THREE for _ in range(2)]
    noise = table[table.measure == elsewhere.NOISE]
    assert noise.pair.tolist() == [published.BOTH]


def test_damage_is_that_of_equal_forgetting(table):
    for method in THREE:
        paths = comparison.usual(TOY, "arxiv", method)
        expected = [comparison.at_level(one, 0.0, 0.4)[published.OF_GENERAL][0] for one in paths]
        rows = table[(table.measure == published.OF_GENERAL) & (table.method == method)]
        assert np.allclose(rows["value"], expected, equal_nan=True)


def test_rates_are_those_of_the_two_methods_of_the_claim(rates, table):
    keys = rates[["method", "learning_rate"]].drop_duplicates().to_numpy().tolist()
    assert keys == [
        [method, rate] for method in (method_paths.ASCENT, method_paths.CLAIMED) for rate in RATES
    ]
    usual = rates[(rates.measure == published.SCORE) & (rates.learning_rate == 2e-3)]
    for row in usual.to_dict("records"):
        of_pair = robustness.grid_of(TOY, "arxiv", row["method"])[int(row["pair"]) - 1]
        drawn = of_pair[RATES.index(2e-3)]
        assert row["value"] == pytest.approx(robustness.score_at_nearest(drawn)[0])


def test_parts_compute_all_that_the_tables_read(table, rates, monkeypatch):
    """After them nothing is trained any more."""
    for name in TOY.parts:
        assert all(artifact.done() for stage in parts.stages(TOY, name) for artifact in stage)
    monkeypatch.setattr(training, "pretrain", toys.refuse)
    monkeypatch.setattr(training, "unlearn", toys.refuse)
    assert published.published_table(TOY).equals(table)


# ----------------------------------------------------------------------------------------- passages


def test_a_passage_is_read_as_it_was_written(world, monkeypatch, tmp_path):
    """Tokens may be anything: an empty cell, a missing number in words, a quote, a new line."""
    tokens = ["<s>", "NA", "nan", ' "', "\n", "", ", a", "\r\n", "⟦"]
    losses = np.array([np.nan, *range(1, len(tokens))], float)
    looks = tuple(method_page.Look(title, tokens, losses) for title in ("before", "after 3 steps"))
    shown = method_page.Passage("a document", looks)
    monkeypatch.setattr(method_page, "passage", lambda profile, method: shown)
    published.passages_table(TOY)
    monkeypatch.setattr(published.paths, "own_figures", lambda root, name: world / "figures")
    read = published.passages_of(profiles.LAPTOP)
    found = published.passage(read, "random_label")
    assert found.document == "a document"
    for ours, theirs in zip(found.looks, looks, strict=True):
        assert ours.title == theirs.title and ours.tokens == theirs.tokens
        assert np.array_equal(ours.losses, theirs.losses, equal_nan=True)


def test_a_real_passage_has_before_after_and_retrained(table):
    rows = published.passages_table(TOY)
    assert set(rows.method) == set(THREE) and rows.document.nunique() == 1
    for method in THREE:
        looks = published.passage(rows, method).looks
        assert looks[0].title == "before (the target)" and looks[-1].title == "retrained"
        assert looks[0].mean < looks[-1].mean  # the target has memorised it


# -------------------------------------------------------------------- of this run, or as committed


def test_another_profile_reads_what_is_committed(table, world, monkeypatch, capsys):
    monkeypatch.setattr(published.paths, "own_figures", lambda root, name: world / "figures")
    found = published.table_of(profiles.LAPTOP)
    assert "committed, not measured in this run" in capsys.readouterr().out
    pd.testing.assert_series_equal(found["value"], table["value"], rtol=1e-5, check_names=False)
    assert published.table_of(TOY).equals(table)
    assert "measured in this run" in capsys.readouterr().out


def test_where_nothing_is_committed_cells_are_empty_and_say_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(published.paths, "own_figures", lambda root, name: tmp_path)
    empty = published.table_of(profiles.SMOKE)
    assert empty.empty and "not available" in capsys.readouterr().out
    assert published.side_by_side(empty, published.SCORE) is None
    assert published.rates_side_by_side(published.rates_of(profiles.SMOKE)) is None
    assert published.passage(published.passages_of(profiles.SMOKE), "random_label") is None
    published.methods_figure(profiles.SMOKE, empty)  # draws nothing
    published.rates_figure(profiles.SMOKE, empty)


# ------------------------------------------------------------------------------------------ reading


def of_both(measure, method, values):
    keys = {"target_domain": "arxiv", "measure": measure, "method": method, "n": 20}
    found = []
    for pair, value in zip(("1", "2"), values, strict=True):
        found.append({**keys, "pair": pair, "value": value, "low": value, "high": value})
    return found


def test_pairs_stand_side_by_side_and_one_without_a_value_keeps_its_place():
    rows = pd.DataFrame(of_both("score", "random_label", [math.nan, 0.25]))
    found = published.side_by_side(rows, "score")
    assert found.columns.tolist() == ["1", "2"]
    ((first, second),) = found.to_numpy().tolist()
    assert first == "not available" and second.startswith("0.25")


def test_orders_of_the_two_pairs_and_of_the_study(monkeypatch):
    monkeypatch.setattr(published, "METHODS", METHODS)
    names = list(METHODS)
    rows, study = [], []
    for name, lost in zip(names, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), strict=True):
        rows += of_both(published.OF_ALL, name, [lost, 1 - lost])
        keys = {"target_domain": "arxiv", "forget gap": 0.0, "measure": published.OF_ALL}
        value = math.nan if name == names[0] else 1 - lost
        study.append({**keys, "method": name, "value": value})
    monkeypatch.setattr(plots, "committed", lambda name: pd.DataFrame(study))
    places = published.orders(pd.DataFrame(rows))
    assert places["pair 1"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert places["pair 2"].tolist() == [7, 6, 5, 4, 3, 2, 1]
    assert places[published.THERE].isna().tolist() == [True] + [False] * 6
    assert published.agreement(places, "pair 1", "pair 2") == pytest.approx(-1)
    assert published.agreement(places, "pair 1", published.THERE) == pytest.approx(-1)
    assert published.agreement(places, "pair 2", published.THERE) == pytest.approx(1)


def test_a_mark_left_out_moves_damage_little_where_a_path_is_straight(table, monkeypatch):
    """Straight in log perplexity: interpolation is exact; bent, it is off."""
    (drawn,) = comparison.usual(TOY, "arxiv", method_paths.ASCENT)[:1]
    for bend, least, most in ((0.0, 0.0, 1e-9), (0.5, 0.001, 0.1)):
        marks = np.linspace(-0.5, 0.3, 9)
        gaps = np.tile(marks[None, :, None], (2, 1, 4))
        gaps[..., 1:] += bend * gaps[..., 1:] ** 2
        path = drawn._replace(gaps=dict.fromkeys(drawn.gaps, gaps), steps=np.arange(9.0))
        monkeypatch.setattr(comparison, "usual", lambda *given, path=path: [path])
        assert least <= published.left_out(TOY, "arxiv") <= most


def test_figures_have_a_mark_a_pair_and_save_what_they_show(table, rates, world):
    published.methods_figure(TOY, table)
    published.rates_figure(TOY, rates)
    for name in ("fig17_methods", "fig17_rates"):
        for kind in ("png", "pdf", "csv"):
            assert (world / "figures" / f"{name}.{kind}").exists()
    saved = pd.read_csv(world / "figures" / "fig17_methods.csv")
    assert set(saved.method) == set(THREE)
    part = saved[saved.measure == published.OF_ALL]
    _, (ax,) = plots.panels(1)
    drawn = published.draw_methods(part, ax).get_lines()
    assert len(drawn) == 1 + 2 * 2 * len(THREE)  # 0, and of each pair a mark and its interval
