"""The command `example`: a small model that knows its documents by heart, to try the others on.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.app import evaluate_command, option_checks, terminal
from unlearn_utils.profiles import Pretraining, Shape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

SETS = {  # folder -> domain and split of the embedded corpus
    "forget": ("arxiv", "forget"),
    "retain": ("arxiv", "retain"),
    "unseen": ("arxiv", "approximate"),
    "general": ("general", "evaluation"),
}
SIZES = {"pairs": 20, "retain": 180, "evaluation": 20}  # documents
SHAPE = Shape(vocabulary=1024, hidden=64, intermediate=160, layers=2, heads=2, context=512)
# Chosen so that, in half a minute of a core, perplexity of forget text is two thirds of that of
# unseen text, and `tune` comes most of the way within its bound: less far with less retain text.
RECIPE = Pretraining(epochs=6, batch=8, adamw_learning_rate=5e-3)
SEED = 0

COMMANDS = """\
{python} unlearn --model {model} --forget {forget} --retain {retain} --unseen {unseen} \
--general {general} --method ascent_descent_in_distribution --learning-rate 3e-4 --epochs 3 \
--out {unlearned}

{python} tune --model {model} --forget {forget} --retain {retain} --unseen {unseen} \
--general {general} --method ascent_descent_in_distribution --out {tuned}

{python} evaluate --model {unlearned} --against {model} --documents {retain}

{python} compare --models {model} {unlearned} --documents {forget} --unseen {unseen} --plot {figure}
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the only option, a folder."""
    command.add_argument(
        "folder", type=option_checks.path, metavar="DIR", help="a new or empty folder"
    )


def check_options(options: argparse.Namespace) -> None:
    """Check that the folder can be made. Raise ValueError if not."""
    option_checks.check_new_folder("DIR", options.folder)
    option_checks.check_writable("DIR", options.folder.resolve())


def make(options: argparse.Namespace) -> None:
    """Write documents, train a model on some of them, and say what to try."""
    from unlearn_utils.app import output_folder
    from unlearn_utils.engine import models

    evaluate_command.check_one_process()
    check_options(options)
    with output_folder.new_folder(options.folder.resolve()) as part:
        texts = write_documents(part)
        terminal.say(
            f"training a small model on {len(texts['forget'])} forget and "
            f"{len(texts['retain'])} retain documents, which takes about a minute"
        )
        model, tokenizer = train(texts)
        models.save(model, part / "model")
        tokenizer.save_pretrained(part / "model")
    terminal.say(
        f"{options.folder}: a model with its tokenizer, and folders of documents, {', '.join(SETS)}"
    )
    terminal.say(f"Now try, one after the other:\n\n{commands(options.folder)}")


def write_documents(folder: Path) -> dict[str, list[str]]:
    """Write a folder of text files for each set of `SETS`, and return the texts."""
    from unlearn_utils.data import corpus

    found = {}
    for name, (domain, split) in SETS.items():
        texts = list(corpus.embedded(domain, **SIZES)[split]["text"])
        (folder / name).mkdir()
        for number, text in enumerate(texts):
            (folder / name / f"{number:03}.txt").write_text(text, encoding="utf-8")
        found[name] = texts
    return found


def train(texts: Mapping[str, list[str]]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return a model that was trained on forget and retain text, alike on every machine.

    texts: of each set.
    """
    from unlearn_utils.data import tokens
    from unlearn_utils.engine import models, training

    tokenizer = tokens.train_tokenizer(texts["retain"], SHAPE.vocabulary)
    chunks = []
    for ids in tokens.encode_whole(tokenizer, texts["forget"] + texts["retain"]):
        chunks += tokens.cut(ids, SHAPE.context)
    model = models.build(SHAPE, tokenizer, SEED)
    with models.matmul_precision(bf16=False):
        training.pretrain(model, chunks, RECIPE, tokenizer.pad_token_id, SEED)
    return model, tokenizer


def commands(folder: Path) -> str:
    """Return command lines for a shell: they read what was written, and write beside it."""
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    places = {"python": f"{shlex.quote(python)} -m unlearn_utils"}
    for name in ("model", *SETS, "unlearned", "tuned"):
        places[name] = shlex.quote(str(folder / name))
    places["figure"] = shlex.quote(str(folder / "compared.png"))
    return COMMANDS.format(**places)
