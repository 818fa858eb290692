"""`run_all.sh`, `environment.sh` and the runner, on notebooks of two or three cells."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat.v4 as v4
import pandas as pd
import psutil
import pytest
from filelock import FileLock
from matplotlib.figure import Figure

from unlearn_utils import __main__, profiles
from unlearn_utils.cache import paths, store
from unlearn_utils.data import manifest
from unlearn_utils.findings import plots
from unlearn_utils.runner import expected, notebooks, profile_run, step, upkeep
from unlearn_utils.runner.places import Places

ROOT = Path(__file__).resolve().parents[1]
TABLE = "domain,method,value,low,high,n\ngithub,none,{},0.4,0.6,60\n"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a run sets for its kernels ends with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("UNLEARN_STORE", "UNLEARN_FIGURES", "UNLEARN_FRESH"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def committed_text(monkeypatch):
    """This machine's text is that of the committed values, whatever Python it has."""
    monkeypatch.setattr(manifest, "is_as_committed", lambda: True)


def add(root, name, *cells, **metadata):
    """A notebook of a heading, the parameters cell and these cells."""
    heading = v4.new_markdown_cell(f"# {name[:2]} · About {name[3:]}\n\nWords.")
    parameters = v4.new_code_cell('PROFILE = "laptop"', metadata={"tags": ["parameters"]})
    code = [v4.new_code_cell(cell) for cell in cells]
    (root / "notebooks").mkdir(exist_ok=True)
    notebook = v4.new_notebook(cells=[heading, parameters, *code], metadata=metadata)
    source(root, name).write_text(json.dumps(notebook))


def source(root, name):
    return root / "notebooks" / f"{name}.ipynb"


def printed(path, cell):
    """What a cell of an executed notebook printed."""
    return json.loads(path.read_text())["cells"][cell]["outputs"][0]["text"]


def shell(*command, cwd=ROOT, **environment):
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["huge"], "unknown profile huge"),
        (["--quick"], "unknown option --quick"),
        (["smoke", "laptop"], "unknown option laptop"),
        (["--only"], "--only needs the number of a notebook"),
        (["smoke", "--from", "two"], "--from needs the number of a notebook"),
        (["--only", "88"], "no notebook 88; there are:"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_installed(options, said, tmp_path):
    code, out, err = shell(str(ROOT / "run_all.sh"), *options, cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 0)
    assert err.startswith("error: ") and said in err


def test_help():
    code, out, _ = shell("./run_all.sh", "--help")
    assert code == 0 and out.startswith("usage: ./run_all.sh") and "--fresh" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_help_of_the_command_line_names_every_profile(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["run", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "smoke, laptop, study, published, gpu, hubble or paper" in said


@pytest.mark.parametrize("command", [["run", "huge"], ["run", "smoke"], ["expect"]])
def test_command_line_says_what_is_wrong_in_one_line(capsys, monkeypatch, tmp_path, command):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    assert __main__.main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


# ------------------------------------------------------------------------------------- environment


@pytest.fixture
def clone(tmp_path):
    """A folder with the scripts, a space in its name, and a PATH of only what they may use."""
    folder = tmp_path / "a clone"
    tools = tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    for name in ("environment.sh", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    for name in ("bash", "dirname", "df", "awk", "mkdir", "cp", "cmp", "grep", "tail", "tr", "cat"):
        (tools / name).symlink_to(shutil.which(name))

    def tool(name, script):
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)

    def environment():
        script = 'set -euo pipefail; source "$0/environment.sh"; echo "$PYTHON"'
        return shell("bash", "-c", script, str(folder), PATH=str(tools))

    return folder, tool, environment


def fake_python(version, ensurepip="exit 0", venv="exit 1"):
    """A `python3` without the pins that answers what environment.sh asks."""
    answers = [
        f"*version_info*) echo {version} ;;",
        f"*ensurepip*) {ensurepip} ;;",
        f'"-m venv"*) {venv} ;;',
        "*) exit 1 ;;",
    ]
    return f'case "$*" in {" ".join(answers)} esac'


def test_no_python(clone):
    _, _, environment = clone
    said = "error: no Python found; install Python 3.11 or newer (python3 on the PATH)"
    assert environment() == (1, "", said)


def test_old_python(clone):
    _, tool, environment = clone
    tool("python3", fake_python("3.9"))
    said = "error: Python 3.11 or newer is needed; the one found is 3.9"
    assert environment() == (1, "", said)


def test_python_without_ensurepip_names_the_package(clone):
    _, tool, environment = clone
    tool("python3", fake_python("3.12", ensurepip="exit 1"))
    code, out, err = environment()
    assert (code, out, err.count("\n")) == (1, "", 0)
    assert err.endswith("apt install python3.12-venv")


def test_full_disk(clone):
    folder, tool, environment = clone
    tool("python3", fake_python("3.13"))
    (folder.parent / "bin" / "df").unlink()
    tool("df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/x 9 9 2097152 99% /"')
    code, out, err = environment()
    assert (code, out) == (1, "")
    assert err.startswith("error: 2048 MB of disk are free") and err.endswith("needs 4 GB")


def test_failed_installation_names_its_log_and_is_repeated(clone):
    folder, tool, environment = clone
    tool("python3", fake_python("3.11", venv="echo ERROR: no network; exit 1"))
    log = f"{folder}/runs/install.log"
    for _ in range(2):
        code, out, err = environment()
        assert code == 1 and out.startswith("Installing the environment")
        assert err == f"error: the installation failed: ERROR: no network (log: {log})"


def test_a_file_with_another_hash_is_named(clone):
    """pip says which it is in the line below the error."""
    _, tool, environment = clone
    said = r"ERROR: THEY DO NOT MATCH\\n    one==1.0 from https://a.b/one.whl\\n"
    tool("python3", fake_python("3.11", venv=f'printf "{said}"; exit 1'))
    code, _, err = environment()
    assert code == 1 and "\n" not in err
    assert "failed: ERROR: THEY DO NOT MATCH one==1.0 from https://a.b/one.whl (log: " in err


def test_installation_is_made_once_and_again_when_the_lock_changes(clone):
    folder, tool, environment = clone
    python = '"${@: -1}/bin/python"'
    made = (
        f'mkdir -p "${{@: -1}}/bin"; printf "#!/bin/bash\\nexit 0\\n" > {python}; chmod +x {python}'
    )
    (folder.parent / "bin" / "chmod").symlink_to(shutil.which("chmod"))
    tool("python3", fake_python("3.11", venv=made))
    first = environment()
    second = environment()
    with (folder / "requirements.lock").open("a") as lock:
        lock.write("one-more==1.0\n")
    third = environment()
    assert [code for code, _, _ in (first, second, third)] == [0, 0, 0]
    assert [len(out.splitlines()) for _, out, _ in (first, second, third)] == [2, 1, 2]
    assert second[1] == f"{folder}/.venv/bin/python"


def test_an_active_environment_with_the_pins_is_used(clone):
    folder, tool, environment = clone
    tool("python3", f'exec "{sys.executable}" "$@"')
    (folder / "requirements.lock").write_text(f"# head\npytest=={pytest.__version__}\n")
    assert environment() == (0, "python3", "")
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_installation_too(clone, number):
    folder, tool, _ = clone
    note = folder.parent / "pid"
    (folder.parent / "bin" / "sleep").symlink_to(shutil.which("sleep"))
    tool("python3", fake_python("3.11", venv=f'echo $$ >"{note}"; sleep 600; exit 1'))
    script = subprocess.Popen(
        ["bash", "-c", 'set -euo pipefail; source "$0/environment.sh"', str(folder)],
        env={"PATH": str(folder.parent / "bin")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    while not (note.exists() and note.read_text()):
        assert script.poll() is None
        time.sleep(0.05)
    installing = psutil.Process(int(note.read_text()))
    script.send_signal(number)
    said = script.communicate(timeout=60)[1]
    assert script.returncode == 128 + number
    assert said == f"interrupted ({number.name}); the same command goes on from there\n"
    assert not psutil.wait_procs([installing], timeout=60)[1]


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture
def two(tmp_path):
    """A project of two notebooks, of which the first writes a table."""
    write = "import os\n"
    write += 'path = os.environ["UNLEARN_FIGURES"] + "/table01_x.csv"\n'
    write += f'open(path, "w").write("""{TABLE.format(0.5)}""")'
    add(tmp_path, "01_one", "import sys\nprint(PROFILE, sys.executable)", write)
    add(tmp_path, "02_two", "print(1)", expected_minutes={"laptop": 3})
    return tmp_path


def test_a_run_from_start_to_end(two, capsys):
    assert profile_run.run(two, "laptop") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[01/02] 01 About one ") and lines[0].endswith(" min")
    assert lines[1].startswith("[02/02] 02 About two ")
    assert lines[1].endswith("min (expected 3.0)")
    assert any(line.startswith("Figures    figures") for line in lines)
    assert any(line.endswith("rm -rf runs") for line in lines)
    assert lines[-1].startswith("No committed values")

    path = source(two, "01_one")
    assert printed(path, 2) == [f"laptop {sys.executable}\n"]
    executed = json.loads(path.read_text())
    assert [cell["execution_count"] for cell in executed["cells"][1:]] == [1, 2, 3]
    assert "papermill" not in path.read_text() and "iopub" not in path.read_text()
    minutes = (two / "runs" / "laptop" / "run.csv").read_text()
    assert minutes.startswith("notebook,minutes\n01,0.")


def test_a_library_that_asks_for_widgets_leaves_no_warning_in_the_outputs(tmp_path):
    add(tmp_path, "01_one", "import tqdm.auto")
    assert profile_run.run(tmp_path, "laptop") == 0
    cells = json.loads(source(tmp_path, "01_one").read_text())["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"] == [[], []]


def test_another_text_than_the_committed_is_said(two, capsys, monkeypatch):
    monkeypatch.setattr(manifest, "is_as_committed", lambda: False)
    assert profile_run.run(two, "laptop") == 0
    *_, said, compared = capsys.readouterr().out.splitlines()
    assert "another text" in said and "need not agree" in said
    assert compared.startswith("No committed values")


def test_what_has_not_changed_is_not_executed_again(two, capsys):
    assert profile_run.run(two, "laptop") == 0
    capsys.readouterr()
    assert profile_run.run(two, "laptop", only="2") == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-1] == "unchanged"

    (two / "figures" / "table01_x.csv").unlink()
    committed = two / expected.EXPECTED
    committed.parent.mkdir(parents=True)
    row = "table01_x,domain=github; method=none,0.3,0.2,0.4"
    committed.write_text(f"table,key,value,low,high\n{row}\n")
    assert profile_run.run(two, "laptop") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("min"), "a lost table is made again"
    assert lines[1].endswith("unchanged"), "and nothing else"
    assert lines[-2].startswith("Of 1 values without a rerun interval 0 lie inside")
    assert lines[-1].startswith("  outside: table01_x, domain=github; method=none: 0.5, ")

    committed.write_text("table,key,value\ntable01_x,domain=git")
    assert profile_run.run(two, "laptop") == 0, "no run fails over what it is compared with"
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"Not compared: {committed} ")

    assert profile_run.run(two, "laptop", start="02", fresh=True) == 0
    assert "min" in capsys.readouterr().out.splitlines()[0]
    assert abs(float(os.environ["UNLEARN_FRESH"]) - time.time()) < 60


def test_another_profile_leaves_notebooks_and_figures_alone(tmp_path, capsys):
    cell = 'import os\nprint(PROFILE, os.environ["HF_HUB_OFFLINE"], os.environ["UNLEARN_FIGURES"])'
    add(tmp_path, "01_one", cell)
    before = source(tmp_path, "01_one").read_bytes()
    assert profile_run.run(tmp_path, "smoke") == 0
    assert source(tmp_path, "01_one").read_bytes() == before
    folder = tmp_path / "runs" / "smoke"
    assert printed(folder / "01_one.ipynb", 3) == [f"smoke 1 {folder}/figures\n"]
    assert not (tmp_path / "figures").exists()

    executed = (folder / "01_one.ipynb").read_bytes()
    assert profile_run.run(tmp_path, "smoke", fresh=True) == 0
    assert (folder / "01_one.ipynb").read_bytes() == executed, "the same bytes"


WHERE = {
    "laptop": "figures",
    "study": "figures/study",
    "published": "figures/published",
    "smoke": "runs/smoke/figures",
    "gpu": "runs/gpu/figures",
}


@pytest.mark.parametrize(("profile", "folder"), WHERE.items())
def test_figures_go_where_the_profile_says_with_and_without_a_run(
    profile, folder, tmp_path, monkeypatch
):
    """In JupyterLab nobody has set a folder: a trial must not reach what is committed."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    assert Places(tmp_path, profile).figures == tmp_path / folder
    table = pd.DataFrame({"domain": ["books"], "value": [0.5]})
    plots.save(profiles.profile(profile), Figure(), "fig01_x", table)
    plots.save_table(profiles.profile(profile), "table01_x", table)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.as_posix() for path in files} == {folder}
    assert {path.name for path in files} == {
        "fig01_x.png",
        "fig01_x.pdf",
        "fig01_x.csv",
        "table01_x.csv",
    }


def test_the_variable_decides_for_every_profile_but_not_of_the_committed_study(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    table = pd.DataFrame({"domain": ["books"], "value": [0.5]})
    plots.save_table(profiles.STUDY, "table02_x", table)
    os.environ["UNLEARN_FIGURES"] = str(tmp_path / "mine")
    for name in WHERE:
        assert paths.figures_folder(name) == tmp_path / "mine"
    assert plots.committed("table02_x").equals(table)
    with pytest.raises(FileNotFoundError, match=r"has no table table03_x .*run_all.sh study"):
        plots.committed("table03_x")


def test_a_run_leaves_nothing_in_a_notebook_that_differs_from_machine_to_machine():
    """Not what JupyterLab had written before, and not what the execution adds."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    language = {"name": "python", "version": "3.12.1", "mimetype": "text/x-python"}
    minutes = {"smoke": 0.1}
    notebook = v4.new_notebook(
        cells=[
            v4.new_code_cell("1", metadata={"papermill": {"duration": 1}, "execution": {}}),
            v4.new_markdown_cell("words", metadata={"tags": []}),
            v4.new_code_cell("2", metadata={"tags": ["parameters"]}),
        ],
        metadata={"kernelspec": kernel, "language_info": language, "papermill": {"version": "2"}},
    )
    notebook.metadata["expected_minutes"] = minutes
    notebooks.clean(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "mimetype": "text/x-python"},
        "expected_minutes": minutes,
    }
    assert [cell.metadata for cell in notebook.cells] == [{}, {}, {"tags": ["parameters"]}]


def test_a_failing_cell_is_named_and_the_run_stops(tmp_path, capsys):
    add(tmp_path, "01_one", "# the cause\nraise ValueError('first\\nsecond')")
    add(tmp_path, "02_two", "print(1)")
    before = source(tmp_path, "01_one").read_bytes()
    assert profile_run.run(tmp_path, "laptop") == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()[:2]
    assert first == "error: 01_one.ipynb, code cell 2 (# the cause): ValueError: second"
    assert second == "the notebook as far as it ran: runs/laptop/failed/01_one.ipynb"
    assert (tmp_path / "runs" / "laptop" / "failed" / "01_one.ipynb").exists()
    assert "02" not in out.replace("/02", "")
    assert source(tmp_path, "01_one").read_bytes() == before


def test_a_killed_kernel_is_named(tmp_path, capsys):
    add(tmp_path, "01_one", "import os; os._exit(9)")
    assert profile_run.run(tmp_path, "smoke") == 1
    assert "code cell 3 (import os; os._exit(9)): DeadKernelError" in capsys.readouterr().err


INTERRUPTED = """
import pathlib, sys
from unlearn_utils.runner import profile_run
sys.exit(profile_run.run(pathlib.Path(sys.argv[1]), "laptop"))
"""


def hear_interrupts():
    """A shell's background jobs are started deaf to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sleeping(root, *names):
    """Notebooks that touch a file of their name, then sleep."""
    for name in names:
        cell = f"import time, pathlib\npathlib.Path('{name}').touch()\ntime.sleep(600)"
        add(root, name, cell, side_by_side=len(names) > 1)


def start_run(root, **given):
    """Start a run of `laptop` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **given,
    )


def started_by(process, *files):
    """Return all that a process has started when the files are there."""
    while not all(file.exists() for file in files):
        assert process.poll() is None
        time.sleep(0.1)
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (["01_one"], signal.SIGINT),
        (["01_one", "02_two"], signal.SIGINT),
        (["01_one"], signal.SIGTERM),
        (["01_one", "02_two"], signal.SIGHUP),
    ],
)
def test_interrupted(tmp_path, names, number):
    sleeping(tmp_path, *names)
    process = start_run(tmp_path, stderr=subprocess.PIPE, preexec_fn=hear_interrupts)
    started = started_by(process, *(tmp_path / "notebooks" / name for name in names))
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    listed = " and ".join(f"{name}.ipynb" for name in names)
    assert f"interrupted in notebook {listed} ({number.name})" in said and "Traceback" not in said
    assert process.returncode == 128 + number
    assert started and not psutil.wait_procs(started, timeout=60)[1]
    assert not list((tmp_path / "runs" / "laptop").rglob("*.ipynb"))


def take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_run_ends_when_its_terminal_is_closed(tmp_path):
    sleeping(tmp_path, "01_one")
    ours, its = pty.openpty()
    given = {"stdin": its, "stdout": its, "stderr": its, "start_new_session": True}
    process = start_run(tmp_path, preexec_fn=take_terminal, **given)
    os.close(its)
    started = started_by(process, tmp_path / "notebooks" / "01_one")
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert started and not psutil.wait_procs(started, timeout=60)[1]


STORED = """
import os, pathlib, time
from unlearn_utils.cache import workers
from unlearn_utils.cache.store import Artifact
def make(folder):
    (folder / "half").touch()
    pathlib.Path(f"made-{os.getpid()}").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
workers.side_by_side([Artifact("toy", 1, {"x": x}, make) for x in range(2)], 2)
"""


def test_what_a_killed_run_started_ends_and_the_next_removes_what_it_left(tmp_path, capfd):
    add(tmp_path, "01_one", STORED, side_by_side=True)
    process = start_run(tmp_path)
    while len(list((tmp_path / "notebooks").glob("made-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(started) > 2 and not psutil.wait_procs(started, timeout=60)[1]

    (tmp_path / "notebooks" / "go").touch()
    capfd.readouterr()
    assert profile_run.run(tmp_path, "laptop") == 0
    removed = capfd.readouterr().out.splitlines()[0]
    assert removed.startswith("removed what a killed run left: runs/laptop/running/01_one.ipynb, ")
    assert "runs/laptop/kernels/runtime/kernel-" in removed
    assert removed.count("runs/store/toy/") == removed.count(".part") == 2
    left = [path.name for path in (tmp_path / "runs").rglob("*")]
    assert not [name for name in left if name.endswith(".part") or name.startswith("kernel-")]


def test_a_second_run_of_a_profile_waits_for_the_first(tmp_path, capsys):
    places = Places(tmp_path, "smoke")
    places.folder.mkdir(parents=True)
    inside, order = threading.Event(), []

    def first():
        with FileLock(places.lock):
            inside.set()
            time.sleep(0.3)
            order.append("first")

    other = threading.Thread(target=first)
    other.start()
    inside.wait()
    with upkeep.alone(places):
        order.append("second")
    other.join()
    assert order == ["first", "second"]
    assert capsys.readouterr().out == "another run of smoke is at work; this one waits for it\n"


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [', b"\xff", '{"metadata": {}}', None])
def test_a_damaged_notebook_is_named_before_anything_runs(two, content):
    path = source(two, "02_two")
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="02_two.ipynb is no notebook .*git checkout"):
        profile_run.run(two, "laptop")
    assert not (two / "runs").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UNLEARN_STORE", "/dev/null/store"),
        ("UNLEARN_WORKERS", "none"),
        ("UNLEARN_SCHEDULER", "nobody"),
    ],
)
def test_an_impossible_variable_is_named_before_anything_runs(two, name, value):
    os.environ[name] = value
    with pytest.raises(ValueError, match=f"^{name}.*{value}"):
        profile_run.run(two, "laptop")
    assert not (two / "runs" / "laptop" / "progress.txt").exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(two):
    (two / "runs").write_text("a file")
    with pytest.raises(ValueError, match="runs/laptop: no files can be written there"):
        profile_run.run(two, "laptop")


def test_files_in_the_place_of_a_run_s_folders_are_set_aside(tmp_path, capsys):
    add(tmp_path, "01_one", "print(1)")
    places = Places(tmp_path, "smoke")
    for name in ["stamps", "running", "failed", "figures", "kernels"]:
        (places.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (places.folder / name).write_text("a file")
    places.lock.mkdir()
    assert profile_run.run(tmp_path, "smoke") == 0
    said = capsys.readouterr().err.splitlines()
    named = sorted(line.split()[0] for line in said if "; it is made again, and " in line)
    made = ["failed", "figures", "kernels", "run.lock", "running", "stamps"]
    assert named == [f"runs/smoke/{name}" for name in made] and len(said) == len(named)
    assert (places.folder / "stamps.aside").read_text() == "a file"
    assert profile_run.run(tmp_path, "smoke") == 0
    assert "unchanged" in capsys.readouterr().out


def test_a_step_that_was_killed_is_named(capsys):
    killed = SimpleNamespace(returncode=-signal.SIGKILL)
    assert step.exit_code(killed, "01_one.ipynb") == 1
    said = "error: 01_one.ipynb was killed (SIGKILL); is there enough memory?\n"
    assert capsys.readouterr().err == said
    assert step.exit_code(SimpleNamespace(returncode=3), "01_one.ipynb") == 3


def test_what_was_found_damaged_is_said_once_at_the_end(tmp_path, capsys):
    places = Places(tmp_path, "smoke")
    found = f"store/toy/1: cost.json is no JSON; {store.AGAIN}"
    places.write(places.progress, f"1 of 2 toys are there\n{found}\n{found}\n")
    upkeep.say_damaged(places)
    assert capsys.readouterr() == ("", f"{found}\n")
    places.progress.write_bytes(b"\xff\n" + found.encode())
    upkeep.say_damaged(places)
    assert capsys.readouterr() == ("", f"{found}\n")
    places.progress.unlink()
    upkeep.say_damaged(places)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "calls"), [({}, 1), ({"only": "1"}, 0), ({"start": "1"}, 0), ({"fresh": True}, 0)]
)
def test_the_whole_study_is_computed_in_parts_before(two, given, calls, monkeypatch):
    called = []
    monkeypatch.setattr(profile_run, "compute_parts", lambda name: called.append(name) or 7)
    monkeypatch.setattr(profile_run, "execute_all", lambda *_: 8)
    assert profile_run.run(two, "study", **given) == (7 if calls else 8)
    assert called == ["study"] * calls


def wait(own, other):
    """A cell that touches one file and waits for another."""
    lines = ["import os, pathlib, time"]
    lines.append(f"pathlib.Path('{own}').touch()")
    lines.append(f"while not pathlib.Path('{other}').exists(): time.sleep(0.05)")
    return "\n".join(lines)


def test_side_by_side_at_once_with_a_core_each(tmp_path, capfd):
    """Each of two notebooks waits for the other's file: one after the other they never end."""
    cores = 'import os\nprint(os.environ["UNLEARN_WORKERS"])'
    add(tmp_path, "01_one", wait("a", "b"), cores, side_by_side=True)
    add(tmp_path, "02_two", wait("b", "a"), side_by_side=True)
    add(tmp_path, "03_three", cores)
    add(tmp_path, "00_sum", "print(open('a').read())")
    assert profile_run.run(tmp_path, "laptop") == 0
    numbers = [line[8:10] for line in capfd.readouterr().out.splitlines()[:4]]
    assert set(numbers[:2]) == {"01", "02"} and numbers[2:] == ["03", "00"]
    assert printed(source(tmp_path, "01_one"), -1) == ["1\n"]
    assert printed(source(tmp_path, "03_three"), -1) == ["2\n"]
    assert profile_run.run(tmp_path, "laptop") == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.endswith("unchanged") for line in lines) == 4


def test_a_failure_side_by_side_ends_the_run(tmp_path, capfd):
    add(tmp_path, "01_one", "raise ValueError('no')", side_by_side=True)
    add(tmp_path, "02_two", "import time; time.sleep(600)", side_by_side=True)
    add(tmp_path, "03_three", "print(1)")
    assert profile_run.run(tmp_path, "laptop") == 1
    out, err = capfd.readouterr()
    assert "error: 01_one.ipynb, code cell 2 (raise ValueError('no')): ValueError: no" in err
    assert "03" not in out.replace("/03", "")
    assert not list((tmp_path / "runs" / "laptop" / "running").iterdir())


@pytest.mark.parametrize(
    ("only", "start", "numbers"),
    [("2", None, ["02"]), (None, "02", ["02", "10"]), (None, None, ["01", "02", "10"])],
)
def test_selection(only, start, numbers):
    every = [Path(f"{number}_x.ipynb") for number in ("01", "02", "10")]
    found = profile_run.select(every, only, start)
    assert [path.name[:2] for path in found] == numbers


def test_selection_of_an_unknown_number_lists_the_numbers():
    with pytest.raises(ValueError, match="no notebook 07; there are: 01"):
        profile_run.select([Path("01_x.ipynb")], "07", None)


def test_a_folder_that_goes_while_sizes_are_added_up_is_left_out(tmp_path, monkeypatch):
    """Another process may take its unfinished folder away."""
    for name in ("kept", "goes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 1_000_000)
    scan = os.scandir

    def scandir(folder):
        if Path(folder).name == "goes":
            raise FileNotFoundError(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert profile_run._megabytes(tmp_path) == 1.0
