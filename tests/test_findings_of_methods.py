"""The findings of notebooks 03 to 09, against the committed study's numbers."""

import json
import math
import re

import pytest
from committed import ROOT, interval, of_study, value, words

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = {path.stem[:2]: f"notebooks/{path.name}" for path in NOTEBOOKS}
DOMAINS = ("arxiv", "books", "github")
LEVELS = ("-0.5", "-0.25", "0")


def finding(number):
    """The paragraph of a notebook that begins with **Finding.**, as one line."""
    cells = json.loads((ROOT / PAGES[number]).read_text(encoding="utf-8"))["cells"]
    (found,) = [
        paragraph
        for paragraph in "".join(cells[0]["source"]).split("\n\n")
        if paragraph.startswith("**Finding.**")
    ]
    return re.sub(r"\s+", " ", found)


def particular(number, **keys):
    """A row of what is particular to a method."""
    return of_study(f"table{number}_particular", **keys)


def equal(number, domain, level, measure):
    """A row of a method at equal forgetting."""
    keys = {"target_domain": domain, "forget__gap": level, "measure": measure}
    return of_study(f"table{number}_equal", **keys)


def against(number, less, domain, level, measure):
    """A difference at equal forgetting between a notebook's method and another one."""
    keys = {"target_domain": domain, "forget__gap": level, "measure": measure}
    return particular(number, less=less, **keys)


def known_differences(number, less, measure):
    """A difference's rows at the levels where both methods have a value, some on each domain."""
    found = []
    for domain in DOMAINS:
        rows = [against(number, less, domain, level, measure) for level in LEVELS]
        known = [row for row in rows if not math.isnan(row["value"])]
        assert known, domain
        found += known
    return found


def above(row):
    return row["low"] > 0


def below(row):
    return row["high"] < 0


def unclear(row):
    return row["low"] <= 0 <= row["high"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_finding_is_left_to_be_written(path):
    assert "FINDING" not in words(PAGES[path.stem[:2]])


@pytest.mark.parametrize("number", ["03", "04", "05", "06", "07", "08", "09"])
def test_a_finding_says_whose_numbers_it_has(number):
    said = "the committed study's numbers, means over its six replicates, or over those that reach"
    assert finding(number).endswith(f"{said} the gap; brackets are 95% intervals.")


def test_ascent_speeds_up():
    quarters = [f"steps from {way}" for way in ("-0.75 to -0.5", "-0.5 to -0.25", "-0.25 to 0")]
    rows = [particular("03", target_domain="arxiv", measure=quarter) for quarter in quarters]
    first, second, third = (interval(row, digits=1) for row in rows)
    assert f"take {first}, {second} and {third} steps" in finding("03")
    for domain in DOMAINS:
        counts = [
            particular("03", target_domain=domain, measure=quarter)["value"] for quarter in quarters
        ]
        known = [count for count in counts if not math.isnan(count)]
        assert len(known) >= 2
        assert known == sorted(known, reverse=True)


def test_ascent_does_not_spare_other_text():
    retain = equal("03", "arxiv", "0", "damage to retain text")
    general = equal("03", "arxiv", "0", "damage to general text")
    text = "retain text is {} nats harder than retraining leaves it, and general text {}."
    assert text.format(interval(retain), interval(general)) in finding("03")
    assert above(retain) and above(general)


def test_what_random_labels_cost_other_text():
    shown = {
        (kind, model): interval(
            particular("04", target_domain="arxiv", kind__of__text=f"{kind} text", model=model)
        )
        for kind in ("retain", "unseen", "general")
        for model in ("random_label", "difference")
    }
    said = finding("04")
    assert f"costs retain text {shown['retain', 'random_label']} nats" in said
    assert f"unseen text {shown['unseen', 'random_label']} and" in said
    assert f"general text {shown['general', 'random_label']}. Beside" in said
    assert f"unseen text pays {shown['unseen', 'difference']}," in said
    assert f"general text {shown['general', 'difference']} and" in said
    assert f"retain text {shown['retain', 'difference']} more." in said


@pytest.mark.parametrize(
    ("domain", "on_retain_text"), [("arxiv", above), ("books", unclear), ("github", unclear)]
)
def test_what_random_labels_cost_on_each_domain(domain, on_retain_text):
    for kind, found in {"unseen": above, "general": above, "retain": on_retain_text}.items():
        keys = {"target_domain": domain, "kind__of__text": f"{kind} text"}
        assert above(particular("04", model="random_label", **keys))
        difference = particular("04", model="difference", **keys)
        assert found(difference)
        assert (difference["replicates"] == 1) == (domain == "github")


def test_adversarial_labels_slow_down_and_end_short_of_retraining():
    measures = [f"gap gained in the {half} half of the path" for half in ("first", "second")]
    measures.append("gap at its last step")
    rows = [particular("05", target_domain="arxiv", measure=measure) for measure in measures]
    text = "the first half of the steps brings {} nats, the second {}, and the path ends at a gap "
    assert text.format(*map(interval, rows[:2])) + f"of {interval(rows[2])} " in finding("05")
    for domain in DOMAINS:
        first, second, last = (
            particular("05", target_domain=domain, measure=measure) for measure in measures
        )
        assert second["high"] < first["low"]
        assert below(last)


def test_adversarial_labels_do_not_spare_other_text():
    retain = equal("05", "arxiv", "-0.5", "damage to retain text")
    general = equal("05", "arxiv", "-0.5", "damage to general text")
    text = "retain text is {} nats harder than retraining leaves it, and general text {}."
    assert text.format(interval(retain), interval(general)) in finding("05")
    assert above(retain) and above(general)


def test_general_retain_text_spares_general_text_alone():
    general, unseen, retain = (
        interval(against("06", "gradient_ascent", "arxiv", "-0.25", f"damage to {kind} text"))
        for kind in ("general", "unseen", "retain")
    )
    text = f"the differences are {general} on general, {unseen} on unseen and {retain} on retain"
    assert text in finding("06")
    found = {"general": below, "unseen": unclear, "retain": unclear}
    for domain in DOMAINS:
        for kind, sign in found.items():
            measure = f"damage to {kind} text"
            assert sign(against("06", "gradient_ascent", domain, "-0.25", measure))


def test_retain_text_of_the_domain_spares_the_domain():
    less = "ascent_descent_general"
    unseen, retain, general = (
        interval(against("07", less, "arxiv", "-0.25", f"damage to {kind} text"))
        for kind in ("unseen", "retain", "general")
    )
    text = f"the differences are {unseen} on unseen, {retain} on retain and {general} on general"
    assert text in finding("07")
    for kind, sign in {"unseen": below, "retain": below, "general": above}.items():
        assert all(map(sign, known_differences("07", less, f"damage to {kind} text")))


def test_with_retain_text_of_the_domain_it_is_not_retraining():
    for domain in DOMAINS:
        assert equal("07", domain, "0", "reached")["value"] == 1
    retain = equal("07", "arxiv", "0", "damage to retain text")
    detected = equal("07", "arxiv", "0", "AUC over retrained")
    text = f"retain text is {interval(retain)} nats harder than retraining leaves it, and the "
    assert (
        f"{text}AUC of membership inference is {interval(detected)} above the retrained model's."
        in finding("07")
    )
    assert above(retain) and above(detected)


def test_kl_on_general_text_changes_little():
    less = "ascent_descent_general"
    unseen, retain, general = (
        against("08", less, "arxiv", "0", f"damage to {kind} text")
        for kind in ("unseen", "retain", "general")
    )
    said = finding("08")
    assert f"by {interval(unseen)} nats on unseen, {interval(retain)} on retain and" in said
    assert f"{interval(general)} on general text." in said
    rows = []
    for kind in ("unseen", "retain", "general"):
        rows += known_differences("08", less, f"damage to {kind} text")
    assert "does it differ by more than 0.03." in said
    assert max(abs(row["value"]) for row in rows) < 0.03


def test_kl_on_text_of_the_domain_leaves_more_damage_there():
    less = "ascent_descent_in_distribution"
    retain, general, auc = (
        {domain: against("09", less, domain, "0", measure) for domain in DOMAINS}
        for measure in ("damage to retain text", "damage to general text", "AUC")
    )
    shown = {domain: interval(row) for domain, row in retain.items()}
    said = finding("09")
    assert (
        f"{shown['arxiv']} nats more on retain text of `arxiv`, {shown['books']} on `books`" in said
    )
    assert f"on `books` and {shown['github']} on `github`." in said
    assert f"less on `books`, with a difference of {interval(general['books'])};" in said
    assert (
        f"The AUC of membership inference is higher, on `arxiv` by {interval(auc['arxiv'])}."
        in said
    )
    assert all(map(above, [*retain.values(), *auc.values()]))
    assert below(general["books"]) and unclear(general["arxiv"]) and unclear(general["github"])
    for domain in DOMAINS:
        assert above(against("09", less, domain, "0", "damage to unseen text"))


@pytest.mark.parametrize(
    ("number", "descent", "divergence"),
    [
        ("08", "ascent_descent_general", "ascent_kl_general"),
        ("09", "ascent_descent_in_distribution", "ascent_kl_in_distribution"),
    ],
)
def test_what_kl_costs_more(number, descent, divergence):
    table = f"table{number}_cost"
    for domain in DOMAINS:
        flops = [value(table, target_domain=domain, method=m) for m in (descent, divergence)]
        assert f"An epoch costs {flops[1] / flops[0]:.2f} times as many FLOPs." in finding(number)
