"""Partial retraining at a scale of seconds: rewound, distilled, task vectors, and their costs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import profiles
from unlearn_utils.core import distances, membership
from unlearn_utils.core.methods import METHODS, SINCE
from unlearn_utils.data import base_models
from unlearn_utils.engine import mixing, models, training
from unlearn_utils.findings import comparison, published, robustness
from unlearn_utils.findings import retraining as found
from unlearn_utils.profiles import Pretraining
from unlearn_utils.study import (
    costs,
    method_paths,
    parts,
    pool,
    retraining,
    selection,
    study_documents,
)

RATE = toys.TOY.unlearning.learning_rate
TOY = replace(
    toys.TOY,
    name="toy21",
    domains=("arxiv",),
    pretraining=Pretraining(epochs=8, batch=4),
    grid=replace(toys.TOY.grid, claimed_domains=("arxiv",), since=(RATE,)),
    parts=("retraining",),
)
BASED = replace(
    TOY,
    name=profiles.PUBLISHED.name,
    replicates=(1, 2),
    base=profiles.PUBLISHED.base,
    pretraining=Pretraining(epochs=4, batch=4, muon_learning_rate=None),
    grid=replace(TOY.grid, domains=(), since=(), retain_documents=()),
    parts=("soup",),
)
TWO = {name: METHODS[name] for name in retraining.DISTILLED}
NPO = {"npo": SINCE["npo"]}
WHOLE = 8 * 16  # documents that a retraining reads: 10 + 6, in all epochs


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """A store and a folder of figures; there are three methods, and one way to distil."""
    folder = tmp_path_factory.mktemp("retraining")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        patch.setattr(found, "METHODS", TWO)
        patch.setattr(found, "SINCE", NPO)
        patch.setattr(retraining, "NOISES", ((0.5, 2),))
        toys.forget_documents()
        yield folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with its tokenizer in the place of the published one."""
    folder = tmp_path_factory.mktemp("base") / "a base"
    tokenizer = study_documents.tokenizer(TOY)
    models.save(models.build(TOY.shape, tokenizer, seed=9), folder, torch.bfloat16)
    tokenizer.save_pretrained(folder)
    return SimpleNamespace(
        path=folder, folder=lambda: folder, done=lambda: True, fill=lambda wait=True: None
    )


@pytest.fixture(scope="module")
def table(world):
    return found.table_of(TOY)


@pytest.fixture(scope="module")
def soups(world, base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_models, "base_model", lambda _: base)
        yield found.soups_of(BASED)


def linear(*weights):
    """Return a model of given matrices and vectors."""
    parameters = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
    model = torch.nn.Module()
    model.weights = torch.nn.ParameterList(parameters)
    return model


def same(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


# --------------------------------------------------------------------- a training that begins later


def ids():
    generator = np.random.default_rng(0)
    return [generator.integers(5, 400, 12).tolist() for _ in range(16)]


def fresh():
    return models.build(TOY.shape, study_documents.tokenizer(TOY), seed=3)


def test_a_training_without_its_first_steps_has_the_rates_and_documents_of_the_rest(monkeypatch):
    orders = []
    real = training._run
    monkeypatch.setattr(
        training, "_run", lambda *given, **named: orders.append(given[1]) or real(*given, **named)
    )
    recipe = Pretraining(epochs=3, batch=4, warmup=0.25)
    whole = training.pretrain(fresh(), ids(), recipe, 1, seed=5)
    rest = training.pretrain(fresh(), ids(), recipe, 1, seed=5, first=8)
    assert len(whole) == 12 and len(rest) == 4
    assert orders[1] == orders[0][32:]
    rates = [row["learning_rate"] for row in whole]
    assert [row["learning_rate"] for row in rest] == pytest.approx(rates[8:])
    # 3 steps of warm-up, then half a cosine to 0 over 9 steps; logged is the rate after the step
    cosine = [0.5 * (1 + np.cos(np.pi * (step - 3) / 9)) for step in range(3, 13)]
    peak = max(rates)
    assert set(np.round(np.array(rates[8:]) / peak, 6)) <= set(np.round(cosine, 6))


def test_a_training_from_its_first_step_on_is_the_whole_training():
    recipe = Pretraining(epochs=2, batch=4)
    one, other = fresh(), fresh()
    training.pretrain(one, ids(), recipe, 1, seed=5)
    training.pretrain(other, ids(), recipe, 1, seed=5, first=0)
    assert same(one, other)


def test_rewound_to_the_beginning_is_training_anew(monkeypatch, tmp_path):
    """From untrained weights and step 0, bit for bit what `pretrain` makes of them."""
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    member = pool.members(TOY, 0)[0]
    untrained = models.build(TOY.shape, study_documents.tokenizer(TOY), member.seed(TOY.domains))
    models.save(untrained, tmp_path / "untrained")
    monkeypatch.setattr(pool, "kept_folder", lambda folder, share: tmp_path / "untrained")
    here = SimpleNamespace(path=tmp_path, folder=lambda: tmp_path)
    monkeypatch.setattr(pool, "target", lambda profile, replicate: here)
    rows = retraining.measured(retraining.rewound(TOY, "arxiv", 0, 0.0))
    documents = retraining.retain_text(TOY, "arxiv")
    pad_id = study_documents.tokenizer(TOY).pad_token_id
    names = list(documents.domain + "/" + documents.id)
    seed = member.seed(TOY.domains)
    training.pretrain(untrained, list(documents.ids), TOY.pretraining, pad_id, seed, names=names)
    expected = retraining._rows(TOY, "arxiv", untrained)
    pd.testing.assert_frame_equal(rows, expected)


def test_a_rewound_training_reads_no_forget_document_and_counts_what_it_reads(table):
    documents = retraining.retain_text(TOY, "arxiv")
    assert set(zip(documents.domain, documents.split, strict=True)) == {
        ("arxiv", "retain"),
        ("general", "retain"),
    }
    whole = costs.tokens_of_retraining(TOY, "arxiv")
    for share in pool.KEPT:
        artifact = retraining.rewound(TOY, "arxiv", 0, share)
        history = pd.read_parquet(artifact.path / "history.parquet")
        assert len(history) == WHOLE / 4 - round(share * WHOLE / 4)
        trained = retraining.tokens_trained(artifact)
        assert trained / whole == pytest.approx(1 - share, abs=0.05)
    half = retraining.rewound(TOY, "arxiv", 0, 0.5)  # four whole epochs
    assert retraining.tokens_trained(half) == whole / 2


# ------------------------------------------------------------------------------- arithmetic by hand


def test_noise_is_mixed_into_matrices_as_undo_has_it():
    model = linear([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0])
    mixing.mix_with_noise(model, share=0.25, scale=0.1, seed=7)
    matrix, vector = (weight.detach() for weight in model.weights)
    noise = (matrix - 0.75 * torch.tensor([[1.0, 2.0], [3.0, 4.0]])) / (0.25 * 0.1)
    bound = (6 / (2 + 2)) ** 0.5  # of Xavier's uniform noise
    assert (noise.abs() <= bound + 1e-4).all() and noise.unique().numel() == 4
    expected = torch.nn.init.xavier_uniform_(
        torch.empty(2, 2), generator=torch.Generator().manual_seed(7)
    )
    assert torch.allclose(noise, expected, atol=1e-4)
    assert vector.tolist() == [5.0, 6.0]


def test_no_noise_leaves_a_model_as_it_is():
    model, other = fresh(), fresh()
    mixing.mix_with_noise(model, share=0.0, scale=0.1, seed=7)
    assert same(model, other)


def test_a_soup_is_the_target_less_the_forget_vector_plus_the_retain_vector():
    start = linear([[1.0, 1.0]], [0.0])
    forget = mixing.changes(linear([[1.5, 1.0]], [2.0]), start)
    retain = mixing.changes(linear([[1.0, 3.0]], [1.0]), start)
    model = linear([[10.0, 20.0]], [30.0])
    mixing.add_changes(model, [(-1.5, forget), (1.0, retain)])
    matrix, vector = (weight.tolist() for weight in model.weights)
    assert matrix == [[10 - 1.5 * 0.5, 20 + 2.0]] and vector == [30 - 1.5 * 2.0 + 1.0]
    assert start.weights[0].tolist() == [[1.0, 1.0]]


# --------------------------------------------------------------------------------------- distilled


def test_a_student_without_noise_has_nothing_to_learn_and_one_with_noise_has():
    teacher = fresh()
    for share in (0.0, 0.5):
        student = fresh()
        mixing.mix_with_noise(student, share, 0.1, seed=1)
        recipe = Pretraining(epochs=2, batch=4)
        names = [str(number) for number in range(16)]
        history = training.distil(student, teacher, ids(), recipe, 1, 5, names)
        assert len(history) == 8
        assert (history[0]["loss"] > 1e-6) == (share > 0)
    assert same(teacher, fresh())


def test_distilling_learns_to_predict_as_the_teacher():
    """Its loss, which is KL to the teacher, falls."""
    teacher, student = fresh(), fresh()
    training.pretrain(teacher, ids(), Pretraining(epochs=8, batch=4), 1, seed=5)
    names = [str(number) for number in range(16)]
    recipe = Pretraining(epochs=8, batch=4)
    history = training.distil(student, teacher, ids(), recipe, 1, 5, names)
    assert history[-1]["loss"] < history[0]["loss"] / 2


# --------------------------------------------------------------------------------------- the table


def of(table, how, method, setting):
    part = table[(table.how == how) & (table.method == method) & (table.setting == setting)]
    return part.set_index("measure")["value"]


def test_every_way_is_a_row_with_every_measure(table, world):
    written = pd.read_csv(world / "figures" / "table21_retraining.csv")
    assert written.columns.tolist()[:6] == [*found.KEYS, "value"]
    assert len(written) == len(table) and not table.duplicated(list(found.KEYS)).any()
    ways = table[["how", "method"]].drop_duplicates().to_numpy().tolist()
    assert ways == [
        ["-", "do nothing"],
        ["rewound", "-"],
        *[["distilled", method] for method in TWO],
        *[["method", method] for method in (*TWO, *NPO)],
    ]
    assert table[table.how == "rewound"].setting.unique().tolist() == [
        "from 25%",
        "from 50%",
        "from 75%",
        "from 90%",
    ]
    assert (table.low <= table["value"]).all() and (table["value"] <= table.high).all()
    assert set(table.n) == {2}  # general documents of the report half
    nothing = of(table, "-", "do nothing", "-")
    assert nothing["score"] == 0 and nothing["share of retraining"] == 0
    searched = table[table.measure == found.WITH_SEARCH].method.tolist()
    assert searched == list(TWO)  # the others have no grid of rates


def test_a_rewound_model_is_scored_by_its_rows(table):
    artifact = retraining.rewound(TOY, "arxiv", 0, 0.75)
    own = of(table, "rewound", "-", "from 75%")
    models_rows = {
        "ours": retraining.measured(artifact),
        "target": pool.target_rows(TOY, "arxiv", 0),
        "truth": pool.truth_rows(TOY, "arxiv", 0),
    }
    report = {name: selection.half(rows, selection.REPORT) for name, rows in models_rows.items()}
    level = {name: method_paths.levels(rows) for name, rows in report.items()}
    gaps = level["ours"] - level["truth"]
    far, of_target = distances.distance(gaps), distances.distance(level["target"] - level["truth"])
    assert own["distance"] == pytest.approx(far)
    assert own["score"] == pytest.approx(max(0.0, 1 - far / of_target))
    assert own["damage to the domain"] == pytest.approx(gaps[1:3].mean())
    areas = []
    for name in ("ours", "truth"):
        scores = report[name].set_index("split").min_k_40
        areas.append(membership.auc(scores["forget"], scores["approximate"]))
    assert own["AUC over retrained"] == pytest.approx(areas[0] - areas[1])
    trained = retraining.tokens_trained(artifact)
    share = trained / costs.tokens_of_retraining(TOY, "arxiv")
    assert own["share of retraining"] == pytest.approx(share)


def test_a_method_costs_its_steps_to_the_nearest_mark(table):
    forget = study_documents.tokenized(TOY, [("arxiv", "forget")]).ids
    of_step = 2 * forget.map(len).mean()
    whole = costs.tokens_of_retraining(TOY, "arxiv")
    for method, passes in ((method_paths.ASCENT, 1), (method_paths.CLAIMED, 2), ("npo", 7 / 3)):
        (drawn,) = comparison.usual(TOY, "arxiv", method)
        gaps = distances.distance(drawn.gaps[selection.SELECTION])[0]
        steps = drawn.steps[np.argmin(gaps)]
        own = of(table, "method", method, "usual rate")
        assert own["share of retraining"] == pytest.approx(steps * of_step * passes / whole)
        assert own["score"] == pytest.approx(robustness.score_at_nearest(drawn)[0])
    searched = robustness.costs_of_search(TOY, "arxiv", method_paths.CLAIMED)
    own = of(table, "method", method_paths.CLAIMED, "usual rate")
    search = searched["share of retraining"][0, 0]
    assert own[found.WITH_SEARCH] - own[found.COST] == pytest.approx(search) and search > 0


def test_distilling_costs_four_thirds_of_a_pass_beside_the_method(table):
    """Two of eight epochs, with a teacher who reads, too; and the steps to the kept weights."""
    for method in TWO:
        run = method_paths.usual_run(TOY, 0, "arxiv", method)
        kept = method_paths.outcome(method_paths.path(run, keep=True))["kept"]
        own = of(table, "distilled", method, "noise 0.5, epochs 2")
        expected = 2 / 8 * 4 / 3 + robustness.share_of_steps(TOY, "arxiv", method, kept)
        assert own["share of retraining"] == pytest.approx(expected)


def test_the_part_of_the_study_computes_what_the_table_reads(table, world, monkeypatch):
    assert all(artifact.done() for stage in parts.stages(TOY, "retraining") for artifact in stage)
    monkeypatch.setattr(training, "pretrain", toys.refuse)
    monkeypatch.setattr(training, "distil", toys.refuse)
    parts.compute(TOY, "retraining")
    written = pd.read_parquet(world / "figures" / "retraining.parquet")
    assert written.artifact.tolist() == ["rewound"] * 8 + ["distilled"] * 4
    last = written[written.half == "report"].iloc[2]
    rows = retraining.measured(retraining.rewound(TOY, "arxiv", 0, 0.75))
    level = selection.log_perplexity(selection.half(rows, selection.REPORT), "forget")
    assert last.forget == pytest.approx(level, rel=1e-6)


# ------------------------------------------------------------------------------------------- soups


def test_soups_are_of_each_pair_alone_beside_the_methods(soups, world):
    written = pd.read_csv(world / "figures" / "table21_soup.csv")
    assert written.columns.tolist()[:7] == [*found.KEYS, "pair", "value"]
    part = soups[(soups.how == "soup") & (soups.measure == "score")]
    settings = [retraining.soup_setting(*factors) for factors in retraining.FACTORS]
    assert part.setting.tolist() == [setting for setting in settings for _ in range(2)]
    assert part.pair.tolist() == ["1", "2"] * len(settings)
    assert set(soups[soups.how == "method"].method) == set(TWO)
    assert retraining.rewound_and_distilled(BASED) == [] == retraining.soups(TOY)


def test_a_soup_costs_its_two_trainings_and_without_retain_text_one(soups):
    documents = retraining.soup_documents(BASED, "arxiv")
    assert {split: len(rows) for split, rows in documents.items()} == {"forget": 6, "retain": 6}
    assert documents["retain"]["rank"].min() >= BASED.corpus.measured
    read = {split: 4 * rows.ids.map(len).sum() for split, rows in documents.items()}
    whole = costs.tokens_of_retraining(BASED, "arxiv")
    for setting, tokens in (
        ("alpha 1, beta 0", read["forget"]),
        ("alpha 1, beta 1", read["forget"] + read["retain"]),
    ):
        own = of(soups, "soup", "-", setting)["share of retraining"]
        assert own.tolist() == pytest.approx([tokens / whole] * 2)


def test_a_soup_is_of_the_target_and_of_the_base_s_own_training(soups, base):
    """The forget vector alone, by hand."""
    recipe, seed = BASED.pretraining, pool.members(BASED, 1)[0].seed(BASED.domains)
    pad_id = study_documents.tokenizer(TOY).pad_token_id
    documents = retraining.soup_documents(BASED, "arxiv")["forget"]
    tuned = models.load(base.folder())
    names = list(documents.domain + "/" + documents.id)
    training.pretrain(tuned, list(documents.ids), recipe, pad_id, seed, names=names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_models, "base_model", lambda _: base)
        model = models.load(pool.target(BASED, 1).folder())
        rows = retraining.measured(retraining.soup(BASED, "arxiv", 1))
    for weight, one, other in zip(
        model.parameters(),
        tuned.parameters(),
        models.load(base.folder()).parameters(),
        strict=True,
    ):
        weight.data -= one.data - other.data
    expected = retraining._rows(BASED, "arxiv", model)
    own = rows[rows.setting == "alpha 1, beta 0"]
    assert own.nll.to_numpy() == pytest.approx(expected.nll.to_numpy(), rel=1e-4)


def test_other_profiles_read_the_committed_soups(soups, world, monkeypatch, capsys):
    monkeypatch.setattr(published.paths, "own_figures", lambda root, name: world / "figures")
    read = found.soups_of(TOY)
    assert "committed, not measured in this run" in capsys.readouterr().out
    assert found.points(read).pair.tolist() == found.points(soups).pair.tolist()
    empty = found.table_of(BASED)
    assert empty.empty and "not available" in capsys.readouterr().out
    assert found.laid_out(empty, ["rewound"]) is None


# ------------------------------------------------------------------------------ reading and figures


def test_points_have_the_cost_and_the_score_with_its_interval(table):
    points = found.points(table)
    assert points.how.tolist().count("rewound") == 4
    row = points[points.setting == "from 50%"].iloc[0]
    own = of(table, "rewound", "-", "from 50%")
    assert row.share == own["share of retraining"] and row.score == own["score"]
    best = found.best_below(table, 0.6)
    assert best.share < 0.6 and best.score == points[points.share < 0.6].score.max()
    assert found.best_below(table, 0.0) is None


def test_a_table_to_read_has_a_row_a_way(table):
    wide = found.laid_out(table, [found.REWOUND, found.METHOD])
    assert len(wide) == 4 + 3
    assert wide.columns.tolist()[:2] == [found.COST, found.WITH_SEARCH]
    assert (wide.loc["rewound"][found.WITH_SEARCH] == "").all()


def test_the_figure_has_a_panel_of_what_is_there(table, soups, world):
    found.figure(TOY, table, soups.iloc[:0])
    data = pd.read_csv(world / "figures" / "fig21_retraining.csv")
    assert set(data.panel) == {"this profile"} and len(data) == len(found.points(table))
    found.figure(TOY, table, soups)
    data = pd.read_csv(world / "figures" / "fig21_retraining.csv")
    assert set(data.panel) == {"this profile", "published"}
    found.figure(TOY, table.iloc[:0], soups.iloc[:0])  # draws nothing
