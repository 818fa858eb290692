"""Where a run of a profile reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unlearn_utils.cache import paths

COMMITTED = "laptop"  # the profile whose notebooks, figures and tables are committed


class Places(NamedTuple):
    """The folders and files of one profile's run.

    Attributes:
        root: the repository, with `notebooks/NN_name.ipynb`.
        profile: a name in `profiles.PROFILES`.
    """

    root: Path
    profile: str

    @property
    def runs(self) -> Path:
        """The folder of all that git ignores."""
        return self.root / "runs"

    @property
    def folder(self) -> Path:
        """The folder of this profile's run."""
        return self.runs / self.profile

    @property
    def figures(self) -> Path:
        """The folder of its figures and tables, unless `UNLEARN_FIGURES` says otherwise."""
        return paths.own_figures(self.root, self.profile)

    @property
    def progress(self) -> Path:
        """The file of its lines of progress."""
        return self.folder / "progress.txt"

    def executed(self, notebook: Path) -> Path:
        """Return where the executed notebook goes: the committed profile's are rewritten."""
        if self.profile == COMMITTED:
            return notebook
        return self.folder / notebook.name

    def running(self, notebook: Path) -> Path:
        """Return where a notebook lies while it is executed."""
        return self.folder / "running" / notebook.name

    def failed(self, notebook: Path) -> Path:
        """Return where a notebook that failed is kept, as far as it ran."""
        return self.folder / "failed" / notebook.name

    def stamp(self, notebook: Path) -> Path:
        """Return where the last execution of a notebook is recorded."""
        return self.folder / "stamps" / f"{notebook.name[:2]}.json"

    def shown(self, path: Path) -> str:
        """Return a path as it is printed: relative to the repository where it lies inside."""
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return str(path)
