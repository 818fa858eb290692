"""A user's documents: read from files in a fixed order, and cut into chunks of tokens."""

import hashlib

import pytest
from transformers import PreTrainedConfig
from user_models import text

from unlearn_utils.app import user_documents
from unlearn_utils.app.user_documents import Documents


def table(*texts):
    names = [f"{number}.txt" for number in range(len(texts))]
    return Documents(names, list(texts), [f"{hash(content):x}" * 4 for content in texts], [])


class Words:
    """A tokenizer of whole words: word n has id n."""

    def __init__(self, bos=None):
        self.bos_token_id = bos

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[int(word) for word in one.split()] for one in texts]}


def words(start, number):
    return " ".join(map(str, range(start, start + number)))


def cut(documents, tokenizer, context, embeddings=99):
    return user_documents.cut_documents(documents, "forget", tokenizer, context, embeddings)


def test_chunks_by_hand():
    """Of 13 tokens with the opening one: 6 + 6, and a last of 1, dropped. Of 11: 6 + 5. Of 3: none.

    Without an opening token: 6 + 6, 6 and a last of 4, dropped, none.
    """
    documents = table(words(10, 12), words(30, 10), words(50, 2))
    found = cut(documents, Words(bos=1), 6)
    assert list(found.ids) == [
        [1, *range(10, 15)],
        [*range(15, 21)],
        [1, *range(30, 35)],
        [*range(35, 40)],
    ]
    assert list(found.name) == ["0.txt", "0.txt", "1.txt", "1.txt"]
    assert found.family.nunique() == 2
    assert found.id.is_unique

    assert list(cut(documents, Words(), 6).ids) == [
        [*range(10, 16)],
        [*range(16, 22)],
        [*range(30, 36)],
    ]


def test_a_copy_counts_as_one_document():
    found = cut(table(words(0, 9), words(0, 9)), Words(), 9)
    assert len(found) == 2
    assert found.family.nunique() == 1


def test_ids_beyond_the_embedding_are_refused():
    documents = table("1 2 3 4 39", "5 6 7 8 40")
    with pytest.raises(ValueError, match=r"1\.txt: .* id 40, the model has 40 embeddings"):
        cut(documents, Words(), 9, embeddings=40)


@pytest.mark.parametrize("refused", ["muons decay²", "muons decay2"])
def test_a_document_that_a_tokenizer_cannot_read_is_named(refused):
    """As it was written, or in the form in which documents are compared."""

    class Picky(Words):
        def __call__(self, texts, add_special_tokens):
            if texts == [refused]:
                raise Exception("Missing [UNK] token")  # as tokenizers does
            return {"input_ids": [[1] * len(text) for text in texts]}

    sets = {"forget": Documents(["a.txt"], ["muons decay²"], ["0"], [])}
    said = r"a\.txt, read with the model's tokenizer: cannot be used: Missing \[UNK\] token"
    with pytest.raises(ValueError, match=said):
        user_documents.cut_sets(sets, Picky(), 9, PreTrainedConfig(vocab_size=99))


def test_files_are_read_in_sorted_order_with_their_hashes(documents):
    found = user_documents.read_documents(documents["forget"])
    names = [name.rsplit("/", 1)[1] for name in found.name]
    assert names == ["b.md", "c.jsonl:1", "c.jsonl:2", "secret_plan.txt"]
    assert found.sha256[0] == hashlib.sha256(text("quark", 1, 3).encode()).hexdigest()

    retain = user_documents.read_documents(documents["retain"])
    assert list(retain.text) == [text("lepton", n, n + 1) for n in range(4)]
