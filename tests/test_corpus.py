"""The embedded corpus, its manifest, a user's own folder, and how passages were cut and split."""

import gzip
import json
import math
import re
import sys
from itertools import combinations

import datasets
import numpy as np
import pandas as pd
import pytest

from unlearn_utils import profiles
from unlearn_utils.cache import paths
from unlearn_utils.data import corpus, manifest, sources
from unlearn_utils.data.curation import passages, splits
from unlearn_utils.data.curation.passages import Passage

READ_HERE = {
    "file": "networkx/classes/graph.py",
    "lines": "1-3",
    "sha256": sources.hash_text(sources.read_lines("networkx/classes/graph.py", "1-3")),
}
SIZES = {"forget": 60, "approximate": 60, "retain": 180}
EXPECTED = {d: SIZES for d in ("arxiv", "books", "github")} | {
    "general": {"evaluation": 40, "retain": 140}
}


@pytest.fixture(scope="module")
def embedded():
    return {domain: corpus.embedded(domain) for domain in EXPECTED}


# ------------------------------------------------------------------------------ the embedded corpus


@pytest.mark.parametrize("domain", EXPECTED)
def test_each_domain_has_the_hub_dataset_s_splits_and_the_default_sizes(embedded, domain):
    assert {split: len(d) for split, d in embedded[domain].items()} == EXPECTED[domain]
    for data in embedded[domain].values():
        assert data.column_names == [*corpus.COLUMNS, "as_committed"]
        table = data.to_pandas()
        assert (
            table["rank"].tolist() == list(range(len(table)))
            and table.text.str.len().between(750, 1000).all()
        )
        assert not (table[["id", "package", "version", "file", "licence"]] == "").any(axis=None)


def test_text_is_as_committed_but_for_the_books_of_another_python(embedded):
    same = {}
    for domain, splits_of_domain in embedded.items():
        flags = [flag for data in splits_of_domain.values() for flag in data["as_committed"]]
        same[domain] = all(flags)
    assert same == dict.fromkeys(EXPECTED, True) | {"books": manifest.is_as_committed()}


def test_no_document_is_in_two_splits_and_no_family_in_two_splits_of_a_domain(embedded):
    seen = [row["text"] for domain in embedded.values() for data in domain.values() for row in data]
    assert len(set(seen)) == len(seen)
    for domain in embedded.values():
        families = [set(data["family"]) for data in domain.values()]
        assert all(a.isdisjoint(b) for a, b in combinations(families, 2))


def test_held_out_documents_are_one_a_family(embedded):
    for domain, found in embedded.items():
        held = [f for split in found if split != "retain" for f in found[split]["family"]]
        assert len(set(held)) == len(held), domain
        most = max(pd.Series(found["retain"]["family"]).value_counts())
        assert most <= splits.PER_FAMILY[domain]


def test_pairs_are_alike():
    """Forget and approximate of a rank are of one stratum, but for pairs at a stratum's edge."""
    table = pd.read_csv(paths.MANIFEST)
    for domain in corpus.DOMAINS:
        own = table[table.domain == domain]
        one, other = (
            own[own.split == s].set_index("rank").stratum for s in ("forget", "approximate")
        )
        assert set(one.index) == set(other.index) == set(range(60))
        shuffled = np.mean([one[r] == other[(r + 1) % 60] for r in range(60)])
        assert np.mean([one[r] == other[r] for r in range(60)]) > shuffled + 0.2


def test_held_out_text_is_hardly_found_in_another_split(embedded):
    """Of 13-grams: the most is 17 of 75, a passage of networkx."""
    for domain in embedded.values():
        own = {
            (split, row["id"]): splits.grams(row["text"])
            for split, data in domain.items()
            for row in data
        }
        for a in own:
            rest = set().union(*(own[b] for b in own if b[0] != a[0]))
            assert a[0] == "retain" or len(own[a] & rest) < 0.25 * len(own[a]), a


def test_a_smaller_corpus_is_the_first_ranks_of_the_larger(embedded):
    small = corpus.load("embedded", "arxiv", pairs=3, retain=5)
    assert {s: len(d) for s, d in small.items()} == {"forget": 3, "approximate": 3, "retain": 5}
    for split, data in small.items():
        assert data["id"] == embedded["arxiv"][split]["id"][: len(data)]
    assert {
        s: len(d) for s, d in corpus.load("embedded", "general", general=4, evaluation=2).items()
    } == {"evaluation": 2, "retain": 4}


def test_domains_and_default_sizes_are_those_of_the_profiles():
    assert profiles.DOMAINS == corpus.DOMAINS
    default = profiles.Corpus()
    assert (
        len(
            manifest.first_ranks(default.pairs, default.retain, default.general, default.evaluation)
        )
        == 3 * 300 + 180
    )


# Ten retain documents of a domain, by family; the first two are measured.
FAMILIES = ["a", "b", "b", "c", "c", "c", "d", "a", "e", "f"]


def small_domain():
    """Three forget documents and as many unseen ones, and the retain documents of `FAMILIES`."""
    families = {"forget": list("uvw"), "approximate": list("xyz"), "retain": FAMILIES}
    found = datasets.DatasetDict()
    for split, of_split in families.items():
        ids = [f"{split}{rank}" for rank in range(len(of_split))]
        rows = {"id": ids, "family": of_split, "rank": list(range(len(of_split)))}
        found[split] = datasets.Dataset.from_dict(rows)
    return found


def test_a_smaller_forget_set_is_the_first_documents_and_the_others_are_retained():
    before = small_domain()
    after = corpus.resized(before, 1, measured=2)
    assert after["forget"]["id"] == ["forget0"]
    assert after["retain"]["id"] == [*before["retain"]["id"], "forget1", "forget2"]
    assert after["retain"]["rank"] == list(range(12))
    assert after["approximate"]["id"] == before["approximate"]["id"]
    assert len(before["forget"]) == 3


def test_a_larger_forget_set_takes_whole_families_of_which_none_is_measured():
    """Two are measured, of the families a and b. Of the others c has three documents, d has one."""
    after = corpus.resized(small_domain(), 7, measured=2)
    joined = ["retain3", "retain4", "retain5", "retain6"]
    assert after["forget"]["id"] == ["forget0", "forget1", "forget2", *joined]
    assert after["forget"]["rank"] == list(range(7))
    assert after["retain"]["id"] == [f"retain{rank}" for rank in (0, 1, 2, 7, 8, 9)]
    assert after["retain"]["rank"] == [0, 1, 2, 7, 8, 9]  # a measured document stays measured


def test_a_family_that_does_not_fit_is_passed_over():
    """Two documents are wanted: c, which has three, is left, and d and e join."""
    after = corpus.resized(small_domain(), 5, measured=2)
    assert after["forget"]["id"][3:] == ["retain6", "retain8"]


def test_a_forget_set_that_is_larger_than_there_are_documents_is_refused():
    with pytest.raises(ValueError, match="larger by 7 needs as many retain .* there are 6"):
        corpus.resized(small_domain(), 10, measured=2)


def test_a_forget_set_of_its_own_size_is_as_it_was():
    before = small_domain()
    after = corpus.resized(before, 3, measured=2)
    for split, data in before.items():
        assert after[split].to_dict() == data.to_dict()


@pytest.fixture
def another_text(monkeypatch, tmp_path):
    """A machine on which one retain passage of arxiv reads otherwise, and a stand-in for curation.

    The stand-in's manifest is the committed one with the hash of what is read here.
    """
    committed = manifest.committed()
    wanted = (
        (committed.domain == "arxiv") & (committed.split == "retain") & (committed["rank"] == 2)
    )
    changed = committed[wanted].iloc[0]
    real = sources.read_lines
    calls = []

    def read(file, lines):
        other = (file, lines) == (changed.file, changed.lines)
        return real(file, lines) + ("!" if other else "")

    def curate(found):
        calls.append(found)
        table = manifest.committed()
        table.loc[wanted, "sha256"] = sources.hash_text(read(changed.file, changed.lines))
        return table

    monkeypatch.setattr(sources, "read_lines", read)
    monkeypatch.setattr(splits, "curate", curate)
    monkeypatch.setattr(passages, "candidates", lambda lock: {"lock": lock})
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    manifest.of_this_machine.cache_clear()
    yield calls
    manifest.of_this_machine.cache_clear()


def test_where_a_passage_reads_otherwise_the_corpus_is_curated_anew_once(another_text, tmp_path):
    found = corpus.embedded("arxiv", 4, 4, 4, 4)
    assert found["retain"]["as_committed"] == [True, True, False, True]
    assert all(found["forget"]["as_committed"]) and not manifest.is_as_committed()
    assert another_text == [{"lock": paths.LOCK}]
    manifest.of_this_machine.cache_clear()  # as in another process
    again = corpus.embedded("arxiv", 4, 4, 4, 4)
    assert again["retain"]["text"] == found["retain"]["text"] and len(another_text) == 1
    (file,) = (tmp_path / "runs" / "corpus").glob("*.csv")
    assert len(pd.read_csv(file)) == len(manifest.committed())


def test_a_curated_manifest_is_of_one_python_and_its_packages(another_text, tmp_path, monkeypatch):
    manifest.curated_anew()
    monkeypatch.setattr(sys, "version", "3.99.0 (of tomorrow)")
    manifest.curated_anew()
    monkeypatch.setattr(manifest, "version", lambda name: "2.13.0+cu130")
    manifest.curated_anew()
    monkeypatch.setattr(manifest, "version", lambda name: "2.13.0")  # a local part never matters
    manifest.curated_anew()
    assert len(list((tmp_path / "runs" / "corpus").glob("*.csv"))) == len(another_text) == 3


def test_text_as_committed_needs_no_curation(monkeypatch):
    monkeypatch.setattr(manifest, "curated_anew", lambda: pytest.fail("nothing differs"))
    monkeypatch.setattr(manifest, "committed", lambda: pd.DataFrame([READ_HERE]))
    manifest.of_this_machine.cache_clear()
    assert manifest.of_this_machine().file.tolist() == ["networkx/classes/graph.py"]
    manifest.of_this_machine.cache_clear()


def test_fingerprint_follows_every_character_and_nothing_else():
    def toy(last="c"):
        return {
            "d": datasets.DatasetDict(
                {
                    "forget": datasets.Dataset.from_dict(
                        {"id": ["1", "2"], "text": ["ab", last], "rank": [0, 1]}
                    )
                }
            )
        }

    assert corpus.fingerprint(toy()) == corpus.fingerprint(toy())
    assert re.fullmatch("[0-9a-f]{16}", corpus.fingerprint(toy()))
    other = toy()
    other["d"]["retain"] = other["d"].pop("forget")
    swapped = {"d": datasets.DatasetDict({"forget": toy()["d"]["forget"].select([1, 0])})}
    assert len({corpus.fingerprint(x) for x in (toy(), toy("C"), toy("c "), other, swapped)}) == 5


def test_fingerprint_survives_a_reload():
    one, two = ({"books": corpus.embedded("books", 2, 2, 2, 2)} for _ in range(2))
    assert corpus.fingerprint(one) == corpus.fingerprint(two)


# -------------------------------------------------------------------------------- lines of a source

SOURCE = [
    '    """First line.',
    "",
    "    Second: {  ",
    "      deeper",
    "    third",
    '    """',
    "    x = 1",
    "y = 2",
]


@pytest.fixture
def toy_source(monkeypatch):
    monkeypatch.setattr(sources, "source_lines", lambda file: {"toy": SOURCE}.get(file, []))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("3-5", "Second: {\n  deeper\nthird"),
        ("3-3,7-7", "Second: {\nx = 1"),
        ("7-8", "    x = 1\ny = 2"),
        ("1-6", "First line.\n\nSecond: {\n  deeper\nthird"),
        ("2-3", "Second: {"),
        ("90-91", ""),
    ],
)
def test_read_lines_by_hand(toy_source, lines, expected):
    assert sources.read_lines("toy", lines) == expected


def test_sources_of_each_kind():
    assert sources.source_lines("pydoc_data.topics:no such topic") == [""]
    assert "assert" in " ".join(sources.source_lines("pydoc_data.topics:assert"))
    assert sources.source_lines("networkx/no_such_file.py") == []
    assert sources.source_lines("networkx/classes/graph.py")[0].startswith(
        '"""Base class for undirected graphs'
    )
    with pytest.raises(FileNotFoundError, match="no_such_package is not installed"):
        sources.source_lines("no_such_package/x.py")


def test_origin_names_distribution_and_licence():
    assert sources.origin("sklearn/base.py")[0] == "scikit-learn"
    assert sources.origin("pydoc_data.topics:assert") == (
        "python",
        "{}.{}.{}".format(*sys.version_info),
        "PSF-2.0",
    )
    package, version, licence = sources.origin("METADATA:networkx")
    assert package == "networkx" and re.match(r"\d+\.\d+", version) and "BSD" in licence
    assert "+" not in sources.origin("torch/nn/modules/linear.py")[1]  # 2.13.0 on a GPU machine too


# -------------------------------------------------------------------------------- a folder, the hub


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


FOLDERS = {
    "a folder of texts": {
        "forget/1.txt": "one",
        "forget/2.md": "two",
        "forget/a/3.py": "three",
        "forget/b.tex": "four é",
    },
    "lines": {
        "forget.jsonl": "\n".join(
            json.dumps({"text": t}) for t in ("one", "two", "three", "four é")
        )
        + "\n\n"
    },
    "lines, content": {
        "forget/x.jsonl": "\n".join(
            json.dumps({"content": t}) for t in ("one", "two", "three", "four é")
        )
    },
    "a table": {"forget.parquet": pd.DataFrame({"text": ["one", "two", "three", "four é"]})},
    "the hub's shards": {
        "forget-00000-of-00002.parquet": pd.DataFrame({"content": ["one", "two"]}),
        "forget-00001-of-00002.parquet": pd.DataFrame({"content": ["three", "four é"]}),
    },
}


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_each_format(tmp_path, files):
    ignored = {
        "forgetful.txt": "no",
        "notes.txt": "no",
        "forget/picture.png": b"\x89PNG",
        "retain.txt": "kept",
    }
    found = corpus.load(
        write(tmp_path, {f"law/{name}": content for name, content in (files | ignored).items()}),
        "law",
    )
    assert list(found) == ["forget", "retain"]  # no approximate: left out, not empty
    assert found["forget"]["text"] == ["one", "two", "three", "four é"] and found["retain"][
        "text"
    ] == ["kept"]
    assert found["forget"].column_names == list(corpus.COLUMNS)
    assert (
        found["forget"]["rank"] == [0, 1, 2, 3]
        and found["forget"]["family"] == found["forget"]["id"]
    )
    assert len(set(found["forget"]["id"])) == 4 and set(found["forget"]["licence"]) == {
        "not stated"
    }
    assert corpus.load(str(tmp_path), "law")["forget"]["id"] == found["forget"]["id"]


def test_a_folder_keeps_the_columns_that_it_has(tmp_path):
    rows = [
        {"text": "one", "family": "f", "licence": "MIT", "other": 1},
        {"text": "two", "family": "f", "licence": "MIT", "other": 2},
    ]
    found = corpus.load(
        write(tmp_path, {"law/retain.jsonl": "\n".join(map(json.dumps, rows))}), "law"
    )["retain"]
    assert (
        found["family"] == ["f", "f"]
        and found["licence"] == ["MIT", "MIT"]
        and found["file"] == ["retain.jsonl"] * 2
    )
    assert found.column_names == list(corpus.COLUMNS)


def test_what_of_a_folder_is_not_read_is_named(tmp_path):
    """Hidden, empty, of another kind, or of no split; each row's text is as it was written."""
    files = {
        "law/forget/a.JSONL.gz": gzip.compress(b'\xef\xbb\xbf{"text": "one\xe2\x80\xa8two"}\n'),
        "law/forget/.git/a.txt": "no",
        "law/retain.txt": "kept",
        "law/retain/b.txt": "",
        "law/retain/c.pdf": "no",
        "law/notes.txt": "no",
    }
    said = "1 empty .retain/b.txt., 1 hidden .forget/.git/., 1 of another kind .retain/c.pdf., 1 of"
    with pytest.warns(UserWarning, match=f"law: 4 not read: {said} no split .notes.txt.$"):
        found = corpus.load(write(tmp_path, files), "law")
    assert found["forget"]["text"] == ["one\u2028two"]
    assert found["retain"]["text"] == ["kept"]


def test_the_general_domain_of_a_folder(tmp_path):
    found = corpus.load(
        write(
            tmp_path,
            {
                "general/evaluation/a.txt": "one",
                "general/retain.txt": "two",
                "general/forget.txt": "no",
            },
        ),
        "general",
    )
    assert {s: d["text"] for s, d in found.items()} == {"evaluation": ["one"], "retain": ["two"]}


def test_one_split_may_mix_files_with_text_and_with_content(tmp_path):
    found = corpus.load(
        write(tmp_path, {"law/forget/a.txt": "one", "law/forget/b.jsonl": '{"content": "two"}'}),
        "law",
    )
    assert found["forget"]["text"] == ["one", "two"]


BAD = {
    "no such domain": ({"other/forget.txt": "x"}, FileNotFoundError, "law: no such folder"),
    "nothing readable": (
        {"law/forget.pdf": "x", "law/x.txt": "y"},
        FileNotFoundError,
        r"no document found; readable are \.txt",
    ),
    "not UTF-8": ({"law/forget.txt": b"caf\xe9"}, ValueError, r"forget\.txt: cannot be read"),
    "lines not UTF-8": (
        {"law/forget.jsonl": b'{"text": "\xe9"}'},
        ValueError,
        r"forget\.jsonl: cannot be read",
    ),
    "not JSON": (
        {"law/forget.jsonl": '{"text": "x"}\n{oops}'},
        ValueError,
        r"forget\.jsonl: cannot be read",
    ),
    "no text": (
        {"law/forget.jsonl": '{"text": "x"}\n{"body": "y"}'},
        ValueError,
        r"no column 'text' or 'content', nor 'question' and 'answer' \(found: body\)",
    ),
    "table without text": (
        {"law/retain.parquet": pd.DataFrame({"a": [1]})},
        ValueError,
        r"retain\.parquet: no column",
    ),
    "not a table": ({"law/retain.parquet": "PAR1"}, ValueError, r"retain\.parquet"),
}
UNCAUGHT = {"JSON, not objects": '"x"', "null": '{"text": null}', "a number": '{"text": 3}'}


@pytest.mark.parametrize(("files", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_raises_one_clear_line(tmp_path, files, error, message):
    with pytest.raises(error, match=message) as found:
        corpus.load(write(tmp_path, files), "law")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("line", UNCAUGHT.values(), ids=UNCAUGHT)
def test_a_line_that_holds_no_text_raises_one_clear_line(tmp_path, line):
    with pytest.raises(ValueError, match=r"forget\.jsonl"):
        corpus.load(write(tmp_path, {"law/forget.jsonl": line}), "law")


def test_an_empty_folder(tmp_path):
    (tmp_path / "law").mkdir()
    with pytest.raises(FileNotFoundError, match="no document found"):
        corpus.load(str(tmp_path), "law")


def test_an_empty_source_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, {"law/forget.txt": "one"}))
    with pytest.raises(ValueError, match="no such folder"):
        corpus.load("", "law")


def test_a_source_that_is_neither_folder_nor_known_is_named():
    with pytest.raises(
        ValueError,
        match="someone/else: no such folder; expected a folder, embedded, or one of "
        "llmunlearn/unlearn_dataset, ",
    ):
        corpus.load("someone/else", "law")


def test_a_sample_leaves_out_what_comes_again_and_pairs_the_splits(tmp_path):
    """A forget text comes twice, once more in approximate, whose text comes again in retain."""
    splits = {"forget": "aab", "approximate": "acde", "retain": "fcg"}
    files = {
        f"law/{split}.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in found)
        for split, found in splits.items()
    }
    source, sizes = str(write(tmp_path, files)), {"general": 9, "evaluation": 9}
    found = corpus.load(source, "law", pairs=9, retain=9, **sizes)
    assert {s: sorted(d["text"]) for s, d in found.items()} | {"approximate": 0} == {
        "forget": ["a", "b"],
        "approximate": 0,
        "retain": ["f", "g"],
    }
    assert len(found["approximate"]) == 2 and set(found["approximate"]["text"]) < set("cde")
    assert all(d["rank"] == list(range(len(d))) for d in found.values())
    few = corpus.load(source, "law", pairs=1, retain=1, **sizes)
    assert {s: d["text"] for s, d in few.items()} == {
        s: d["text"][:1] for s, d in found.items()
    }  # the same order


# ----------------------------------------------------------------------------------------- passages


def test_ranges_by_hand():
    assert passages.ranges([3, 4, 5, 9]) == "3-5,9-9"
    assert passages.ranges([7]) == "7-7" and passages.ranges([]) == ""


def words(n, start=0, letter="w"):
    """n distinct words of 4 letters and a space: 5 characters each."""
    digits = "abcdefghij"
    return " ".join(
        letter + "".join(digits[int(d)] for d in f"{i:03d}") for i in range(start, start + n)
    )


def test_readable_text_has_letters_and_different_words():
    assert passages.readable(words(40)) and not passages.readable(words(39))
    assert not passages.readable("the cat sat " * 80)
    numbers = " ".join(str(i) for i in range(100))
    assert not passages.readable(words(50) + " " + numbers) and passages.readable(
        words(80) + " " + numbers
    )


def test_cut_ends_at_a_blank_line_or_before_1000_characters(monkeypatch):
    """Lines of 100 characters: 7 are too few, 8 may end at a blank line, 10 are full."""
    full = [words(20, 20 * i) for i in range(30)]
    lines = [*full[:8], "", *full[8:11], "", *full[11:30], ""]
    monkeypatch.setattr(sources, "source_lines", lambda file: lines)
    numbered = list(enumerate(lines, 1))
    found = list(passages.cut("toy", numbered))
    # 8 lines to a blank one; 3, a blank (too early) and 7 more make 1,000 characters; 10 lines
    # make 999; 2 are left over
    assert [where for where, _ in found] == ["1-8", "10-20", "21-30"] and [
        len(text) for _, text in found
    ] == [799, 1000, 999]
    assert all(
        text == sources.read_lines("toy", where) and 750 <= len(text) <= 1000
        for where, text in found
    )
    assert list(passages.cut("toy", numbered[:7])) == []


def test_cut_skips_what_is_left_out_and_what_is_unreadable(monkeypatch):
    lines = [words(20, 20 * i) for i in range(9)]
    monkeypatch.setattr(sources, "source_lines", lambda file: lines)
    kept = [(n, line) for n, line in enumerate(lines, 1) if n != 4]
    assert [where for where, _ in passages.cut("toy", kept)] == ["1-3,5-9"]
    lines[:] = ["1234567 " * 12] * 9
    assert list(passages.cut("toy", list(enumerate(lines, 1)))) == []


def test_prose_keeps_summary_and_notes():
    docstring = [
        '    """Summary.',
        "",
        "    Free text.",
        "",
        "    Parameters",
        "    ----------",
        "    x : int",
        "        The x.",
        "    Notes",
        "    -----",
        "    Kept :math:`x`.",
        "    >>> not_kept()",
        "    References",
        "    ----------",
        "    Someone.",
        '    """',
    ]
    assert [docstring[i].strip() for i in passages.prose(docstring) if docstring[i].strip()] == [
        '"""Summary.',
        "Free text.",
        "Kept :math:`x`.",
    ]
    google = [
        "Summary.",
        "",
        "    Args:",
        "        shape: the x",
        "    Returns:",
        "        y",
        "    Description",
        "    ~~~~~~~~~~~",
        "    Kept.",
    ]
    assert [google[i] for i in passages.prose(google) if google[i]] == ["Summary.", "    Kept."]


def test_locked_distributions_leave_out_what_varies(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(
        "# a comment==1\nZope==1\npip==24\nabc-d==2\nunlearn-utils==0\nscikit-learn==1.5\n"
        f"{passages.EXTRA}\nb==1\n"
    )
    assert passages.locked_distributions(lock) == ["abc-d", "scikit-learn", "Zope"]


# ------------------------------------------------------------------------------------------- splits


def passage(text, family="f", stratum="s", lines=None):
    return Passage(
        "github", "file.py", lines or passages.digest(text + family), text, family, stratum
    )


def test_grams_by_hand():
    assert splits.grams("The cat, the CAT!", 2) == {"the cat", "cat the"}
    assert splits.grams("one two", 3) == set()
    assert len(splits.grams(words(20))) == 8


def test_overlap_by_hand():
    """Bigrams: the cat, cat sat, sat on | on the, the cat, cat sat."""
    assert splits.overlap(["the cat sat on", "The cat"], ["on the cat sat"], 2) == 2 / 3
    assert (
        splits.overlap(["a b"], [], 2) == 0
        and splits.overlap([], ["a b"], 2) == 0
        and splits.overlap(["a"], ["a"], 2) == 0
    )
    assert splits.overlap([words(20)], [words(30)]) == 1


def test_deduplicate_drops_copies_and_near_copies():
    a, b = passage(words(60)), passage(words(60, 500))
    assert splits.deduplicate([a, b]) == sorted([a, b], key=lambda p: passages.digest(p.text))
    assert len(splits.deduplicate([a, b, passage(a.text, "another family")])) == 2
    overlap = passage(words(40, 80, "v") + " " + words(22))  # 10 of its 50 13-grams are a's
    assert len(splits.deduplicate([a, overlap])) == 1
    below = passage(words(40, 80, "v") + " " + words(20))  # 8 of 48
    assert len(splits.deduplicate([a, below])) == 2


def test_deduplicate_sees_a_renamed_copy_that_shares_no_13_gram():
    text = words(120).split()
    renamed = [f"other{i}" if i % 12 == 0 else w for i, w in enumerate(text)]
    pair = [passage(" ".join(text)), passage(" ".join(renamed))]
    assert splits.grams(pair[0].text).isdisjoint(splits.grams(pair[1].text))
    assert len(splits.deduplicate(pair)) == 1


def test_deduplicate_is_independent_of_the_order():
    found = [passage(words(60, 10 * i)) for i in range(12)]
    assert splits.deduplicate(found) == splits.deduplicate(found[::-1])


def test_merge_families_joins_units_that_share_text():
    shared = words(17)  # 5 13-grams
    units = {u: words(30, 100 * (i + 1), u) for i, u in enumerate("abcd")}
    found = [
        passage(f"{units['a']} {shared}", "a"),
        passage(units["b"], "b"),
        passage(f"{units['c']} {shared}", "c"),
    ]
    assert [p.family for p in splits.merge_families(found)] == ["a", "b", "a"]
    less = [passage(f"{units['a']} {words(16)}", "a"), passage(f"{units['c']} {words(16)}", "c")]
    assert [p.family for p in splits.merge_families(less)] == ["a", "c"]  # 4 are not enough
    long = [
        passage(f"{words(100, 0, 'x')} {shared}", "a"),
        passage(f"{words(100, 0, 'y')} {shared}", "c"),
    ]
    assert [p.family for p in splits.merge_families(long)] == [
        "a",
        "c",
    ]  # 5 of 105 are less than 10%


def test_merge_families_is_transitive():
    one, two = words(17), words(17, 300)
    own = {u: words(20, 400, u) for u in "abc"}
    chain = [
        passage(f"{own['c']} {one}", "c"),
        passage(f"{one} {own['b']} {two}", "b"),
        passage(f"{two} {own['a']}", "a"),
    ]
    assert {p.family for p in splits.merge_families(chain)} == {"a"}


def test_merge_families_counts_grams_that_a_third_unit_holds_too():
    """a and c share 6 13-grams in two runs; b holds one of the runs."""
    one, two = words(15), words(15, 300)
    own = {u: words(20, 400, u) for u in "abc"}
    found = [
        passage(f"{one} {own['a']} {two}", "a"),
        passage(f"{one} {own['b']}", "b"),
        passage(f"{one} {own['c']} {two}", "c"),
    ]
    assert [p.family for p in splits.merge_families(found)] == ["a", "b", "a"]


def test_character_model_by_hand():
    """One text "ab", order 2.

    First letter: unigrams alone, (1 + 5/256) / (2 + 5).
    Second letter: also after "a", (1 + 5 p) / (1 + 5).
    """
    model = splits.CharacterModel(["ab"], order=2)
    p = (1 + 5 / 256) / 7
    assert model.bits("a") == pytest.approx(-math.log2(p))
    assert model.bits("ab") == pytest.approx(-(math.log2(p) + math.log2((1 + 5 * p) / 6)) / 2)
    assert model.bits("z") == pytest.approx(-math.log2((5 / 256) / 7))


def test_character_model_finds_its_own_text_easier():
    model = splits.CharacterModel([words(60)])
    assert model.bits(words(20)) < model.bits(words(20, 500)) < model.bits("QZ#! " * 20)


def test_systematic_takes_every_stratum_in_proportion():
    items = list("aaaaaabbb")
    for seed in range(5):
        assert splits.systematic(items, 3, np.random.default_rng(seed)).count("b") == 1
    assert splits.systematic(items, 9, np.random.default_rng(0)) == items
    with pytest.raises(ValueError, match="9 units where 10 are needed"):
        splits.systematic(items, 10, np.random.default_rng(0))


def test_hold_out_takes_whole_families_away():
    found = [passage(words(20, 20 * i), f"f{i // 3}", f"s{i // 6}") for i in range(24)]
    held, rest = splits.hold_out(found, 4, np.random.default_rng(0))
    assert (
        len({p.family for p in held}) == 4
        and [sum(p.stratum == f"s{i}" for p in held) for i in range(4)] == [1] * 4
    )
    assert len(rest) == 12 and {p.family for p in held}.isdisjoint(p.family for p in rest)


def test_retained_takes_few_of_one_family():
    found = [passage(words(20, 20 * i), f"f{i // 6}") for i in range(18)]
    kept = splits.retained(found, 6, 2)
    assert len(set(kept)) == 6 and max(pd.Series([p.family for p in kept]).value_counts()) == 2
    with pytest.raises(ValueError, match="github: 6 retain passages where 7 are needed"):
        splits.retained(found, 7, 2)


def test_paired_halves_gives_one_of_each_pair_to_each_side():
    held = [passage(words(20 + i, 30 * i)) for i in range(20)]
    sides = splits.paired_halves(
        held, splits.CharacterModel([words(400)]), np.random.default_rng(0)
    )
    assert set(sides[::2] + sides[1::2]) == {1} and 0 < sides[::2].sum() < 10
    length = np.array([len(p.text) for p in held])
    assert abs(length[sides == 0].mean() - length[sides == 1].mean()) < 0.2 * length.std()
