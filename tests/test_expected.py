"""The comparison with the committed values, in the words that end a run."""

import pytest

from unlearn_utils.runner import expected
from unlearn_utils.runner.expected import EXACT, INTERVAL, NOT_COMPARED, RERUN, Result

TRAINED = "domain,method,value,low,high,n,replicates,rerun_low,rerun_high,rank,verdict\n"


@pytest.fixture
def project(tmp_path):
    """A project with the folder of `laptop`, and what writes a table there."""
    (tmp_path / "figures").mkdir()

    def write(name, text):
        (tmp_path / "figures" / f"{name}.csv").write_text(text)

    return tmp_path, write


def said(root):
    return expected.comparison(root, root / "figures").splitlines()


# -------------------------------------------------------------------------------------- one value


@pytest.mark.parametrize(
    ("committed", "how"),
    [
        (Result("0.5", "0.4", "0.6", "0.3", "0.7"), RERUN),
        (Result("0.5", "0.5", "0.5", "0.3", "0.7"), RERUN),
        (Result("", "", "", "0.3", "0.7"), NOT_COMPARED),
        (Result("1", "0.9", "1", "1", "1"), NOT_COMPARED),
        (Result("0.5", "0.5", "0.5"), EXACT),
        (Result("60"), EXACT),
        (Result(""), NOT_COMPARED),
        (Result("0", "0", "-0.0"), EXACT),
        (Result("0.5", "0.4", "0.6"), INTERVAL),
        (Result("0.5", "0.4", ""), INTERVAL),
    ],
)
def test_how_a_value_is_compared(committed, how):
    assert expected.kind(committed) == how


@pytest.mark.parametrize(
    ("committed", "found", "agrees"),
    [
        (Result("0.5", "0.45", "0.55", "0.3", "0.7"), "0.7", True),
        (Result("0.5", "0.45", "0.55", "0.3", "0.7"), "0.71", False),
        (Result("0.5", "0.2", "0.9", "0.45", "0.55"), "0.6", False),
        (Result("0.5", "0.4", "0.6"), "0.4", True),
        (Result("0.5", "0.4", "0.6"), "0.399", False),
        (Result("0.39", "0.4", "0.6"), "0.39", True),  # a percentile interval may miss its value
        (Result("60"), "60.0", True),
        (Result("60"), "60.00001", True),
        (Result("60"), "60.001", False),
        (Result("60", "60", "60"), "61", False),
        (Result("inf"), "inf", True),
        (Result("0"), "-0.0", True),
        (Result(""), "", True),
        (Result(""), "1", False),
        (Result("1"), "", False),
        (Result("", "", "", "0.3", "0.7"), "", True),
        (Result("0.5", "0.4", "0.6", "0.3", "0.7"), "", False),
    ],
)
def test_a_value_agrees(committed, found, agrees):
    assert expected.agrees(committed, Result(found, "0", "99", "0", "99")) == agrees


# ------------------------------------------------------------------------------- keys and the file


def test_expect_keeps_results_and_the_columns_left_of_the_value(project):
    root, write = project
    write("table01_x", TRAINED + "books,a,0.5,0.4,0.6,60,1,0.3,0.7,2,supported\n")
    write("table02_counts", "domain,value,steps\nbooks,1234567,7\n")
    write("table03_samples", "id,text\n1,words\n")
    write("table04_one", "value\n3\n")
    expected.expect(root)
    assert (root / "tests" / "expected" / "laptop.csv").read_text().splitlines() == [
        "table,key,value,low,high,rerun_low,rerun_high",
        "table01_x,domain=books; method=a,0.5,0.4,0.6,0.3,0.7",
        "table02_counts,domain=books,1234567,,,,",
        "table04_one,,3,,,,",
    ]


def test_no_result_is_part_of_a_key(project):
    """Rank, verdict, steps and p values may all turn: the row is the same row."""
    root, write = project
    write("table01_x", TRAINED + "books,a,0.5,0.4,0.6,60,1,0.3,0.7,2,supported\n")
    expected.expect(root)
    write("table01_x", TRAINED + "books,a,0.5,0.1,0.9,59,2,0.2,0.8,7,turned\n")
    (line,) = said(root)
    assert line.startswith("Of 1 trained values 1 (100.0%)")


def test_two_rows_of_one_key_are_an_error_that_names_them(project):
    root, write = project
    row = "books,a,0.5,0.4,0.6,60,1,0.3,0.7,{},supported\n"
    write("table01_x", TRAINED + row.format(1) + row.format(2))
    with pytest.raises(ValueError, match="table01_x has two rows with the key 'domain=books; meth"):
        expected.expect(root)
    assert not (root / expected.EXPECTED).exists()


def test_nothing_to_expect_is_an_error(project):
    root, _ = project
    with pytest.raises(FileNotFoundError, match="figures/ holds no table"):
        expected.expect(root)


def test_a_table_of_an_older_file_has_no_rerun_intervals(project):
    root, write = project
    write("table01_x", TRAINED + "books,a,0.5,0.4,0.6,60,1,0.3,0.7,2,supported\n")
    path = root / expected.EXPECTED
    path.parent.mkdir(parents=True)
    path.write_text("table,key,value,low,high\ntable01_x,domain=books; method=a,0.5,0.4,0.6\n")
    (line,) = said(root)
    assert line.startswith("Of 1 values without a rerun interval 1 lie inside")


# ------------------------------------------------------------------------------------ the sentences


def trained(numbers):
    """A table of twenty values that are expected from 0.3 to 0.7."""
    rows = [f"books,{number},{{}},0.4,0.6,60,1,0.3,0.7,1,x\n" for number in range(20)]
    values = [0.5] * 20
    for place, number in numbers.items():
        values[place] = number
    return TRAINED + "".join(row.format(value) for row, value in zip(rows, values, strict=True))


COUNTS = "domain,split,value,n\nbooks,forget,{},60\nbooks,retain,180,60\n"
SAMPLED = "domain,value,low,high\nbooks,{},0.1,0.3\n"


@pytest.fixture
def committed(project):
    """A project whose tables have been made the committed ones."""
    root, write = project
    write("table01_counts", COUNTS.format(60))
    write("table01_blind", SAMPLED.format(0.2))
    write("table02_models", trained({}))
    expected.expect(root)
    return project


def test_all_is_as_committed(committed):
    root, _ = committed
    assert said(root) == [
        "Of 20 trained values 20 (100.0%) lie where a rerun of the training is expected "
        "(95% by construction).",
        "All 2 exact values are equal.",
        "Of 1 values without a rerun interval 1 lie inside the committed 95% interval, which is "
        "over documents alone.",
    ]


def test_what_differs_is_counted_and_named(committed):
    root, write = committed
    write("table01_counts", COUNTS.format(59))
    write("table01_blind", SAMPLED.format(0.4))
    write("table02_models", trained({3: 0.71, 5: 0.31}))
    first, second, third, *listed = said(root)
    assert first.startswith("Of 20 trained values 19 (95.0%) lie where")
    assert second == "1 of 2 exact values differ."
    assert third.startswith("Of 1 values without a rerun interval 0 lie inside")
    assert listed == [
        "  differs: table01_counts, domain=books; split=forget: 59, expected 60",
        "  outside: table02_models, domain=books; method=3: 0.71, expected 0.3 to 0.7",
        "  outside: table01_blind, domain=books: 0.4, expected 0.1 to 0.3",
    ]


def test_ten_at_most_are_named(committed):
    root, write = committed
    write("table02_models", trained(dict.fromkeys(range(13), 0.9)))
    *_, tenth, more = said(root)
    assert "method=9: 0.9" in tenth and more == "  and 3 more"


def test_values_that_are_missing_or_new_are_counted(committed):
    root, write = committed
    write("table01_blind", SAMPLED.replace("books", "arxiv").format(0.2))
    (root / "figures" / "table01_counts.csv").unlink()
    assert said(root)[1:] == [
        "Committed values that are missing here: 3.",
        "New values, without a committed one: 1.",
    ]


# ------------------------------------------------------------------------------------- damage

DAMAGED = {
    "nothing": "",
    "cut short": "table,key,value\ntable01_counts,domain=books; split=forget,60,,\ntable01_bl",
    "cut in a row": "table,key,value,low\ntable01_counts,domain=books\n",
    "something else": '{"a": 1}\n{"b": 2}\n',
    "words": "table,key,value,low,high\ntable01_counts,domain=books; split=forget,sixty,,\n",
    "bytes": b"table,key\xff\n",
    "a folder": None,
}


def damage(path, content):
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_committed_values_are_named(committed, content):
    root, _ = committed
    damage(root / expected.EXPECTED, content)
    (line,) = said(root)
    assert line.startswith(f"Not compared: {root / expected.EXPECTED} ")
    assert line.endswith(f"git checkout -- {expected.EXPECTED}")


OF_CLAIMS = {"other columns": "verdict,study\nsupported,supported\n"}
TABLES = {
    "nothing": "",
    "cut short": "domain,value,low,high\nbooks,0.2,0.",
    "cut in a row": "domain,value,low,high\nbooks,0.2\n",
    "something else": '{"a": 1}\n',
    "words": "domain,value,low,high\nbooks,much,0.1,0.3\n",
    "bytes": b"domain,value\n\xff,1\n",
    "a folder": None,
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_a_damaged_table_is_named_and_the_others_are_compared(committed, content):
    root, _ = committed
    damage(root / "figures" / "table01_blind.csv", content)
    first, second, third = said(root)
    assert first.startswith(f"Not compared: {root / 'figures' / 'table01_blind.csv'} ")
    assert first.endswith("./run_all.sh --only 01 makes it again.")
    assert second.startswith("Of 20 trained values 20")
    assert third == "All 2 exact values are equal."


@pytest.mark.parametrize("content", (TABLES | OF_CLAIMS).values(), ids=TABLES | OF_CLAIMS)
def test_a_damaged_table_of_claims_is_named(project, content):
    root, write = project
    write("table14_claims", "")
    damage(root / "figures" / "table14_claims.csv", content)
    said = expected.verdicts(root / "figures")
    assert said == [] or said[0].startswith("No verdicts: ")


def test_damaged_tables_do_not_become_the_committed_values(committed):
    root, write = committed
    before = (root / expected.EXPECTED).read_text()
    write("table01_blind", TABLES["cut short"])
    with pytest.raises(ValueError, match="table01_blind.csv is no whole table"):
        expected.expect(root)
    assert (root / expected.EXPECTED).read_text() == before


# ----------------------------------------------------------------------------------- the verdicts


CLAIMS = "id,claim,value,verdict,study\n"


def test_verdicts_beside_those_of_the_committed_study(project):
    root, write = project
    rows = [
        "C1,x,1,supported,supported",
        "C2,x,1,inconclusive: A yes; window no,supported",
        "C3,x,1,complete,",
        "C4d,x,1,inconclusive,not supported",
        "F1,x,1,not supported,not supported",
        "F3,x,1,inconclusive: A yes; window no,inconclusive: A no; window yes",
    ]
    write("table14_claims", CLAIMS + "\n".join(rows) + "\n")
    assert expected.verdicts(root / "figures") == [
        "Verdicts: 3 as in the committed study, 2 undecided from one replicate alone (C2, C4d), "
        "none turned."
    ]


def test_verdicts_that_turned_or_that_the_study_leaves_open(project):
    root, write = project
    rows = [
        "C1,x,1,not supported,supported",
        "C2,x,1,supported,not supported",
        "F1,x,1,supported,inconclusive",
    ]
    write("table14_claims", CLAIMS + "\n".join(rows) + "\n")
    assert expected.verdicts(root / "figures") == [
        "Verdicts: 0 as in the committed study, 1 undecided in the study alone (F1), "
        "turned: C1 (committed: supported, here: not supported), "
        "C2 (committed: not supported, here: supported)."
    ]


@pytest.mark.parametrize(
    "table",
    [
        "id,value\nC1,1\n",
        "id,value,verdict\nC1,1,supported\n",
        CLAIMS + "C3,x,1,complete,\n",
    ],
)
def test_no_word_on_verdicts_where_there_is_nothing_to_compare_with(project, table):
    root, write = project
    assert expected.verdicts(root / "figures") == []
    write("table14_claims", table)
    assert expected.verdicts(root / "figures") == []


def test_the_run_says_the_verdicts_after_the_values(project):
    root, write = project
    write("table14_claims", CLAIMS + "C1,x,1,supported,supported\n")
    expected.expect(root)
    assert said(root) == [
        "All 1 exact values are equal.",
        "Verdicts: 1 as in the committed study, none turned.",
    ]
