"""Tables on rows small enough to compute by hand; figures by the data they hold and the bytes they write."""

import math

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from unlearn_utils.cache import paths
from unlearn_utils.core import methods, tables
from unlearn_utils.findings import plots

ROWS = pd.DataFrame(
    {
        "model": ["a", "a", "a", "b"],
        "split": ["forget", "forget", "retain", "forget"],
        "id": list("wxyz"),
        "family": list("wxyz"),
        "nll": [2.0, 18.0, 5.0, 0.0],
        "tokens": [2, 6, 5, 4],
        "correct": [2, 2, 5, 1],
        "extraction": [0.5, 0.0, 1.0, 0.25],
        "rouge_l": [0.5, 0.75, 0.0, 1.0],
    }
)


def test_summaries_by_hand():
    found = tables.summarise(
        ROWS, ["model", "split"], ["perplexity", "accuracy", "extraction strength"], resamples=20
    )
    assert list(found.columns) == ["model", "split", "measure", "value", "low", "high", "n"]
    value = {
        key: v
        for *key, v in found[["model", "split", "measure", "value"]].itertuples(index=False)
        for key in [tuple(key)]
    }
    assert value == {
        ("a", "forget", "perplexity"): pytest.approx(math.exp(20 / 8)),
        ("a", "forget", "accuracy"): 0.5,
        ("a", "forget", "extraction strength"): 0.25,
        ("a", "retain", "perplexity"): pytest.approx(math.e),
        ("a", "retain", "accuracy"): 1,
        ("a", "retain", "extraction strength"): 1,
        ("b", "forget", "perplexity"): 1,
        ("b", "forget", "accuracy"): 0.25,
        ("b", "forget", "extraction strength"): 0.25,
    }
    assert found.n.tolist() == [2] * 3 + [1] * 6
    one = found[
        (found.model == "a") & (found.split == "forget") & (found.measure == "accuracy")
    ].iloc[0]
    assert (one.low, one.high) == (
        2 / 6,
        1,
    )  # resamples of two documents: the one, the other or both


def test_groups_by_a_single_column():
    assert tables.summarise(
        ROWS, ["model"], ["ROUGE-L"], resamples=20
    ).value.tolist() == pytest.approx([1.25 / 3, 1])
    found = tables.summarise(ROWS, ["model"], ["accuracy"], resamples=20)
    assert found.model.tolist() == ["a", "b"] and found.value.tolist() == pytest.approx(
        [9 / 13, 0.25]
    )


def many(n, shift=0.0, seed=0, copies=1, split="forget"):
    """n families of `copies` documents of 50 tokens, about 2 nats each."""
    rng = np.random.default_rng(seed)
    nll = np.repeat(100 + 10 * rng.normal(size=n) + 50 * shift, copies)
    units = np.repeat(np.arange(n), copies)
    ids = [f"{split}{i}" for i in range(n * copies)]
    data = {
        "id": ids,
        "family": [f"{split} unit {u}" for u in units],
        "split": split,
        "nll": nll,
        "tokens": 50,
        "extraction": nll / 200,
    }
    return pd.DataFrame(
        data
        | {"correct": (nll / 4).astype(int), "model": "m", "min_k_100": -nll / 50, "zlib": -nll}
    )


def test_intervals_hold_the_value_and_repeat_with_the_seed():
    rows = many(60)
    found, again, other = (
        tables.summarise(
            rows,
            ["model"],
            ["perplexity", "accuracy", "extraction strength"],
            seed=s,
            resamples=200,
        )
        for s in (0, 0, 1)
    )
    assert ((found.low < found.value) & (found.value < found.high)).all() and (found.n == 60).all()
    pd.testing.assert_frame_equal(found, again)
    assert found.value.tolist() == other.value.tolist() and found.low.tolist() != other.low.tolist()


def test_intervals_resample_families_not_documents():
    alone, copies = (
        tables.summarise(many(30, copies=c), ["model"], ["perplexity"], resamples=400).iloc[0]
        for c in (1, 8)
    )
    assert copies.n == 30 and copies.value == pytest.approx(alone.value)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.2)


def test_membership_by_hand():
    """4 x 4 pairs; 12 are won and 1 is a tie. Another score, reversed, loses as much: not folded."""
    rows = pd.DataFrame(
        {
            "domain": "d",
            "split": ["forget"] * 4 + ["approximate"] * 4 + ["retain"],
            "family": list("abcdefghi"),
            "min_k_20": [9, 8, 5, 1, 7, 5, 0, -1, 99],
        }
    )
    rows["zlib"] = -rows.min_k_20
    found = tables.auc_table(rows, ["domain"], ["Min-20%", "zlib"], resamples=50)
    # 9 and 8 beat all 4; 5 beats 0 and -1 and ties with 5; 1 beats 0 and -1
    assert found.measure.tolist() == ["AUC Min-20%", "AUC zlib"] and found.value.tolist() == [
        12.5 / 16,
        3.5 / 16,
    ]
    assert (
        found.n.tolist() == [4, 4]
        and (found.low <= found.value).all()
        and (found.value <= found.high).all()
    )


def test_membership_sees_a_difference_only_where_there_is_one():
    for shift, low, high in ((0, 0.35, 0.65), (1.0, 0.95, 1.0)):
        rows = pd.concat([many(50, 0, 1), many(50, shift, 2, split="approximate")])
        (row,) = tables.auc_table(rows, ["model"], ["loss"], resamples=200).itertuples()
        assert low <= row.value <= high and (row.low < 0.5 < row.high) == (shift == 0)


MEMBERS, OTHERS = [8, 8.5, 9, 9.5, 20, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def scored(members=MEMBERS, others=OTHERS, model="m"):
    """A row for each score, each a family of its own; a retain row that plays no part."""
    sides = (
        [("forget", x) for x in members] + [("approximate", x) for x in others] + [("retain", 99)]
    )
    data = {
        "split": [s for s, _ in sides],
        "min_k_40": [x for _, x in sides],
        "family": [f"f{i}" for i in range(len(sides))],
    }
    return pd.DataFrame(data | {"model": model})


@pytest.mark.parametrize(("fpr", "share"), [(0, 0.2), (0.1, 0.4), (0.2, 0.5), (0.5, 0.6), (1, 1.0)])
def test_detected_by_hand(fpr, share):
    """10 x 10. At 10% one non-member, the 9, may pass, so that the threshold is 8: 8.5, 9, 9.5 and 20 are found, the 8 is not."""
    (row,) = tables.tpr_table(scored(), ["model"], "Min-40%", fpr, resamples=50).itertuples()
    assert (row.value, row.n, row.model, row.measure) == (
        share,
        10,
        "m",
        f"TPR at {fpr:.0%} FPR, Min-40%",
    )
    assert 0 <= row.low <= row.high <= 1


def test_detected_is_of_each_group_in_order():
    rows = pd.concat(
        [scored(model="b"), scored([10] * 10, model="a"), scored([-1] * 10, model="c")]
    )
    found = tables.tpr_table(rows, ["model"], "Min-40%", 0.1, resamples=50)
    assert list(found.columns) == ["model", "measure", "value", "low", "high", "n"]
    assert found.model.tolist() == ["b", "a", "c"] and found.value.tolist() == [0.4, 1, 0]
    assert (
        found[["low", "high"]].values.tolist()[1:] == [[1, 1], [0, 0]]
        and found.low[0] < 0.4 < found.high[0]
    )


def test_detected_repeats_with_the_seed_and_refuses_a_rate_that_is_too_fine():
    one, again, other = (
        tables.tpr_table(scored(), ["model"], "Min-40%", 0.1, seed=s, resamples=30)
        for s in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, again)
    assert (
        one.value[0] == other.value[0]
        and one[["low", "high"]].values.tolist() != other[["low", "high"]].values.tolist()
    )
    with pytest.raises(ValueError, match="10 non-members"):
        tables.tpr_table(scored(), ["model"], "Min-40%", 0.05)


def test_detected_resamples_families_not_documents():
    """Each side is one family of ten documents: every resample is the sample itself."""
    rows = scored().assign(family=lambda r: r.split)
    (row,) = tables.tpr_table(rows, ["model"], "Min-40%", 0.1, resamples=30).itertuples()
    assert (row.value, row.low, row.high, row.n) == (0.4, 0.4, 0.4, 1)


def test_kl_is_a_mean_over_documents():
    rows = ROWS.assign(kl=[0.5, 1.5, 4.0, 0.25])
    assert tables.summarise(rows, ["model", "split"], ["KL"], resamples=20).value.tolist() == [
        1,
        4,
        0.25,
    ]


def test_an_unknown_score_is_refused_with_the_titles_that_there_are():
    with pytest.raises(ValueError, match="unknown score 'Min-4%'; choose one of: Min-20%.*zlib"):
        tables.auc_table(scored(), ["model"], ["Min-4%"])
    with pytest.raises(ValueError, match="unknown score 'Min-4%'"):
        tables.tpr_table(scored(), ["model"], "Min-4%", 0.1)


def test_log_ratio_by_hand():
    one, other = ROWS[:2], ROWS[2:3]
    found = tables.log_ratio(one, other, resamples=20)
    assert found.value == pytest.approx(20 / 8 - 1)
    assert tables.log_ratio(one, one.assign(nll=one.nll - one.tokens), resamples=20)[
        :3
    ] == pytest.approx((1, 1, 1))


def test_log_ratio_of_the_same_documents_is_paired_and_narrower():
    rows = many(40)
    easier = rows.assign(nll=0.9 * rows.nll + np.random.default_rng(3).normal(size=40))
    paired, unpaired = (
        tables.log_ratio(rows, easier),
        tables.log_ratio(rows, easier.assign(id=[f"other {i}" for i in easier.id])),
    )
    assert paired.value == unpaired.value > 0 and paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_log_ratio_resamples_families_not_documents():
    def width(copies, paired):
        rows = many(30, copies=copies)
        other = many(30, seed=1, copies=copies).assign(
            id=rows.id if paired else [f"other {i}" for i in rows.id]
        )
        found = tables.log_ratio(rows, other, resamples=400)
        assert found.n == 30
        return found.high - found.low

    for paired in (True, False):
        assert width(8, paired) == pytest.approx(width(1, paired), rel=0.2)


def test_log_ratios_of_the_groups_that_both_have():
    theirs = ROWS.assign(nll=ROWS.nll - 0.5 * ROWS.tokens)
    found = tables.log_ratios(
        ROWS, theirs[theirs.split == "forget"], ["model", "split"], "to retraining", resamples=20
    )
    assert found[["model", "split", "measure", "n"]].values.tolist() == [
        ["a", "forget", "to retraining", 2],
        ["b", "forget", "to retraining", 1],
    ]
    assert found[["value", "low", "high"]].to_numpy() == pytest.approx(
        0.5
    )  # paired: the same in every resample
    alone = tables.log_ratios(ROWS, theirs, ["model"], "x", resamples=20)
    assert alone.model.tolist() == ["a", "b"] and alone.value.tolist() == pytest.approx([0.5, 0.5])


def test_a_row_as_text():
    row = pd.Series({"value": 1.234, "low": -0.996, "high": 10.0, "measure": "x"})
    assert (
        tables.text(row) == "1.23 [-1.00, 10.00]"
        and tables.text(row, 1, "+") == "+1.2 [-1.0, +10.0]"
    )
    assert (
        tables.text(pd.Series({"value": 12345.6, "low": 9999.9, "high": 3.21e12}), 1)
        == "1.2e+04 [9999.9, 3.2e+12]"
    )


def test_wide_tables_keep_the_order_of_appearance():
    rows = [("z", 1, "p", 1.0), ("z", 1, "a", 2.0), ("b", 0, "p", 3.0)]
    table = pd.DataFrame(rows, columns=["model", "seed", "measure", "value"]).assign(
        low=0.0, high=9.0
    )
    found = tables.wide(table, "model", "measure", digits=0)
    assert found.index.tolist() == ["z", "b"] and found.columns.tolist() == ["p", "a"]
    assert found.to_numpy().tolist() == [["1 [0, 9]", "2 [0, 9]"], ["3 [0, 9]", ""]]
    assert tables.wide(table, ["model", "seed"], "measure").index.tolist() == [("z", 1), ("b", 0)]


# ---------------------------------------------------------------------------------------------- plots


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path / "new" / "figures"))
    yield tmp_path / "new" / "figures"
    plt.close("all")


def trajectory_data():
    steps = [0, 1, 4, 15]
    frames = [
        pd.DataFrame({"split": s, "step": steps, "value": np.exp(np.arange(4) + i)})
        for i, s in enumerate(plots.SPLITS)
    ]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(low=table.value * 0.9, high=table.value * 1.2), pd.DataFrame(
        {"model": ["retrained"], "value": [9.0], "low": [8.0], "high": [11.0]}
    )


def test_the_figures_folder_follows_the_environment(folder, monkeypatch):
    assert paths.figures_folder() == folder and folder.is_dir()
    monkeypatch.delenv("UNLEARN_FIGURES")
    monkeypatch.setattr(paths, "PROJECT", folder)
    assert paths.figures_folder() == folder / "figures"


def test_a_figure_is_saved_in_the_same_bytes_every_time(folder):
    saved = []
    for _ in range(2):
        figure, (ax,) = plots.panels(1)
        data, retrained = trajectory_data()
        plots.trajectory(data, retrained, ax).legend()
        plots.save(figure, "fig99_toy", data)
        plt.close(figure)
        saved.append({p.name: p.read_bytes() for p in folder.iterdir()})
        for path in folder.iterdir():
            path.unlink()
    assert (
        saved[0].keys() == {"fig99_toy.png", "fig99_toy.pdf", "fig99_toy.csv"}
        and saved[0] == saved[1]
    )
    png = saved[0]["fig99_toy.png"]
    width = int.from_bytes(png[16:20], "big")
    assert (
        png[1:4] == b"PNG"
        and width == 3.1 * 200
        and b"Software" not in png
        and b"CreationDate" not in saved[0]["fig99_toy.pdf"]
    )


def test_a_saved_figure_is_opaque_white(folder):
    figure, _ = plots.panels(1)
    plots.save(figure, "empty", pd.DataFrame({"x": [1]}))
    pixels = plt.imread(folder / "empty.png")
    assert (pixels[0, 0] == 1).all()


def test_tables_keep_six_digits(folder):
    plots.save_table(
        "t", pd.DataFrame({"name": ["a,b", "c"], "x": [1 / 3, 123456.789], "n": [1234567, 2]})
    )
    assert (folder / "t.csv").read_bytes() == b'name,x,n\n"a,b",0.333333,1234567\nc,123457,2\n'


def test_a_trajectory_shows_its_data():
    _, (ax,) = plots.panels(1)
    data, retrained = trajectory_data()
    assert plots.trajectory(data, retrained, ax) is ax and ax.get_yscale() == "log"
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == [*plots.LABELS.values(), "retrained, forget set"]
    for split, (colour, *_) in plots.SPLITS.items():
        part, line = data[data.split == split], lines[plots.LABELS[split]]
        assert (
            line.get_xdata().tolist() == part.step.tolist()
            and line.get_ydata().tolist() == part.value.tolist()
        )
        assert mpl.colors.same_color(line.get_color(), colour)
    assert set(lines["retrained, forget set"].get_ydata()) == {9.0}
    bands = [band.get_paths()[0].vertices for band in ax.collections]
    for band, split in zip(bands, plots.SPLITS, strict=True):
        part = data[data.split == split]
        assert set(np.round(band[:, 1], 9)) == set(np.round(np.r_[part.low, part.high], 9))
    level = ax.patches[0]
    assert (level.get_y(), level.get_y() + level.get_height()) == (8, 11)


def test_a_trajectory_marks_the_step_that_was_kept():
    _, axes = plots.panels(2)
    for ax, kept in zip(axes, (4, 0), strict=True):
        plots.trajectory(*trajectory_data(), ax, kept=kept)
        line = ax.lines[-1]
        assert (line.get_label(), line.get_marker(), line.get_xdata().tolist()) == (
            "step that was kept",
            "^",
            [kept],
        )


def test_intervals_show_their_data():
    data = pd.DataFrame(
        {
            "domain": ["a", "b", "a"],
            "model": ["one", "one", "two"],  # two has no b
            "value": [1.0, 2.0, 3.0],
            "low": [0.5, 2.1, 2.0],  # 2.1 > 2: the bar is clipped, the point stays
            "high": [1.25, 2.5, 3.5],
        }
    )
    _, (ax,) = plots.panels(1)
    plots.intervals(data, "domain", "model", ax, {"one": "red", "two": "blue"})
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    one, two = ax.containers
    assert (one.get_label(), two.get_label()) == ("one", "two")
    assert one.lines[0].get_ydata().tolist() == [1, 2] and two.lines[0].get_ydata()[0] == 3
    assert np.isnan(two.lines[0].get_ydata()[1])
    assert one.lines[0].get_xdata() == pytest.approx([-0.175, 0.825]) and two.lines[
        0
    ].get_xdata() == pytest.approx([0.175, 1.175])
    (bars,) = one.lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.25], [2, 2.5]]
    assert mpl.colors.same_color(one.lines[0].get_color(), "red")


def test_curves_show_their_data():
    data = pd.DataFrame(
        {"step": [0, 1, 0, 1], "loss": [3.0, 2.0, 4.0, 1.0], "model": ["x", "x", "a", "a"]}
    )
    _, (ax,) = plots.panels(1)
    plots.curves(data, "step", "loss", "model", ax)
    assert [
        (line.get_label(), line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in ax.lines
    ] == [
        ("x", [0, 1], [3, 2]),
        ("a", [0, 1], [4, 1]),
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")


def test_a_tradeoff_shows_its_data():
    """Two methods by two rules: a point each, with both intervals, clipped where they miss the value; the oracle's is hollow."""
    rows = []
    for k, method in enumerate(("gradient_ascent", "ascent_kl_general")):
        for model, shift in (("unlearned", 0), ("unlearned (oracle)", 10)):
            for split, value in (("forget", 1 + k + shift), ("evaluation", 0.5)):
                rows.append(
                    (method, model, split, value, value - 0.25, value + (0.5 if k == 0 else -0.1))
                )
    data = pd.DataFrame(rows, columns=["method", "model", "split", "value", "low", "high"])
    _, (ax,) = plots.panels(1)
    assert plots.tradeoff(data, ax) is ax
    points = {c.lines[0].get_xdata()[0]: c for c in ax.containers}
    assert list(points) == [1, 11, 2, 12] and all(
        c.lines[0].get_ydata().tolist() == [0.5] for c in points.values()
    )
    for k, method in enumerate(("gradient_ascent", "ascent_kl_general")):
        colour, marker = plots.method_style(method)
        for x, face in ((1 + k, colour), (11 + k, "white")):
            line, _, bars = points[x].lines
            assert line.get_marker() == marker and mpl.colors.same_color(line.get_color(), colour)
            assert mpl.colors.same_color(line.get_markerfacecolor(), face)
            up = 0.5 if k == 0 else 0
            across, along = (bar.get_segments()[0] for bar in bars)
            assert across == pytest.approx(np.array([[x - 0.25, 0.5], [x + up, 0.5]]))
            assert along == pytest.approx(np.array([[x, 0.25], [x, 0.5 + up]]))
    assert [label for label in ax.get_legend_handles_labels()[1]] == [
        "retrained",
        "gradient ascent",
        "ascent kl general",
    ]
    cross = next(line for line in ax.lines if line.get_label() == "retrained")
    assert (cross.get_xdata().tolist(), cross.get_ydata().tolist()) == ([0], [0])


def test_a_roc_shows_its_data():
    data = pd.DataFrame(
        {
            "name": ["target"] * 3 + ["gradient_ascent"] * 2,
            "fpr": [0, 0.1, 1, 0.2, 1],
            "tpr": [0.3, 0.5, 1, 0.4, 1],
        }
    )
    _, (ax,) = plots.panels(1)
    assert plots.roc(data, ax) is ax and (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["target"].get_ydata().tolist() == [0.3, 0.5, 1] and lines[
        "gradient ascent"
    ].get_xdata().tolist() == [0.2, 1]
    assert mpl.colors.same_color(
        lines["gradient ascent"].get_color(), plots.method_style("gradient_ascent")[0]
    )
    guess = ax.lines[-1]
    assert guess.get_xdata().tolist() == guess.get_ydata().tolist() == [
        0.1,
        1,
    ] and ax.get_xlim() == (0.1, 1)


def test_the_released_code_s_curves_are_dashed_beside_ours():
    rows = [
        (c, s, e, e + 1)
        for c in ("corrected", "official")
        for s in ("forget", "evaluation")
        for e in (0.5, 1.0)
    ]
    _, (ax,) = plots.panels(1)
    assert (
        plots.official(pd.DataFrame(rows, columns=["code", "split", "epoch", "value"]), ax) is ax
        and ax.get_yscale() == "log"
    )
    found = [
        (
            line.get_label(),
            line.get_linestyle(),
            line.get_xdata().tolist(),
            line.get_ydata().tolist(),
        )
        for line in ax.lines
    ]
    names = (
        ("forget, corrected", "-"),
        ("general, corrected", "-"),
        ("forget, official", "--"),
        ("general, official", "--"),
    )
    assert found == [(name, style, [0.5, 1], [1.5, 2]) for name, style in names]
    for line, split in zip(ax.lines, ("forget", "evaluation") * 2, strict=True):
        assert mpl.colors.same_color(line.get_color(), plots.SPLITS[split][0])


def test_every_method_and_split_has_a_look_of_its_own():
    of_methods = [plots.method_style(name) for name in methods.METHODS][:7]
    for looks in (of_methods, list(plots.SPLITS.values())):
        colours = {look[0] for look in looks}
        markers = {look[-1] for look in looks}
        assert len(colours) == len(markers) == len(looks)
    assert plots.LABELS.keys() == plots.SPLITS.keys()


def test_what_is_no_method_is_black():
    assert {plots.method_style(name) for name in ("target", "retrained")} == {("black", "x")}


def test_any_number_of_further_methods_has_looks_of_their_own(monkeypatch):
    before = {name: plots.method_style(name) for name in methods.METHODS}
    for number in range(60):
        monkeypatch.setitem(methods.METHODS, f"another_{number}", None)
    looks = {name: plots.method_style(name) for name in methods.METHODS}
    assert looks.items() >= before.items() and len(set(looks.values())) == len(looks) >= 67
    assert {colour for colour, _ in looks.values()} == {colour for colour, _ in before.values()}
    data = pd.DataFrame({"split": ["forget", "evaluation"], "value": 1.0, "low": 0.5, "high": 2.0})
    _, (ax,) = plots.panels(1)
    plots.tradeoff(data.assign(method="another_59", model="unlearned"), ax)
    points = ax.containers[0].lines[0]
    assert points.get_marker() == looks["another_59"][1] and points.get_linestyle() == "None"


def test_panels_are_a_row():
    figure, axes = plots.panels(3, width=2)
    assert len(axes) == 3 and figure.get_size_inches().tolist() == [6, 2.7]
