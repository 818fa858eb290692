"""What lies in a new model's folder beside the weights: results.csv, run.json and README.md.

README.md is the model's card on the hub.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

import unlearn_utils
from unlearn_utils.app import model_files, terminal
from unlearn_utils.app.model_files import StoredModel
from unlearn_utils.app.settings import RunSettings
from unlearn_utils.app.user_documents import Documents, Tables
from unlearn_utils.app.verdict import Verdict
from unlearn_utils.cache import paths
from unlearn_utils.core import methods, tables
from unlearn_utils.core.methods import Method
from unlearn_utils.data import readers, tokens
from unlearn_utils.engine import distributed

License = Mapping[str, str | list[str]]  # what a card's front matter states of it

RELEASED = "the released code of arXiv 2402.15159 uses it"
SOURCES = {  # of each default: where it comes from
    "learning_rate": f"{RELEASED}, for 6e9 parameters; smaller models may need more",
    "epochs": RELEASED,
    "steps": "epochs x chunks of the forget set / batch, rounded up",
    "batch": "ours",
    "retain_weight": "ours: both terms weigh the same",
    "context": "4,096 in arXiv 2402.15159, or what the model reads if that is less",
    "max_grad_norm": "the Trainer's default",
    "schedule": "ours: so few steps leave nothing to anneal",
    "seed": "ours",
    "lora": "ours: every weight is trained",
}
COUNTED_EPOCHS = "steps x batch / chunks of the forget set"  # where steps were given
TUNED = {  # of `tune`
    "learning_rate": "chosen, see below",
    "epochs": "the most of a path",
    "steps": "chosen, see below",
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")
COUNTED = {"tokens": "predicted tokens", "sequences": "sequences"}  # of a term, in words
LIMITS = """\
- Unlearning is approximate. The weights were never shown to be without these documents; only a \
model trained without them is.
- Membership inference may still find the documents: an area under the curve above 0.5 is a trace \
of them, one far below 0.5 a trace of the
  unlearning. A stronger attack than Min-40% may find more.
- A higher perplexity of the forget text alone does not mean that it is forgotten: every text may \
have become harder. Compare the rows.
- Copies, quotations and paraphrases of the documents elsewhere in the training text are not \
touched.
- Intervals are 95% percentile bootstraps over documents; n is their number. With few documents \
they are too narrow."""


# -------------------------------------------------------------------------------- what is written


def results_table(parts: Sequence[pd.DataFrame], members: str) -> pd.DataFrame:
    """Return tidy results: model, split, measure, value, low, high, n (documents).

    Each set of each model has draws of its own, from one seed: an interval is the same whatever
    other models and sets stand beside it.

    Args:
        parts: rows of `user_run.measure`, one model each, with a column model.
        members: the set that is told from "unseen", where there is one, by Min-40% Prob of each
            chunk; a higher AUC means that it is known better.
    """
    by, measures = ["model", "split"], ["perplexity", "accuracy"]
    found, areas = [], []
    for rows in parts:
        for _, part in rows.groupby("split", sort=False):
            found.append(tables.summarise(part, by, measures))
        sides = rows[rows.split.isin([members, "unseen"])]
        sides = sides.replace({"split": {members: "forget", "unseen": "approximate"}})
        if "approximate" in set(sides.split):
            area = tables.auc_table(sides, ["model"], ["Min-40%"])
            areas.append(area.assign(split=f"{members} against unseen"))
    return pd.concat(found + areas, ignore_index=True)


def with_settings(results: pd.DataFrame, record: Mapping) -> pd.DataFrame:
    """Return results with the run's settings as last columns, so that those of runs join.

    Args:
        results: of `results_table`.
        record: of `run_record`, with a verdict.

    Returns:
        Also method, learning_rate, steps, and goal: the perplexity of the unseen documents before.
    """
    return results.assign(
        method=record["method"],
        learning_rate=record["learning_rate"],
        steps=len(record["history"]),
        goal=record["verdict"]["goal"],
    )


def run_record(
    base: StoredModel,
    run: RunSettings,
    documents: Mapping[str, Documents],
    chunks: Tables,
    context: int,
    changed: float | None,
    history: list[dict],
) -> dict:
    """Return what run.json holds: origin, settings, hashes of each set's documents, versions.

    It holds no path of a document, for one may tell what was forgotten. A document so short that no
    chunk is left of it counts as left out, not as forgotten. What is no document is named.

    Args:
        base: the model that was made to unlearn.
        documents: of each set, as they were read.
        chunks: of each set, as they were cut.
        context: tokens of a chunk.
        changed: the share of weights that differ from the base model's; None for adapters.
        history: of `training.unlearn`.
    """
    settings = asdict(run) | {"method": run.method.name}
    recipe = settings.pop("recipe")
    origin = {
        "model": base.name if base.commit else base.folder.name,
        "commit": base.commit,
        "dtype": str(model_files.stored_dtype(base)).removeprefix("torch."),
    }
    outcome = {
        "context": context,
        "changed": changed,
        "steps": len(history),
        "history": history,
        "processes": distributed.process_state().num_processes,
    }
    used, left_out, not_read = {}, {}, {}
    for name, table in chunks.items():
        used[name] = list(dict.fromkeys(table.family))
    for name, found in documents.items():
        left_out[name] = [digest for digest in found.sha256 if digest not in used[name]]
        not_read[name] = [one._asdict() for one in found.unread]
    texts = {"documents": used, "left_out": left_out, "not_read": not_read}
    return origin | recipe | settings | outcome | texts | {"versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that decide the result, and of this one."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    return found | {"unlearn-utils": unlearn_utils.__version__}


def stated_license(folder: Path) -> License:
    """Return the license that a model's card states in its front matter, or "unknown".

    There may be several, as a list. What is no plain text counts as not stated.
    """
    found = {"license": "unknown"}
    stated = _front_matter(folder / "README.md")
    for key in ("license", "license_name", "license_link"):
        value = stated.get(key)
        words = value if isinstance(value, list) else [value]
        if words and all(_is_plain(word) for word in words):
            found[key] = value
    return found


def _front_matter(card: Path) -> dict:
    """Return the front matter of a model's card; nothing where there is none that can be read.

    A card is optional, and its authors write what they like: none is a reason not to end a run.
    """
    try:
        text = card.read_bytes().decode("utf-8-sig", errors="replace")
        block = REGEX_YAML_BLOCK.search(text)
        stated = yaml.safe_load(block[2]) if block else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _is_plain(word: object) -> bool:
    """Return whether something is text that can be written into a card."""
    return isinstance(word, str) and word != "" and word.isprintable()


def write_files(
    folder: Path, record: Mapping, results: pd.DataFrame, base: Path, chosen: Sequence[str]
) -> None:
    """Write the three files.

    Args:
        record: of `run_record`, with a verdict.
        results: of `with_settings`.
        base: the base model's folder.
        chosen: names of the settings that were given on the command line.
    """
    card = model_card(record, results, stated_license(base), chosen)
    paths.write_whole(folder / "results.csv", results.to_csv(index=False))
    paths.write_whole(folder / "run.json", json.dumps(record, indent=1) + "\n")
    paths.write_whole(folder / "README.md", card)


# --------------------------------------------------------------------------------------- the card


def model_card(
    record: Mapping,
    results: pd.DataFrame,
    license: Mapping[str, str | list[str]],
    chosen: Sequence[str],
) -> str:
    """Return README.md: front matter in YAML, what was done, what was measured, and the limits.

    Args:
        record: of `run_record`, with a verdict.
        results: of `results_table`.
        license: of `stated_license`.
        chosen: names of the settings that were given on the command line.
    """
    method = methods.get_method(record["method"])
    front_matter = ModelCardData(
        base_model=record["model"],
        library_name="transformers",
        tags=["unlearning", method.name],
        **license,
    )
    origin = f"commit {record['commit']}" if record["commit"] else "a local folder"
    forgotten = record["documents"]["forget"]
    hashes = "\n".join(forgotten)
    return f"""---
{front_matter.to_yaml()}
---

# {record["model"]}, made to unlearn {len(forgotten)} documents

Made with unlearn-utils, a reproduction of \
"Machine Unlearning of Pre-trained Large Language Models" (arXiv 2402.15159).
Base model: {record["model"]}, {origin}.
{describe_weights(record)}

## What was forgotten

Documents by the SHA-256 of their UTF-8 text; their text and names are not part of this repository:

```
{hashes}
```

## Method

{method.title} (`{method.name}`). Minimised: {_describe_objective(method, record)}.
{describe_means(method)} Texts given:

{_given_rows(record)}

| setting | value | source |
|---|---|---|
{_setting_rows(record, chosen)}

{len(record["history"])} steps of AdamW without weight decay. \
Documents are cut into chunks of {record["context"]} tokens;
a last chunk under {tokens.SHORTEST} tokens is dropped, as the released code does.
{_tuning_section(record)}
## Measurements

Before and after. Forget: the very text that was trained on; retain: the text to be kept; \
unseen: text that was not trained on here.
Accuracy: share of tokens that are the model's likeliest. \
AUC Min-40%: how well membership inference tells chunks of forget documents from
unseen ones (0.5: not at all).

{_measurement_rows(results)}

{_verdict_rows(record)}

## Limits

{LIMITS}
"""


def _tuning_section(record: Mapping) -> str:
    """Return how rate and step were chosen, and what that cost; nothing where both were given."""
    found = record.get("tuning")
    if found is None:
        return ""
    bounded = " and ".join(found["bounded"])
    bound = (
        f"Perplexity of {bounded} text rose by less than {found['bound']:.0%}. " if bounded else ""
    )
    read = ", ".join(f"{number} {name}" for name, number in found["documents_read"].items())
    return f"""
## How learning rate and step were chosen

No retrained model was needed. The {found["goal"]}. {bound}\
Of {found["paths"]} paths (paths.csv, paths.png) the mark nearest to the goal was taken, \
by half of the documents; the other half reports. Documents read on the way: {read}.

{found["verdict"][0].upper() + found["verdict"][1:]}.

Cost, tuning included: {found["steps_of_paths"]} steps, forward and backward passes over about \
{found["training_passes_tokens"]:,} tokens, \
{6 * found["parameters"] * found["training_passes_tokens"]:.2g} FLOPs (6 a parameter and token).
"""


def _given_rows(record: Mapping) -> str:
    """Return a row for each set: how many documents it has, and what was left out."""
    rows = []
    for name, digests in record["documents"].items():
        row = f"- {name}: {len(digests)} documents"
        short = record["left_out"][name]
        if short:
            row += f"; too short, so left out: {len(short)}"
        unread = [readers.Unread(**one) for one in record["not_read"][name]]
        if unread:
            row += f"; {readers.describe_unread(unread)}"
        rows.append(row)
    return "\n".join(rows)


def describe_weights(record: Mapping) -> str:
    """Return what was written, in words, and what rounding left of the change."""
    if record["changed"] is None:
        return "LoRA adapters alone: the base model is needed too, where adapter_config.json says."
    lost = ""
    if record["dtype"] != "float32":
        lost = "; smaller changes are rounded away"
    return (
        f"Whole weights in {record['dtype']}: {record['changed']:.1%} of them differ from the base "
        f"model's{lost}."
    )


def describe_means(method: Method) -> str:
    """Return, in words, what each term of a method is a mean over."""
    counted = {side: COUNTED[term.counted] for side, term in method.terms.items()}
    if len(set(counted.values())) == 1:
        return f"Each term is a mean over the {counted['forget']} of an optimizer batch."
    return (
        f"The forget term is a mean over the {counted['forget']} of an optimizer batch, the retain "
        f"term over its {counted['retain']}."
    )


def _describe_objective(method: Method, record: Mapping) -> str:
    """Return what a method minimises, and what the retain text was meant as."""
    if method.retain is None:
        return method.minimises
    meant = methods.RETAIN_TEXTS[method.retain_text]
    weight = f"w = {record['retain_weight']:g}"
    return f"{method.minimises}, {weight}, the retain text being meant as {meant}"


def _setting_rows(record: Mapping, chosen: Sequence[str]) -> str:
    """Return a row for each setting: its value, and whether it was given or where it is from."""
    rows = []
    for name, source in SOURCES.items():
        said = "given" if name in chosen else source
        if name == "epochs" and "steps" in chosen:
            said = COUNTED_EPOCHS
        if name in TUNED and "tuning" in record:
            said = TUNED[name]
        rows.append(f"| {name} | {_setting_text(record[name])} | {said} |")
    return "\n".join(rows)


def _setting_text(value: object) -> str:
    """Return a setting as the card shows it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _measurement_rows(results: pd.DataFrame) -> str:
    """Return a Markdown table with a row for each split and measure, before beside after."""
    index = ["split", "measure", "n"]
    wide = tables.wide(results, index, "model", terminal.SIGNIFICANT, significant=True)
    rows = ["| text | measure | before | after | n |", "|---|---|---|---|---|"]
    for (split, measure, n), (before, after) in zip(wide.index, wide.to_numpy(), strict=True):
        rows.append(f"| {split} | {measure} | {before} | {after} | {n} |")
    return "\n".join(rows)


def _verdict_rows(record: Mapping) -> str:
    """Return the verdict line and the warnings, a row each."""
    return "\n".join(f"- {line}" for line in Verdict(**record["verdict"]).in_words())


# -------------------------------------------------------------------------------- all the methods


def method_table() -> pd.DataFrame:
    """Return the methods: name, forget term, retain term, retain text, and what is minimised."""
    rows = []
    for method in methods.METHODS.values():
        retain = method.retain.name if method.retain is not None else ""
        row = {
            "name": method.name,
            "forget term": method.forget.name,
            "retain term": retain,
            "retain text": method.retain_text or "",
            "minimises": method.minimises,
        }
        rows.append(row)
    return pd.DataFrame(rows)
