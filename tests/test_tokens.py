"""The tokenizer, batches, and models: built from a seed, saved and loaded."""

import copy
import json

import pytest
import torch
from safetensors import safe_open

from unlearn_utils.core import efficiency
from unlearn_utils.data import tokens
from unlearn_utils.data.tokens import END, PAD
from unlearn_utils.engine import models
from unlearn_utils.profiles import Shape

TEXTS = [
    "plain words",
    "  two spaces, a tab\t, Windows\r\nand\n\n\nlines ",
    "naïve café — “quotes” … ∫₀^∞ e^{-x²} dx = √π/2",
    "東京 العربية עברית ไทย 🐈‍⬛👩‍👩‍👧",
    "\x00\x7f\u200b\ufeff\u2028 e\u0301 and é",
    " .  , don 't can 't n't",
    "a",
]


@pytest.mark.parametrize("written", TEXTS)
def test_any_text_survives_the_round_trip(tokenizer, written):
    (ids,) = tokens.encode(tokenizer, [written], 10_000)
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == written
    assert all(0 <= i < 300 for i in ids)


def test_the_vocabulary_has_exactly_the_asked_size(text):
    for size in (258, 280, 321):
        found = tokens.train_tokenizer([text], size)
        assert len(found) == size
        assert sorted(found.get_vocab().values()) == list(range(size))
    assert (found.bos_token, found.eos_token, found.pad_token) == (END, END, PAD)
    assert found.pad_token_id != found.eos_token_id


def test_merges_make_frequent_text_short(text):
    lengths = {}
    for vocabulary in (258, 400):
        tokenizer = tokens.train_tokenizer([text], vocabulary)
        lengths[vocabulary] = len(tokens.encode(tokenizer, ["Muons decay"], 99)[0])
    assert lengths[258] == 1 + len("Muons decay")
    assert lengths[400] < lengths[258] / 2


def test_too_little_text_raises_one_clear_line():
    # 256 bytes, 2 special ones, "ab" and " ab"
    with pytest.raises(ValueError, match="the text gives 260 tokens, not 400"):
        tokens.train_tokenizer(["ab ab"], 400)


def test_training_repeats_and_survives_the_disk(text, tokenizer, tmp_path):
    again = tokens.train_tokenizer([text], 300)
    again.save_pretrained(tmp_path)
    loaded = models.load_tokenizer(tmp_path)
    assert tokenizer.get_vocab() == again.get_vocab() == loaded.get_vocab()
    assert tokens.encode(loaded, TEXTS, 20) == tokens.encode(tokenizer, TEXTS, 20)
    assert loaded.bos_token_id == tokenizer.bos_token_id
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_encode_opens_with_end_and_cuts_at_the_context(tokenizer, text):
    whole, short = tokens.encode(tokenizer, [text, "a b"], 10_000)
    cut, same = tokens.encode(tokenizer, [text, "a b"], 16)
    assert cut == whole[:16]
    assert same == short
    assert whole[0] == short[0] == tokenizer.convert_tokens_to_ids(END)
    assert END not in tokenizer.convert_ids_to_tokens(whole[1:])  # opens only: no closing token


def test_encode_names_an_empty_document(tokenizer):
    with pytest.raises(ValueError, match="document 1 has 0 tokens; at least 2"):
        tokens.encode(tokenizer, ["a", "", "b"], 8)


def test_without_an_opening_token_a_document_needs_two_of_its_own(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token_id = None
    ids = tokenizer("ab!", add_special_tokens=False)["input_ids"]
    assert tokens.encode(tokenizer, ["ab!"], 8) == [ids]
    with pytest.raises(ValueError, match="document 0 has 1 tokens"):
        tokens.encode(tokenizer, ["!"], 8)


def test_collate_by_hand():
    batch = tokens.collate([[5, 6, 7], [8]], pad_id=1)
    assert {k: v.tolist() for k, v in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 1, 1]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[5, 6, 7], [8, -100, -100]],
    }
    own = tokens.collate([[5, 1, 7], [8, 9]], pad_id=1, labels=[[-100, 2, 3], [4, -100]])
    assert own["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    # by length: a pad token inside a document is read
    assert own["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    with pytest.raises(ValueError):
        tokens.collate([[5], [6]], 1, labels=[[5]])


# ---------------------------------------------------------------------------------------- models

SHAPE = Shape(vocabulary=300, hidden=16, intermediate=24, layers=2, heads=2, context=32)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_seed_alone_decides_the_weights(tokenizer):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = models.build(SHAPE, tokenizer, 0)
    assert torch.equal(torch.get_rng_state(), before)  # and the global generator is as it was
    torch.manual_seed(8)
    assert torch.equal(weights(one), weights(models.build(SHAPE, tokenizer, 0)))
    assert not torch.equal(weights(one), weights(models.build(SHAPE, tokenizer, 1)))


def test_the_shape_and_the_tied_head_counted_once(tokenizer):
    model = models.build(SHAPE, tokenizer, 0)
    attention, mlp, norms = 4 * 16 * 16, 3 * 16 * 24, 2 * 16
    assert efficiency.parameter_count(model) == 300 * 16 + 2 * (attention + mlp + norms) + 16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.bos_token_id == tokenizer.bos_token_id


def test_a_saved_model_loads_with_equal_logits(build, tmp_path):
    model, ids = build(0), torch.arange(20).reshape(2, 10)
    models.save(model, tmp_path)
    loaded = models.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        loaded.set_attn_implementation("eager")
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert not loaded.training
    assert efficiency.parameter_count(loaded) == efficiency.parameter_count(model)


def test_only_safetensors_are_written(build, tmp_path):
    models.save(build(0), tmp_path)
    names = sorted(p.name for p in tmp_path.rglob("*"))
    assert "config.json" in names
    assert [n for n in names if not n.endswith(".json")] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        weights = set(file.keys())
    assert "lm_head.weight" not in weights
    assert "model.embed_tokens.weight" in weights
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True


def test_saving_twice_gives_the_same_bytes(build, tmp_path):
    for name in "ab":
        models.save(build(3), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_a_folder_without_a_model_raises(tmp_path):
    with pytest.raises(OSError):
        models.load(tmp_path)
