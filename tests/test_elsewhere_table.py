"""The table and the figures of notebook 16, from a toy study of a few seconds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys

from unlearn_utils import profiles
from unlearn_utils.core import distances
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.replicates import SHARE
from unlearn_utils.findings import comparison, draws, plots, robustness
from unlearn_utils.findings import elsewhere as findings
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.profiles import sized
from unlearn_utils.study import elsewhere, method_paths, parts, pool, selection

STUDY = profiles.STUDY
METHODS = {method_paths.ASCENT: None, "random_label": None, method_paths.CLAIMED: None}
TOY = replace(
    toys.TOY,
    name="toy elsewhere",
    replicates=(1, 2, 3),
    corpus=replace(toys.TOY.corpus, pairs=4, retain=12),
    pretraining=profiles.Pretraining(epochs=2, batch=4),
    grid=replace(toys.TOY.grid, learning_rates=(1e-3, 2e-3), epochs=2, usual_epochs=2),
    parts=STUDY.parts,
)
EXPOSURES, SIZES, SHARES = elsewhere.AXES
ALONE = elsewhere.parameters(sized(24, 1, 400, 48))  # of the larger model, which has one replicate


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
        for module in (elsewhere, findings):  # three methods are enough here
            patch.setattr(module, "METHODS", METHODS)
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
    # of models 5, of claim C2 6, of three methods 2 each and the least
    assert sizes.to_list() == [18, 18, 18, 17, 18, 18]  # one has no noise floor
    assert list(sizes.index) == [
        (EXPOSURES, 1),
        (EXPOSURES, 2),
        (SIZES, 11600),
        (SIZES, ALONE),
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
    said = capsys.readouterr().out
    assert said.startswith("not available: the committed study has no table16_elsewhere; ./run_all")
    assert said.count("\n") == 1
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
    assert found.loc[(SIZES, str(ALONE), "arxiv"), findings.NOISE] == ""


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
