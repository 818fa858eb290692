"""The store: keys, whole and checked entries, several processes; and the profiles."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from unlearn_utils import profiles
from unlearn_utils.cache import paths, store
from unlearn_utils.cache.store import Artifact


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("UNLEARN_FRESH", raising=False)
    return tmp_path / "store"


def artifact(calls=None, name="toy", version=1, extra=None, **settings):
    """Return an artifact that writes two files and notes that it ran."""

    def make(out):
        if calls is not None:
            calls.append(out)
        (out / "rows.csv").write_text("a,b\n1,2\n")
        (out / "weights").mkdir()
        (out / "weights" / "w.bin").write_bytes(bytes(range(256)))
        return extra

    return Artifact(name, version, settings, make)


def test_an_artifact_is_made_once_and_found_again():
    calls = []
    first, again = artifact(calls, x=1), artifact(calls, x=1)
    assert not first.done() and not first.path.exists()
    found = first.folder()
    assert found == first.path == again.path == again.folder() and again.done() and len(calls) == 1
    assert calls[0] != found and not calls[0].exists()  # it was made beside its place
    assert (found / "rows.csv").read_text() == "a,b\n1,2\n"
    assert json.loads((found / "settings.json").read_text()) == {"x": 1}


def test_the_key_follows_every_setting_the_name_and_the_version():
    base = {"model": "m", "recipe": {"lr": 0.1, "epochs": 1}, "left_out": None}
    others = [
        artifact(**base),
        artifact(**base, seed=0),
        artifact(**base | {"model": "n"}),
        artifact(**base | {"left_out": "books"}),
        artifact(**base | {"recipe": {"lr": 0.1, "epochs": 2}}),
        artifact(**base | {"recipe": {"lr": 0.1 + 1e-12, "epochs": 1}}),
        artifact(version=2, **base),
        artifact(name="other", **base),
    ]
    assert len({other.path for other in others}) == len(others)
    assert len({other.path.name for other in others}) == len(others)
    assert artifact(**dict(reversed(base.items()))).path == artifact(**base).path
    reordered = artifact(recipe={"epochs": 1, "lr": 0.1}, model="m", left_out=None)
    assert reordered.path == artifact(**base).path


def test_the_key_is_the_same_on_every_machine(folder):
    made = Artifact("pretrained", 1, {"seed": 0}, None)
    assert made.path == folder / "pretrained" / "3a7420ffa304e6d1"


def test_settings_must_be_json():
    with pytest.raises(TypeError):
        artifact(x={1, 2}).folder()


def test_the_store_s_folder(monkeypatch, tmp_path):
    assert paths.store_folder() == tmp_path / "store"
    monkeypatch.delenv("UNLEARN_STORE")
    assert paths.store_folder() == paths.PROJECT / "runs" / "store"
    monkeypatch.setenv("UNLEARN_STORE", "")
    assert paths.store_folder() == paths.PROJECT / "runs" / "store"


def test_an_artifact_that_fails_leaves_no_entry_and_the_next_call_makes_it(folder):
    def fail(out):
        (out / "half").write_text("half")
        raise RuntimeError("no memory")

    broken, whole = dataclasses.replace(artifact(x=1), make=fail), artifact(x=1)
    with pytest.raises(RuntimeError, match="no memory"):
        broken.folder()
    assert not broken.done() and not broken.path.exists()
    assert not (whole.folder() / "half").exists() and whole.done()
    assert [p.name for p in (folder / "toy").iterdir() if p.is_dir()] == [whole.path.name]


DAMAGE = {
    "a byte": lambda f: (f / "weights/w.bin").write_bytes(bytes(range(255)) + b"\x00"),
    "cut short": lambda f: (f / "rows.csv").write_text("a,b\n"),
    "a file is gone": lambda f: (f / "rows.csv").unlink(),
    "a file too many": lambda f: (f / "rows (copy).csv").write_text(""),
    "settings": lambda f: (f / "settings.json").write_text("{}"),
    "checksums": lambda f: (f / "checksums.json").write_text("{}"),
}


def contents(folder):
    """Return the bytes of each file but the cost, which never repeats."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "cost.json"]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_reported_and_repaired(damage, capsys):
    calls, other = [], artifact(y=1)
    found = artifact(calls, x=1).folder()
    other.folder()
    before = contents(found)
    time.sleep(0.02)  # a file system's clock ticks every few milliseconds
    damage(found)
    assert not artifact(x=1).done()
    capsys.readouterr()
    assert artifact(calls, x=1).folder() == found and len(calls) == 2
    assert f"{found}: a file does not match its checksum" in capsys.readouterr().out
    assert contents(found) == before
    assert artifact(x=1).done() and other.done() and capsys.readouterr().out == ""


def as_folder(path):
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("")


def as_file(entry):
    shutil.rmtree(entry)
    entry.write_text("a file")


BOOKKEEPING = {
    "cost cut short": ("cost.json", lambda f: (f / "cost.json").write_text('{"seconds": 1')),
    "cost of something else": ("cost.json", lambda f: (f / "cost.json").write_text('{"a": 1}')),
    "a list": ("cost.json", lambda f: (f / "cost.json").write_text("[1]")),
    "deep": ("cost.json", lambda f: (f / "cost.json").write_text("[" * 100_000)),
    "cost is gone": ("cost.json", lambda f: (f / "cost.json").unlink()),
    "cost is a folder": ("cost.json", lambda f: as_folder(f / "cost.json")),
    "checksums are gone": ("checksums.json", lambda f: (f / "checksums.json").unlink()),
    "checksums are a folder": ("checksums.json", lambda f: as_folder(f / "checksums.json")),
    "checksums are a list": ("checksums.json", lambda f: (f / "checksums.json").write_text("[]")),
    "checksums are bytes": (
        "checksums.json",
        lambda f: (f / "checksums.json").write_bytes(b"\xff"),
    ),
    "settings are a folder": ("settings.json", lambda f: as_folder(f / "settings.json")),
    "the entry is a file": ("Not a directory", as_file),
}


@pytest.mark.parametrize(("named", "damage"), BOOKKEEPING.values(), ids=BOOKKEEPING)
def test_whatever_is_damaged_is_named_set_aside_and_made_again(named, damage, capsys):
    found = artifact(x=1).folder()
    before = contents(found)
    damage(found)
    damaged = sorted(path.name for path in found.glob("*"))
    assert artifact(x=1).folder() == found and contents(found) == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{found}: ") and named in line and store.AGAIN in line
    aside = found.with_name(f"{found.name}.aside")
    assert sorted(path.name for path in aside.glob("*")) == damaged
    assert artifact(x=1).done() and capsys.readouterr().out == ""


def test_a_file_in_the_place_of_all_entries_of_a_name_is_set_aside(folder, capsys):
    folder.mkdir(exist_ok=True)
    (folder / "toy").write_text("a file")
    assert artifact(x=1).folder() and artifact(x=1).done()
    assert (folder / "toy.aside").read_text() == "a file"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder / 'toy'}: it is a file; {store.AGAIN}")


def test_what_is_in_the_place_of_a_lock_is_set_aside(folder, capsys):
    entry = artifact(x=1).path
    lock, part = entry.with_name(f"{entry.name}.lock"), entry.with_name(f"{entry.name}.part")
    for made in (lock, part):
        made.mkdir(parents=True)
    assert store.sweep() == [part] and lock.is_file()
    lock.unlink()
    lock.symlink_to(lock.name)
    assert artifact(x=1).folder() and artifact(x=1).done()
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith(f"{lock}: it is a folder or a link; {store.AGAIN}")


def swap(one, other):
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


@pytest.mark.parametrize(
    "other", [artifact(x=2), artifact(version=2, x=1), artifact(name="a", x=1)]
)
def test_swapped_entries_are_told_apart(other, capsys):
    """Their files are whole, and so are their checksums."""
    calls = []
    first, second = artifact(calls, x=1).folder(), other.folder()
    settings = (second / "settings.json").read_text()
    swap(first, second)
    assert not artifact(x=1).done() and not other.done()
    assert capsys.readouterr().out.count("is another entry's") == 2
    assert artifact(calls, x=1).folder() == first and len(calls) == 2
    assert other.folder() == second and (second / "settings.json").read_text() == settings


def test_entries_of_two_precisions_are_told_apart(monkeypatch):
    first = artifact(x=1).folder()
    monkeypatch.setenv("UNLEARN_PRECISION", "float32")
    second = artifact(x=1).folder()
    swap(first, second)
    assert first != second and not artifact(x=1).done()


def test_an_entry_from_before_entries_said_which_they_are_is_used():
    found = artifact(x=1).folder()
    cost = json.loads((found / "cost.json").read_text())
    del cost["entry"]
    (found / "cost.json").write_text(json.dumps(cost))
    assert artifact(x=1).done()


FILES = ["rows.csv", "settings.json", "w.bin"]  # of an entry, as they are hashed


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that this process hashes."""
    names, original = [], store._sha256
    monkeypatch.setattr(store, "_sha256", lambda path: names.append(path.name) or original(path))
    return names


def test_what_this_process_made_is_not_read_again(hashed):
    artifact(x=1).folder()
    assert hashed == FILES  # for the checksums themselves
    assert artifact(x=1).done() and artifact(x=1).folder()
    assert hashed == FILES


def test_what_was_there_before_is_read_once(hashed, monkeypatch):
    artifact(x=1).folder()
    artifact(x=2).folder()
    monkeypatch.setattr(store, "_intact", {})  # as in a new process
    hashed.clear()
    assert artifact(x=1).done() and artifact(x=1).done() and artifact(x=1).folder()
    assert hashed == FILES
    assert artifact(x=2).done() and hashed == FILES * 2  # another entry


LOOK = """
from unlearn_utils.cache.store import Artifact
print(Artifact("toy", 1, {"x": 1}, None).done())
"""


def test_a_new_process_reads_and_finds_even_what_looks_the_same():
    file = artifact(x=1).folder() / "weights" / "w.bin"
    before = file.stat()
    file.write_bytes(bytes(256))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert artifact(x=1).done()  # size and time are those of then
    command = [sys.executable, "-c", LOOK]
    found = subprocess.run(command, cwd=paths.PROJECT, capture_output=True, text=True).stdout
    assert "a file does not match its checksum" in found and found.endswith("\nFalse\n")


def test_what_was_replaced_is_read_again(hashed, monkeypatch):
    found = artifact(x=1).folder()
    hashed.clear()
    later = time.time_ns() + 10**9
    os.utime(found / "rows.csv", ns=(later, later))  # the same bytes, written later
    assert artifact(x=1).done() and artifact(x=1).done()
    assert hashed == FILES
    monkeypatch.setenv("UNLEARN_FRESH", str(time.time() + 10))
    assert not artifact(x=1).done() and hashed == FILES  # too old, however intact


def test_damaged_checksums_are_repaired_too():
    found = artifact(x=1).folder()
    (found / "checksums.json").write_text('{"rows.csv": ')
    assert artifact(x=1).folder() == found and artifact(x=1).done()


def test_cost_which_never_repeats_is_apart_from_results():
    found = artifact(x=1, extra={"training_seconds": 3.5}).folder()
    cost = store.cost(found)
    assert cost["training_seconds"] == 3.5 and cost["seconds"] >= 0 and cost["peak_mb"] > 5
    assert cost["python"] == "{}.{}.{}".format(*sys.version_info)
    assert {"torch", "machine"} <= cost.keys()
    (found / "cost.json").write_text('{"seconds": 7}')
    assert artifact(x=1).done()  # it may change without damage
    sums = json.loads((found / "checksums.json").read_text())
    assert sums.keys() == {"rows.csv", "settings.json", "weights/w.bin"}
    of_the_bytes_0_to_255 = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"
    assert sums["weights/w.bin"] == of_the_bytes_0_to_255  # by the program sha256sum


def test_fresh_makes_again_what_is_older(monkeypatch):
    calls = []
    found = artifact(calls, x=1).folder()
    made = (found / "checksums.json").stat().st_mtime
    monkeypatch.setenv("UNLEARN_FRESH", str(made - 1))
    assert artifact(calls, x=1).folder() == found and len(calls) == 1
    os.utime(found / "checksums.json", (made - 100, made - 100))
    monkeypatch.setenv("UNLEARN_FRESH", str(time.time() - 50))
    assert not artifact(x=1).done()
    artifact(calls, x=1).folder()
    assert len(calls) == 2
    artifact(calls, x=1).folder()  # once, not every time
    assert len(calls) == 2


WORKER = """
import pathlib, sys, time
from unlearn_utils.cache.store import Artifact
log = pathlib.Path(sys.argv[1])
def make(out):
    (out / "half").write_text("half")
    with log.open("a") as f: f.write("made\\n")
    time.sleep(float(sys.argv[2]))
    (out / "half").rename(out / "whole")
print(Artifact("toy", 1, {"x": 1}, make).folder())
"""


def start(log, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(log), str(seconds)],
        cwd=paths.PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(log):
    end = time.time() + 20
    while not log.exists() and time.time() < end:
        time.sleep(0.02)


def test_two_processes_that_want_the_same_entry_make_it_once(tmp_path):
    log = tmp_path / "log"
    runs = [start(log, 0.7) for _ in range(2)]
    found = {run.communicate(timeout=30)[0] for run in runs}
    assert all(run.returncode == 0 for run in runs) and len(found) == 1
    assert log.read_text() == "made\n"
    entry = Artifact("toy", 1, {"x": 1}, None)
    assert entry.done() and (entry.path / "whole").exists()


def test_what_a_killed_run_left_is_removed(tmp_path, folder):
    log = tmp_path / "log"
    run = start(log, 60)
    wait_for(log)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=30)
    (part,) = (folder / "toy").glob("*.part")
    assert (part / "half").exists() and not artifact(x=1).done()
    found = artifact(x=1).folder()  # neither the lock nor the half-made files are in the way
    names = {path.name for path in found.iterdir()}
    assert names == {"checksums.json", "cost.json", "rows.csv", "settings.json", "weights"}
    assert not part.exists()


def test_what_cannot_be_written_to_its_end_leaves_nothing(folder, monkeypatch):
    """As where the disk is full: what was written by then would fill it for good."""
    write = store.Path.write_text

    def full(path, *given, **further):
        if path.name == "cost.json":
            raise OSError(28, "No space left on device", str(path))
        return write(path, *given, **further)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(store.Path, "write_text", full)
        artifact(x=1).folder()
    assert not [path for path in (folder / "toy").iterdir() if path.is_dir()]
    assert artifact(x=1).folder() and artifact(x=1).done()


def test_the_sweep_removes_what_nobody_is_at(folder):
    entry = artifact(x=1).folder()
    left, busy = (folder / "toy" / f"{digit * 16}.part" for digit in "0f")
    own = folder / "Downloads" / "film.part"  # the store is a folder that the user has, too
    for part in (left, busy, own):
        part.mkdir(parents=True)
        (part / "half").write_text("half")
    shared, used = folder / f"{store.SHARED}1", folder / f"{store.SHARED}2"
    shared.touch()
    with FileLock(busy.with_suffix(".lock")), FileLock(used):
        assert store.sweep() == [shared, left]
        assert busy.exists() and used.exists() and own.exists()
    assert entry.exists() and not left.exists() and not shared.exists()


def test_the_sweep_removes_scratch_folders_of_processes_that_are_gone(folder):
    """Not those of processes that are there, or of another machine that shares the store."""
    script = "import os; from unlearn_utils.cache import paths; own = paths.scratch_folder()"
    script += "; print(own.name, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    own = paths.scratch_folder()
    elsewhere = left.with_name("scratch.elsewhere.1.x")
    elsewhere.mkdir()
    assert left.is_dir() and store.sweep() == [left]
    assert not left.exists() and Path(own.name).is_dir() and elsewhere.is_dir()
    own.cleanup()


# -------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=profiles.PROFILES)
def test_profiles_hold_together(profile):
    assert profiles.profile(profile.name) is profile
    assert hash(profile) == hash(dataclasses.replace(profile))
    assert profile.replicates and len(set(profile.replicates)) == len(profile.replicates)
    assert profile.shape.hidden % profile.shape.heads == 0
    withheld = profile.corpus.retain - profile.corpus.measured  # what unlearning retains
    assert all(0 < number < withheld for number in profile.grid.retain_documents)
    assert 0 < profile.pretraining.warmup < 1 and profile.unlearning.variant == "corrected"
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.workers = 3
    json.dumps(dataclasses.asdict(profile))  # settings become keys


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=profiles.PROFILES)
def test_grids_hold_together(profile):
    grid = profile.grid
    assert set(grid.domains) <= set(grid.claimed_domains) <= set(profile.domains)
    assert grid.domains or profile.base  # a base is large: not every method at every rate
    assert list(grid.learning_rates) == sorted(set(grid.learning_rates))
    assert profile.unlearning.learning_rate in grid.learning_rates
    assert grid.epochs <= grid.usual_epochs


def test_the_committed_study_has_other_models_than_the_laptop():
    """Else its spread between replicates, which the laptop borrows, would be of the laptop too."""
    assert not set(profiles.STUDY.replicates) & set(profiles.LAPTOP.replicates)
    for part in ("corpus", "shape", "pretraining", "unlearning"):
        assert getattr(profiles.STUDY, part) == getattr(profiles.LAPTOP, part)


def test_smoke_is_smaller_than_laptop():
    smoke, laptop = (dataclasses.asdict(profiles.profile(name)) for name in ("smoke", "laptop"))
    for part in ("corpus", "shape"):
        assert all(smoke[part][k] < v for k, v in laptop[part].items() if type(v) is int), part


def test_unknown_profiles_are_named():
    with pytest.raises(ValueError, match="unknown profile 'laptp'; choose one of: smoke, laptop"):
        profiles.profile("laptp")


# --------------------------------------------------------------------------------- the precision


def test_results_in_float32_are_stored_beside_the_machine_s_own(monkeypatch):
    artifact = Artifact("toy", 1, {"x": 1}, None)
    own = artifact.path
    monkeypatch.setenv("UNLEARN_PRECISION", "float32")
    assert artifact.path != own and artifact.path.parent == own.parent
    monkeypatch.setenv("UNLEARN_PRECISION", "")
    assert artifact.path == own


def test_the_precision_is_float32_or_not_said(monkeypatch):
    from unlearn_utils.engine import models

    monkeypatch.setenv("UNLEARN_PRECISION", "float32")
    assert not models.half_precision()
    with models.matmul_precision(True):  # a test's own choice comes first
        assert models.half_precision()
    monkeypatch.setenv("UNLEARN_PRECISION", "bf16")
    with pytest.raises(ValueError, match="UNLEARN_PRECISION is 'bf16'; it may be 'float32' alone"):
        models.half_precision()
