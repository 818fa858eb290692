"""Ranges in pyproject.toml, versions in requirements.lock and environment.yml agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unlearn_utils.data.curation import passages

ROOT = Path(__file__).resolve().parents[1]
PARTS = [
    [line for line in part.splitlines() if line and not line.startswith("#")]
    for part in (ROOT / "requirements.lock").read_text().split(f"{passages.EXTRA}\n")
]
LINES = [line for part in PARTS for line in part]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


EXTRAS = PROJECT["optional-dependencies"]


IN_THE_LOCK = [
    *PROJECT["dependencies"],
    *EXTRAS["downstream"],
    *EXTRAS["cluster"],
    *EXTRAS["tests"],
    *EXTRAS["published"],
]


@pytest.mark.parametrize("line", IN_THE_LOCK)
def test_range_admits_the_pin(line):
    required = Requirement(line)
    assert required.specifier, "a range, not any version"
    assert required.specifier.contains(PINS[canonicalize_name(required.name)])


def test_lock_is_exact_sorted_and_without_builds():
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line) for line in LINES)
    assert [sorted(part, key=str.lower) for part in PARTS] == PARTS and len(PARTS) == 2
    assert len(PINS) == len(LINES)


def test_lock_lets_a_cpu_build_of_torch_stay_one():
    assert PINS["torch"] == "2.13.0"
    assert not [name for name in PINS if re.match(r"nvidia|cuda|triton", name)]


def test_every_pin_but_torch_has_hashes():
    """Without a hash pip would take any file of that name and version."""
    lines = (ROOT / "requirements.hashes").read_text().splitlines()
    hashes, name = {}, None
    for line in lines:
        if "==" in line:
            name, _, version = line.removesuffix(" \\").partition("==")
            hashes[name, version] = []
        elif not line.startswith("#"):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
            hashes[name, version].append(line)
    assert all(hashes.values())
    assert set(hashes) == {pin for pin in PINS.items() if pin[0] != "torch"}


def test_the_installation_takes_only_files_with_these_hashes():
    script = (ROOT / "environment.sh").read_text()
    assert '--no-deps --require-hashes -r "$root/requirements.hashes"' in script


def test_lock_has_what_the_corpus_and_the_scripts_read():
    assert {
        "networkx",
        "sympy",
        "scipy",
        "scikit-learn",
        "numpy",
        "nbval",
        "ruff",
        "pytest-xdist",
    } <= PINS.keys()
    assert not {"pip", "setuptools", "wheel", "unlearn-utils"} & PINS.keys()


def test_the_extra_s_packages_are_apart():
    """The embedded corpus is made from the packages above the mark."""
    extra = {canonicalize_name(line.split("==")[0]) for line in PARTS[1]}
    assert "lm-eval" in extra and not extra & {
        canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]
    }
    assert set(passages.locked_distributions(ROOT / "requirements.lock")) == {
        line.split("==")[0] for line in PARTS[0]
    }


def test_conda_environment_takes_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert extra == {"pip": ["-r requirements.lock", "-e ."]}
    assert PROJECT["requires-python"] == ">=3.11"
