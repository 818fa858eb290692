"""What holds for any input: of the readers, of chunks, and of the measures, by Hypothesis.

Its examples are the same in every run.
"""

import gzip
import io
import json
import os
import tempfile
import unicodedata
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, configuration, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from unlearn_utils.app import user_documents
from unlearn_utils.app.user_documents import Documents
from unlearn_utils.cache import paths
from unlearn_utils.core import distances, intervals, membership, metrics
from unlearn_utils.data import readers, tokens

configuration.set_hypothesis_home_dir(paths.PROJECT / "runs" / "hypothesis")

always = settings(derandomize=True, deadline=None, max_examples=100)
on_disk = settings(always, max_examples=50)


# ------------------------------------------------------------------------------------- the readers

BREAKS = "\r\n\x0b\x0c\x1c\x85\u2028\u2029\ufeff\x00 "  # of which some functions make line ends
texts = st.text() | st.text(alphabet=BREAKS + "ab\u0301\U0001f600", max_size=12)
suffixes = st.sampled_from(["{}", "{}.gz", "{}.GZ"])


def write(folder, name, content):
    """Write a file, compressed where its name says so."""
    file = Path(folder) / name
    file.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    return file


@on_disk
@given(texts, st.booleans(), st.sampled_from([".txt", ".MD"]), suffixes)
def test_a_text_file_is_read_as_python_reads_it(text, mark, suffix, compressed):
    content = text.encode("utf-8-sig" if mark else "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        (found,) = readers.read_documents(write(folder, compressed.format(f"a{suffix}"), content))
    assert found["text"] == io.TextIOWrapper(io.BytesIO(content), "utf-8-sig").read()


@on_disk
@given(
    st.lists(st.none() | texts, max_size=6),
    st.sampled_from(["\n", "\r\n", " \n"]),
    st.booleans(),
    st.booleans(),
    suffixes,
)
def test_a_row_is_a_line_and_its_text_is_what_was_written(rows, end, mark, escaped, compressed):
    """None is a blank line."""
    lines = ["\ufeff" if mark else ""]
    for text in rows:
        if text is not None:
            lines.append(json.dumps({"text": text}, ensure_ascii=escaped))
        lines.append(end)
    with tempfile.TemporaryDirectory() as folder:
        name = compressed.format("a.jsonl")
        file = write(folder, name, "".join(lines).encode())
        found = readers.read_documents(file)
    expected = []
    for number, text in enumerate(rows, 1):
        if text is not None:
            expected.append((f"{file}:{number}", text.removeprefix("\ufeff")))
    assert [(row["name"], row["text"]) for row in found] == expected


@on_disk
@given(st.lists(texts), suffixes)
def test_a_table_is_read_row_by_row(rows, compressed):
    content = io.BytesIO()
    pd.DataFrame({"n": range(len(rows)), "content": rows}).to_parquet(content)
    with tempfile.TemporaryDirectory() as folder:
        name = compressed.format("a.parquet")
        found = readers.read_documents(write(folder, name, content.getvalue()))
    assert [row["text"] for row in found] == [text.removeprefix("\ufeff") for text in rows]
    assert [row["n"] for row in found] == list(range(len(rows)))


@on_disk
@given(st.binary(max_size=60), st.sampled_from([*readers.SUFFIXES, ".txt.gz", ".jsonl.gz"]))
@example(b'{"text": "\\ud800"}', ".jsonl")
@example(b"\x1f\x8b\x08", ".txt.gz")
@example(b"PAR1\x00\x00\x00\x00PAR1", ".parquet")
def test_whatever_a_file_holds_it_is_read_or_refused_by_name(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{suffix}"
        file.write_bytes(content)
        try:
            found = readers.read_documents(file)
        except ValueError as error:
            assert str(error).startswith(str(file))
        else:
            assert all(isinstance(row["text"].encode(), bytes) for row in found)


NAMES = st.sampled_from(["a", "b", "c.txt", "d.JSONL", "e.html", ".f", ".g.txt"])
STEPS = st.lists(
    st.tuples(
        st.integers(0, 9),  # the folder in which it is
        NAMES,
        st.sampled_from(
            ["file", "folder", "link to a folder", "link to a file", "link to nothing"]
        ),
        st.integers(0, 9),  # where a link leads
    ),
    max_size=25,
)


def build(root, steps):
    """Make files, folders and links below a folder, loops too."""
    folders = [root]
    files = [root.parent / "outside.txt"]
    files[0].write_text("{}")
    for place, name, what, target in steps:
        path = folders[place % len(folders)] / name
        if path.is_symlink() or path.exists():
            continue
        if what == "file":
            path.write_text("{}")
            files.append(path)
        elif what == "folder":
            path.mkdir()
            folders.append(path)
        elif what == "link to a folder":
            path.symlink_to(folders[target % len(folders)])
        elif what == "link to a file":
            path.symlink_to(files[target % len(files)])
        else:
            path.symlink_to(root / "nowhere")


@on_disk
@given(STEPS)
def test_each_file_of_a_folder_is_read_or_named_once(steps):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        root.mkdir()
        build(root, steps)
        files, unread = readers.find_files(root)
        seen = [file.relative_to(root).as_posix() for file in files]
        seen += [one.name.removesuffix("/") for one in unread]
        assert len(set(seen)) == len(seen)

        entered = {""} | {os.path.dirname(name) for name in seen}
        for folder in entered:  # all that is in it is read, named, or a folder that is entered too
            below = {os.path.join(folder, name) for name in os.listdir(root / folder)}
            for name in below - set(seen):
                assert (root / name).is_dir()
                inside = any(other.startswith(f"{name}/") for other in seen)
                assert inside or not os.listdir(root / name)
        real = [os.path.realpath(root / folder) for folder in entered]
        assert len(set(real)) == len(real)
        assert not any("/." in f"/{file.relative_to(root)}" for file in files)
        assert all(file.suffix.lower() in readers.SUFFIXES and file.is_file() for file in files)


@always
@given(st.binary(min_size=1, max_size=12))
def test_any_name_can_be_printed_and_is_as_it_was_if_it_could_be(name):
    given_name = os.fsdecode(name)
    shown = readers.shown(given_name)
    assert shown.isprintable()
    assert (shown == given_name) is given_name.isprintable()
    shown.encode()


# ------------------------------------------------------------------------------------------ chunks


@always
@given(st.lists(st.integers(0, 99), max_size=60), st.integers(tokens.SHORTEST, 20))
def test_chunks_are_the_document_less_a_short_rest(ids, context):
    chunks = tokens.cut(ids, context)
    joined = [token for chunk in chunks for token in chunk]
    assert joined == ids[: len(joined)]
    assert len(ids) - len(joined) < tokens.SHORTEST
    assert all(len(chunk) == context for chunk in chunks[:-1])
    assert all(tokens.SHORTEST <= len(chunk) <= context for chunk in chunks)


@always
@given(st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_batch_holds_the_rows_and_nothing_else(rows):
    batch = tokens.collate(rows, pad_id=1)
    for row, ids, mask, labels in zip(rows, *batch.values(), strict=True):
        assert ids[mask.bool()].tolist() == row == labels[mask.bool()].tolist()
        assert set(ids[~mask.bool()].tolist()) <= {1}
        assert set(labels[~mask.bool()].tolist()) <= {-100}
    assert batch["input_ids"].shape == (len(rows), max(map(len, rows)))


class Letters:
    """A tokenizer of letters: each has its code as id."""

    bos_token_id = None

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [list(map(ord, text)) for text in texts]}


EVERY_LETTER = PreTrainedConfig(vocab_size=0x110000)
ENDS = st.sampled_from(["\n", "\r\n", "\r", " \n", "\t", "\xa0"])
UNICODE = st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"])
forms = st.tuples(ENDS, UNICODE, st.sampled_from(["", "\ufeff"]), st.sampled_from(["", "\n"]))
words = st.text(st.sampled_from("aeéo\u0302ü² \n"), min_size=12)


def in_form(text, form):
    end, unicode, mark, last = form
    return mark + unicodedata.normalize(unicode, text).replace("\n", end) + last


def cut_sets(forget, retain):
    sets = {}
    for name, text in (("forget", forget), ("retain", retain)):
        sets[name] = Documents([name], [text], [f"{text!a:0<20}"], [])
    return user_documents.cut_sets(sets, Letters(), 10, EVERY_LETTER)


@always
@given(words, forms, forms)
def test_a_text_is_the_same_in_two_forms(text, one, other):
    assume(len(unicodedata.normalize("NFC", text).strip()) >= tokens.SHORTEST)
    with pytest.raises(ValueError, match="1 in both --forget and --retain"):
        cut_sets(in_form(text, one), in_form(text, other))


@always
@given(words, words, forms)
def test_texts_without_a_common_letter_are_apart(one, other, form):
    apart = other.translate(str.maketrans("aeéoü² \n\u0302", "bcdfgh3k\u0301"))
    assert cut_sets(in_form("x" + one, form), "y" + apart)


@always
@given(texts)
def test_a_plain_form_is_plain(text):
    plain = user_documents.plain_form(text)
    assert user_documents.plain_form(plain) == plain
    assert plain.split() == plain.split(" ") * bool(plain)


# ---------------------------------------------------------------------------------------- measures

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=12)  # few values, so many ties
log_probs = st.lists(st.floats(-50, 0), min_size=1, max_size=30)
shares = st.floats(0.01, 1)
sequences = st.lists(st.integers(0, 3), max_size=8)


@always
@given(scores, scores)
def test_auc_is_the_share_of_pairs_that_are_won(members, others):
    wins = [(a > b) + (a == b) / 2 for a in members for b in others]
    found = membership.auc(members, others)
    assert found == pytest.approx(np.mean(wins))
    assert found + membership.auc(others, members) == pytest.approx(1)
    rising = [[value**3 + value for value in side] for side in (members, others)]
    assert membership.auc(*rising) == found


@always
@given(scores, scores, st.data())
def test_weighted_auc_is_that_of_repeated_documents(members, others, data):
    times = []
    for side in (members, others):
        counts = st.lists(st.integers(0, 3), min_size=len(side), max_size=len(side))
        times.append(np.array(data.draw(counts.filter(any)), float))
    sides = [np.array(members, float), np.array(others, float)]
    repeated = [np.repeat(side, own.astype(int)) for side, own in zip(sides, times, strict=True)]
    (found,) = membership.weighted_auc(*sides, times[0][None], times[1][None])
    assert found == pytest.approx(membership.auc(*repeated))


@always
@given(scores, scores)
def test_the_true_positive_rate_rises_and_keeps_its_promise(members, others):
    rates = []
    for allowed in range(len(others) + 1):
        rates.append(membership.tpr_at_fpr(members, others, allowed / len(others)))
        over = [limit for limit in (-np.inf, *others) if sum(o > limit for o in others) <= allowed]
        best = max(np.mean([member > limit for member in members]) for limit in over)
        assert rates[-1] == pytest.approx(best)
    assert rates == sorted(rates)


@always
@given(log_probs, shares, shares)
def test_min_k_is_a_mean_of_the_lowest(values, one, other):
    lowest, highest = sorted([one, other])
    found = membership.min_k(values, lowest)
    assert min(values) - 1e-9 <= found <= membership.min_k(values, highest) + 1e-9
    assert membership.min_k(values, 1) == pytest.approx(np.mean(values))
    assert membership.min_k(values[::-1], lowest) == pytest.approx(found)
    standard = membership.min_k_plus_plus(values, [0] * len(values), [1] * len(values), lowest)
    assert standard == found


@always
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_that_of_the_shortest_prefix(correct):
    prefix = min(k for k in range(len(correct) + 1) if all(correct[k:]))
    assert metrics.extraction_strength(correct) == pytest.approx(1 - prefix / len(correct))


def is_part(part, whole):
    """Return whether a sequence is a subsequence of another."""
    rest = iter(whole)
    return all(token in rest for token in part)


@always
@given(sequences, sequences.filter(bool))
def test_rouge_is_of_the_longest_common_subsequence(prediction, truth):
    sizes = range(len(truth) + 1)
    parts = [part for size in sizes for part in combinations(truth, size)]
    longest = max(len(part) for part in parts if is_part(part, prediction))
    found = metrics.rouge_l(prediction, truth)
    assert found == pytest.approx(2 * longest / (len(prediction) + len(truth)))
    assert (found == 1) is (prediction == truth)
    agreed = metrics.exact_prefix(prediction, truth)
    assert prediction[:agreed] == truth[:agreed]
    assert prediction[: agreed + 1] != truth[: agreed + 1] or prediction == truth


@always
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 9))
def test_clusters_are_drawn_whole_and_as_many_as_there_are(labels, seed):
    units = intervals.cluster_codes(len(labels), labels)
    counts = intervals.draw_counts(units, 5, np.random.default_rng(seed))
    for label in set(labels):
        own = counts[:, np.array(labels) == label]
        assert (own == own[:, :1]).all()
    first = [labels.index(label) for label in sorted(set(labels))]
    assert (counts[:, first].sum(1) == len(first)).all()


@always
@given(st.integers(1, 10_000), st.integers(1, 3 * intervals.BLOCK))
def test_blocks_add_up(resamples, width):
    sizes = list(intervals.blocks(resamples, width))
    assert sum(sizes) == resamples
    assert all(size == 1 or size * width <= intervals.BLOCK for size in sizes)


gaps = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


@always
@given(gaps, gaps.filter(any))
def test_a_score_is_one_at_retraining_and_nothing_at_the_target_or_beyond(gap, target):
    own = distances.distance(np.array(target))
    far = distances.distance(np.array(gap))
    assume(own > 1e-6)
    found = distances.score(far, own)
    assert 0 <= found <= 1
    assert (found == 0) == (far >= own)
    assert distances.score(own, own) == 0
    assert distances.score(np.array(0.0), own) == 1


@always
@given(st.floats(0, 1), st.floats(0, 0.99))
def test_priv_leak_has_the_sign_of_what_is_over(auc, retrained):
    leak = membership.priv_leak(auc, retrained)
    assert np.sign(leak) == np.sign(retrained - auc)
    assert leak <= 100 * retrained / (1 - retrained) + 1e-9
