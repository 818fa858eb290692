"""Attacks on the models of a toy profile: artifacts, the table and figures of notebook 19."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys

from unlearn_utils.core import attacks as core
from unlearn_utils.engine import attacks as engine
from unlearn_utils.engine import evaluation, models, training
from unlearn_utils.findings import attacks, plots
from unlearn_utils.study import attacked, method_paths, pool, selection, study_documents

TOY = replace(toys.TOY, name="toy19", domains=("arxiv",))
TWO = {method_paths.ASCENT: None, method_paths.CLAIMED: None}


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """A store and a folder of figures; there are two methods, and prefixes are short."""
    folder = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        patch.setattr(attacked, "PREFIXES", (8, 16))
        patch.setattr(attacked, "LENGTH", 8)
        patch.setattr(attacked, "STEPS", 4)
        patch.setattr(attacks, "METHODS", TWO)
        study_documents.data.cache_clear()
        study_documents.fingerprint.cache_clear()
        study_documents.tokenizer.cache_clear()
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
    assert list(dict.fromkeys(table.method)) == [*TWO, attacks.NOTHING]
    of_each = table.groupby("method").size()
    # 9 runs of 3 measures, 2 roundings of 3, 2 prefixes of 4, and the gap before; and 9 shares
    assert of_each[attacks.NOTHING] == 27 + 6 + 8 + 1
    assert set(of_each[list(TWO)]) == {27 + 6 + 8 + 1 + 9}
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
    for method in TWO:
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
    assert list(found) == ["4", "8"] and len(found) == 3


def test_the_curves_end_where_the_table_says(table, world):
    attacks.curves_figure(TOY)
    attacks.recovery_figure(TOY, table)
    assert (world / "figures" / "fig19_recovery.png").stat().st_size > 1000
    curves = pd.read_csv(world / "figures" / "fig19_relearning.csv")
    assert set(curves.method) == {*TWO, attacks.NOTHING, attacks.CONTROL}
    control = curves[(curves.method == attacks.CONTROL) & (curves.step == 0)]
    assert control["value"].tolist() == pytest.approx([0] * 9, abs=1e-12)
    before = table[table.attack == "none"].set_index("method")["value"]
    for method in (*TWO, attacks.NOTHING):
        start = curves[(curves.method == method) & (curves.step == 0)]["value"]
        assert start.tolist() == pytest.approx([before[method]] * 9, abs=1e-5)


def test_a_line_a_model_is_drawn():
    data = pd.DataFrame(
        {
            "method": np.repeat([method_paths.ASCENT, attacks.NOTHING, attacks.CONTROL], 2),
            "step": [0, 4] * 3,
            "value": [0.2, -0.1, -1.0, -1.1, 0.0, -0.1],
        }
    )
    data = data.assign(low=data["value"] - 0.1, high=data["value"] + 0.1)
    _, (ax,) = plots.panels(1)
    attacks.draw_curves(data, ax)
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        [0.2, -0.1],
        [-1.0, -1.1],
        [0, -0.1],
    ]
    assert len(ax.collections) == 1  # the control's interval
    plots.plt.close(ax.figure)


def test_a_base_is_attacked_in_its_first_replicate_alone():
    several = replace(TOY, replicates=(1, 2))
    assert attacks.replicates_of(several) == (1, 2)
    assert attacks.replicates_of(replace(several, base="large")) == (1,)
