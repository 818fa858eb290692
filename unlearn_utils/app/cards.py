"""The folder of an unlearned model, and what lies in it beside the weights: results.csv, run.json, README.md (its card on the hub)."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_utils.app import model_files, settings, user_documents, user_run
from unlearn_utils.core import methods, tables
from unlearn_utils.data import tokens
from unlearn_utils.engine import distributed, models

TERMS = {
    "ascent": "minus the cross-entropy of the forget text",
    "random_label": "the cross-entropy of the forget text with labels drawn once at random among the other tokens",
    "adversarial": "the cross-entropy of the forget text with the original model's likeliest wrong token as each label",
    "descent": "the cross-entropy of the retain text",
    "kl": "KL(original model || model) of the next token on the retain text",
}
TEXTS = {"general": "general text, unlike the forget text", "in_distribution": "text of the forget text's own kind"}
RELEASED = "the released code of arXiv 2402.15159 uses it"
SOURCES = {  # of each default: where it comes from
    "learning_rate": f"{RELEASED}, for 6e9 parameters; smaller models may need more",
    "epochs": RELEASED,
    "batch": "ours",
    "retain_weight": "ours: both terms weigh the same",
    "context": "4,096 in arXiv 2402.15159, or what the model reads if that is less",
    "max_grad_norm": "the Trainer's default",
    "schedule": "ours: so few steps leave nothing to anneal",
    "seed": "ours",
    "lora": "ours: every weight is trained",
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "unlearn-utils")
LIMITS = """\
- Unlearning is approximate. The weights were never shown to be without these documents; only a model trained without them is.
- Membership inference may still find the documents: an area under the curve above 0.5 is a trace of them, one far below 0.5 a trace of the
  unlearning. A stronger attack than Min-40% may find more.
- A higher perplexity of the forget text alone does not mean that it is forgotten: every text may have become harder. Compare the rows.
- Copies, quotations and paraphrases of the documents elsewhere in the training text are not touched.
- Intervals are 95% percentile bootstraps over documents; n is their number. With few documents they are too narrow."""


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to fill, the same in every process, which becomes `out` at the end, or goes if anything fails.

    Raises ValueError if `out` is in use.
    """
    part = distributed.on_main_process(lambda: begun(out))
    try:
        yield part
        distributed.on_main_process(lambda: os.replace(part, out))
    finally:
        shutil.rmtree(part, ignore_errors=True)


def begun(out: Path) -> Path:
    """Makes the folder that `whole` gives."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out {out}: already there and not empty; choose another folder")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir()
    return part


def save(model: nn.Module, base: model_files.Checkpoint, folder: Path) -> None:
    """Writes config and weights in the type that they had on disk, or float32 adapters; every process calls it."""
    if isinstance(model, PeftModel):
        models.save(model, folder, save_embedding_layers=False)
    else:
        models.save(model, folder, model_files.stored_dtype(base))


def finish(base: model_files.Checkpoint, merge: bool, folder: Path) -> float | None:
    """Adds the tokenizer to what `save` wrote, and the adapters to the weights, if they shall merge.

    Returns the share of weights that then differ from the base model's, which rounding to 16 bits lowers; None for adapters.
    Raises FloatingPointError if no weight differs.
    """
    AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False).save_pretrained(folder)  # as it was, without our padding
    stored, adapters = model_files.stored_dtype(base), list(folder.glob("adapter_*"))
    if adapters and not merge:
        return None
    if merge:  # in float32: rounded once, at the end
        model_files.load(base._replace(adapters=folder)).merge_and_unload().to(stored).save_pretrained(folder)
        for file in adapters:
            file.unlink()
    new, old = (
        dict(model_files.load(found, stored).named_parameters()) for found in (model_files.Checkpoint("the new model", folder), base)
    )
    changed = sum(int((weight != old[name]).sum()) for name, weight in new.items())
    if not changed:
        raise FloatingPointError(f"no weight changed, once rounded to {stored}: raise --learning-rate or --epochs. Nothing was written")
    return changed / sum(weight.numel() for weight in new.values())


def measured(
    folder: Path, sets: user_documents.Sets, run: settings.RunSettings, base: model_files.Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Rows of measurements of what was saved. Raises FloatingPointError if a probability is not finite: the run diverged."""
    rows = user_run.measure(
        model_files.load(model_files.find(str(folder)), settings.weight_dtype(run, model_files.stored_dtype(base))), sets, tokenizer
    )
    if not np.isfinite(rows.nll).all():
        raise FloatingPointError("the run diverged: not every probability is finite; lower --learning-rate. Nothing was written")
    return rows


def results(parts: Sequence[pd.DataFrame], members: str) -> pd.DataFrame:
    """Tidy results: model, split, measure, value, low, high, n (documents). parts: of `own.measure`, each with a column model.

    members: the set that is told from "unseen", where there is one, by Min-40% Prob of each chunk; higher AUC = better known.
    """
    rows = pd.concat(parts, ignore_index=True)
    table = [tables.summarise(rows, ["model", "split"], ["perplexity", "accuracy"])]
    if "unseen" in set(rows.split):
        sides = rows[rows.split.isin([members, "unseen"])]
        found = tables.auc_table(sides.replace({"split": {members: "forget", "unseen": "approximate"}}), ["model"], ["Min-40%"])
        table.append(found.assign(split=f"{members} against unseen"))
    return pd.concat(table, ignore_index=True)


def formula(method: methods.Method) -> str:
    """What a method minimises, in words."""
    retain = f" + w * {TERMS[method.retain]}" if method.retain else ""
    return TERMS[method.forget] + retain


def method_table() -> pd.DataFrame:
    """The methods: name, forget term, retain term, retain text, and what is minimised."""
    rows = [(m.name, m.forget, m.retain or "", m.retain_text or "", formula(m)) for m in methods.METHODS.values()]
    return pd.DataFrame(rows, columns=["name", "forget term", "retain term", "retain text", "minimises"])


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def stated_license(folder: Path) -> dict[str, str]:
    """The license that the base model's card states in its front matter, or "unknown"."""
    card = folder / "README.md"
    data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.exists() else {}
    return {"license": "unknown"} | {k: data[k] for k in ("license", "license_name", "license_link") if data.get(k)}


def record(base: model_files.Checkpoint, run: settings.RunSettings, texts: user_documents.Sets, sets: user_documents.Sets, **more) -> dict:
    """What run.json holds: origin, settings, hashes of each set's documents, versions. No path: one may tell what was forgotten.

    texts: of `own.read`; sets: of `own.chunks`. What was so short that no chunk is left of it counts as left out, not as forgotten.
    """
    settings = asdict(run)
    origin = {
        "model": base.name if base.commit else base.folder.name,
        "commit": base.commit,
        "dtype": str(model_files.stored_dtype(base))[6:],
    }
    used = {name: list(dict.fromkeys(found.family)) for name, found in sets.items()}
    left_out = {name: [h for h in found.sha256 if h not in used[name]] for name, found in texts.items()}
    more |= {"processes": distributed.process_state().num_processes}
    return origin | settings.pop("recipe") | settings | more | {"documents": used, "left_out": left_out, "versions": versions()}


def write(folder: Path, run: Mapping, results: pd.DataFrame, base: Path, chosen: Sequence[str]) -> None:
    """Writes the three files. run: settings, `documents` (hashes of each set), `changed`, history, versions; base: the base model's folder;
    chosen: names of the settings that were given on the command line."""
    results.to_csv(folder / "results.csv", index=False)
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(run, results, stated_license(base), chosen), encoding="utf-8")


def weights(run: Mapping) -> str:
    """What was written, and what rounding left of the change."""
    if run["changed"] is None:
        return "LoRA adapters alone: the base model is needed too, where adapter_config.json says."
    lost = "" if run["dtype"] == "float32" else "; smaller changes are rounded away"
    return f"Whole weights in {run['dtype']}: {run['changed']:.1%} of them differ from the base model's{lost}."


def card(run: Mapping, results: pd.DataFrame, license: Mapping[str, str], chosen: Sequence[str]) -> str:
    """README.md: YAML front matter, then what was done, with what, what was measured, and the limits."""
    method = methods.get_method(run["method"])
    data = ModelCardData(base_model=run["model"], library_name="transformers", tags=["unlearning", method.name], **license)
    read = "\n".join(f"- {name}: {len(hashes)} documents" for name, hashes in run["documents"].items())
    forgotten = "\n".join(run["documents"]["forget"])
    retained = f", w = {run['retain_weight']:g}, the retain text being meant as {TEXTS[method.retain_text]}" if method.retain else ""
    return f"""---
{data.to_yaml()}
---

# {run["model"]}, made to unlearn {len(run["documents"]["forget"])} documents

Made with unlearn-utils, a reproduction of "Machine Unlearning of Pre-trained Large Language Models" (arXiv 2402.15159).
Base model: {run["model"]}, {f"commit {run['commit']}" if run["commit"] else "a local folder"}.
{weights(run)}

## What was forgotten

Documents by the SHA-256 of their UTF-8 text; their text and names are not part of this repository:

```
{forgotten}
```

## Method

{method.title} (`{method.name}`). Minimised: {formula(method)}{retained}.
Each term is a mean over the predicted tokens of an optimizer batch. Texts given:

{read}

| setting | value | source |
|---|---|---|
{_settings(run, chosen)}

{len(run["history"])} steps of AdamW without weight decay. Documents are cut into chunks of {run["context"]} tokens;
a last chunk under {tokens.SHORTEST} tokens is dropped, as the released code does.

## Measurements

Before and after. Forget: the very text that was trained on; retain: the text to be kept; unseen: text that was not trained on here.
Accuracy: share of tokens that are the model's likeliest. AUC Min-40%: how well membership inference tells chunks of forget documents from
unseen ones (0.5: not at all).

{_measurements(results)}

## Limits

{LIMITS}
"""


def _settings(run: Mapping, chosen: Sequence[str]) -> str:
    """A row for each setting: its value, and whether it was given or where the default comes from."""
    given = {name: "given" if name in chosen else source for name, source in SOURCES.items()}
    return "\n".join(f"| {name} | {_shown(run[name])} | {source} |" for name, source in given.items())


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _measurements(results: pd.DataFrame) -> str:
    """Rows by split and measure, before beside after."""
    wide = tables.wide(results, ["split", "measure", "n"], "model", digits=3)
    rows = [
        f"| {split} | {measure} | {before} | {after} | {n} |"
        for (split, measure, n), (before, after) in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return "\n".join(["| text | measure | before | after | n |", "|---|---|---|---|---|", *rows])
