"""pyproject.toml (ranges), requirements.lock (exact versions) and environment.yml say the same thing."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_range_admits_the_pin(line):
    required = Requirement(line)
    assert required.specifier, "a range, not any version"
    assert required.specifier.contains(PINS[canonicalize_name(required.name)])


def test_lock_is_exact_sorted_and_without_builds():
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line) for line in LINES)
    assert sorted(LINES, key=str.lower) == LINES
    assert len(PINS) == len(LINES)


def test_lock_lets_a_cpu_build_of_torch_stay_one():
    assert PINS["torch"] == "2.13.0"
    assert not [name for name in PINS if re.match(r"nvidia|cuda|triton", name)]


def test_lock_has_what_the_corpus_and_the_scripts_read():
    assert {"networkx", "sympy", "scipy", "scikit-learn", "numpy", "nbval", "ruff", "pytest-xdist"} <= PINS.keys()
    assert not {"pip", "setuptools", "wheel", "unlearn-utils"} & PINS.keys()


def test_conda_environment_takes_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert (python, pip, extra) == ("python=3.11", "pip", {"pip": ["-r requirements.lock"]})
    assert PROJECT["requires-python"] == ">=3.11"
