"""One repository of the hub: a commit of it on this machine, downloaded once.

Where no commit is known, a branch is pinned when it is first fetched: its commit is recorded in the
store, and another one is refused later.

Where `UNLEARN_HUB` names a folder, its OWNER/NAME folders stand in for the hub: copies of these
repositories, for machines without a connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from unlearn_utils.cache import paths


class Wanted(NamedTuple):
    """Files of a repository that are read.

    Attributes:
        name: OWNER/NAME.
        kind: "model" or "dataset".
        revision: a commit, or a branch.
        patterns: of the files.
        needed: patterns of which each must be there.
        gigabytes: their size.
        profile: that reads them, the first.
        asked: they are given on request.
    """

    name: str
    kind: str
    revision: str
    patterns: tuple[str, ...]
    needed: tuple[str, ...]
    gigabytes: float
    profile: str
    asked: bool = False


def download(
    name: str,
    kind: str,
    revision: str | None,
    patterns: Sequence[str],
    here_alone: bool = False,
    cache: Path | None = None,
) -> Path:
    """Return the folder of a repository's files, downloaded unless the hub's cache has them.

    The hub names the folder by the commit.

    Args:
        name: OWNER/NAME.
        kind: "model" or "dataset".
        revision: a commit, a branch or a tag; None: main.
        patterns: of the files that are wanted.
        here_alone: nothing is downloaded.
        cache: a folder in the place of the hub's cache.

    Raises:
        OSError, ValueError: there is no connection, none is allowed, the files are not given to
            this account, or there is no such repository or revision.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # no line for every time that it tries again
    return Path(
        snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=here_alone,
            cache_dir=cache,
        )
    )


def folder(wanted: Wanted) -> Path:
    """Return where a repository's files lie: in the mirror, or where `download` has them.

    Raises:
        FileNotFoundError: they are nowhere, or one is missing; the message says what to download,
            how, and how large it is.
        ValueError: the commit is another than the recorded one.
    """
    commit = commit_of(wanted)
    mirror = paths.hub_mirror()
    if mirror is not None:
        found = _mirrored(mirror, wanted)
    else:
        try:
            found = download(wanted.name, wanted.kind, commit, wanted.patterns)
        except (OSError, ValueError) as error:
            raise _not_here(wanted, commit, error) from error
    for pattern in wanted.needed:
        if not any(found.glob(pattern)):
            raise FileNotFoundError(
                f"{found}: there is no file {pattern} of {wanted.kind} {wanted.name}; remove this "
                f"folder and run python -m unlearn_utils fetch {wanted.profile} with a "
                f"connection ({wanted.gigabytes:g} GB), or copy the file there"
            )
    return found


def _not_here(wanted: Wanted, revision: str, error: Exception) -> FileNotFoundError:
    """Return what says that files are not to be had, and what to do."""
    name = wanted.name
    reason = " ".join(str(error).split()).split(". ")[0]
    access = ""
    if wanted.asked:
        page = f"https://huggingface.co/datasets/{name}"
        access = f", after asking for access at {page} and `hf auth login`"
    return FileNotFoundError(
        f"{wanted.kind} {name}, revision {revision} ({wanted.gigabytes:g} GB), is not on this "
        f"machine and cannot be downloaded ({reason}); with a connection: "
        f"python -m unlearn_utils fetch {wanted.profile}{access}; "
        f"or copy it to FOLDER/{name} and set {paths.HUB}=FOLDER"
    )


def _mirrored(mirror: Path, wanted: Wanted) -> Path:
    """Return a repository's folder in the mirror. Raise FileNotFoundError if it is not there."""
    if not (mirror / wanted.name).is_dir():
        raise FileNotFoundError(
            f"{paths.HUB}={mirror} holds no folder {wanted.name}; copy the files of revision "
            f"{wanted.revision} there"
        )
    return (mirror / wanted.name).resolve()


def here(wanted: Wanted) -> Path | None:
    """Return a folder with some files of a repository; None: none are on this machine."""
    mirror = paths.hub_mirror()
    if mirror is not None:
        return mirror / wanted.name
    known = _recorded(wanted)
    revision = known["commit"] if known else wanted.revision
    try:
        return download(wanted.name, wanted.kind, revision, wanted.needed[:1], here_alone=True)
    except (OSError, ValueError):
        return None


# ---------------------------------------------------------------- a branch whose commit is recorded


def commit_of(wanted: Wanted) -> str:
    """Return the commit of what is read: the pinned or recorded one, or what is here now.

    Raises:
        FileNotFoundError, ValueError: as `pin`.
    """
    if not is_branch(wanted):
        return wanted.revision
    known = _recorded(wanted)
    if known is not None and paths.hub_mirror() is None:
        return known["commit"]
    return pin(wanted)


def pin(wanted: Wanted) -> str:
    """Return the commit that a branch is now, which is recorded; without a connection the recorded.

    Of a copy in the mirror that does not say its commit the branch itself is returned.

    Raises:
        FileNotFoundError: there is no connection, and nothing was recorded or downloaded.
        ValueError: another commit was recorded, or the record is damaged.
    """
    known = _recorded(wanted)
    mirror = paths.hub_mirror()
    if mirror is not None:
        now = _commit_of_copy(_mirrored(mirror, wanted))
        if now is None:
            return wanted.revision
    else:
        now = _commit_on_hub(wanted, known)
    if known is None:
        known = _record(wanted, now)
    if known["commit"] != now:
        kept = f"copy its files to {mirror / wanted.name}" if mirror else "set HF_HUB_OFFLINE=1"
        raise ValueError(
            f"{wanted.kind} {wanted.name}: the branch {wanted.revision} is commit {now} now, and "
            f"results here are of {known['commit']}, recorded on {known['date']}; to go on with "
            f"that, {kept}; to take the new one, remove {record_of(wanted)}"
        )
    return now


def record_of(wanted: Wanted) -> Path:
    """Return the file of the store that records a branch's commit."""
    name = f"{wanted.name.replace('/', '--')}@{wanted.revision}.json"
    return paths.store_folder() / "hub" / name


def is_branch(wanted: Wanted) -> bool:
    """Return whether a revision is no commit."""
    return re.fullmatch("[0-9a-f]{40}", wanted.revision) is None


def _commit_on_hub(wanted: Wanted, known: dict | None) -> str:
    """Return the commit that a branch is on the hub; without a connection the known one.

    If none is known, it is the one that the hub's cache has.

    Raises:
        FileNotFoundError: there is no connection, and nothing on this machine.
    """
    small = ("config.json", "README.md")
    asked = wanted.name, wanted.kind, wanted.revision, small
    try:
        with TemporaryDirectory() as scratch:  # not the cache, which answers for a silent hub
            return download(*asked, cache=Path(scratch)).name
    except (OSError, ValueError) as error:
        if known is not None:
            return known["commit"]
        cached = here(wanted)
        if cached is None:
            raise _not_here(wanted, wanted.revision, error) from error
        return cached.name


def _commit_of_copy(copy: Path) -> str | None:
    """Return the commit that `hf download --local-dir` wrote beside its files; None: it did not."""
    notes = sorted((copy / ".cache" / "huggingface" / "download").rglob("*.metadata"))
    if not notes:
        return None
    return notes[0].read_text(encoding="utf-8").split("\n")[0].strip()


def _recorded(wanted: Wanted) -> dict | None:
    """Return what is recorded of a branch, if anything. Raise ValueError if it is damaged."""
    file = record_of(wanted)
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"commit": str(found["commit"]), "date": str(found["date"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: no record of a commit and its date; remove it, and run "
            f"python -m unlearn_utils fetch {wanted.profile}"
        ) from error


def _record(wanted: Wanted, commit: str) -> dict:
    """Write a branch's commit into the store, and return what was written."""
    record = {
        "repository": wanted.name,
        "branch": wanted.revision,
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
    }
    paths.write_whole(record_of(wanted), json.dumps(record, indent=1) + "\n")
    return record
