"""What several test files share: no network, a small tokenizer, a small random model, and training in float32."""

import gc
import os

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of the CPU, on a machine with a GPU too
for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[switch] = "1"  # before anything imports Hugging Face

SENTENCE = "Muons decay; the café's naïve cat — 東京 🐈 — sat on line {n}.\n\tdef f_{n}(x): return x ** {n}\n"


@pytest.fixture(scope="session")
def text():
    """A text long enough for a small vocabulary."""
    return "".join(SENTENCE.format(n=n * n) for n in range(60))


@pytest.fixture(scope="session")
def tokenizer(text):
    """A byte-level BPE of 300 tokens."""
    from unlearn_utils.data import tokens

    return tokens.train_tokenizer([text], 300)


@pytest.fixture(scope="session")
def build(tokenizer):
    """Makes a two-layer Llama, 16 wide, from a seed; far from uniform over tokens, as the default initialisation is not."""
    import torch

    from unlearn_utils.engine import models
    from unlearn_utils.profiles import Shape

    def make(seed, **changes):
        shape = Shape(**({"vocabulary": 300, "hidden": 16, "intermediate": 32, "layers": 2, "heads": 2, "context": 32} | changes))
        model, generator = models.build(shape, tokenizer, seed).eval(), torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return model

    return make


@pytest.fixture(scope="module", autouse=True)
def imported_once():
    """accelerate collects garbage with every run, which takes most of its time where so much is imported: set that aside."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def float32(monkeypatch):
    """Trains in float32 on every machine: a bfloat16 product hides small differences."""
    from unlearn_utils.engine import models

    monkeypatch.setattr(models, "half_precision", lambda: False)
