"""The study elsewhere: what its settings vary and what they leave alone, and the table of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys

from unlearn_utils import profiles
from unlearn_utils.core import distances
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.efficiency import parameter_count
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import SHARE
from unlearn_utils.engine import models
from unlearn_utils.findings import comparison, draws, plots, robustness
from unlearn_utils.findings import elsewhere as findings
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.profiles import Shape, sized
from unlearn_utils.study import (
    elsewhere,
    method_paths,
    parts,
    pool,
    selection,
    single_run,
    study_documents,
)

STUDY = profiles.STUDY
TOY = replace(
    toys.TOY,
    name="toy elsewhere",
    replicates=(1, 2, 3),
    corpus=replace(toys.TOY.corpus, pairs=4, retain=12),
    pretraining=profiles.Pretraining(epochs=2, batch=4),
    grid=replace(toys.TOY.grid, learning_rates=(1e-3, 2e-3), epochs=2, usual_epochs=2),
    domains=("arxiv", "github"),
)
EXPOSURES, SIZES, SHARES = elsewhere.AXES


def by_value(axis):
    """Return the settings of the study on one axis, by their value."""
    return {setting.value: setting for setting in elsewhere.of_axis(STUDY, axis)}


# ---------------------------------------------------------------------------------------- settings


def test_the_study_s_settings():
    assert list(by_value(EXPOSURES)) == [1, 2, 3, 5]
    assert list(by_value(SIZES)) == [225_600, 1_016_960, 2_090_688, 5_803_776]
    assert list(by_value(SHARES)) == [15, 30, 60, 120]
    own = [(one.axis, one.value) for one in elsewhere.settings(STUDY) if one.own]
    assert own == [(EXPOSURES, 5), (SIZES, 1_016_960), (SHARES, 60)]
    domains = {one.axis: one.domain for one in elsewhere.settings(STUDY)}
    assert domains == {EXPOSURES: "arxiv", SIZES: "arxiv", SHARES: "github"}


@pytest.mark.parametrize("shape", [Shape(), sized(64, 2), sized(32, 1, 500, 64)])
def test_parameters_are_those_of_the_model(shape, tokenizer):
    model = models.build(shape, tokenizer, 0)
    assert elsewhere.parameters(shape) == parameter_count(model)


def test_two_replicates_but_of_large_models_one():
    found = {(one.axis, one.value): one.profile.replicates for one in elsewhere.settings(STUDY)}
    alone = [key for key, replicates in found.items() if replicates == (1,)]
    assert alone == [(SIZES, 2_090_688), (SIZES, 5_803_776)]
    assert set(found.values()) == {(1, 2), (1,)}


@pytest.mark.parametrize("axis", elsewhere.AXES)
def test_one_thing_is_varied_at_a_time(axis):
    """But for replicates and the domain of the grid, one field differs, and that of no own setting."""
    varied = {EXPOSURES: ["pretraining"], SIZES: ["shape"], SHARES: ["corpus", "grid"]}[axis]
    for setting in elsewhere.of_axis(STUDY, axis):
        assert setting.profile.grid.domains == (setting.domain,)
        grid = replace(STUDY.grid, domains=(setting.domain,), claimed_domains=(setting.domain,))
        base = replace(STUDY, grid=grid, replicates=setting.profile.replicates)
        differ = [name for name in vars(base) if vars(base)[name] != vars(setting.profile)[name]]
        assert differ == ([] if setting.own else varied)


@pytest.mark.parametrize("axis", elsewhere.AXES)
def test_the_study_s_own_setting_has_the_study_s_models_and_paths(axis):
    (own,) = [setting for setting in elsewhere.of_axis(STUDY, axis) if setting.own]
    profile, domain = own.profile, own.domain
    for replicate in profile.replicates:
        assert pool.target(profile, replicate).path == pool.target(STUDY, replicate).path
        retrained = pool.retrained(profile, domain, replicate)
        assert retrained.path == pool.retrained(STUDY, domain, replicate).path
    known = {}
    for run in method_paths.every_run(STUDY):
        known[method_paths.path(run, method_paths.keeps(run)).path] = run
    runs = elsewhere.runs([own])
    assert len(runs) == 2 * (7 + 2 * 5)
    for run in runs:
        assert method_paths.path(run, method_paths.keeps(run)).path in known


def test_forget_sets_of_all_sizes_are_unlearned_in_as_many_steps(monkeypatch):
    """45 at the usual rate, and 30 in the plane of claim C2. The largest has 60, of which 45 count."""
    steps = {}
    for size, setting in by_value(SHARES).items():
        assert setting.steps == 45
        profile = setting.profile
        documents = size * profile.grid.usual_epochs
        assert size * profile.grid.epochs / profile.unlearning.batch == 30
        steps[size] = documents / profile.unlearning.batch
    assert steps == {15: 45, 30: 45, 60: 45, 120: 60}


# ---------------------------------------------------------------------- documents of resized sets


def documents(profile, domain, split):
    """Return the rows of one split, with texts."""
    return study_documents.data(profile)[domain][split].to_pandas()


@pytest.fixture(scope="module")
def shares():
    """By size: forget and retain documents of github in the study's settings."""
    found = {}
    for size, setting in by_value(SHARES).items():
        splits = ("forget", "retain", "approximate")
        found[size] = {name: documents(setting.profile, "github", name) for name in splits}
    return found


def test_forget_and_retain_documents_are_the_same_together(shares):
    for size, splits in shares.items():
        assert len(splits["forget"]) == size
        assert len(splits["retain"]) == 240 - size
        both = {*splits["forget"].id, *splits["retain"].id}
        assert both == {*shares[60]["forget"].id, *shares[60]["retain"].id}
        assert splits["approximate"].equals(shares[60]["approximate"])


def test_forget_sets_are_nested_and_no_family_is_on_both_sides(shares):
    sizes = sorted(shares)
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        few = shares[smaller]["forget"].id.tolist()
        assert shares[larger]["forget"].id.tolist()[:smaller] == few
    for splits in shares.values():
        assert set(splits["forget"].family).isdisjoint(splits["retain"].family)


def test_what_is_measured_stays(shares):
    """The first 40 retain documents in all settings, and of the forget set the study's own."""
    for size, setting in by_value(SHARES).items():
        rows = method_paths.measured_documents(setting.profile, "github")
        retain = rows[rows.split == "retain"]
        known = shares[60]["retain"]
        assert set(retain.id) <= set(known[known["rank"] < 40].id)
        forget = rows[rows.split == "forget"]
        assert set(forget.id) <= set(shares[60]["forget"].id[:size])
        report = selection.half(forget, selection.REPORT)
        assert len(report) == {15: 7, 30: 15, 60: 30, 120: 30}[size]


def test_retained_documents_are_read_and_forgotten_ones_are_not(shares):
    for size, setting in by_value(SHARES).items():
        forget, retain = single_run.token_ids_of_sides(
            setting.profile, "github", method_paths.CLAIMED
        )
        assert len(forget) == size
        assert len(retain) == 240 - size - 40
        assert set(map(tuple, forget)).isdisjoint(map(tuple, retain))


def test_the_tokenizer_is_the_study_s_and_the_other_models_are_not(shares):
    paths, targets = set(), set()
    for setting in by_value(SHARES).values():
        paths.add(study_documents.tokenizer_artifact(setting.profile).path)
        targets.add(pool.retrained(setting.profile, "github", 1).path)
    assert paths == {study_documents.tokenizer_artifact(STUDY).path}
    assert len(targets) == 4


def test_the_other_domains_stay(shares):
    fewer = by_value(SHARES)[15].profile
    for domain in ("arxiv", "books"):
        assert documents(fewer, domain, "forget").equals(documents(STUDY, domain, "forget"))


# ------------------------------------------------------------------------------ a path cut to size


def a_path(steps, total, ended=False):
    """Return a path of a few draws whose values say their mark."""
    marks = np.arange(len(steps), dtype=float)
    gaps = np.tile(marks[None, :, None], (3, 1, len(SPLITS)))
    areas = np.tile(marks, (3, 1))
    run = method_paths.usual_run(STUDY, 1, "github", method_paths.ASCENT)
    halves = (selection.SELECTION, selection.REPORT)
    return Drawn(
        run=run,
        steps=np.array(steps, float),
        gaps={half: gaps for half in halves},
        auc={half: areas for half in halves},
        extraction=areas,
        total=total,
        ended=ended,
    )


def test_a_longer_path_is_cut_to_the_steps_that_count():
    found = findings.first_steps(a_path([0, 1, 32, 45, 50, 60], total=60), 45)
    assert found.steps.tolist() == [0, 1, 32, 45]
    assert found.total == 45 and not found.ended
    for half in (selection.SELECTION, selection.REPORT):
        assert found.gaps[half].shape == (3, 4, 4)
        assert found.auc[half][0].tolist() == [0, 1, 2, 3]
    assert found.extraction[0].tolist() == [0, 1, 2, 3]


def test_a_path_that_ended_beyond_has_not_ended_within():
    assert not findings.first_steps(a_path([0, 1, 50], total=60, ended=True), 45).ended
    assert findings.first_steps(a_path([0, 1, 40], total=60, ended=True), 45).ended


def test_a_path_of_as_many_steps_stays_as_it_is():
    path = a_path([0, 1, 45], total=45)
    assert findings.first_steps(path, 45) is path


# --------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of a toy study: a setting on each axis beside its own, and a larger model."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        patch.setattr(elsewhere, "EPOCHS", (1,))
        patch.setattr(elsewhere, "SHAPES", ((24, 1),))
        patch.setattr(elsewhere, "PARTS", (2,))
        table = findings.elsewhere_table(TOY)
        written = pd.read_csv(folder / "figures" / "table16_elsewhere.csv")
        assert written.columns.tolist() == table.columns.tolist() and len(written) == len(table)
        yield table


def one(table, **keys):
    """Return the only row with these keys."""
    here = table
    for column, value in keys.items():
        here = here[here[column] == value]
    (row,) = here.to_dict("records")
    return row


def setting_of(axis, own):
    (found,) = [one for one in elsewhere.of_axis(TOY, axis) if one.own is own]
    return found


def test_keys_do_not_depend_on_results(table):
    keys = list(findings.KEYS)
    assert table.columns.tolist()[:5] == keys
    assert table.columns[5] == "value"
    assert not table.duplicated(keys).any()
    sizes = table.groupby(["axis", "setting"], sort=False).size()
    alone = (SIZES, elsewhere.parameters(sized(24, 1, 400, 48)))
    # without a noise floor, which needs two replicates
    assert {key: 26 - (key == alone) for key in sizes.index} == sizes.to_dict()
    assert list(sizes.index) == [
        (EXPOSURES, 1),
        (EXPOSURES, 2),
        (SIZES, 11600),
        alone,
        (SHARES, 4),
        (SHARES, 8),
    ]


def test_replicates_are_those_of_the_setting(table):
    biased = table[table.measure == findings.BIAS]
    expected = [2, 2, 2, 1, 2, 2]
    assert biased.replicates.tolist() == expected
    assert biased.by_replicate.map(lambda text: len(text.split())).tolist() == expected


def test_the_study_s_own_setting_is_the_same_on_both_axes_of_its_domain(table):
    of_exposures = table[(table.axis == EXPOSURES) & (table.setting == 2)]
    of_sizes = table[(table.axis == SIZES) & (table.setting == 11600)]
    columns = table.columns[2:]
    pd.testing.assert_frame_equal(
        of_exposures[columns].reset_index(drop=True), of_sizes[columns].reset_index(drop=True)
    )


def level(rows, split):
    return selection.log_perplexity(rows, split)


def test_bias_and_memory_are_levels_of_target_less_retrained(table):
    setting = setting_of(SHARES, own=False)
    profile = setting.profile
    biases, memories, levels = [], [], []
    for replicate in (1, 2):
        target = pool.target_rows(profile, "github", replicate)
        retrained = pool.truth_rows(profile, "github", replicate)
        biases.append(level(target, "approximate") - level(retrained, "approximate"))
        memories.append(level(target, "forget") - level(retrained, "forget"))
        levels.append(level(retrained, "approximate"))
    where = {"axis": SHARES, "setting": 8}
    assert one(table, measure=findings.BIAS, **where)["value"] == pytest.approx(np.mean(biases))
    found = one(table, measure=findings.MEMORISED, **where)
    assert found["value"] == pytest.approx(np.mean(memories))
    assert found["value"] < 0
    found = one(table, measure=findings.NOISE, **where)
    assert found["value"] == pytest.approx(np.std(levels, ddof=1))
    assert found["low"] >= 0


def test_differences_of_claim_c2_are_of_its_two_methods(table):
    for measure, over in (("robustness", findings.ROBUST_OVER), ("window", findings.WINDOW_OVER)):
        for axis, value in ((EXPOSURES, 1), (SHARES, 8)):
            where = {"axis": axis, "setting": value}
            ours = one(table, measure=measure, method=method_paths.CLAIMED, **where)["value"]
            ascent = one(table, measure=measure, method=method_paths.ASCENT, **where)["value"]
            less = one(table, measure=over, **where)["value"]
            assert less == pytest.approx(ours - ascent, abs=1e-9)


def test_scores_and_auc_are_of_the_usual_paths(table):
    setting = setting_of(EXPOSURES, own=False)
    for method in METHODS:
        scores, told = [], []
        for drawn in comparison.usual(setting.profile, "arxiv", method):
            gaps = robustness.at_nearest(drawn)
            start = distances.distance(drawn.target(selection.REPORT))
            scores.append(distances.score(distances.distance(gaps), start)[0])
            truth = pool.truth_rows(setting.profile, "arxiv", drawn.run.replicate)
            exact = draws.auc(setting.profile, truth, "arxiv", selection.REPORT)[0]
            told.append(comparison.at_level(drawn, 0.0)["AUC"][0] - exact)
        where = {"axis": EXPOSURES, "setting": 1, "method": method}
        found = one(table, measure=findings.SCORE, **where)
        assert found["value"] == pytest.approx(np.mean(scores), abs=1e-9)
        found = one(table, measure=findings.DETECTED, **where)
        if np.isfinite(told).any():
            assert found["value"] == pytest.approx(np.nanmean(told))
        else:
            assert np.isnan(found["value"])


def test_the_least_detected_is_least_in_each_replicate(table):
    detected = table[(table.measure == findings.DETECTED) & (table.replicates == 2)]
    checked = 0
    for _, part in detected.groupby(["axis", "setting"]):
        least = part[part.method == findings.LEAST]
        if len(least):
            assert (
                least["value"].item() <= part[part.method != findings.LEAST]["value"].min() + 1e-9
            )
            checked += 1
    assert checked


def test_shares_are_cut_to_their_range(table):
    shares = table[table.measure.isin([findings.SCORE, findings.ROBUST, findings.WINDOW])]
    assert (shares.low >= SHARE.least).all() and (shares.high <= SHARE.most).all()


def test_the_table_is_filled_part_by_part(monkeypatch):
    filled = []
    monkeypatch.setattr(parts, "fill", lambda profile, name: filled.append((profile, name)))
    monkeypatch.setattr(elsewhere, "settings", lambda profile: [])
    monkeypatch.setattr(plots, "save_table", lambda *_: None)
    findings.elsewhere_table(TOY)
    assert filled == [(TOY, "exposures"), (TOY, "sizes"), (TOY, "shares")]


# --------------------------------------------------------------------------- reading the committed


def test_every_profile_but_study_reads_the_committed_table(table, monkeypatch, capsys):
    monkeypatch.setattr(plots, "committed", lambda name: {"table16_elsewhere": table}[name])
    monkeypatch.setattr(findings, "elsewhere_table", toys.refuse)
    for name in ("smoke", "laptop", "gpu"):
        assert findings.table_of(profiles.profile(name)) is table
        said = capsys.readouterr().out
        assert said == "of the committed study, not measured in this run\n"

    monkeypatch.setattr(findings, "elsewhere_table", lambda profile: profile.name)
    assert findings.table_of(STUDY) == "study"
    assert capsys.readouterr().out == "measured in this run\n"


def test_without_a_committed_study_it_says_so_and_the_rest_shows_nothing(monkeypatch, capsys):
    def missing(name):
        raise FileNotFoundError(f"no table {name}")

    monkeypatch.setattr(plots, "committed", missing)
    monkeypatch.setattr(plots, "save", toys.refuse)
    found = findings.table_of(profiles.SMOKE)
    assert capsys.readouterr().out == "not available: no table table16_elsewhere\n"
    assert found.empty and found.columns.tolist()[:6] == [*findings.KEYS, "value"]
    assert findings.to_read(found, findings.BIAS) is None
    assert findings.order_of_methods(found) is None
    assert findings.figure(profiles.SMOKE, found, findings.BIAS, "none") is None
    assert findings.of_measures(found, findings.BIAS).empty


def test_places_of_methods_are_by_score(table):
    found = findings.order_of_methods(table)
    assert found.index.tolist() == list(METHODS)
    assert found.columns.tolist()[0] == (EXPOSURES, "1")
    scores = table[(table.axis == EXPOSURES) & (table.setting == 1)]
    scores = scores[scores.measure == findings.SCORE].set_index("method")["value"]
    places = found[EXPOSURES, "1"]
    for method in METHODS:
        assert places[method] == 1 + (scores > scores[method]).sum()


def test_measures_side_by_side(table):
    found = findings.to_read(table, findings.BIAS, findings.NOISE)
    assert found.columns.tolist() == [findings.BIAS, findings.NOISE]
    assert found.index.tolist()[-1] == (SHARES, "8", "github")
    alone = (SIZES, findings.short(elsewhere.parameters(sized(24, 1, 400, 48))), "arxiv")
    assert found.loc[alone, findings.NOISE] == ""


def test_a_figure_has_a_panel_for_each_axis_with_every_value(table, monkeypatch):
    saved = {}

    def save(profile, figure, name, data):
        saved[name] = (figure, data)

    monkeypatch.setattr(plots, "save", save)
    findings.figure(profiles.SMOKE, table, findings.SCORE, "fig")
    figure, data = saved["fig"]
    assert set(data.measure) == {findings.SCORE}
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "epochs of pre-training (arxiv)",
        "parameters of the model (arxiv)",
        "documents of the forget set (github)",
    ]
    for ax, axis in zip(figure.axes, elsewhere.AXES, strict=True):
        shown = set()
        for line in ax.lines:
            shown |= set(np.round(np.asarray(line.get_ydata(), float), 6))
        values = data[data.axis == axis]["value"].round(6)
        assert set(values) <= shown
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(METHODS)


def test_a_value_of_one_replicate_is_hollow():
    rows = pd.DataFrame(
        {
            "axis": SIZES,
            "setting": [10, 20],
            "target_domain": "arxiv",
            "method": "target",
            "value": [0.1, 0.2],
            "low": 0.0,
            "high": 0.3,
            "replicates": [2, 1],
            "by_replicate": ["0.05 0.15", "0.2"],
        }
    )
    _, axes = plots.panels(1)
    findings.draw(rows, axes[0])
    faces = {}
    for line in axes[0].lines:
        if line.get_marker() == "o" and len(line.get_xdata()) == 1:
            faces[float(line.get_ydata()[0])] = line.get_markerfacecolor()
    assert faces == {0.1: "black", 0.2: "white"}


def test_limits_hold_every_replicate_and_zero():
    found = findings.limits(pd.DataFrame({"by_replicate": ["0.1 0.3", "nan", "0.2"]}))
    assert found == pytest.approx((-0.15, 0.45))
    assert findings.limits(pd.DataFrame({"by_replicate": ["0"]})) == (-0.5, 0.5)


@pytest.mark.parametrize(("number", "text"), [(5, "5"), (225_600, "0.2M"), (5_803_776, "5.8M")])
def test_numbers_on_an_axis(number, text):
    assert findings.short(number) == text
