"""Where a run of a profile reads and writes."""

from __future__ import annotations

import os
import sys
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

    @property
    def lock(self) -> Path:
        """The file that a run of this profile has locked."""
        return self.folder / "run.lock"

    @property
    def kernels(self) -> Path:
        """The folder of what Jupyter and its kernels need."""
        return self.folder / "kernels"

    @property
    def connections(self) -> Path:
        """The folder with a file for each running kernel, which has its ports and its key."""
        return self.kernels / "runtime"

    @property
    def unfinished(self) -> Path:
        """The folder of notebooks that are being executed."""
        return self.folder / "running"

    def executed(self, notebook: Path) -> Path:
        """Return where the executed notebook goes: the committed profile's are rewritten."""
        if self.profile == COMMITTED:
            return notebook
        return self.folder / notebook.name

    def running(self, notebook: Path) -> Path:
        """Return where a notebook lies while it is executed."""
        return self.unfinished / notebook.name

    def failed(self, notebook: Path) -> Path:
        """Return where a notebook that failed is kept, as far as it ran."""
        return self.folder / "failed" / notebook.name

    def stamp(self, notebook: Path) -> Path:
        """Return where the last execution of a notebook is recorded."""
        return self.folder / "stamps" / f"{notebook.name[:2]}.json"

    def write(self, path: Path, text: str) -> None:
        """Write one of the run's own files whole; a folder in its place is set aside."""
        self.make_way(path.parent)
        if path.is_dir():
            self.set_aside(path, "is a folder")
        paths.write_whole(path, text)

    def make_way(self, folder: Path) -> None:
        """Set aside a file in the place of one of the run's own folders, or of one above it."""
        for one in (*reversed(folder.parents), folder):
            own = one.is_relative_to(self.folder)
            if own and os.path.lexists(one) and not one.is_dir():
                self.set_aside(one, "is a file")

    def set_aside(self, path: Path, why: str) -> None:
        """Move what is damaged out of the way, and say so on stderr."""
        aside = paths.set_aside(path)
        print(
            f"{self.shown(path)} {why}; it is made again, and {aside.name} is what was there",
            file=sys.stderr,
        )

    def shown(self, path: Path) -> str:
        """Return a path as it is printed: relative to the repository where it lies inside."""
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return str(path)
