"""What several test files share: no network, small models, and what a user has.

The models are a small random one with its tokenizer, and one in a folder with documents beside it.
"""

import gc
import os
import signal

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of the CPU, on a machine with a GPU too
for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[switch] = "1"  # before anything imports Hugging Face
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it

SENTENCE = (
    "Muons decay; the café's naïve cat — 東京 🐈 — sat on line {n}.\n"
    "\tdef f_{n}(x): return x ** {n}\n"
)


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
    """Make a two-layer Llama, 16 wide, from a seed.

    It is far from uniform over tokens, as the default initialisation is not.
    """
    import torch

    from unlearn_utils.engine import models
    from unlearn_utils.profiles import Shape

    small = {"vocabulary": 300, "hidden": 16, "intermediate": 32, "layers": 2, "heads": 2}

    def make(seed, **changes):
        shape = Shape(**(small | {"context": 32} | changes))
        model = models.build(shape, tokenizer, seed).eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return model

    return make


@pytest.fixture(scope="module", autouse=True)
def imported_once():
    """Set aside what was imported.

    accelerate collects garbage with every run, which takes most of its time where there is much.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def float32(monkeypatch):
    """Train in float32 on every machine: a bfloat16 product hides small differences."""
    from unlearn_utils.engine import models

    monkeypatch.setattr(models, "half_precision", lambda: False)


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """The paths of a user's three sets, by name. No test changes a file of them."""
    import user_models

    return user_models.write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory, tokenizer):
    """The folder of a Llama in float32 whose tokenizer has all special tokens."""
    import user_models

    return user_models.write_model(tmp_path_factory.mktemp("llama"), "llama", tokenizer)
