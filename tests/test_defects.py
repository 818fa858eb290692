"""What the released code's defects do: paths that are set by hand, and the two sides compared.

No model is trained. The last part reads rows of documents through the whole chain.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from unlearn_utils.core import membership
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.findings import defects, plots
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.profiles import PROFILES
from unlearn_utils.study import method_paths, pool, released_code, selection, single_run

PROFILE = replace(PROFILES["smoke"], name="defects", replicates=(1, 2), resamples=20)
DRAWS = 3  # of paths that are set by hand


def drawn(marks, batch=4, total=16, moved=None, auc=0.5):
    """A path by hand, whose gaps are the same on all kinds of text.

    Args:
        marks: the gap at each step, of which 0 is the target; in later draws it is one more.
        batch: of its recipe.
        total: steps of the whole run.
        moved: by step, what is added to the gap on general text.
        auc: at every mark.
    """
    recipe = replace(PROFILE.unlearning, batch=batch)
    steps = np.array(sorted(marks), float)
    level = np.array([marks[int(step)] for step in steps], float)
    gaps = level[None, :, None] + np.arange(DRAWS)[:, None, None] + np.zeros(4)
    for step, more in (moved or {}).items():
        gaps[:, list(steps).index(step), 3] += more
    return Drawn(
        run=single_run.Run(PROFILE, "arxiv", "gradient_ascent", recipe),
        steps=steps,
        gaps={selection.REPORT: gaps, selection.SELECTION: gaps + np.nan},
        auc={selection.REPORT: np.full((DRAWS, len(steps)), auc)},
        extraction=np.zeros((DRAWS, len(steps))),
        total=total,
        ended=steps[-1] < total,
    )


def ratio(found, split="forget"):
    """The log ratio of a comparison in each draw."""
    both = found.gaps["official"] - found.gaps["corrected"]
    return both[:, SPLITS.index(split)]


# --------------------------------------------------------------------------------- where to compare


def test_two_whole_paths_are_compared_at_the_end_of_the_epoch():
    official = drawn({0: -1, 1: 0, 2: 3, 16: 7}, auc=0.8)
    corrected = drawn({0: -1, 1: 0, 8: 2, 16: 5}, auc=0.7)
    found = defects.compare(official, corrected)
    assert found.share == 1
    assert found.gaps["official"].tolist() == [[7.0] * 4, [8.0] * 4, [9.0] * 4]
    assert found.gaps["corrected"].tolist() == [[5.0] * 4, [6.0] * 4, [7.0] * 4]
    assert found.auc["official"] == pytest.approx([0.8] * DRAWS)
    assert found.auc["corrected"] == pytest.approx([0.7] * DRAWS)


def test_a_defect_that_does_nothing_gives_0():
    marks = {0: -1.0, 1: -0.9, 2: -0.5, 5: 0.1, 16: 0.7}
    found = defects.compare(drawn(marks), drawn(marks))
    assert found.share == 1
    assert ratio(found).tolist() == [0.0] * DRAWS
    assert (found.auc["official"] - found.auc["corrected"]).tolist() == [0.0] * DRAWS


@pytest.mark.parametrize("swapped", [False, True])
def test_a_path_that_ended_early_is_compared_where_it_ended(swapped):
    """The other has a mark there too: neither what came later nor what was before counts."""
    short = drawn({0: -1, 1: 0, 2: 3, 4: 9})
    whole = drawn({0: -1, 1: 0, 2: 1, 4: 2, 8: 5, 16: 6})
    pair = (whole, short) if swapped else (short, whole)
    found = defects.compare(*pair)
    assert found.share == 4 / 16
    assert ratio(found) == pytest.approx([-7.0 if swapped else 7.0] * DRAWS)


def test_between_near_marks_a_path_is_interpolated_along_log_steps():
    """Step 4 is half of the way from 2 to 8."""
    short = drawn({0: -1, 1: 0, 4: 9})
    whole = drawn({0: -1, 1: 0, 2: 1.0, 8: 1.2, 16: 6})
    found = defects.compare(short, whole)
    assert found.share == 4 / 16
    assert found.gaps["corrected"][:, 0] == pytest.approx([1.1, 2.1, 3.1])
    assert ratio(found) == pytest.approx([7.9] * DRAWS)


def test_between_marks_that_are_far_from_each_other_it_is_not():
    """On one kind of text alone too. Then both are read at an earlier mark."""
    short = drawn({0: -1, 1: 0, 2: 4, 4: 9})
    for far in (
        drawn({0: -1, 1: 0, 2: 1.0, 8: 1.3, 16: 6}),
        drawn({0: -1, 1: 0, 2: 1.0, 8: 1.2, 16: 6}, moved={8: 0.1}),
    ):
        found = defects.compare(short, far)
        assert found.share == 2 / 16
        assert ratio(found) == pytest.approx([3.0] * DRAWS)


def test_the_path_that_goes_on_may_lend_the_mark():
    """At the end of the short one, 4, the other has jumped; at 3 it has a mark."""
    short = drawn({0: -1, 2: 3.0, 4: 3.2})
    whole = drawn({0: -1, 2: 0, 3: 1, 8: 9, 16: 9})
    found = defects.compare(short, whole)
    assert found.share == 3 / 16
    at_3 = 3 + 0.2 * np.log(3 / 2) / np.log(2)
    assert ratio(found)[0] == pytest.approx(at_3 - 1)


def test_half_the_batch_is_compared_after_the_same_documents():
    """Step 8 of the one is where step 4 of the other is."""
    official = drawn({0: -1, 1: 0, 2: 1, 4: 2, 8: 5}, batch=2, total=32)
    corrected = drawn({0: -1, 1: 0, 2: 1, 4: 3, 8: 9, 16: 9}, batch=4, total=16)
    found = defects.compare(official, corrected)
    assert found.share == 4 / 16
    assert ratio(found) == pytest.approx([2.0] * DRAWS)


def test_a_last_batch_that_is_not_full_ends_the_epoch_on_both_sides():
    """Of 5 documents four and one are 2 steps, two, two and one are 3."""
    official = drawn({0: -1, 1: 0, 2: 1, 3: 8}, batch=2, total=3)
    corrected = drawn({0: -1, 1: 0, 2: 5}, batch=4, total=2)
    found = defects.compare(official, corrected)
    assert found.share == 1
    assert ratio(found) == pytest.approx([3.0] * DRAWS)


@pytest.mark.parametrize(
    ("marks", "batch", "total"),
    [
        ({0: -1}, 4, 16),  # its first losses were no numbers
        ({0: -1, 1: 9}, 2, 32),  # it ended before the other's first mark
    ],
)
def test_a_path_that_ended_at_once_leaves_nothing_to_compare(marks, batch, total):
    whole = drawn({0: -1, 1: -0.9, 2: 1, 16: 6})  # its first mark is near the target
    found = defects.compare(drawn(marks, batch, total), whole)
    assert found.share == 0
    assert np.isnan(ratio(found)).all() and len(ratio(found)) == DRAWS
    assert np.isnan(found.auc["official"]).all()


def test_the_share_is_that_of_the_documents_as_they_are():
    """In a later draw marks are far from each other, which changes nothing."""
    whole = drawn({0: -1, 2: 1.0, 8: 1.2, 16: 6})
    whole.gaps[selection.REPORT][2, 2] += 5
    found = defects.compare(drawn({0: -1, 4: 9}), whole)
    assert found.share == 4 / 16
    assert found.gaps["corrected"][:, 0] == pytest.approx([1.1, 2.1, 3.1 + 2.5])


# -------------------------------------------------------------------------- rows, through the chain

DOCUMENTS = 8  # of a split


def documents():
    """The measured documents of the domain and the general ones; two documents are a family."""
    rows = []
    for split in SPLITS:
        where = "general" if split == "evaluation" else "arxiv"
        for rank in range(DOCUMENTS):
            row = {"id": f"{split}-{rank}", "family": f"{split}-{rank // 4}", "rank": rank}
            rows.append(row | {"domain": where, "split": split, "tokens": 1 + rank})
    return pd.DataFrame(rows)


def model(level, **more):
    """Rows whose loss is `level` nats a token, and by split so much more."""
    rows = documents()
    nats = level + rows.split.map(more).fillna(0.0)
    scores = np.where(rows.split == "forget", -level, -1.0) - 0.01 * rows["rank"]
    return rows.assign(nll=rows.tokens * nats, min_k_40=scores, extraction=0.0)


def path_of(run, steps, ended):
    """Rows and ending of one path; each defect does what it is told here.

    The corrected run ends at 3 nats. An official run with a variant is its number harder on the
    forget set, half of that on general text; for labels that are drawn (7) only in replicate 2, and
    in replicate 1 it ended at once.
    """
    levels = {0: model(2.0)}
    reached = {step: 2.5 for step in (1, 2)} | {steps: 3.0}
    variant = () if run.recipe.variant == "corrected" else run.recipe.variant
    more = float(sum(variant)) * (-1) ** run.replicate
    if variant == (7,) and run.replicate == 1:
        reached, ended = {}, 1
    for step, level in reached.items():
        levels[step] = model(level, forget=more, evaluation=more / 2)
    frames = [rows.assign(step=step) for step, rows in levels.items()]
    return pd.concat(frames, ignore_index=True), ended


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The chain from rows to tables, with paths from `path_of`; tables go to the folder given.

    What is read is the same in every test, and nothing changes it.
    """
    tmp_path = tmp_path_factory.mktemp("world")

    def steps_of_run(run):
        return 16 // run.recipe.batch * run.recipe.epochs

    def make_all(runs, what="paths"):
        assert len(set(runs)) == len(runs)
        made = []
        for number, run in enumerate(runs):
            folder = tmp_path / f"{number}-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            rows, ended = path_of(run, steps_of_run(run), None)
            rows.to_parquet(folder / "rows.parquet")
            (folder / "ended.json").write_text(json.dumps({"ended": ended, "kept": 1}))
            made.append(SimpleNamespace(path=folder))
        return made

    figures = tmp_path / "figures"
    figures.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_FIGURES", str(figures))
        patch.setattr(single_run, "steps_of_run", steps_of_run)
        patch.setattr(method_paths, "make_all", make_all)
        patch.setattr(pool, "target_rows", lambda *_: model(2.0))
        patch.setattr(pool, "truth_rows", lambda *_: model(2.75))
        yield figures


def test_differences_are_what_each_defect_was_told_to_do(world):
    found = defects.differences(PROFILE)
    assert set(found) == {(name, split) for name in released_code.NAMES for split in SPLITS}
    for name, size in (("1 shifted labels", 1), ("2 KL over padding", 2), ("3 half weights", 3)):
        for split, share in (("forget", 1), ("evaluation", 0.5), ("retain", 0)):
            values = found[name, split]
            assert values.shape == (2, 1 + PROFILE.resamples)
            assert values[0] == pytest.approx(-size * share)  # replicate 1
            assert values[1] == pytest.approx(size * share)
    assert found["5 idle first step", "forget"] == pytest.approx(0)


def test_the_effect_is_its_size_in_each_replicate_and_n_the_families_of_the_forget_set(world):
    values, n = defects.effect(PROFILE, "1 shifted labels")
    assert values == pytest.approx(np.ones((2, 1 + PROFILE.resamples)))
    assert n == 2
    values, _ = defects.effect(PROFILE, "5 idle first step")
    assert values == pytest.approx(np.zeros((2, 1 + PROFILE.resamples)))


def test_a_replicate_with_nothing_to_compare_is_said_to_be_so(world):
    """The other is the value, and the column of replicates counts it alone."""
    values, _ = defects.effect(PROFILE, "7 random labels")
    assert np.isnan(values[0]).all() and values[1] == pytest.approx(7)
    table = defects.difference_table(PROFILE).set_index("defect")
    rows = table.loc["7 random labels"].set_index(["split", "measure"])
    forget = rows.loc[("forget", defects.RATIO)]
    assert (forget["value"], forget.replicates) == (pytest.approx(7), 1)
    assert rows.loc[("all", defects.APART), "value"] == 0.5
    assert rows.loc[("all", defects.SHARED), "value"] == 0.5
    others = table.drop("7 random labels")
    assert set(others[others.measure == defects.APART]["value"]) == {0}
    assert set(others[others.measure == defects.SHARED]["value"]) == {1}


def test_the_table_has_a_row_of_each_text_of_the_auc_and_of_where_it_is_compared(world):
    found = defects.difference_table(PROFILE)
    keys = ["defect", "method", "split", "measure"]
    assert list(found.columns[:5]) == [*keys, "value"]
    assert not found.duplicated(keys).any()
    assert list(dict.fromkeys(found.defect)) == list(released_code.NAMES)
    of_defect = found[found.defect == "2 KL over padding"].set_index("split")
    assert set(of_defect.method) == {"ascent_kl_in_distribution"}
    measures = {defects.RATIO: 4, defects.AUC: 1, defects.SHARED: 1, defects.APART: 1}
    assert of_defect.measure.value_counts().to_dict() == measures
    # forget scores are the level's alone, so the AUC is the same on both sides
    assert of_defect.loc[defects.SIDES, "value"] == 0
    written = pd.read_csv(world / "table13_differences.csv")
    assert written[keys].equals(found[keys])


def test_the_auc_is_the_official_run_s_less_the_corrected_one_s(world, monkeypatch):
    marks = {0: -1, 1: 0, 16: 1}
    pair = {"official": drawn(marks, auc=0.6), "corrected": drawn(marks, auc=0.9)}

    def pairs_drawn(profile, replicate):
        every = released_code.runs(profile, replicate, "arxiv")
        return {key: pair[key[1]] for key in every}

    monkeypatch.setattr(defects, "pairs_drawn", pairs_drawn)
    profile = replace(PROFILE, resamples=DRAWS - 1)
    found = defects.difference_table(profile)
    assert found[found.measure == defects.AUC]["value"].tolist() == pytest.approx([-0.3] * 6)


def test_the_distance_to_retraining_is_told_of_both_codes(world):
    """The corrected run ends at 3 nats, 0.25 above retraining; defect 1 adds 1, or takes it."""
    found = defects.retraining_table(PROFILE)
    assert not found.duplicated(["defect", "method", "code", "measure"]).any()
    of_defect = found[found.defect == "1 shifted labels"].set_index(["code", "measure"])
    values = of_defect["value"]
    assert values["corrected", "forget gap"] == pytest.approx(0.25)
    assert values["corrected", "distance"] == pytest.approx(0.25)
    assert values["official", "forget gap"] == pytest.approx(0.25)  # the mean of -0.75 and 1.25
    first = (0.75 + 0.25 + 0.25 + 0.25) / 4
    second = (1.25 + 0.25 + 0.25 + 0.75) / 4
    assert values["official", "distance"] == pytest.approx((first + second) / 2)


def test_paths_that_ended_before_their_epoch_are_counted(world):
    found = defects.ended_early(PROFILE).set_index("defect")
    assert found.official.to_dict() == {
        name: int(name == "7 random labels") for name in released_code.NAMES
    }
    assert set(found.corrected) == {0}
    assert set(found["of"]) == {2}


def test_the_figure_has_every_path_from_the_target_to_its_end(world):
    data = defects.path_data(PROFILE)
    assert set(data.split) == {"forget", "evaluation"}
    one = data[(data.defect == "1 shifted labels") & (data.replicate == 2)]
    part = one[(one.code == "official") & (one.split == "forget")]
    assert part.epoch.tolist() == [0, 1 / 8, 2 / 8, 1]
    assert np.log(part["value"]).tolist() == pytest.approx([-0.75, 0.75, 0.75, 1.25])
    ax = defects.draw(data[data.defect == "1 shifted labels"], plots.panels(1)[1][0])
    lines = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert len(lines) == 2 * 2 * 2  # replicates, codes, splits
    assert {line.get_linestyle() for line in lines} == {"-", "--"}
    plt.close("all")


# ------------------------------------------------------------------------ defect 11, the evaluation


def test_the_evaluation_is_read_right_and_reversed_for_three_models(world):
    """The target gives every forget document a higher score than the others, but -1: none."""
    found = defects.evaluation_table(PROFILE)
    assert not found.duplicated(["model", "measure"]).any()
    models = ["target", "retrained", "gradient ascent, at its end"]
    assert list(dict.fromkeys(found.model)) == models
    values = found.set_index(["model", "measure"])["value"]
    assert values["target", "AUC"] == 0
    assert values["target", "folded AUC"] == 1
    assert values["target", "TPR"] == 0
    assert values["target", "reversed TPR"] == 1


def test_true_positives_count_documents_as_often_as_they_were_drawn():
    ours = np.array([0.9, 0.5, 0.1])
    theirs = np.linspace(0, 0.8, 10)
    times = np.array([[1, 1, 1], [2, 0, 1], [0, 0, 1]], float)
    other_times = np.ones((3, 10))
    found = defects.true_positives(ours, theirs, times, other_times)
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    first = membership.tpr_at_fpr(ours, theirs, 0.1)
    assert found[0] == first
    # with four others, one of them may exceed the threshold
    few = defects.true_positives(ours, np.array([0.0, 0.2, 0.4, 0.8]), times[:1], np.ones((1, 4)))
    assert few.tolist() == pytest.approx([2 / 3])
