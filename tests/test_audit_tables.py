"""The tables of notebook 20, from a toy pool of a few seconds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys
from scipy import stats

from unlearn_utils import profiles
from unlearn_utils.core import audit as core
from unlearn_utils.engine import evaluation, models
from unlearn_utils.findings import audit, audit_at_equal, metrics_audited, plots
from unlearn_utils.findings import plots_of_audit as reading
from unlearn_utils.study import (
    elsewhere,
    extra_measurements,
    method_paths,
    pool,
    study_documents,
)

METHODS = {method_paths.ASCENT: None, method_paths.CLAIMED: None}
MODELS = (audit.NOTHING, *METHODS, audit.AGAIN)
TOY = replace(
    toys.TOY,
    name="toy audit",
    replicates=(1, 2, 3),
    corpus=replace(toys.TOY.corpus, pairs=4, measured=4),
    grid=replace(toys.TOY.grid, usual_epochs=2),
)
DOMAIN = "arxiv"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A toy pool with two methods, in a store and a folder of figures of its own."""
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        for module in (audit, audit_at_equal, metrics_audited, method_paths):
            patch.setattr(module, "METHODS", METHODS)
        patch.setattr(audit, "MODELS", MODELS)
        patch.setattr(elsewhere, "settings", lambda profile: [])
        audit.fill(TOY)
        yield folder / "figures"


@pytest.fixture(scope="module")
def table(world):
    return audit.audit_table(TOY)


def one(table, **keys):
    """Return the only row with these keys."""
    here = table
    for column, value in keys.items():
        here = here[here[column] == value]
    (row,) = here.to_dict("records")
    return row


# ------------------------------------------------------------------------------------------ margins


def test_margins_are_those_of_the_full_logits(world):
    model = pool.target(TOY, 1)
    found = extra_measurements.rows_of([extra_measurements.margins(TOY, model, [DOMAIN])])
    documents = study_documents.tokenized(TOY, study_documents.measured_parts([DOMAIN]), 4)
    assert found.id.tolist() == documents.id.tolist()
    loaded = models.load(model.folder())
    import torch

    for ids, margin in zip(documents.ids[:3], found.margin[:3], strict=True):
        with torch.no_grad():
            logits = loaded(torch.tensor([ids])).logits
        p = logits[0, :-1].double().softmax(-1).numpy()[np.arange(len(ids) - 1), ids[1:]]
        assert margin == pytest.approx(np.mean(np.log(p / (1 - p))), abs=1e-4)
    measured = evaluation.measure(loaded, documents, study_documents.tokenizer(TOY), half=False)
    pd.testing.assert_frame_equal(found.drop(columns="margin"), measured)


# ------------------------------------------------------------------------------------ who is judged


def test_models_of_a_kind_by_replicate_and_pair(world):
    saw = audit.values_of(TOY, DOMAIN, audit.NOTHING, "forget")
    never = audit.values_of(TOY, DOMAIN, audit.AGAIN, "forget")
    unlearned = audit.values_of(TOY, DOMAIN, method_paths.ASCENT, "forget")
    assert saw.shape == never.shape == (3, 2, 4) and unlearned.shape == (3, 1, 4)
    assert (saw.mean(axis=(0, 1)) > never.mean(axis=(0, 1))).all()
    others = audit.references(TOY, DOMAIN, "forget", 1)
    assert others.tolist() == [*never[0].tolist(), *never[2].tolist()]


def test_wins_are_of_the_models_of_one_replicate():
    ours = np.array([[1.0, 5.0], [0.0, 0.0]])
    theirs = np.array([[[0.0, 6.0], [1.0, 4.0]], [[1.0, -1.0], [2.0, 0.0]]])
    assert audit.wins(ours, theirs).tolist() == [[0.75, 0.5], [0, 0.75]]


def test_retrained_models_are_not_told_from_themselves_and_targets_are(table):
    for measure in (audit.BY_DOCUMENT, audit.REFERENCE, audit.ACROSS):
        keys = {"target_domain": DOMAIN, "split": "forget", "measure": measure}
        again = one(table, model=audit.AGAIN, **keys)["value"]
        assert one(table, model=audit.NOTHING, **keys)["value"] > max(0.75, again)


def test_likelihood_ratios_are_those_of_the_models_that_stand_beside(world):
    never = audit.values_of(TOY, DOMAIN, audit.AGAIN, "forget")
    own = audit.values_of(TOY, DOMAIN, method_paths.ASCENT, "forget")[:, 0]
    ours, theirs = core.lira(own, never[:, 1])
    told = audit.judged(TOY, DOMAIN, method_paths.ASCENT, "forget")
    assert told.ratios == pytest.approx((ours > theirs).astype(float))
    assert told.margins == pytest.approx((own > never[:, 1]).astype(float))
    assert told.ceiling == pytest.approx(np.log(3)) and (told.epsilon <= told.ceiling).all()


def test_keys_of_the_table(table, world):
    keys = ["target_domain", "model", "split", "measure"]
    assert table.columns.tolist()[:5] == [*keys, "value"]
    assert not table.duplicated(keys).any()
    # by document two on four splits, epsilon; three attacks and PrivLeak; three shares
    assert len(table) == 2 * len(MODELS) * (2 * 4 + 1 + 4 + 3)
    assert (table.replicates == 3).all()
    written = pd.read_csv(world / "table20_audit.csv")
    assert written.columns.tolist() == table.columns.tolist() and len(written) == len(table)
    shares = table[table.measure.str.startswith(audit.SHARE_OF)]
    together = shares.groupby(["target_domain", "model"])["value"].sum()
    assert together.to_numpy() == pytest.approx(np.ones(len(together)))


def test_privleak_is_of_the_pool_s_own_area(table):
    keys = {"target_domain": DOMAIN, "split": "forget"}
    found = one(table, model=audit.NOTHING, measure=audit.LEAK, **keys)
    never = audit.attacks(TOY, DOMAIN, audit.AGAIN)[audit.ACROSS][..., 0].mean()
    saw = one(table, model=audit.NOTHING, measure=audit.ACROSS, **keys)["value"]
    assert never < 1 and found["value"] == pytest.approx(100 * (never - saw) / (1 - never))


# ----------------------------------------------------------------------------- documents and causes


def test_residuals_are_over_the_retrained_models_of_other_replicates(world):
    never = audit.values_of(TOY, DOMAIN, audit.AGAIN, "forget")
    own = audit.values_of(TOY, DOMAIN, audit.NOTHING, "forget")
    others = never[[0, 2]].reshape(-1, 4)
    expected = own[1, 0] - others.mean(0)
    assert audit.residuals(TOY, DOMAIN, audit.NOTHING)[1] == pytest.approx(expected)
    spread = others.std(0, ddof=1)
    found = audit.in_deviations(TOY, DOMAIN, audit.NOTHING)[1]
    assert found == pytest.approx(expected / spread)


def test_each_document_is_told_by_its_deviations(world):
    found = audit.documents_table(TOY)
    assert len(found) == 2 * len(MODELS) * 4
    assert not found.duplicated(["target_domain", "id", "model"]).any()
    for row in found.to_dict("records"):
        expected = core.LIKE
        if abs(row["deviations"]) > 2:
            expected = core.REMEMBERED if row["deviations"] > 0 else core.BELOW
        assert row["told"] == expected
    assert found.difficulty.gt(0).all() and found.shared.between(0, 1).all()
    assert (found.tokens > 10).all()


def test_causes_are_rank_correlations(world):
    found = audit.causes_table(TOY)
    far = audit.residuals(TOY, DOMAIN, method_paths.ASCENT)
    tokens = audit.features(TOY, DOMAIN)[audit.CAUSE_DIFFICULTY]
    expected = np.mean([stats.spearmanr(each, tokens).statistic for each in far])
    keys = {"target_domain": DOMAIN, "model": method_paths.ASCENT}
    row = one(found, measure=audit.CAUSE_DIFFICULTY, **keys)
    assert row["value"] == pytest.approx(expected)
    knew = found[found.measure == audit.KNEW]
    assert audit.NOTHING not in set(knew.model) and method_paths.ASCENT in set(knew.model)


# ------------------------------------------------------------------------------------- the pool


def test_as_many_models_stand_on_both_sides_and_none_on_both(world):
    for model in MODELS:
        for models_, choices in audit.sides(TOY, DOMAIN, model, "forget").items():
            for ours, theirs in choices:
                assert len(ours) == len(theirs) == models_
                assert not set(ours[:, 0]) & set(theirs[:, 0])


def test_pool_table(world):
    found = audit.pool_table(TOY)
    keys = ["target_domain", "model", "split", "models", "measure"]
    assert found.columns.tolist()[:6] == [*keys, "value"]
    assert not found.duplicated(keys).any()
    assert set(found[found.model == audit.NOTHING].models) == {6, 3}
    assert set(found[found.model == method_paths.ASCENT].models) == {3}
    assert (found["value"] <= found.ceiling + 1e-9).all()
    saw = audit.values_of(TOY, DOMAIN, audit.NOTHING, "forget").reshape(6, 4)
    never = audit.values_of(TOY, DOMAIN, audit.AGAIN, "forget").reshape(6, 4)
    here = {"target_domain": DOMAIN, "model": audit.NOTHING, "split": "forget", "models": 6}
    row = one(found, measure=audit.KLOM_MEAN, **here)
    assert row["value"] == pytest.approx(core.klom(saw, never).mean())
    row = one(found, measure=audit.KLOM, **here)
    assert row["value"] == pytest.approx(np.percentile(core.klom(saw, never), 95))


# ------------------------------------------------------------------------------ equal forgetting


def test_the_mark_is_the_nearest_to_equal_forgetting_on_the_selection_half(world, monkeypatch):
    monkeypatch.setattr(audit_at_equal, "NEAR", np.inf)
    run = method_paths.usual_run(TOY, 2, DOMAIN, method_paths.ASCENT)
    rows = pd.read_parquet(method_paths.path(run, keep=True).path / "rows.parquet")
    truth = method_paths.of_path(TOY, pool.truth_rows(TOY, DOMAIN, 2))
    chosen = truth[(truth.split == "forget") & (truth["rank"] % 2 == 0)]
    exact = chosen.nll.sum() / chosen.tokens.sum()
    gaps = []
    for _, part in rows[rows.id.isin(chosen.id)].groupby("step"):
        gaps.append(abs(part.nll.sum() / part.tokens.sum() - exact))
    found = audit_at_equal.at_equal(run)
    assert found.step.unique().tolist() == [sorted(set(rows.step))[int(np.argmin(gaps))]]
    monkeypatch.setattr(audit_at_equal, "NEAR", min(gaps) / 2)
    assert audit_at_equal.at_equal(run).empty


def test_table_at_equal_forgetting(world, monkeypatch):
    monkeypatch.setattr(audit_at_equal, "NEAR", 5)  # so that the toy's paths come near enough
    audit_at_equal.log_probabilities.cache_clear()
    found = audit_at_equal.equal_table(TOY)
    assert not found.duplicated(["target_domain", "model", "measure"]).any()
    keys = {"target_domain": DOMAIN, "model": audit.NOTHING}
    drawn = audit_at_equal.sample_of(TOY, DOMAIN)
    assert len(drawn.ids) == 2  # of the report half
    saw, never = [], []
    for replicate in TOY.replicates:
        pairs = pool.pairs(TOY, DOMAIN, replicate)
        for side, into in (("target", saw), ("retrained", never)):
            models_ = [pool.trained_model(TOY, pair._asdict()[side]) for pair in pairs]
            rows = [pool.rows_of_domain(TOY, model, DOMAIN) for model in models_]
            into.append([-drawn.values(one, "nll") / drawn.values(one, "tokens") for one in rows])
    saw, never = np.array(saw), np.array(never)
    expected = (saw[:, 0] > never[:, 1]).mean()
    assert one(found, measure=audit_at_equal.AREA, **keys)["value"] == pytest.approx(expected)
    ours = {"target_domain": DOMAIN, "model": method_paths.ASCENT}
    assert one(found, measure=audit_at_equal.REACHED, **ours)["value"] == 1
    shares = [one(found, measure=audit.SHARE_OF + word, **ours)["value"] for word in audit.WORDS]
    assert sum(shares) == pytest.approx(1)
    saved = {}
    monkeypatch.setattr(plots, "save", lambda *given: saved.update({given[2]: given[1]}))
    reading.shares_figure(TOY, found)
    bars = saved["fig20_shares"].axes[0].patches
    assert len(bars) == 3 * len(MODELS)
    assert [bar.get_width() for bar in bars[1 :: len(MODELS)]] == pytest.approx(shares)
    shown = reading.correlations(found)
    assert audit.CAUSE_DIFFICULTY in shown.columns
    assert reading.at_equal(found, audit_at_equal.AREA).shape == (2 * len(MODELS), 1)


def test_a_path_that_does_not_come_near_has_no_value(world, monkeypatch):
    monkeypatch.setattr(audit_at_equal, "NEAR", -1.0)
    audit_at_equal.log_probabilities.cache_clear()
    rows = audit_at_equal.rows_of_model(TOY, DOMAIN, method_paths.ASCENT)
    audit_at_equal.log_probabilities.cache_clear()
    by_measure = {row.keys["measure"]: row.draws for row in rows}
    assert (by_measure[audit_at_equal.REACHED] == 0).all()
    assert np.isnan(by_measure[audit_at_equal.AREA]).all()


# ---------------------------------------------------------------------------------- the metrics


def test_faithfulness_of_single_documents_and_of_sets(world):
    found = metrics_audited.faithfulness_table(TOY)
    assert set(found.axis) == {metrics_audited.POOL}
    keys = ["axis", "setting", "target_domain", "of", "measure"]
    assert not found.duplicated(keys).any()
    margin = found[(found.measure == "margin") & (found.target_domain == DOMAIN)]
    by_kind = margin.set_index("of")["value"]
    own = audit.values_of(TOY, DOMAIN, audit.NOTHING, "forget")[:, :, None]
    never = audit.values_of(TOY, DOMAIN, audit.AGAIN, "forget")[:, None]
    assert by_kind[metrics_audited.DOCUMENT] == pytest.approx((own > never).mean())
    assert by_kind[metrics_audited.SET] == pytest.approx((own.mean(-1) > never.mean(-1)).mean())


def test_a_setting_of_elsewhere_has_the_rows_of_its_main_pair(world):
    setting = elsewhere.Setting("exposures", 12, TOY, DOMAIN, True, 4)
    rows = metrics_audited.setting_rows(setting)
    names = {row.keys["measure"] for row in rows}
    assert "margin" not in names and metrics_audited.LOSS in names
    assert all(row.draws.shape == (3, 21) for row in rows)


def test_agreement_is_kendall_s_tau(world):
    found = metrics_audited.agreement_table(TOY)
    assert (found[found.measure == found.other]["value"] == 1).all()
    values = found.pivot(index=["target_domain", "measure"], columns="other", values="value").loc[
        DOMAIN
    ]
    pd.testing.assert_frame_equal(values, values.T, check_names=False)
    assert found["value"].dropna().between(-1, 1).all()


# --------------------------------------------------------------------------- reading the committed


def test_every_profile_but_study_reads_the_committed_table(table, monkeypatch, capsys):
    monkeypatch.setattr(plots, "is_committed", lambda name: name == audit.TABLE)
    monkeypatch.setattr(plots, "committed", lambda name: table)
    assert audit.table_of(profiles.SMOKE, audit.TABLE, toys.refuse) is table
    assert capsys.readouterr().out == "table20_audit: of the committed study\n"
    assert audit.table_of(profiles.SMOKE, audit.POOLED, toys.refuse).empty
    said = capsys.readouterr().out
    assert audit.table_of(profiles.STUDY, audit.POOLED, lambda profile: profile.name) == "study"
    assert said.startswith("table20_pool: not available") and said.count("\n") == 1


# ------------------------------------------------------------------------------ reading the tables


def test_figures_and_tables_to_read(table, world, monkeypatch):
    saved = {}
    monkeypatch.setattr(plots, "save", lambda *given: saved.update({given[2]: given[1]}))
    reading.told_figure(TOY, table)
    areas = saved["fig20_told"].axes
    assert [ax.get_title() for ax in areas] == ["arxiv", "github"]
    documents = audit.documents_table(TOY)
    reading.documents_figure(TOY, documents)
    drawn = []
    for line in saved["fig20_documents"].axes[0].lines:
        drawn += list(np.asarray(line.get_xdata(), float))
    own = documents[documents.target_domain == DOMAIN].deviations
    assert set(own.round(6)) <= set(np.round(drawn, 6))
    shown = reading.by_model(table, audit.LIRA)
    assert shown.index.tolist()[: len(MODELS)] == [(DOMAIN, model) for model in MODELS]
    counts = reading.remembered_by(documents)
    assert counts.sum(axis=1).tolist() == [4, 4] and counts.columns.tolist() == [0, 1, 2]


def test_of_no_table_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(plots, "save", toys.refuse)
    nothing = pd.DataFrame()
    assert reading.told_figure(TOY, nothing) is None
    assert reading.documents_figure(TOY, nothing) is None
    assert reading.faithful_figure(TOY, nothing) is None
    assert reading.by_model(nothing, audit.LIRA) is None
    assert reading.remembered_by(nothing) is None
    assert reading.pooled(nothing, audit.KLOM) is None
    assert reading.causes(nothing) is None
    assert reading.faithful(nothing, "document") is None
    assert reading.agreement(nothing) is None
    assert reading.extremes(nothing) is None
    assert reading.at_equal(nothing, "reached") is None
    assert reading.correlations(nothing) is None
    assert reading.shares_figure(TOY, nothing) is None


def test_agreement_is_read_beside_what_needs_no_retrained_model(world):
    found = reading.agreement(metrics_audited.agreement_table(TOY))
    assert found.columns.tolist()[0] == "needs a retrained model"
    needs = found["needs a retrained model"]
    assert needs[metrics_audited.GAP] == "yes" and needs[metrics_audited.PROXY] == "no"
    assert needs[f"{audit.RMIA}, from 0.5"] == "yes"
    assert metrics_audited.DISTANCE not in found.index
