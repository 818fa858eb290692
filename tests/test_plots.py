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
from unlearn_utils.findings import plots, plots_of_paths
from unlearn_utils.profiles import LAPTOP


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
    assert paths.figures_folder("laptop") == folder and folder.is_dir()
    monkeypatch.delenv("UNLEARN_FIGURES")
    monkeypatch.setattr(paths, "PROJECT", folder)
    assert paths.figures_folder("laptop") == folder / "figures"
    assert paths.figures_folder("smoke") == folder / "runs" / "smoke" / "figures"


def test_a_figure_is_saved_in_the_same_bytes_every_time(folder):
    saved = []
    for _ in range(2):
        figure, (ax,) = plots.panels(1)
        data = pd.DataFrame({"step": [0, 1], "loss": [3.0, 2.0], "model": ["x", "x"]})
        plots.curves(data, "step", "loss", "model", ax).legend()
        plots.save(LAPTOP, figure, "fig99_toy", data)
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
    plots.save(LAPTOP, figure, "empty", pd.DataFrame({"x": [1]}))
    pixels = plt.imread(folder / "empty.png")
    assert (pixels[0, 0] == 1).all()


def test_tables_keep_six_digits(folder):
    data = pd.DataFrame({"name": ["a,b", "c"], "x": [1 / 3, 123456.789], "n": [1234567, 2]})
    plots.save_table(LAPTOP, "t", data)
    assert (folder / "t.csv").read_bytes() == b'name,x,n\n"a,b",0.333333,1234567\nc,123457,2\n'


def test_panels_are_a_row():
    figure, axes = plots.panels(3, width=2)
    assert len(axes) == 3
    assert figure.get_size_inches().tolist() == [6, 2.7]


def test_panels_of_two_rows_come_row_after_row():
    figure, axes = plots.panels(3, width=2, height=1.5, rows=2)
    assert len(axes) == 6
    assert figure.get_size_inches().tolist() == [6, 3]
    assert axes[2].get_position().y0 > axes[3].get_position().y0


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


def test_every_method_has_a_look_of_its_own():
    looks = [plots.method_style(name) for name in methods.every()]
    assert len(set(looks)) == len(methods.every()) == 16
    assert plots.NO_METHOD not in looks


def test_any_number_of_further_methods_since_has_looks_of_their_own(monkeypatch):
    before = {name: plots.method_style(name) for name in methods.every()}
    for number in range(30):
        monkeypatch.setitem(methods.SINCE, f"another_{number}", None)
    looks = {name: plots.method_style(name) for name in methods.every()}
    assert looks.items() >= before.items()
    assert len(set(looks.values())) == len(looks) == 46


def test_any_number_of_further_methods_has_looks_of_their_own(monkeypatch):
    before = {name: plots.method_style(name) for name in methods.METHODS}
    for number in range(60):
        monkeypatch.setitem(methods.METHODS, f"another_{number}", None)
    looks = {name: plots.method_style(name) for name in methods.METHODS}
    assert looks.items() >= before.items()
    assert len(set(looks.values())) == len(looks) >= 67
    assert {colour for colour, _ in looks.values()} == {colour for colour, _ in before.values()}
    _, (ax,) = plots.panels(1)
    plots_of_paths.plane(plane_data(["another_59"]), POINTS, ax)
    assert ax.lines[0].get_marker() == looks["another_59"][1]


# --------------------------------------------------------------------------------------- figures


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


TWO_METHODS = ("gradient_ascent", "ascent_kl_general")
POINTS = pd.DataFrame(
    {
        "model": ["do nothing", "another retrained model", "another retrained model"],
        "forget gap": [-0.8, 0.02, -0.03],
        "damage": [-0.1, 0.01, 0.04],
    }
)


def plane_data(names):
    """Return paths at four places of the way; the last is not reached in most replicates."""
    frames = []
    for number, method in enumerate(names):
        value = np.array([-0.1, 0.1, 0.3, 0.5]) + number
        part = {"method": method, "forget gap": [-0.8, -0.4, 0.0, 0.2], "value": value}
        part |= {"rerun_low": value - 0.05, "rerun_high": value + 0.15, "replicates": [6, 3, 6, 2]}
        frames.append(pd.DataFrame(part))
    return pd.concat(frames, ignore_index=True)


def test_a_plane_shows_paths_as_far_as_half_of_the_replicates_have_them():
    _, (ax,) = plots.panels(1)
    assert plots_of_paths.plane(plane_data(TWO_METHODS), POINTS, ax) is ax
    for number, (line, method) in enumerate(zip(ax.lines[:2], TWO_METHODS, strict=True)):
        colour, marker = plots.method_style(method)
        assert line.get_marker() == marker and same_color(line.get_color(), colour)
        x, y = line.get_xdata(), line.get_ydata()
        assert x[:3].tolist() == [-0.8, -0.4, 0.0]
        assert y[:3] == pytest.approx(np.array([-0.1, 0.1, 0.3]) + number)
        assert np.isnan(y[3])
        corners = ax.collections[number].get_paths()[0].vertices
        assert corners[:, 0].max() == 0.0
        assert corners[:, 1].min() == pytest.approx(number - 0.15)
        assert corners[:, 1].max() == pytest.approx(number + 0.45)


def test_a_plane_shows_the_target_and_the_retrained_models():
    _, (ax,) = plots.panels(1)
    plots_of_paths.plane(plane_data(TWO_METHODS), POINTS, ax, "truth")
    lines = {line.get_label(): line for line in ax.lines}
    assert drawn(lines["do nothing"]) == ([-0.8], [-0.1])
    assert drawn(lines["another retrained model"]) == ([0.02, -0.03], [0.01, 0.04])
    assert drawn(lines["truth"]) == ([0], [0])
    looks = {(line.get_marker(), str(line.get_markerfacecolor())) for line in ax.lines[2:5]}
    assert len(looks) == 3


def test_a_plane_without_a_study_has_no_band():
    _, (ax,) = plots.panels(1)
    data = plane_data(TWO_METHODS[:1]).assign(rerun_low=np.nan, rerun_high=np.nan)
    plots_of_paths.plane(data, POINTS, ax)
    assert len(ax.lines[0].get_xdata()) == 4
    assert not any(len(path.vertices) for path in ax.collections[0].get_paths())


def test_a_line_of_a_plane_is_broken_where_a_path_jumps():
    _, (ax,) = plots.panels(1)
    data = plane_data(TWO_METHODS[:1]).assign(replicates=[6, 2, 6, 6])
    plots_of_paths.plane(data, POINTS, ax)
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False, False]
    assert len(ax.collections[0].get_paths()) == 2
