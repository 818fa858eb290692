"""Attacks on the models of a toy profile: artifacts, the table and figures of notebook 19."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import profiles
from unlearn_utils.core import attacks as core
from unlearn_utils.core import methods
from unlearn_utils.engine import attacks as engine
from unlearn_utils.engine import evaluation, models, training
from unlearn_utils.findings import attacks, plots
from unlearn_utils.study import attacked, method_paths, pool, selection, since, study_documents

TOY = replace(toys.TOY, name="toy19", domains=("arxiv",))
TWO = {method_paths.ASCENT: None, method_paths.CLAIMED: None}
THREE = [*TWO, attacks.LORA]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """A store and a folder of figures; there are two methods, and prefixes are short."""
    folder = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        patch.setattr(attacked, "PREFIXES", (8, 16))
        patch.setattr(attacked, "LENGTH", 8)
        patch.setattr(attacked, "MARKS", (0, 1, 2, 4))
        patch.setattr(attacked, "METHODS", TWO)
        toys.forget_documents()
        yield folder


@pytest.fixture(scope="module")
def table(world):
    return attacks.attacks_table(TOY)


def read(artifact):
    return pd.read_parquet(artifact.folder() / "rows.parquet")


def level(rows):
    return rows.nll.sum() / rows.tokens.sum()


# --------------------------------------------------------------------------------------- documents


def test_every_source_has_as_many_documents_and_none_that_is_measured():
    measured = attacked.forget_documents(TOY, "arxiv")
    assert set(measured["rank"] % 2) == {selection.REPORT}
    for source, where in zip(
        attacked.SOURCES,
        (("arxiv", "forget"), ("arxiv", "approximate"), ("general", "retain")),
        strict=True,
    ):
        found = attacked.source_documents(TOY, "arxiv", source)
        assert len(found) == 2  # a quarter of six, rounded
        assert set(zip(found.domain, found.split, strict=True)) == {where}
        assert not set(found.family) & set(measured.family)


# --------------------------------------------------------------------------------------- artifacts


def test_relearning_begins_at_the_model_and_leaves_it_as_it_was(table):
    target = pool.target(TOY)
    rows = read(attacked.relearned(TOY, target, "arxiv", 0))
    before = models.load(target.folder())
    documents = attacked.forget_documents(TOY, "arxiv")
    own = evaluation.measure_briefly(before, documents, study_documents.tokenizer(TOY).pad_token_id)
    runs = rows.groupby(["source", "learning_rate"])
    assert len(runs) == 9
    for _, part in runs:
        assert part.step.unique().tolist() == [0, 1, 2, 4]
        assert part[part.step == 0].nll.tolist() == own.nll.tolist()
    at_end = rows[rows.step == 4].groupby(["source", "learning_rate"]).apply(level)
    assert at_end.nunique() == 9
    assert attacked.learning_rates(TOY) == pytest.approx([2e-4, 2e-3, 2e-2])


def test_rounding_is_of_a_copy(table):
    target = pool.target(TOY)
    rows = read(attacked.rounded(TOY, target, "arxiv"))
    assert rows.bits.unique().tolist() == [32, 8, 4]
    assert set(rows.split) == {"forget", "evaluation"}
    whole = models.load(target.folder())
    engine.round_weights(whole, 4)
    documents = attacked.forget_documents(TOY, "arxiv")
    own = evaluation.measure_briefly(whole, documents, 1)
    found = rows[(rows.bits == 4) & (rows.split == "forget")]
    assert found.nll.to_numpy() == pytest.approx(own.nll.to_numpy(), rel=1e-4)
    assert level(found) != level(rows[(rows.bits == 32) & (rows.split == "forget")])


def test_keys_follow_what_is_attacked():
    target, retrained = pool.target(TOY), pool.retrained(TOY, "arxiv")
    found = []
    for model in (target, retrained):
        found += [attacked.relearned(TOY, model, "arxiv", seed) for seed in (0, 1)]
        found += [attacked.rounded(TOY, model, "arxiv"), attacked.continued(TOY, model, "arxiv")]
    assert len({artifact.path for artifact in found}) == len(found) == 8


# --------------------------------------------------------------------------------------- the table


def test_the_table_has_every_attack_on_every_model(table, world):
    written = pd.read_csv(world / "figures" / "table19_attacks.csv")
    assert written.columns.tolist()[:7] == [*attacks.KEYS, "value"]
    assert len(written) == len(table) and not table.duplicated(list(attacks.KEYS)).any()
    assert list(dict.fromkeys(table.method)) == [*THREE, attacks.NOTHING]
    of_each = table.groupby("method").size()
    # 9 runs of 3 measures, 2 roundings of 3, 2 prefixes of 4, and the gap before; and 9 shares
    assert of_each[attacks.NOTHING] == 27 + 6 + 8 + 1
    assert set(of_each[THREE]) == {27 + 6 + 8 + 1 + 9}
    assert (table.low <= table["value"]).all() and (table["value"] <= table.high).all()
    assert set(table.n) == {3}


def test_recovery_is_that_of_the_rows(table):
    """Of the target, at the middle rate, from forget text."""
    levels = {}
    for name, model in (("ours", pool.target(TOY)), ("control", pool.retrained(TOY, "arxiv"))):
        rows = read(attacked.relearned(TOY, model, "arxiv", 0))
        rows = rows[(rows.source == "forget") & np.isclose(rows.learning_rate, 2e-3)]
        levels[name] = np.array([[level(part) for _, part in rows.groupby("step")]])
    own = table[(table.method == attacks.NOTHING) & (table.source == "forget")]
    own = own[np.isclose(own.setting, 2e-3)].set_index("measure")["value"]
    assert own["recovery"] == pytest.approx(core.recovery(levels["ours"], levels["control"])[0])
    area = core.area_between([0, 1, 2, 4], levels["ours"], levels["control"])[0]
    assert own["area"] == pytest.approx(area)
    assert own["forget gap"] == pytest.approx(levels["ours"].min() - levels["control"].min())
    before = table[(table.method == attacks.NOTHING) & (table.attack == "none")]["value"].iloc[0]
    assert before == pytest.approx(levels["ours"][0, 0] - levels["control"][0, 0])
    assert before < 0  # the target has memorised it


def test_the_share_that_came_back_is_of_what_was_unlearned(table):
    before = table[table.attack == "none"].set_index("method")["value"]
    for method in THREE:
        own = table[(table.method == method) & (table.source == "forget")]
        own = own[np.isclose(own.setting, 2e-3)].set_index("measure")["value"]
        unlearned = before[method] - before[attacks.NOTHING]
        assert own["share that came back"] == pytest.approx(own["recovery"] / unlearned)


def test_a_control_against_itself_gives_nothing_back_and_without_one_nothing_is_known(table):
    control = attacks.looks(TOY)[0, attacks.CONTROL]
    own = {keys: values for keys, values, _ in attacks.measures(TOY, control, control)}
    alone = {keys: values for keys, values, _ in attacks.measures(TOY, control, None)}
    absolute = (attacks.ROUGE, attacks.EXACT, attacks.DAMAGE)
    for keys, values in own.items():
        if keys[-1] in absolute:
            assert np.array_equal(values, alone[keys])
        else:
            assert not values.any()
            assert np.isnan(alone[keys]).all()


def test_what_is_stored_is_not_attacked_again(table, monkeypatch):
    attacks.looks.cache_clear()
    monkeypatch.setattr(training, "unlearn", toys.refuse)
    monkeypatch.setattr(training, "pretrain", toys.refuse)
    assert attacks.attacks_table(TOY).equals(table)


# ------------------------------------------------------------------------------ reading and figures


def test_the_strongest_attack_of_each_method(table):
    found = attacks.strongest(table).set_index("method")["value"]
    of_recovery = table[table.measure == "recovery"]
    assert found.to_dict() == of_recovery.groupby("method")["value"].max().to_dict()


def test_a_table_to_read_has_a_column_a_setting(table):
    found = attacks.to_read(table, attacks.ROUNDING, attacks.RECOVERY)
    assert list(found) == ["4", "8"] and len(found) == 4


def test_the_curves_end_where_the_table_says(table, world):
    attacks.curves_figure(TOY)
    attacks.recovery_figure(TOY, table)
    assert (world / "figures" / "fig19_recovery.png").stat().st_size > 1000
    curves = pd.read_csv(world / "figures" / "fig19_relearning.csv")
    assert set(curves.method) == {*THREE, attacks.NOTHING, attacks.CONTROL}
    control = curves[(curves.method == attacks.CONTROL) & (curves.step == 0)]
    assert control["value"].tolist() == pytest.approx([0] * 9, abs=1e-12)
    before = table[table.attack == "none"].set_index("method")["value"]
    for method in (*THREE, attacks.NOTHING):
        start = curves[(curves.method == method) & (curves.step == 0)]["value"]
        assert start.tolist() == pytest.approx([before[method]] * 9, abs=1e-5)


def curves_of(falls):
    """Return curves of two steps from 0, by how much each model's falls."""
    every = []
    for name, fall in falls.items():
        every += [(name, 0, 0.0), (name, 4, -fall)]
    data = pd.DataFrame(every, columns=["method", "step", "value"])
    data = data.assign(low=data["value"] - 0.1, high=data["value"] + 0.1)
    return data.assign(source="forget", learning_rate=1e-3)


def test_a_line_a_model_is_drawn_and_those_that_are_not_told_apart_are_grey():
    others = {method_paths.ASCENT: 0.3, "random_label": 0.2}
    falls = {**others, attacks.LORA: 0.4, attacks.NOTHING: 0.1, attacks.CONTROL: 0.0}
    _, (ax,) = plots.panels(1)
    attacks.draw_curves(curves_of(falls), [method_paths.ASCENT, attacks.LORA], ax)
    drawn = {line.get_label(): line for line in ax.lines}
    assert [line.get_ydata()[1] for line in ax.lines] == [-fall for fall in falls.values()]
    assert list(drawn)[:2] == ["gradient ascent", "other methods"]
    assert drawn["other methods"].get_color() == "silver"
    lora = next(line for name, line in drawn.items() if name.endswith("LoRA"))
    assert lora.get_color() == plots.method_style(method_paths.CLAIMED)[0]
    assert lora.get_linestyle() == drawn[attacks.NOTHING].get_linestyle() == "--"
    assert len(ax.collections) == 1  # the control's interval
    plots.plt.close(ax.figure)


def test_the_methods_told_apart_know_least_after_the_attacks():
    falls = {name: place for place, name in enumerate(methods.every())}
    data = curves_of({**falls, attacks.LORA: 3, attacks.NOTHING: -1, attacks.CONTROL: 99})
    every = list(methods.every())
    expected = [*every[:5], attacks.LORA]
    assert every[4] == method_paths.CLAIMED
    assert attacks.told_apart(data) == expected


def test_recovery_is_drawn_a_row_a_method():
    rows = [("a", 8, 0.1), ("b", 8, 0.2), ("a", 4, 0.3)]
    data = pd.DataFrame(rows, columns=["method", "setting", "value"])
    data = data.assign(low=data["value"] - 0.05, high=data["value"] + 0.1)
    _, (ax,) = plots.panels(1)
    attacks.draw_recovery(data, ["a", "b"], ax)
    four, eight = ax.containers
    assert four.get_label() == "4"
    assert four.lines[0].get_xdata().tolist() == pytest.approx([0.3, np.nan], nan_ok=True)
    assert eight.lines[0].get_xdata().tolist() == [0.1, 0.2]
    assert eight.lines[0].get_ydata().round().tolist() == [0, 1]
    plots.plt.close(ax.figure)


def test_a_base_is_attacked_in_its_first_replicate_alone():
    several = replace(TOY, replicates=(1, 2))
    assert attacked.replicates_of(several) == (1, 2)
    assert attacked.replicates_of(replace(several, base="large")) == (1,)


# ----------------------------------------------------------------------------- what is attacked


def test_the_methods_since_the_paper_are_attacked_where_a_profile_has_them():
    runs = attacked.runs(replace(profiles.LAPTOP, grid=profiles.Grid(since=())), 0)
    assert list(runs) == THREE
    runs = attacked.runs(profiles.LAPTOP, 0)
    assert list(runs) == [*TWO, *methods.SINCE, attacked.LORA]
    assert all(map(method_paths.keeps, runs.values()))
    of_them = [method_paths.path(run, True).path for run in since.runs(profiles.LAPTOP)]
    for name in methods.SINCE:
        assert method_paths.path(runs[name], True).path in of_them


def test_every_artifact_is_of_a_model_that_is_attacked(table):
    found = attacked.artifacts(TOY)
    assert len({artifact.path for artifact in found}) == len(found) == 3 * len(THREE + ["", ""])
    assert all(artifact.done() for artifact in found)


def test_the_lora_is_a_run_of_its_own_and_no_other_run_has_a_new_key():
    usual = method_paths.usual_run(TOY, 0, "arxiv", method_paths.CLAIMED)
    assert "lora_rank" not in method_paths.path(usual).settings
    lora = method_paths.lora_run(TOY, 0, "arxiv")
    assert method_paths.path(lora).settings["lora_rank"] == method_paths.LORA_RANK
    assert lora.recipe.learning_rate == pytest.approx(10 * usual.recipe.learning_rate)
    assert method_paths.keeps(lora) and not method_paths.keeps(replace(lora, lora_rank=4))


def test_the_lora_s_adapters_are_merged_with_what_is_kept(table):
    """Its path's rows, of the model with adapters, are those of the weights that it keeps."""
    path = method_paths.path(method_paths.lora_run(TOY, 0, "arxiv"), True)
    start = models.load(pool.target(TOY).folder())
    kept = models.load(path.folder())
    changed = set()
    for (name, old), new in zip(start.named_parameters(), kept.parameters(), strict=True):
        if not torch.equal(old, new):
            changed.add(name.rpartition(".")[0].rpartition(".")[2])
    assert changed == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    rows = read(path)
    rows = rows[rows.step == method_paths.outcome(path)["kept"]]
    documents = method_paths.measured_documents(TOY, "arxiv")
    own = evaluation.measure_briefly(kept, documents, study_documents.tokenizer(TOY).pad_token_id)
    assert own.nll.tolist() == pytest.approx(rows.nll.tolist(), rel=0.01)  # kept in bfloat16
