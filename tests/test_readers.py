"""Every document of the user's is accounted for: read as it was written, or named with the reason.

Nothing is taken for text that is none, and no text for another's because of how it was saved.
"""

import gzip
import json
import os
import unicodedata

import pandas as pd
import pytest
from transformers import PreTrainedConfig

from unlearn_utils.app import user_documents
from unlearn_utils.app.user_documents import Documents
from unlearn_utils.data import readers, tokens
from unlearn_utils.data.readers import Unread

SAID = "muons decay"


def line(text, **others):
    return json.dumps({"text": text} | others, ensure_ascii=False)


def texts_of(path):
    return [document["text"] for document in readers.read_documents(path)]


# -------------------------------------------------------------------------------- what is in a file

FILES = {
    "a mark": ("a.txt", b"\xef\xbb\xbfone", ["one"]),
    "a mark, compressed": ("a.md.gz", gzip.compress(b"\xef\xbb\xbfone"), ["one"]),
    "a mark alone": ("a.txt", b"\xef\xbb\xbf", [""]),
    "line ends of Windows": ("a.tex", b"one\r\ntwo\r\n", ["one\ntwo\n"]),
    "line ends of an old Mac": ("a.py", b"one\rtwo", ["one\ntwo"]),
    "capitals": ("A.TXT", b"one", ["one"]),
    "capitals, compressed": ("A.Md.GZ", gzip.compress(b"one"), ["one"]),
    "compressed in two parts": ("a.txt.gz", gzip.compress(b"o") + gzip.compress(b"ne"), ["one"]),
    "lines": ("a.jsonl", f"{line('one')}\n\n{line('two')}\n".encode(), ["one", "two"]),
    "lines of Windows": ("a.JSONL", f"{line('one')}\r\n{line('two')}\r\n".encode(), ["one", "two"]),
    "no last line end": ("a.jsonl", f"{line('one')}\n{line('two')}".encode(), ["one", "two"]),
    "lines, compressed": ("a.jsonl.gz", gzip.compress(line("one").encode()), ["one"]),
    "lines with a mark": ("a.jsonl", f"\ufeff{line('one')}\n".encode(), ["one"]),
    "two files with marks, joined": (
        "a.jsonl",
        f"\ufeff{line('one')}\n\ufeff{line('two')}\n".encode(),
        ["one", "two"],
    ),
    "a mark within a row": ("a.jsonl", line("\ufeffone").encode(), ["one"]),
    "no line": ("a.jsonl", b"\xef\xbb\xbf\n\r\n \n", []),
    "nothing": ("a.jsonl", b"", []),
    "no table": ("a.parquet", b"", []),
    "escaped letters": ("a.jsonl", b'{"text": "\\ud83d\\ude00"}', ["\N{GRINNING FACE}"]),
}
# what `str.splitlines` takes for line ends, but JSON and `datasets` do not
for character in "\x85\u2028\u2029\x7f":
    written = f"{line(f'one{character}two')}\n{line('three')}\n".encode()
    FILES[f"lines with {character!a}"] = ("a.jsonl", written, [f"one{character}two", "three"])


@pytest.mark.parametrize(("name", "written", "expected"), FILES.values(), ids=FILES)
def test_what_stands_in_a_file(name, written, expected, tmp_path):
    (tmp_path / name).write_bytes(written)
    assert texts_of(tmp_path / name) == expected


def test_a_table_whatever_its_name_and_its_index(tmp_path):
    table = pd.DataFrame({"text": ["one", "\ufefftwo"], "n": [1, 2]}).set_index("text")
    table.to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "A.PARQUET.gz").write_bytes(gzip.compress(content))
    for name in ("a.parquet", "A.PARQUET.gz"):
        assert texts_of(tmp_path / name) == ["one", "two"]


def test_a_row_is_named_by_its_line(tmp_path):
    """Blank lines count, as they do in an editor; U+2028 does not."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n" + line("one\u2028") + "\n\n" + line("two", name="mine", file="b") + "\n")
    one, two = readers.read_documents(file)
    assert (one["name"], two["name"]) == (f"{file}:2", f"{file}:4")
    assert (one["file"], two["file"]) == ("a.jsonl", "b")


def parquet_of(texts):
    def write(path):
        pd.DataFrame({"text": texts}).to_parquet(path)

    return write


def whole(written):
    def write(path):
        path.write_bytes(written)

    return write


DEEP = b"[" * 100_000
WRONG = {
    "half a row": ("a.jsonl", whole(b'{"text": "a"}\n\n{"text": \n'), ["a.jsonl", "line 3"]),
    "two rows in a line": ("a.jsonl", whole(b'{"text": "a"}{"text": "b"}'), ["line 1", "column"]),
    "a bare control character": ("a.jsonl", whole(b'\n{"text": "a\tb"}'), ["line 2"]),
    "too deep": ("a.jsonl", whole(DEEP), ["a.jsonl", "line 1"]),
    "a list": ("a.jsonl", whole(b'{"text": "a"}\n["a"]\n'), ["a.jsonl:2", "no JSON object"]),
    "no column": ("a.jsonl", whole(b'{"text": "a"}\n{"t": 1}'), ["a.jsonl:2", "no column", "t"]),
    "a number": ("a.jsonl", whole(b'\r\n{"text": 5}'), ["a.jsonl:2", "no text, but 5"]),
    "null": ("a.jsonl", whole(b'{"content": null}'), ["a.jsonl:1", "no text, but None"]),
    "half a letter": ("a.jsonl", whole(b'\n{"text": "\\ud83d"}'), ["a.jsonl:2", "surrogates"]),
    "Latin-1": ("a.txt", whole(b"caf\xe9"), ["a.txt", "expected UTF-8"]),
    "Latin-1 lines": ("a.jsonl", whole(b'{"text": "\xe9"}'), ["a.jsonl", "expected UTF-8"]),
    "UTF-16": ("a.txt", whole("one".encode("utf-16")), ["a.txt", "expected UTF-8"]),
    "not compressed": ("a.txt.gz", whole(b"one"), ["a.txt.gz", "gzip"]),
    "cut off": ("a.txt.gz", whole(gzip.compress(SAID.encode())[:-9]), ["a.txt.gz", "ended"]),
    "damaged": ("a.txt.gz", whole(gzip.compress(b"")[:10] + b"\xff" * 9), ["a.txt.gz"]),
    "no text in a table": ("a.parquet", parquet_of(["a", None]), ["a.parquet:2", "but None"]),
    "bytes in a table": ("a.parquet", parquet_of([b"a"]), ["a.parquet:1", "but b'a'"]),
    "half a table": ("a.parquet", whole(b"PAR1" * 3), ["a.parquet", "cannot be read"]),
}


@pytest.mark.parametrize(("name", "write", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_by_file_and_line(name, write, said, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError) as found:
        user_documents.read_documents(tmp_path)
    assert all(word in str(found.value) for word in [str(tmp_path), *said])
    assert "\n" not in str(found.value)


# ------------------------------------------------------------------------------------- which files


def fill(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}: {SAID}")


def found_in(folder):
    files, unread = readers.find_files(folder)
    return [file.relative_to(folder).as_posix() for file in files], unread


def test_a_folder_is_read_with_what_is_linked_into_it(tmp_path):
    docs = tmp_path / "docs"
    fill(docs, "b.txt", "a/b/c.MD", "a.py.GZ")
    fill(tmp_path / "elsewhere", "1.txt", "below/2.txt")
    (docs / "more").symlink_to(tmp_path / "elsewhere")
    (docs / "one.txt").symlink_to("more/1.txt")
    (docs / "named_otherwise").symlink_to("b.txt")
    files, unread = found_in(docs)
    linked = ["more/1.txt", "more/below/2.txt", "one.txt"]
    assert files == ["a/b/c.MD", "a.py.GZ", "b.txt", *linked]
    assert unread == [Unread("named_otherwise", "of another kind")]


def test_what_is_not_read_is_named_with_the_reason(tmp_path):
    fill(tmp_path, "a.txt", "README", "b.html", "c/d.txt.zip", "c/.e.txt", "._a.txt")
    fill(tmp_path, ".git/HEAD", ".git/objects/00/1", "c/.ipynb_checkpoints/a-checkpoint.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "itself.txt").symlink_to("itself.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    files, unread = found_in(tmp_path)
    assert files == ["a.txt"]
    assert set(unread) == {
        Unread("README", "of another kind"),
        Unread("b.html", "of another kind"),
        Unread("c/d.txt.zip", "of another kind"),
        Unread("._a.txt", "hidden"),
        Unread("c/.e.txt", "hidden"),
        Unread(".git/", "hidden", 2),
        Unread("c/.ipynb_checkpoints/", "hidden"),
        Unread("gone.txt", "linked to nothing"),
        Unread("itself.txt", "linked to nothing"),
        Unread("pipe.txt", "neither file nor folder"),
    }
    assert len(unread) == 10


def test_what_is_no_file_is_not_waited_for_though_it_is_named_itself(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    reasons = {"pipe.txt": "neither file nor folder", "gone.txt": "linked to nothing"}
    for name, reason in reasons.items():
        assert readers.find_files(tmp_path / name) == ([], [Unread(name, reason)])


def test_loops_of_linked_folders_end_and_no_folder_is_read_twice(tmp_path):
    """Of 12 folders that link to each other there are some 40 million ways through."""
    docs = tmp_path / "docs"
    names = [f"folder{number:02d}" for number in range(12)]
    for name in names:
        fill(docs / name, "a.txt")
        for other in names:
            (docs / name / f"to_{other}").symlink_to(docs / other)
    (docs / "up").symlink_to(docs)
    files, unread = found_in(docs)
    assert files == [f"{name}/a.txt" for name in names]
    assert {one.reason for one in unread} == {"read under another name"}
    assert len(unread) == 12 * 12 + 1


def test_a_hidden_folder_is_not_entered_so_nothing_is_missed_for_it(tmp_path):
    """It links to a folder that is read in its own place."""
    fill(tmp_path, "z/a.txt")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "latest").symlink_to(tmp_path / "z")
    assert found_in(tmp_path)[0] == ["z/a.txt"]


def test_what_is_named_itself_is_read_though_it_is_hidden(tmp_path):
    fill(tmp_path, ".notes.txt", ".private/a.txt")
    for name in (".notes.txt", ".private"):
        found = user_documents.read_documents(tmp_path / name)
        assert len(found.text) == 1
        assert found.unread == []


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path):
    for name in (b"caf\xe9.txt", b"line\nend.txt", b"b\xff.html", "caf\xe9 \u6771.txt".encode()):
        with open(os.fsencode(tmp_path) + b"/" + name, "w") as file:
            file.write(SAID)
    found = user_documents.read_documents(tmp_path)
    escaped = [r"caf\xe9.txt", r"line\nend.txt", "caf\xe9 \u6771.txt"]
    assert set(found.name) == {f"{tmp_path}/{name}" for name in escaped}
    assert found.unread == [Unread(r"b\xff.html", "of another kind")]
    "\n".join(found.name).encode()


# -------------------------------------------------------------------------------- what is left out


def test_what_is_empty_is_left_out_and_named(tmp_path):
    fill(tmp_path, "a.txt")
    for name in ("b.txt", "c/d.jsonl", "e.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "f.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf \r\n"))
    (tmp_path / "g.jsonl").write_text(f"{line('')}\n{line(SAID)}\n\n{line(' ')}\n")
    parquet_of([SAID, ""])(tmp_path / "h.parquet")
    found = user_documents.read_documents(tmp_path)
    names = ["a.txt", "g.jsonl:2", "h.parquet:1"]
    assert found.name == [f"{tmp_path}/{name}" for name in names]
    assert [one.name for one in found.unread] == [
        "b.txt",
        "c/d.jsonl",
        "e.parquet",
        "f.txt.gz",
        "g.jsonl:1",
        "g.jsonl:4",
        "h.parquet:2",
    ]
    assert {one.reason for one in found.unread} == {"empty"}


def test_where_nothing_is_left_it_is_said_why(tmp_path):
    fill(tmp_path, "a.pdf", ".b.txt")
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(ValueError, match="no document found; readable are .txt, ") as found:
        user_documents.read_documents(tmp_path)
    reasons = "3 not read: 1 empty (c.txt), 1 hidden (.b.txt), 1 of another kind (a.pdf)"
    assert str(found.value).endswith(reasons)
    with pytest.raises(ValueError, match=r"c\.txt: .*; 1 not read: 1 empty \(c\.txt\)"):
        user_documents.read_documents(tmp_path / "c.txt")
    with pytest.raises(ValueError, match=r"a\.pdf: .*1 of another kind \(a\.pdf\)"):
        user_documents.read_documents(tmp_path / "a.pdf")


def test_many_names_are_cut_but_counted():
    unread = [Unread(f"{number}.html", "of another kind") for number in range(readers.NAMED + 2)]
    said = readers.describe_unread([*unread, Unread(".git/", "hidden", 5)])
    assert said.startswith("27 not read: 5 hidden (.git/), 22 of another kind (0.html, ")
    assert said.endswith("19.html, ...)")


class Letters:
    """A tokenizer of letters: each has its code as id. Nothing opens a document."""

    bos_token_id = None

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [list(map(ord, text)) for text in texts]}


EVERY_LETTER = PreTrainedConfig(vocab_size=0x110000)


def documents(*texts, unread=()):
    names = [f"{number}.txt" for number in range(len(texts))]
    return Documents(names, list(texts), [f"{text!a:0<20}" for text in texts], list(unread))


def cut(context=8, **sets):
    return user_documents.cut_sets(sets, Letters(), context, EVERY_LETTER)


def test_the_plan_says_what_is_left_out():
    """Of fewer than five tokens nothing is left: of one too, which predicts nothing."""
    sets = {
        "forget": documents(SAID, "a", "bc", unread=[Unread("d.html", "of another kind")]),
        "retain": documents("gluons are bound"),
    }
    assert user_documents.describe_sets(sets, cut(**sets), 8) == [
        "forget: 3 documents, 1 chunks of up to 8 tokens; too short, so left out: 1.txt, 2.txt (2 "
        "in all); 1 not read: 1 of another kind (d.html)",
        "retain: 1 documents, 2 chunks of up to 8 tokens",
    ]


# ------------------------------------------------------------------------------------ the same text

NAIVE = "naïve\ncafé\nof fixed muons that decay"
FORMS = {
    "the same": NAIVE,
    "a mark": "\ufeff" + NAIVE,
    "a mark within": NAIVE.replace("café", "\ufeffcafé"),
    "Windows": NAIVE.replace("\n", "\r\n"),
    "an old Mac": NAIVE.replace("\n", "\r"),
    "U+2028": NAIVE.replace("\n", "\u2028"),
    "NFD": unicodedata.normalize("NFD", NAIVE),
    "NFKD": unicodedata.normalize("NFKD", NAIVE),
    "a ligature": NAIVE.replace("fi", "\ufb01"),
    "spaces at line ends": NAIVE.replace("\n", " \t\n"),
    "lines that break otherwise": NAIVE.replace("\n", " ").replace(" that ", "\nthat "),
    "spaces that do not break": NAIVE.replace(" ", "\xa0"),
    "a margin": f"\n  {NAIVE}\n\n",
    "all": "\ufeff\n" + unicodedata.normalize("NFD", NAIVE).replace("\n", "\r\n") + "\r\n",
}


WITHOUT_MARGIN = {name: form for name, form in FORMS.items() if name not in ("a margin", "all")}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("context", [8, 1000])
def test_the_same_text_is_noticed_in_any_form(form, context):
    other = documents("gluons are bound", form)
    for sets in (
        {"forget": documents(NAIVE), "retain": other},
        {"a": other, "b": documents(NAIVE)},
    ):
        with pytest.raises(ValueError, match=r"1 in both --\w+ and --\w+, .*\.txt = .*\.txt"):
            cut(context, **sets)


@pytest.mark.parametrize("form", WITHOUT_MARGIN.values(), ids=WITHOUT_MARGIN)
def test_a_chunk_is_noticed_in_any_form(form):
    """The first eight letters are in both; a margin would shift what a chunk is."""
    with pytest.raises(ValueError, match="wholly or by a chunk: 0.txt = 0.txt"):
        cut(forget=documents(form + " at once"), retain=documents(NAIVE + "! Not so."))


def test_other_texts_are_not_taken_for_the_same():
    found = cut(forget=documents(NAIVE), retain=documents(NAIVE.upper(), "1" + NAIVE))
    assert found["retain"].name.nunique() == 2


def test_what_is_too_short_to_be_read_may_be_in_both():
    found = cut(forget=documents(SAID, "abc"), retain=documents("gluons are bound", "abc"))
    assert [found[name].name.nunique() for name in ("forget", "retain")] == [1, 1]


def test_the_opening_token_is_in_the_first_chunk_alone():
    opened = Letters()
    opened.bos_token_id = 7
    assert tokens.encode_whole(opened, ["", "ab"]) == [[7], [7, 97, 98]]
    assert tokens.encode_whole(Letters(), ["", "ab"]) == [[], [97, 98]]
