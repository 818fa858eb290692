"""The README's clean-up removes all that was made, and nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE = [  # by runs, tests, JupyterLab, the installation and the build of pages
    ".hypothesis/examples/1",
    ".pytest_cache/README.md",
    ".ruff_cache/CACHEDIR.TAG",
    ".venv/bin/python",
    "docs/_build/html/index.html",
    "figures/.table01_x.csv.123.part",
    "figures/study/.pool_rows.parquet.part",
    "figures/table01_x.csv.aside",
    "notebooks/.ipynb_checkpoints/01_one.ipynb",
    "runs/laptop/run.csv",
    "runs/store/toy/1234/rows.csv",
    "tests/__pycache__/conftest.pyc",
    "unlearn_utils.egg-info/PKG-INFO",
]
TRACKED = ["README.md", "figures/table01_x.csv", "notebooks/01_one.ipynb", "unlearn_utils/a.py"]
OWN = ["my_documents/forget.txt", "my_model/model.safetensors"]


def test_the_clean_up_removes_all_that_was_made_and_nothing_else(tmp_path):
    for name in [*MADE, *TRACKED, *OWN]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / ".gitignore", tmp_path)
    command = re.search(r"`(git clean -dfX)` removes", (ROOT / "README.md").read_text())[1]
    for words in ("git init --quiet", f"git add {' '.join(TRACKED)} .gitignore", command):
        subprocess.run(words.split(), cwd=tmp_path, check=True, capture_output=True)
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    left = {path.as_posix() for path in left if path.parts[0] != ".git"}
    assert left == {*TRACKED, *OWN, ".gitignore"}
