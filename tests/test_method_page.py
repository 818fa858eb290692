"""The pages of the methods, on paths and losses set by hand; and the seven notebooks' one shape."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from unlearn_utils.core import losses
from unlearn_utils.core.methods import METHODS
from unlearn_utils.findings import comparison, draws, method_page, robustness
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.method_page import Look, Passage
from unlearn_utils.profiles import PROFILES
from unlearn_utils.study import costs, extra_measurements, method_paths, pool, selection, single_run

ROOT = Path(__file__).resolve().parents[1]
PROFILE = replace(
    PROFILES["smoke"], name="paged", domains=("arxiv", "github"), replicates=(3, 4), resamples=2
)
DRAWS = 3  # the documents as they are, and two resamples
METHOD, OTHER = "random_label", "gradient_ascent"
TARGET = (-1.0, -0.2, -0.1, 0.0)


def drawn(replicate=3, method=METHOD, steps=(1, 2, 4, 8), gaps=None, shift=(0.0, 0.01, 0.03)):
    """Return a path by hand.

    Args:
        gaps: at each step, of the four kinds of text; None: the forget set's rises by 0.25 a mark.
        shift: what each draw of documents adds to every gap.
    """
    if gaps is None:
        gaps = [(-1 + 0.25 * mark, -0.2, -0.1, 0.0) for mark in range(1, 1 + len(steps))]
    every = np.array([TARGET, *gaps])[None] + np.array(shift)[:, None, None]
    auc = np.linspace(0.9, 0.5, len(every[0])) + np.array(shift)[:, None]
    both = {selection.SELECTION: every + 7, selection.REPORT: every}
    return Drawn(
        run=single_run.Run(PROFILE, "arxiv", method, PROFILE.unlearning, replicate),
        steps=np.array([0.0, *steps]),
        gaps=both,
        auc={half: auc for half in both},
        extraction=np.zeros_like(auc),
        total=8,
        ended=False,
    )


@pytest.fixture
def paths(monkeypatch, tmp_path):
    """Let each method have paths by hand, the same on every domain, and n be 5."""
    known = {method: [drawn(3, method), drawn(4, method)] for method in METHODS}
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path))
    monkeypatch.setattr(comparison, "usual", lambda profile, domain, method: known[method])
    monkeypatch.setattr(robustness, "smallest_n", lambda profile, domains: 5)
    monkeypatch.setattr(draws, "auc", lambda *_: np.full(DRAWS, 0.5))
    monkeypatch.setattr(pool, "truth_rows", lambda *_: None)
    monkeypatch.setattr(comparison, "retrained_again", lambda *_: [])
    return known


def keys(table):
    left = list(table.columns[: table.columns.get_loc("value")])
    return table[left].to_dict("records")


# ---------------------------------------------------------------------------- a page and its code


def test_pages_are_numbered_as_the_notebooks_are():
    numbers = {method: method_page.page(method) for method in METHODS}
    assert list(numbers.values())[:7] == ["03", "04", "05", "06", "07", "08", "09"]
    for path in sorted((ROOT / "notebooks").glob("0[3-9]_*.ipynb")):
        assert path.stem[:2] == numbers[parameters(path)["METHOD"]]


@pytest.mark.parametrize("function", [method_page.page, lambda m: method_page.settings(PROFILE, m)])
def test_an_unknown_method_is_answered_with_the_names(function):
    with pytest.raises(ValueError, match="unknown method 'typo'.*gradient_ascent.*ascent_kl"):
        function("typo")


def test_settings_are_those_of_the_path_not_of_one_epoch():
    profile = replace(PROFILE, grid=replace(PROFILE.grid, usual_epochs=7))
    told = method_page.settings(profile, "gradient_ascent")
    assert told.startswith("Gradient ascent: minimises minus the cross-entropy of the forget text")
    assert "epochs=7" in told


def example(one):
    """Say something.

    one: thing.
    """
    # a comment stays
    return one


def bare(one):
    return one


def test_code_is_the_source_without_the_docstring():
    printed = method_page.code(example, bare)
    assert printed == (
        "def example(one):\n    # a comment stays\n    return one\n\n\n"
        "def bare(one):\n    return one"
    )


def test_code_of_a_loss_is_a_function_still():
    printed = method_page.code(losses.kl_loss)
    (function,) = ast.parse(printed).body
    assert function.name == "kl_loss" and ast.get_docstring(function) is None
    assert "return total / count" in printed


# ---------------------------------------------------------------------------------- its own path


def test_steps_of_the_figure():
    assert method_page.steps_shown(8) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert method_page.steps_shown(1) == [0, 1]
    found = method_page.steps_shown(45)
    assert found[-2:] == [36, 45] and len(found) == 16


def test_path_data_are_means_over_replicates(paths):
    paths[METHOD][1] = drawn(4, gaps=[(-0.35, 0, 0, 0), (0.0, 0, 0, 0)], steps=(1, 8))
    data = method_page.path_data(PROFILE, METHOD)
    forget = data[(data.target_domain == "github") & (data.split == "forget")].set_index("step")
    assert forget.loc[0, "value"] == pytest.approx(-1.0)
    assert forget.loc[1, "value"] == pytest.approx((-0.75 - 0.35) / 2)
    assert forget.loc[8, "value"] == pytest.approx((0.0 + 0.0) / 2)
    assert (forget.replicates == 2).all()


def test_rows_of_the_path_do_not_depend_on_where_it_ends(paths):
    whole = method_page.path_data(PROFILE, METHOD)
    paths[METHOD][0] = drawn(3, steps=(1, 2))
    shorter = method_page.path_data(PROFILE, METHOD)
    assert keys(whole) == keys(shorter)
    late = shorter[shorter.step > 2]
    assert set(late.replicates) == {1} and len(late) == 2 * 4 * 5


def test_a_line_ends_where_the_first_path_ends():
    rows = []
    for step, value, replicates in [(0, -1.0, 2), (1, -0.5, 2), (2, 0.5, 1)]:
        for split in ("forget", "approximate", "retain", "evaluation"):
            row = {"step": step, "split": split, "value": value, "replicates": replicates}
            rows.append({**row, "low": value - 1, "high": value + 1})
    _, ax = plt.subplots()
    method_page.draw_path(pd.DataFrame(rows), 2, "retrained", ax)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["forget"].get_xydata().tolist() == [[0, -1.0], [1, -0.5]]
    assert list(lines["retrained"].get_ydata()) == [0, 0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "2"]
    plt.close()


def test_the_figure_and_its_data_are_saved(paths, tmp_path):
    method_page.path_figure(PROFILE, METHOD)
    plt.close("all")
    assert {path.name for path in tmp_path.iterdir()} == {
        "fig04_path.csv",
        "fig04_path.png",
        "fig04_path.pdf",
    }
    assert len(pd.read_csv(tmp_path / "fig04_path.csv")) == 2 * 4 * 8


# ----------------------------------------------------------------------------------- one passage


def rows_of(losses_of):
    """Return forget rows of ranks 0, 1, ... with these nats a token, of 10 or 20 tokens."""
    count = len(losses_of)
    tokens = np.where(np.arange(count) < 3, 10, 20)
    frame = {"id": [f"d{rank}" for rank in range(count)], "rank": range(count), "split": "forget"}
    rows = pd.DataFrame({**frame, "tokens": tokens, "nll": tokens * np.array(losses_of)})
    unseen = rows.assign(split="approximate", nll=0.0, id="u" + rows.id)
    return pd.concat([rows, unseen], ignore_index=True).sample(frac=1, random_state=0)


def test_the_passage_is_what_was_memorised_most_by_token_in_the_report_half(monkeypatch):
    """Of ranks 1, 3 and 5 the differences are 2, 3 and 2.5 nats a token; of rank 4 it is 9."""
    asked = []

    def target_rows(profile, domain, replicate):
        asked.append((domain, replicate))
        return rows_of([1, 1, 1, 1, 1, 1])

    monkeypatch.setattr(pool, "target_rows", target_rows)
    monkeypatch.setattr(pool, "truth_rows", lambda *_: rows_of([1, 3, 1, 4, 10, 3.5]))
    assert method_page.best_remembered(PROFILE, "github") == "d3"
    assert asked == [("github", 3)]


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Let models have token losses by hand: 1 nat of the target, 2 after, 3 of the retrained."""
    known = {"target": 1.0, "path": 2.0, "retrained": 3.0}
    stored = {name: SimpleNamespace(name=name, path=tmp_path / name) for name in known}
    stored["path"].path.mkdir()
    (stored["path"].path / "ended.json").write_text('{"ended": null, "kept": 7}')

    def token_losses(profile, model, domain, document):
        assert (domain, document) == ("arxiv", "d3")
        texts = ["", *(f" {number}" for number in range(200))]
        nll = np.full(201, known[model.name])
        nll[0] = np.nan
        return pd.DataFrame({"position": range(201), "token": texts, "nll": nll})

    def make_all(runs):
        (run,) = runs
        assert run == method_paths.usual_run(PROFILE, 3, "arxiv", METHOD) or run.profile.hub
        return [stored["path"]]

    monkeypatch.setattr(method_page, "best_remembered", lambda profile, domain: "d3")
    monkeypatch.setattr(method_paths, "make_all", make_all)
    monkeypatch.setattr(pool, "target", lambda profile, replicate: stored["target"])
    monkeypatch.setattr(pool, "retrained", lambda profile, domain, replicate: stored["retrained"])
    monkeypatch.setattr(extra_measurements, "token_losses", token_losses)
    monkeypatch.setattr(extra_measurements, "rows_of", lambda artifacts: artifacts[0])
    return stored


def test_a_passage_before_after_and_by_the_retrained_model(read):
    found = method_page.passage(PROFILE, METHOD)
    titles = [look.title for look in found.looks]
    assert titles == ["before (the target)", "after 7 steps", "retrained"]
    assert [look.mean for look in found.looks] == [1.0, 2.0, 3.0]
    assert all(len(look.tokens) == 73 for look in found.looks)
    assert "gone 50%" in found.in_words


def test_a_published_model_has_no_retrained_one_to_show(read):
    published = replace(PROFILES["gpu"], domains=("arxiv", "github"))
    found = method_page.passage(published, METHOD)
    assert [look.title for look in found.looks] == ["before (the target)", "after 7 steps"]
    assert found.in_words == "There is no retrained model to compare with."


@pytest.mark.parametrize(("kept", "title"), [(1, "after 1 step"), (None, "after no step")])
def test_the_step_that_was_kept_is_named(read, kept, title):
    ended = json.dumps({"ended": 1, "kept": kept})
    (read["path"].path / "ended.json").write_text(ended)
    assert method_page.passage(PROFILE, METHOD).looks[1].title == title


def passage_of(tokens, nll):
    looks = []
    for title in ("before", "after", "retrained"):
        looks.append(Look(title, list(tokens), np.array(nll, float)))
        nll = np.array(nll) + 1.0
    return Passage("an-id", tuple(looks))


def shades(text):
    """Return (text, colour) of each coloured token of the first passage."""
    first = re.search(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL)[1]
    found = re.findall(
        r'<span style="background-color: (#\w+);[^>]*>(.*?)</span>', first, re.DOTALL
    )
    return [(token, colour) for colour, token in found]


def test_each_token_has_the_colour_of_its_loss():
    nll = [np.nan, 0.0, 0.49, 0.5, 1.0, 2.0, 3.99, 4.0, 6.0, 20.0]
    shown = shades(passage_of("abcdefghij", nll)._repr_html_())
    places = [method_page.SHADES.index(colour) for _, colour in shown]
    assert places == [0, 0, 1, 2, 3, 3, 4, 5, 5]
    assert [token for token, _ in shown] == [*"bcdefg", "<b>h</b>", "<b>i</b>", "<b>j</b>"]


def test_the_legend_has_every_colour_once():
    text = passage_of("a", [1.0])._repr_html_()
    legend = text[: text.index("<pre")]
    for shade, words in zip(
        method_page.SHADES,
        ["0 to 0.5", "0.5 to 1", "1 to 2", "2 to 4", "4 to 6", "6 or more"],
        strict=True,
    ):
        assert re.search(rf"{shade}; color: #000000\">(<b>)?{words}<", legend)


def test_text_of_documents_is_escaped():
    text = passage_of(["<script>", "a\n", "&"], [1.0, 1.0, 5.0])._repr_html_()
    assert "<script>" not in text
    assert [token for token, _ in shades(text)] == ["&lt;script&gt;", "a↵\n", "<b>&amp;</b>"]


def test_a_notebook_gets_colours_and_a_terminal_gets_brackets():
    """Without colours the hard tokens can still be told from the others, neighbours together."""
    bundle, _ = DisplayFormatter().format(passage_of(["so", " far", " off", "!"], [1, 4, 5, 0.1]))
    assert "background-color" in bundle["text/html"]
    assert "so⟦ far off⟧!" in bundle["text/plain"]
    assert "before: mean 2.52 nats a token, 2 of 4 tokens at 4 or more" in bundle["text/plain"]
    assert "before: mean 2.52 nats a token, 2 of 4 tokens at 4 or more" in bundle["text/html"]
    assert "gone 50%" in bundle["text/html"] and "gone 50%" in bundle["text/plain"]


def test_what_is_not_predicted_counts_for_nothing():
    look = Look("x", ["", "a", "b"], np.array([np.nan, 1.0, 5.0]))
    assert look.in_words == "x: mean 3.00 nats a token, 1 of 2 tokens at 4 or more"


# ----------------------------------------------------------------------------- speed, price, damage


def test_steps_at_levels_by_hand():
    """Marks are at steps 1, 2, 4, 8, a quarter of a nat each, so levels lie on them."""
    path = drawn(shift=(0.0, 0.125, 0.0))
    assert method_page.step_at(path, -0.5) == pytest.approx([2, 1.5, 2])
    assert method_page.step_at(path, 0.0) == pytest.approx([8, 6, 8])
    assert np.isnan(method_page.step_at(path, 0.25)).all()


def test_a_jump_has_no_step():
    path = drawn(gaps=[(-0.9, 0, 0, 0), (-0.1, 0, 0, 0)], steps=(1, 2))
    assert np.isnan(method_page.step_at(path, -0.5)).all()


def test_speed_of_a_path_that_slows_down():
    found = method_page.speed(drawn(shift=(0, 0, 0)))
    assert found["steps from -0.75 to -0.5"] == pytest.approx(1)
    assert found["steps from -0.5 to -0.25"] == pytest.approx(2)
    assert found["steps from -0.25 to 0"] == pytest.approx(4)
    assert np.isnan(found["steps from 0 to 0.25"]).all()
    assert found["gap gained in the first half of the path"] == pytest.approx(0.75)
    assert found["gap gained in the second half of the path"] == pytest.approx(0.25)
    assert found["gap at its last step"] == pytest.approx(0.0)


@pytest.mark.filterwarnings("error")
def test_speed_of_a_path_of_one_step():
    found = method_page.speed(drawn(steps=(1,), shift=(0, 0, 0)))
    assert found["gap gained in the first half of the path"] == pytest.approx(0.25)
    assert found["gap gained in the second half of the path"] == pytest.approx(0.0)


def test_speed_table_averages_over_replicates(paths, tmp_path):
    paths[METHOD][1] = drawn(4, steps=(2, 4, 8, 16))
    table = method_page.speed_table(PROFILE, METHOD)
    here = table[table.target_domain == "arxiv"].set_index("measure")
    assert here.loc["steps from -0.5 to -0.25", "value"] == pytest.approx((2 + 4) / 2)
    assert here.loc["steps at 0 / steps at -0.5", "value"] == pytest.approx(4)
    assert here.loc["steps from 0 to 0.25", "replicates"] == 0
    assert (tmp_path / "table04_particular.csv").exists()


def test_price_is_a_rise_for_a_rise():
    """From the target to a gap of -0.25 the forget set rises by 0.75, general text by 0.2."""
    gaps = [(-0.75, 0, 0, 0), (-0.5, 0, 0, 0), (-0.25, 0.1, 0.05, 0.2), (0, 1, 1, 1)]
    found = method_page.price(drawn(gaps=gaps, shift=(0, 0, 0)), -0.25)
    assert found[0] == pytest.approx([1, 0.3 / 0.75, 0.15 / 0.75, 0.2 / 0.75])


def test_price_of_retraining_is_what_the_target_had_learned():
    found = method_page.price_of_retraining(drawn(shift=(0, -1, 0)))
    assert found[0] == pytest.approx([1, 0.2, 0.1, 0])
    assert found[1] == pytest.approx([1, 1.2 / 2, 1.1 / 2, 1 / 2])


def test_prices_are_compared_by_draw(paths, monkeypatch):
    """Both methods' prices differ from draw to draw, their difference does not."""

    def price(drawn, level):
        more = 0.1 if drawn.run.method == METHOD else 0.0
        return np.array([[1, 0.2, 0, 0], [1, 0.9, 0, 0], [1, 0.1, 0, 0]]) + more

    monkeypatch.setattr(method_page, "price", price)
    table = method_page.price_table(PROFILE, METHOD, OTHER)
    here = table[(table.target_domain == "github") & (table["kind of text"] == "unseen text")]
    here = here.set_index("model")
    assert here.loc[METHOD, "value"] == pytest.approx(0.3)
    assert here.loc[METHOD, "high"] > 0.5
    difference = here.loc["difference", ["value", "low", "high"]]
    assert difference.tolist() == pytest.approx([0.1] * 3)
    assert here.loc["retraining", "value"] == pytest.approx(0.2)
    assert len(table) == 2 * 3 * 4


def test_differences_are_paired_by_draw_and_by_replicate(paths, monkeypatch):
    """Damage varies with draw and replicate; 0.2 more in each is 0.2, without an interval."""

    def at_level(drawn, level):
        more = 0.2 if drawn.run.method == METHOD else 0.0
        values = np.array([0.1, 0.9, 0.4]) * drawn.run.replicate + more
        return dict.fromkeys([*method_page.COMPARED, comparison.DOMAIN_DAMAGE], values)

    monkeypatch.setattr(comparison, "at_level", at_level)
    table = method_page.difference_table(PROFILE, METHOD, OTHER)
    compared = table[table["less"] == OTHER]
    assert len(compared) == 2 * 3 * 4
    for column in ("value", "low", "high"):
        assert compared[column].tolist() == pytest.approx([0.2] * len(compared))


def test_the_damage_to_the_domain_is_beside_that_to_general_text(paths):
    gaps = [(-1 + 0.25 * mark, 0.05, -0.01, -0.1) for mark in range(1, 5)]
    paths[METHOD][:] = [drawn(3, gaps=gaps), drawn(4, gaps=gaps)]
    table = method_page.difference_table(PROFILE, METHOD, OTHER)
    own = table[(table["less"] == "damage to general text") & (table["forget gap"] == 0)]
    assert own.measure.tolist() == ["damage to the domain"] * 2
    assert own["value"].tolist() == pytest.approx([0.02 + 0.1] * 2)
    unseen = table[(table.measure == "damage to unseen text") & (table["forget gap"] == 0)]
    assert unseen["value"].tolist() == pytest.approx([0.05 + 0.2] * 2)


def test_a_replicate_that_does_not_come_there_has_no_difference(paths):
    paths[OTHER][1] = drawn(4, steps=(1, 2))
    table = method_page.difference_table(PROFILE, METHOD, OTHER)
    compared = table[table["less"] == OTHER]
    assert set(compared[compared["forget gap"] == -0.5].replicates) == {2}
    assert set(compared[compared["forget gap"] == 0.0].replicates) == {1}
    own = table[table["less"] != OTHER]
    assert set(own.replicates) == {2}
    whole = dict.fromkeys(METHODS, [drawn(3), drawn(4)])
    paths.update(whole)
    assert keys(table) == keys(method_page.difference_table(PROFILE, METHOD, OTHER))


def test_differences_to_read(paths):
    shown = method_page.difference_to_read(method_page.difference_table(PROFILE, METHOD, OTHER))
    assert list(shown.columns) == [
        "unseen text",
        "retain text",
        "general text",
        "AUC",
        "domain - general text, its own",
    ]
    assert list(shown.index)[:3] == [("arxiv", -0.5), ("arxiv", -0.25), ("arxiv", 0.0)]
    assert shown.iloc[0]["AUC"].startswith("0.00 [")


# ------------------------------------------------------------------------- cost, equal forgetting


def test_cost_is_of_retraining_of_others_and_of_the_method(monkeypatch, tmp_path):
    flops = {costs.RETRAINING: 6e9, METHOD: 2e8, OTHER: 1e8}

    def counted(profile, domain, method):
        return pd.DataFrame(
            [{"method": method, "target_domain": domain, "parameters": 1, "flops": flops[method]}]
        ).assign(tokens=5, estimate=1.0, steps=2)

    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path))
    monkeypatch.setattr(costs, "flops", counted)
    monkeypatch.setattr(extra_measurements, "rows_of", pd.concat)
    monkeypatch.setattr(method_page, "side_by_side", lambda artifacts, workers: None)
    table = method_page.cost_table(PROFILE, METHOD, [OTHER])
    assert keys(table)[:3] == [
        {"target_domain": "arxiv", "method": name} for name in (costs.RETRAINING, OTHER, METHOD)
    ]
    assert table["value"].tolist() == [6e9, 1e8, 2e8] * 2
    assert len(pd.read_csv(tmp_path / "table04_cost.csv")) == 6
    shown = method_page.cost_to_read(table, METHOD)
    assert shown.loc["github", f"retraining / {METHOD}"] == "30"
    assert shown.loc["github", f"{METHOD} / {OTHER}"] == "2"


def test_equal_forgetting_to_read(paths):
    paths[METHOD][1] = drawn(4, steps=(1, 2))
    table = method_page.equal_table(PROFILE, METHOD)
    shown = method_page.equal_to_read(PROFILE, METHOD, table)
    assert list(shown.columns) == [
        "paths that reach it",
        "unseen text",
        "retain text",
        "general text",
        "AUC over retrained",
    ]
    assert shown["paths that reach it"].tolist() == ["2 of 2", "1 of 2", "1 of 2"] * 2
    assert shown.loc[("arxiv", 0.0), "unseen text"].startswith("-0.20 [")
    assert shown.loc[("arxiv", 0.0), "AUC over retrained"].startswith("0.00 [")


def test_summary_is_a_line_a_domain(paths):
    table = method_page.equal_table(PROFILE, METHOD)
    lines = method_page.summary(PROFILE, METHOD, table)
    assert [line.split(":")[0] for line in lines] == ["arxiv", "github"]
    assert "at a gap of -0.25 on the forget set (2 of 2 paths reach it)" in lines[0]
    assert re.search(r"unseen text -0\.20 \[.*AUC over retrained \+0\.10 \[", lines[0])
    assert lines[0].endswith("n = 5 families")


def test_summary_of_paths_that_never_come_there(paths):
    paths[METHOD] = [drawn(replicate, gaps=[TARGET] * 4) for replicate in (3, 4)]
    table = method_page.equal_table(PROFILE, METHOD)
    for line in method_page.summary(PROFILE, METHOD, table):
        assert line.endswith("(0 of 2 paths reach it): nothing to report")


# -------------------------------------------------------------------------------- seven notebooks

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[3-9]_*.ipynb"))
PARTICULAR = 5  # the place among code cells of what is particular
SHARED = ("## Setup", "## Result", "## Compared with retraining")


def sources(path, kind):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def parameters(path):
    (first, *_) = sources(path, "code")
    values = {}
    for statement in ast.parse(first).body:
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    return values


def without_choices(path):
    """Return a page's code without what may differ: method, formula, particular, cost's others."""
    found = sources(path, "code")
    found[0] = found[0].replace(parameters(path)["METHOD"], "")
    found[1] = re.sub(r"^from .*\n|method_page\.code\(.*\)", "", found[1], flags=re.MULTILINE)
    found[PARTICULAR - 1] = ""
    found[PARTICULAR] = re.sub(r", \[\".*\"\]", "", found[PARTICULAR])
    return found


def test_there_is_a_page_for_each_method():
    assert [parameters(path)["METHOD"] for path in NOTEBOOKS] == list(METHODS)[: len(NOTEBOOKS)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_pages_have_one_shape(path):
    assert without_choices(path) == without_choices(NOTEBOOKS[0])
    for heading in SHARED:
        (ours,) = [text for text in sources(path, "markdown") if text.startswith(heading)]
        assert ours in sources(NOTEBOOKS[0], "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_is_short_and_shows_its_figure(path):
    number = method_page.page(parameters(path)["METHOD"])
    words = sources(path, "markdown")
    assert len(words) + len(sources(path, "code")) <= 18
    assert f"(../figures/study/fig{number}_path.png)" in words[0] and "**Finding.**" in words[0]
    written = [name for name in re.findall(r"\b\w+_table\(", "".join(sources(path, "code")))]
    assert len(written) == 3
