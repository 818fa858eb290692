"""Figures of whole paths: what is drawn is the data, in the colours of the methods."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import same_color

from unlearn_utils.core.methods import METHODS
from unlearn_utils.findings import plots, plots_of_paths

FIRST, SECOND = list(METHODS)[:2]


@pytest.fixture
def ax():
    figure, (ax,) = plots.panels(1)
    yield ax
    plt.close(figure)


def curve(method, values):
    taus = [0.0, 0.1, 0.2, 0.3]
    data = pd.DataFrame({"method": method, "tau": taus, "value": values})
    return data.assign(low=data["value"] / 2, high=data["value"] * 2)


def test_profile_curves_have_a_line_a_method_and_bands_where_asked(ax):
    data = pd.concat([curve(FIRST, [0.4, 0.3, 0.1, 0.0]), curve(SECOND, [0.2, 0.0, 0.0, 0.0])])
    assert plots_of_paths.profile_curves(data, ax, banded=[SECOND]) is ax
    assert [line.get_label() for line in ax.lines] == ["gradient ascent", "random label"]
    for line, method in zip(ax.lines, (FIRST, SECOND), strict=True):
        part = data[data.method == method]
        assert line.get_xdata().tolist() == part.tau.tolist()
        assert line.get_ydata().tolist() == part["value"].tolist()
        assert same_color(line.get_color(), plots.method_style(method)[0])
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    banded = data[data.method == SECOND]
    assert (heights.min(), heights.max()) == (banded["low"].min(), banded["high"].max())


def test_profile_curves_end_where_no_setting_is_as_good(ax):
    plots_of_paths.profile_curves(curve(FIRST, [0.4, 0.3, 0.1, 0.0]), ax, [])
    assert ax.get_xlim() == (0.0, 0.2)
    assert ax.get_ylim()[0] == 0.0


def test_profile_curves_of_methods_that_never_help(ax):
    plots_of_paths.profile_curves(curve(FIRST, [0.0] * 4), ax, [])
    assert ax.get_xlim() == (0.0, 1.0)
