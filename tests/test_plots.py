"""Figures by the data they hold and the bytes they write."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from unlearn_utils.cache import paths
from unlearn_utils.core import methods
from unlearn_utils.findings import plots


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path / "new" / "figures"))
    yield tmp_path / "new" / "figures"
    plt.close("all")


def drawn(line):
    """Return the points of a line."""
    return line.get_xdata().tolist(), line.get_ydata().tolist()


# ----------------------------------------------------------------------------------------- files


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
        saved.append({path.name: path.read_bytes() for path in folder.iterdir()})
        for path in folder.iterdir():
            path.unlink()
    first, second = saved
    assert first.keys() == {"fig99_toy.png", "fig99_toy.pdf", "fig99_toy.csv"}
    assert first == second
    png = first["fig99_toy.png"]
    assert png[1:4] == b"PNG" and b"Software" not in png
    assert int.from_bytes(png[16:20], "big") == 3.1 * 200  # its width
    assert b"CreationDate" not in first["fig99_toy.pdf"]


def test_a_saved_figure_is_opaque_white(folder):
    figure, _ = plots.panels(1)
    plots.save(figure, "empty", pd.DataFrame({"x": [1]}))
    pixels = plt.imread(folder / "empty.png")
    assert (pixels[0, 0] == 1).all()


def test_tables_keep_six_digits(folder):
    data = pd.DataFrame({"name": ["a,b", "c"], "x": [1 / 3, 123456.789], "n": [1234567, 2]})
    plots.save_table("t", data)
    assert (folder / "t.csv").read_bytes() == b'name,x,n\n"a,b",0.333333,1234567\nc,123457,2\n'


def test_panels_are_a_row():
    figure, axes = plots.panels(3, width=2)
    assert len(axes) == 3
    assert figure.get_size_inches().tolist() == [6, 2.7]


# ----------------------------------------------------------------------------------------- looks


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
    assert looks.items() >= before.items()
    assert len(set(looks.values())) == len(looks) >= 67
    assert {colour for colour, _ in looks.values()} == {colour for colour, _ in before.values()}
    data = pd.DataFrame({"split": ["forget", "evaluation"], "value": 1.0, "low": 0.5, "high": 2.0})
    _, (ax,) = plots.panels(1)
    plots.tradeoff(data.assign(method="another_59", model="unlearned"), ax)
    points = ax.containers[0].lines[0]
    assert points.get_marker() == looks["another_59"][1]
    assert points.get_linestyle() == "None"


# --------------------------------------------------------------------------------------- figures


def trajectory_data():
    frames = []
    for i, split in enumerate(plots.SPLITS):
        value = np.exp(np.arange(4) + i)
        frames.append(pd.DataFrame({"split": split, "step": [0, 1, 4, 15], "value": value}))
    table = pd.concat(frames, ignore_index=True)
    table = table.assign(low=table.value * 0.9, high=table.value * 1.2)
    retrained = pd.DataFrame({"model": ["retrained"], "value": [9.0], "low": [8.0], "high": [11.0]})
    return table, retrained


def test_a_trajectory_shows_its_data():
    _, (ax,) = plots.panels(1)
    data, retrained = trajectory_data()
    assert plots.trajectory(data, retrained, ax) is ax
    assert ax.get_yscale() == "log"
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == [*plots.LABELS.values(), "retrained, forget set"]
    for split, (colour, *_) in plots.SPLITS.items():
        part, line = data[data.split == split], lines[plots.LABELS[split]]
        assert drawn(line) == (part.step.tolist(), part.value.tolist())
        assert same_color(line.get_color(), colour)
    assert set(lines["retrained, forget set"].get_ydata()) == {9.0}
    bands = [band.get_paths()[0].vertices for band in ax.collections]
    for band, split in zip(bands, plots.SPLITS, strict=True):
        part = data[data.split == split]
        assert set(np.round(band[:, 1], 9)) == set(np.round(np.r_[part.low, part.high], 9))
    level = ax.patches[0]
    assert (level.get_y(), level.get_y() + level.get_height()) == (8, 11)


@pytest.mark.parametrize("kept", [4, 0])
def test_a_trajectory_marks_the_step_that_was_kept(kept):
    _, (ax,) = plots.panels(1)
    data, retrained = trajectory_data()
    plots.trajectory(data, retrained, ax, kept=kept)
    line = ax.lines[-1]
    assert (line.get_label(), line.get_marker()) == ("step that was kept", "^")
    assert line.get_xdata().tolist() == [kept]


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
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    one, two = ax.containers
    assert (one.get_label(), two.get_label()) == ("one", "two")
    points, _, (bars,) = one.lines
    others = two.lines[0]
    assert points.get_ydata().tolist() == [1, 2]
    assert others.get_ydata()[0] == 3 and np.isnan(others.get_ydata()[1])
    assert points.get_xdata() == pytest.approx([-0.175, 0.825])
    assert others.get_xdata() == pytest.approx([0.175, 1.175])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.5, 1.25], [2, 2.5]]
    assert same_color(points.get_color(), "red")


def test_curves_show_their_data():
    data = pd.DataFrame(
        {"step": [0, 1, 0, 1], "loss": [3.0, 2.0, 4.0, 1.0], "model": ["x", "x", "a", "a"]}
    )
    _, (ax,) = plots.panels(1)
    plots.curves(data, "step", "loss", "model", ax)
    found = {line.get_label(): drawn(line) for line in ax.lines}
    assert found == {"x": ([0, 1], [3, 2]), "a": ([0, 1], [4, 1])}
    assert list(found) == ["x", "a"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")


TWO_METHODS = ("gradient_ascent", "ascent_kl_general")


def tradeoff_data():
    """Return two methods by two rules; the second's upper bounds miss the value."""
    rows = []
    for number, (method, up) in enumerate(zip(TWO_METHODS, (0.5, -0.1), strict=True)):
        for model, shift in (("unlearned", 0), ("unlearned (oracle)", 10)):
            for split, value in (("forget", 1 + number + shift), ("evaluation", 0.5)):
                rows.append((method, model, split, value, value - 0.25, value + up))
    return pd.DataFrame(rows, columns=["method", "model", "split", "value", "low", "high"])


def test_a_tradeoff_shows_its_data():
    _, (ax,) = plots.panels(1)
    assert plots.tradeoff(tradeoff_data(), ax) is ax
    points = {container.lines[0].get_xdata()[0]: container for container in ax.containers}
    assert list(points) == [1, 11, 2, 12]
    assert all(point.lines[0].get_ydata().tolist() == [0.5] for point in points.values())
    for number, (method, up) in enumerate(zip(TWO_METHODS, (0.5, 0), strict=True)):  # clipped
        colour, marker = plots.method_style(method)
        for x, face in ((1 + number, colour), (11 + number, "white")):  # the oracle's is hollow
            line, _, bars = points[x].lines
            assert line.get_marker() == marker and same_color(line.get_color(), colour)
            assert same_color(line.get_markerfacecolor(), face)
            across, along = (bar.get_segments()[0] for bar in bars)
            assert across == pytest.approx(np.array([[x - 0.25, 0.5], [x + up, 0.5]]))
            assert along == pytest.approx(np.array([[x, 0.25], [x, 0.5 + up]]))
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["retrained", "gradient ascent", "ascent kl general"]
    (cross,) = [line for line in ax.lines if line.get_label() == "retrained"]
    assert drawn(cross) == ([0], [0])


def test_a_roc_shows_its_data():
    data = pd.DataFrame(
        {
            "name": ["target"] * 3 + ["gradient_ascent"] * 2,
            "fpr": [0, 0.1, 1, 0.2, 1],
            "tpr": [0.3, 0.5, 1, 0.4, 1],
        }
    )
    _, (ax,) = plots.panels(1)
    assert plots.roc(data, ax) is ax
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["target"].get_ydata().tolist() == [0.3, 0.5, 1]
    ascent = lines["gradient ascent"]
    assert ascent.get_xdata().tolist() == [0.2, 1]
    assert same_color(ascent.get_color(), plots.method_style("gradient_ascent")[0])
    guess = ax.lines[-1]
    assert drawn(guess) == ([0.1, 1], [0.1, 1])
    assert ax.get_xlim() == (0.1, 1)


def test_the_released_code_s_curves_are_dashed_beside_ours():
    rows = []
    for code in ("corrected", "official"):
        for split in ("forget", "evaluation"):
            for epoch in (0.5, 1.0):
                rows.append((code, split, epoch, epoch + 1))
    data = pd.DataFrame(rows, columns=["code", "split", "epoch", "value"])
    _, (ax,) = plots.panels(1)
    assert plots.official(data, ax) is ax and ax.get_yscale() == "log"
    assert [(line.get_label(), line.get_linestyle()) for line in ax.lines] == [
        ("forget, corrected", "-"),
        ("general, corrected", "-"),
        ("forget, official", "--"),
        ("general, official", "--"),
    ]
    for line, split in zip(ax.lines, ("forget", "evaluation") * 2, strict=True):
        assert drawn(line) == ([0.5, 1], [1.5, 2])
        assert same_color(line.get_color(), plots.SPLITS[split][0])
