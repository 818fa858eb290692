"""Questions with answers: only the answer's tokens count, in every loss, label and measure."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_models import VOCABULARY, logits, random_model, unlearn, value

from unlearn_utils.app import commands, user_documents
from unlearn_utils.core import membership, methods
from unlearn_utils.data import corpus, readers, tokens
from unlearn_utils.engine import attacks, evaluation, training
from unlearn_utils.profiles import Unlearning

PAD_ID = 1
CONTEXT = 64  # tokens of a chunk: a question takes about half


def records(name, number=12):
    """Return questions about a particle, each with an answer of its own."""
    found = []
    for line in range(number):
        question = f"What of {name} {line}?"
        answer = f"The {name} {line * line} decays" + " at last" * (line % 3) + "."
        found.append({"question": question, "answer": answer, "more": [line]})
    return found


def write_sets(folder):
    """Write --forget as a .json list, --retain and --unseen as lines, and return the paths."""
    paths = {}
    for name, particle in (("forget", "quark"), ("retain", "lepton"), ("unseen", "gluon")):
        paths[name] = folder / f"{name}.jsonl"
        lines = [json.dumps(record) for record in records(particle)]
        paths[name].write_text("\n".join(lines) + "\n")
    paths["forget"] = folder / "forget.json"
    paths["forget"].write_text(json.dumps(records("quark"), indent=1))
    return paths


def cut(path, tokenizer, context=CONTEXT):
    documents = user_documents.read_documents(path)
    return user_documents.cut_documents(documents, "forget", tokenizer, context, VOCABULARY)


def plain_labels(ids, question):
    return [-100] * question + ids[question:]


def plain_loss(model, ids, labels):
    """Return the loss that transformers itself gives: the mean over the labels that count."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()


# ---------------------------------------------------------------------------------------- reading


def test_a_list_lines_and_a_table_are_the_same_documents(tmp_path):
    found = records("quark", 3)
    (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(found, indent=2))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, found)))
    (tmp_path / "c.json").write_text("\n".join(map(json.dumps, found)))  # so the hub has some
    pd.DataFrame(found).to_parquet(tmp_path / "d.parquet")
    texts = []
    for name in ("a.json", "b.jsonl", "c.json", "d.parquet"):
        documents = user_documents.read_documents(tmp_path / name)
        assert documents.name == [f"{tmp_path / name}:{number}" for number in (1, 2, 3)]
        texts.append(documents.text)
        for number, text in zip(documents.questions.values(), documents.text, strict=True):
            assert text[:number].endswith("?\nAnswer:")
    assert texts[0][0] == "Question: What of quark 0?\nAnswer: The quark 0 decays."
    assert texts[0] == texts[1] == texts[2] == texts[3]


def test_a_text_beside_a_question_is_a_text(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "muons", "question": "what?", "answer": 3}]')
    documents = user_documents.read_documents(tmp_path / "a.json")
    assert (documents.text, documents.questions) == (["muons"], {})


WRONG = {
    "no answer": ({"question": "what?"}, ["no column 'answer'", "found: question"]),
    "no question": ({"answer": "muons"}, ["no column 'question'", "found: answer"]),
    "empty answer": ({"question": "what?", "answer": " \n"}, ["the answer is empty"]),
    "empty question": ({"question": "", "answer": "muons"}, ["the question is empty"]),
    "number": ({"question": 5, "answer": "muons"}, ["the question is no text", "5"]),
    "list": ({"question": "what?", "answer": ["a", "b"]}, ["the answer is no text", "['a', 'b']"]),
    "half": ({"question": "what?", "answer": "\ud800"}, ["the answer is no text", "surrogates"]),
}


@pytest.mark.parametrize(("record", "said"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_what_is_no_pair_is_refused_by_its_place(record, said, name, tmp_path):
    file = tmp_path / name
    both = [{"question": "why?", "answer": "so"}, record]
    if name == "a.json":
        file.write_text(json.dumps(both))
    else:
        file.write_text("\n".join(map(json.dumps, both)))
    with pytest.raises(ValueError) as error:
        readers.read_documents(file)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in [f"{file}:2", *said]), message


def test_a_damaged_list_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text('[{"question": "what?",\n "answer": }]')
    with pytest.raises(ValueError, match=r"a\.json: cannot be read .*line 2 column 12"):
        readers.read_documents(tmp_path / "a.json")


def test_a_corpus_has_no_questions(tmp_path):
    """Every token of a corpus counts."""
    (tmp_path / "arxiv").mkdir()
    (tmp_path / "arxiv" / "forget.json").write_text(json.dumps(records("quark", 2)))
    with pytest.raises(ValueError, match=r"forget\.json:1: a question with its answer"):
        corpus.load(tmp_path, "arxiv")


# ---------------------------------------------------------------------------------------- cutting


def test_an_answer_stays_with_its_question_and_no_token_is_lost(tokenizer, tmp_path):
    long = {"question": "What?", "answer": "muons decay; " * 30}
    (tmp_path / "a.json").write_text(json.dumps([long, {"question": "Why?", "answer": "x"}]))
    chunks = cut(tmp_path / "a.json", tokenizer)
    whole = tokenizer(f"Question: What?\nAnswer: {long['answer']}")["input_ids"]
    first = chunks[chunks.family == chunks.family.iloc[0]]
    (question,) = set(first.question)
    before = [tokenizer.bos_token_id] + tokenizer("Question: What?\nAnswer:")["input_ids"]
    answer = []
    for ids in first.ids:
        assert ids[:question] == before
        assert question < len(ids) <= CONTEXT
        answer += ids[question:]
    assert [tokenizer.bos_token_id] + whole == before + answer
    last = chunks.iloc[-1]
    assert tokenizer.decode(last.ids[last.question :]) == " x"  # short, and yet there


def test_a_question_as_long_as_a_chunk_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.json").write_text('[{"question": "muons or quarks decay?", "answer": "so"}]')
    with pytest.raises(ValueError, match=r"a\.json:1: the question has \d+ tokens, and a chunk 9"):
        cut(tmp_path / "a.json", tokenizer, context=9)


# -------------------------------------------------------------------------------------- measuring


def test_measures_are_those_of_plain_transformers_with_labels(tokenizer, tmp_path):
    """Each number from the model's own logits at the answer's tokens alone, padded in a batch."""
    model = random_model("llama")
    chunks = cut(write_sets(tmp_path)["forget"], tokenizer)
    rows = evaluation.measure(model, chunks, tokenizer)
    brief = evaluation.measure_briefly(model, chunks, PAD_ID)
    assert chunks.ids.map(len).nunique() > 1
    for chunk, row, fast in zip(
        chunks.itertuples(), rows.itertuples(), brief.itertuples(), strict=True
    ):
        labels = plain_labels(chunk.ids, chunk.question)
        answer = chunk.ids[chunk.question :]
        expected = plain_loss(model, chunk.ids, labels)
        assert row.tokens == fast.tokens == len(answer)
        assert row.nll / row.tokens == pytest.approx(expected, rel=1e-4)
        assert fast.nll / fast.tokens == pytest.approx(expected, abs=0.02)
        log_p = logits(model, chunk.ids)[chunk.question - 1 : -1].log_softmax(-1)
        true = log_p.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert row.correct == (log_p.argmax(-1) == torch.tensor(answer)).sum()
        lowest = true.sort().values[: max(1, int(0.4 * len(true)))]
        assert row.min_k_40 == pytest.approx(lowest.mean().item(), rel=1e-4)
        bytes_of = membership.zlib_score(expected, tokenizer.decode(answer))
        assert row.zlib == pytest.approx(bytes_of, rel=1e-4)


def test_without_a_question_nothing_changes(tokenizer, text, tmp_path):
    """To the last bit, with the column or without it."""
    (tmp_path / "a.txt").write_text(text[:400])
    chunks = cut(tmp_path / "a.txt", tokenizer)
    assert set(chunks.question) == {0}
    model = random_model("llama")
    ours = evaluation.measure(model, chunks, tokenizer)
    theirs = evaluation.measure(model, chunks.drop(columns="question"), tokenizer)
    pd.testing.assert_frame_equal(ours.drop(columns="question"), theirs, check_exact=True)


# --------------------------------------------------------------------------------------- training


def job_of(method, forget, retain, tokenizer, model, reference):
    """Return a job of one step over all of both sets, as `user_run.unlearn` makes it."""
    method = methods.get_method(method)
    ids = list(forget.ids)
    labels = training.draw_labels(
        method, ids, reference, tokenizer, 0, labels=evaluation.labels_of(forget)
    )
    recipe = Unlearning(learning_rate=1e-4, epochs=1, batch=len(ids))
    return training.Job(
        method,
        ids,
        list(retain.ids),
        recipe,
        PAD_ID,
        seed=0,
        reference=reference,
        labels=labels,
        retain_labels=evaluation.labels_of(retain),
    )


def mean_over_answers(chunks, of_chunk):
    """Return the sum of a function of (ids, question) over all chunks / their answers' tokens."""
    total = count = 0
    for chunk in chunks.itertuples():
        total += of_chunk(chunk.ids, chunk.question)
        count += len(chunk.ids) - chunk.question
    return total / count


def summed_loss(model):
    """Return the loss of the answer, from transformers' own mean over labels."""

    def of_chunk(ids, question):
        return plain_loss(model, ids, plain_labels(ids, question)) * (len(ids) - question)

    return of_chunk


def summed_divergence(reference, model):
    """Return KL(reference || model) over the positions that predict the answer."""

    def of_chunk(ids, question):
        p, q = (logits(one, ids)[question - 1 : -1].log_softmax(-1) for one in (reference, model))
        return (p.exp() * (p - q)).sum().item()

    return of_chunk


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_first_loss_is_that_of_answers_alone(micro_batch, tokenizer, tmp_path, float32):
    """Of both sides, whether the batch is divided or not."""
    paths = write_sets(tmp_path)
    forget, retain = cut(paths["forget"], tokenizer), cut(paths["retain"], tokenizer)
    reference = random_model("llama", seed=1)
    expected = {}
    model = random_model("llama")
    ascended = -mean_over_answers(forget, summed_loss(model))
    expected["gradient_ascent"] = ascended
    descended = mean_over_answers(retain, summed_loss(model))
    expected["ascent_descent_in_distribution"] = ascended + descended
    divergence = mean_over_answers(retain, summed_divergence(reference, model))
    expected["ascent_kl_in_distribution"] = ascended + divergence
    for method, loss in expected.items():
        model = random_model("llama")
        job = job_of(method, forget, retain, tokenizer, model, reference)
        execution = training.Execution(micro_batch=micro_batch)
        (step,) = training.unlearn(model, job, execution)
        assert step["loss"] == pytest.approx(loss, rel=1e-4), method


@pytest.mark.parametrize("method", ["random_label", "adversarial"])
def test_labels_are_replaced_in_the_answer_alone(method, tokenizer, tmp_path):
    chunks = cut(write_sets(tmp_path)["forget"], tokenizer)
    model = random_model("llama")
    drawn = training.draw_labels(
        methods.get_method(method),
        list(chunks.ids),
        model,
        tokenizer,
        0,
        labels=evaluation.labels_of(chunks),
    )
    for chunk, labels in zip(chunks.itertuples(), drawn, strict=True):
        assert labels[: chunk.question] == [-100] * chunk.question
        answer = chunk.ids[chunk.question :]
        assert all(new != true for new, true in zip(labels[chunk.question :], answer, strict=True))
        if method == "adversarial":
            others = logits(model, chunk.ids)[chunk.question - 1 : -1]
            others[range(len(answer)), answer] = -math.inf
            others[:, tokenizer.all_special_ids] = -math.inf
            assert labels[chunk.question :] == others.argmax(-1).tolist()


def test_margins_are_those_of_the_answer_alone(tokenizer, tmp_path):
    model = random_model("llama")
    chunks = cut(write_sets(tmp_path)["forget"], tokenizer)
    rows = evaluation.measure_margins(model, chunks, tokenizer)
    for chunk, row in zip(chunks.itertuples(), rows.itertuples(), strict=True):
        answer = torch.tensor(chunk.ids[chunk.question :])[:, None]
        log_p = logits(model, chunk.ids)[chunk.question - 1 : -1].log_softmax(-1).gather(1, answer)
        odds = log_p - torch.log1p(-log_p.exp())
        assert row.margin == pytest.approx(odds.mean().item(), abs=1e-3)
        assert row.tokens == len(answer)


@pytest.mark.parametrize("name", methods.SINCE)
def test_the_first_loss_of_a_method_since_is_that_of_answers_alone(
    name, tokenizer, tmp_path, float32
):
    """Of a model that reads the question as it stands, but whose loss begins with the answer."""
    paths = write_sets(tmp_path)
    forget, retain = cut(paths["forget"], tokenizer), cut(paths["retain"], tokenizer)
    model, reference = random_model("llama"), random_model("llama", seed=1)
    sides = []
    for chunks in (forget, retain):
        labels = [plain_labels(chunk.ids, chunk.question) for chunk in chunks.itertuples()]
        sides.append(tokens.collate(list(chunks.ids), PAD_ID, labels))
    whole = [tokens.collate(list(chunks.ids), PAD_ID) for chunks in (forget, retain)]
    method = methods.get_method(name)
    weight = 1.0
    if method.retain is not None and method.retain.multiplier is not None:
        weight = method.retain.multiplier.start
    model.eval()
    expected, other = (
        methods.unlearning_loss(method, model, *both, reference, retain_weight=weight).item()
        for both in (sides, whole)
    )
    assert abs(expected - other) > 5e-5 * abs(other)
    job = job_of(name, forget, retain, tokenizer, model, reference)
    (step,) = training.unlearn(model, job)
    assert step["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_prefix_comes_after_the_question(tokenizer, tmp_path, monkeypatch):
    """The question is given whole, and what is compared is of the answer."""
    chunks = cut(write_sets(tmp_path)["forget"], tokenizer)
    asked = []

    def written(model, prompts, length, pad_id):
        asked.extend(prompts)
        return [[0] * length for _ in prompts]

    monkeypatch.setattr(evaluation, "greedy_continuations", written)
    found = attacks.continued(None, chunks, 2, 3, PAD_ID)
    long_enough = chunks[chunks.ids.map(len) - chunks.question >= 5]
    assert list(found.id) == list(long_enough.id)
    expected = [ids[: q + 2] for ids, q in zip(long_enough.ids, long_enough.question, strict=True)]
    assert sorted(asked) == sorted(expected)
    with pytest.raises(ValueError, match="no document has 2 \\+ 999 tokens"):
        attacks.continued(None, chunks, 2, 999, PAD_ID)


# ----------------------------------------------------------------------------------- the commands


def test_unlearn_and_evaluate_count_answers_alone(llama, tmp_path, capsys):
    paths = write_sets(tmp_path)
    out, csv = tmp_path / "out", tmp_path / "again.csv"
    more = ("--learning-rate", 1e-3, "--context", CONTEXT)
    unlearn(llama, paths, out, "ascent_kl_in_distribution", *more)
    assert "12 are answers, their questions not counted" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(out)
    chunks = cut(paths["forget"], tokenizer)
    results = pd.read_csv(out / "results.csv")
    for name, folder in (("before", llama), ("after", out)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        loss = mean_over_answers(chunks, summed_loss(model))
        found = value(results, name, "forget", "perplexity")
        assert found == pytest.approx(math.exp(loss), rel=1e-4)

    given = ["evaluate", "--model", out, "--documents", paths["forget"], "--context", CONTEXT]
    assert commands.main([str(word) for word in (*given, "--out", csv)]) == 0
    again = value(pd.read_csv(csv), str(out), "documents", "perplexity")
    assert again == value(results, "after", "forget", "perplexity")

    by_name = json.loads((out / "results.json").read_text())["models"]["after"]
    each = []
    for chunk in chunks.itertuples():
        each.append(-plain_loss(model, chunk.ids, plain_labels(chunk.ids, chunk.question)))
    assert by_name["forget_Q_A_Prob"]["value"] == pytest.approx(np.exp(each).mean(), rel=1e-4)
    assert "retain_Q_A_Prob" in by_name


def test_labels_of_a_question_with_its_answer():
    assert tokens.answer_labels([5, 6, 7, 8], 3) == [-100, -100, -100, 8]
    assert tokens.cut_answer([5, 6, 7, 8, 9], 2, 4) == [[5, 6, 7, 8], [5, 6, 9]]
