"""`run_all.sh`, `environment.sh` and the executor behind them, on notebooks of two or three cells."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat.v4 as v4
import psutil
import pytest

from unlearn_utils import __main__
from unlearn_utils.cache import paths
from unlearn_utils.runner import expected, notebooks

ROOT = Path(__file__).resolve().parents[1]
TABLE = "domain,method,value,low,high,n\ngithub,none,{},0.4,0.6,60\n"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a run sets for its kernels ends with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("UNLEARN_STORE", "UNLEARN_FIGURES", "UNLEARN_FRESH"):
        os.environ.pop(name, None)


def add(root, name, *cells, **metadata):
    """A notebook of a heading, the parameters cell and these cells."""
    code = [v4.new_code_cell('PROFILE = "laptop"', metadata={"tags": ["parameters"]}), *map(v4.new_code_cell, cells)]
    heading = v4.new_markdown_cell(f"# {name[:2]} · About {name[3:]}\n\nWords.")
    (root / "notebooks").mkdir(exist_ok=True)
    notebook = v4.new_notebook(cells=[heading, *code], metadata=metadata)
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))


def shell(*command, cwd=ROOT, **environment):
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


# ------------------------------------------------------------------------------------------------- options


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


def test_command_line_says_what_is_wrong_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    assert [__main__.main(["run", "huge"]), __main__.main(["run", "smoke"]), __main__.main(["expect"])] == [2, 2, 2]
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["error: "] * 3


# --------------------------------------------------------------------------------------------- environment


@pytest.fixture
def clone(tmp_path):
    """A folder with the scripts, a space in its name, and a PATH of only what they may use."""
    folder, tools = tmp_path / "a clone", tmp_path / "bin"
    tools.mkdir(), folder.mkdir()
    for name in ("environment.sh", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    for name in ("bash", "dirname", "df", "awk", "mkdir", "cp", "cmp", "grep", "tail", "cat"):
        (tools / name).symlink_to(shutil.which(name))

    def tool(name, script):
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)

    def source():
        return shell("bash", "-c", 'set -euo pipefail; source "$0/environment.sh"; echo "$PYTHON"', str(folder), PATH=str(tools))

    return folder, tool, source


def fake_python(version, ensurepip="exit 0", venv="exit 1"):
    """A `python3` without the pins that answers what environment.sh asks."""
    return f'case "$*" in *version_info*) echo {version} ;; *ensurepip*) {ensurepip} ;; "-m venv"*) {venv} ;; *) exit 1 ;; esac'


def test_no_python(clone):
    _, _, source = clone
    code, out, err = source()
    assert (code, out) == (1, "") and err == "error: no Python found; install Python 3.11 or newer (python3 on the PATH)"


def test_old_python(clone):
    _, tool, source = clone
    tool("python3", fake_python("3.9"))
    code, out, err = source()
    assert (code, out) == (1, "") and err == "error: Python 3.11 or newer is needed; the one found is 3.9"


def test_python_without_ensurepip_names_the_package(clone):
    _, tool, source = clone
    tool("python3", fake_python("3.12", ensurepip="exit 1"))
    code, out, err = source()
    assert (code, out, err.count("\n")) == (1, "", 0) and err.endswith("apt install python3.12-venv")


def test_full_disk(clone):
    _, tool, source = clone
    tool("python3", fake_python("3.13"))
    (Path(clone[0]).parent / "bin" / "df").unlink()
    tool("df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/x 9 9 2097152 99% /"')
    code, out, err = source()
    assert (code, out) == (1, "") and err.startswith("error: 2048 MB of disk are free") and err.endswith("needs 4 GB")


def test_failed_installation_names_its_log_and_is_repeated(clone):
    folder, tool, source = clone
    tool("python3", fake_python("3.11", venv="echo ERROR: no network; exit 1"))
    for _ in range(2):
        code, out, err = source()
        assert (code, out.startswith("Installing the environment"), err.count("\n")) == (1, True, 0)
        assert err == f"error: the installation failed: ERROR: no network (log: {folder}/runs/install.log)"


def test_installation_is_made_once_and_again_when_the_lock_changes(clone):
    folder, tool, source = clone
    made = 'mkdir -p "${@: -1}/bin"; printf "#!/bin/bash\\nexit 0\\n" > "${@: -1}/bin/python"; chmod +x "${@: -1}/bin/python"'
    (folder.parent / "bin" / "chmod").symlink_to(shutil.which("chmod"))
    tool("python3", fake_python("3.11", venv=made))
    first, second = source(), source()
    with (folder / "requirements.lock").open("a") as lock:
        lock.write("one-more==1.0\n")
    third = source()
    assert [code for code, _, _ in (first, second, third)] == [0, 0, 0]
    assert [len(out.splitlines()) for _, out, _ in (first, second, third)] == [2, 1, 2]
    assert second[1] == f"{folder}/.venv/bin/python"


def test_an_active_environment_with_the_pins_is_used(clone):
    folder, tool, source = clone
    tool("python3", f'exec "{sys.executable}" "$@"')
    (folder / "requirements.lock").write_text("# head\npytest==" + pytest.__version__ + "\n")
    assert source() == (0, "python3", "")
    assert not (folder / ".venv").exists()


# ------------------------------------------------------------------------------------------------- a run


def test_a_run_from_start_to_end(tmp_path, capsys):
    write = f'import os; open(os.environ["UNLEARN_FIGURES"] + "/table01_x.csv", "w").write("""{TABLE.format(0.5)}""")'
    add(tmp_path, "01_one", "import sys\nprint(PROFILE, sys.executable)", write)
    add(tmp_path, "02_two", "print(1)", expected_minutes={"laptop": 3})
    assert notebooks.run(tmp_path, "laptop") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[01/02] 01 About one ") and lines[0].endswith(" min")
    assert lines[1].startswith("[02/02] 02 About two ") and lines[1].endswith("min (expected 3.0)")
    assert any(line.startswith("Figures    figures") for line in lines) and any(line.endswith("rm -rf runs") for line in lines)
    assert lines[-1].startswith("No committed values")

    one = json.loads((tmp_path / "notebooks" / "01_one.ipynb").read_text())
    assert one["cells"][2]["outputs"][0]["text"] == [f"laptop {sys.executable}\n"]
    assert [cell["execution_count"] for cell in one["cells"][1:]] == [1, 2, 3]
    assert "papermill" not in json.dumps(one) and "iopub" not in json.dumps(one)
    assert (tmp_path / "runs" / "laptop" / "run.csv").read_text().startswith("notebook,minutes\n01,0.")

    assert notebooks.run(tmp_path, "laptop", only="2") == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-1] == "unchanged"
    (tmp_path / "figures" / "table01_x.csv").unlink()
    expected_file = tmp_path / expected.EXPECTED
    expected_file.parent.mkdir(parents=True)
    expected_file.write_text("table,key,value,low,high\ntable01_x,domain=github; method=none,0.3,0.2,0.4\n")
    assert notebooks.run(tmp_path, "laptop") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("min") and lines[1].endswith("unchanged"), "a lost table is made again, nothing else"
    assert "0 same, 0 within, 1 outside, 0 missing, 0 new" in lines[-2]
    assert lines[-1] == "  outside: table01_x, domain=github; method=none"

    assert notebooks.run(tmp_path, "laptop", start="02", fresh=True) == 0
    assert "min" in capsys.readouterr().out.splitlines()[0]
    assert abs(float(os.environ["UNLEARN_FRESH"]) - time.time()) < 60


def test_another_profile_leaves_notebooks_and_figures_alone(tmp_path, capsys):
    add(tmp_path, "01_one", 'import os\nprint(PROFILE, os.environ["HF_HUB_OFFLINE"], os.environ["UNLEARN_FIGURES"])')
    before = (tmp_path / "notebooks" / "01_one.ipynb").read_bytes()
    assert notebooks.run(tmp_path, "smoke") == 0
    assert (tmp_path / "notebooks" / "01_one.ipynb").read_bytes() == before
    copy = json.loads((tmp_path / "runs" / "smoke" / "01_one.ipynb").read_text())
    assert copy["cells"][3]["outputs"][0]["text"] == [f"smoke 1 {tmp_path}/runs/smoke/figures\n"]
    assert not (tmp_path / "figures").exists()


def test_a_failing_cell_is_named_and_the_run_stops(tmp_path, capsys):
    add(tmp_path, "01_one", "# the cause\nraise ValueError('first\\nsecond')")
    add(tmp_path, "02_two", "print(1)")
    before = (tmp_path / "notebooks" / "01_one.ipynb").read_bytes()
    assert notebooks.run(tmp_path, "laptop") == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "error: 01_one.ipynb, code cell 2 (# the cause): ValueError: second"
    assert err.splitlines()[1] == "the notebook as far as it ran: runs/laptop/failed/01_one.ipynb"
    assert (tmp_path / "runs" / "laptop" / "failed" / "01_one.ipynb").exists() and "02" not in out.replace("/02", "")
    assert (tmp_path / "notebooks" / "01_one.ipynb").read_bytes() == before


def test_a_killed_kernel_is_named(tmp_path, capsys):
    add(tmp_path, "01_one", "import os; os._exit(9)")
    assert notebooks.run(tmp_path, "smoke") == 1
    assert "code cell 3 (import os; os._exit(9)): DeadKernelError" in capsys.readouterr().err


@pytest.mark.parametrize("alone", [True, False])
def test_interrupted(tmp_path, alone):
    for name in ["01_one"] if alone else ["01_one", "02_two"]:
        add(tmp_path, name, f"import time, pathlib\npathlib.Path('{name}').touch()\ntime.sleep(60)", side_by_side=not alone)
    script = f"import sys, pathlib\nfrom unlearn_utils import notebooks\nsys.exit(notebooks.run(pathlib.Path({str(tmp_path)!r}), 'laptop'))"
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's background jobs are started deaf to it
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=subprocess.PIPE, **heard)
    while not all((tmp_path / "notebooks" / name).exists() for name in (["01_one"] if alone else ["01_one", "02_two"])):
        assert process.poll() is None
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1].decode()
    assert "interrupted in notebook 01_one.ipynb" + ("" if alone else " and 02_two.ipynb") in said and "Traceback" not in said
    assert process.returncode == 130
    assert started and not psutil.wait_procs(started, timeout=10)[1]
    assert not list((tmp_path / "runs" / "laptop").rglob("*.ipynb"))


def test_side_by_side_at_once_with_a_core_each(tmp_path, capfd):
    """Each of two notebooks waits for a file that the other writes: one after the other they would wait for ever."""
    wait = "import os, pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.05)"
    add(tmp_path, "01_one", wait.format("a", "b"), 'print(os.environ["UNLEARN_WORKERS"])', side_by_side=True)
    add(tmp_path, "02_two", wait.format("b", "a"), side_by_side=True)
    add(tmp_path, "03_three", 'import os\nprint(os.environ["UNLEARN_WORKERS"])')
    add(tmp_path, "00_sum", "print(open('a').read())")
    assert notebooks.run(tmp_path, "laptop") == 0
    lines = capfd.readouterr().out.splitlines()
    assert {line[8:10] for line in lines[:2]} == {"01", "02"} and [line[8:10] for line in lines[2:4]] == ["03", "00"]
    said = [json.loads((tmp_path / "notebooks" / f"{n}.ipynb").read_text())["cells"][-1]["outputs"] for n in ("01_one", "03_three")]
    assert [out[0]["text"] for out in said] == [["1\n"], ["2\n"]]
    assert notebooks.run(tmp_path, "laptop") == 0
    assert sum(line.endswith("unchanged") for line in capfd.readouterr().out.splitlines()) == 4


def test_a_failure_side_by_side_ends_the_run(tmp_path, capfd):
    add(tmp_path, "01_one", "raise ValueError('no')", side_by_side=True)
    add(tmp_path, "02_two", "import time; time.sleep(60)", side_by_side=True)
    add(tmp_path, "03_three", "print(1)")
    began = time.time()
    assert notebooks.run(tmp_path, "laptop") == 1
    out, err = capfd.readouterr()
    assert "error: 01_one.ipynb, code cell 2 (raise ValueError('no')): ValueError: no" in err and "03" not in out.replace("/03", "")
    assert time.time() - began < 50 and not list((tmp_path / "runs" / "laptop" / "running").iterdir())


@pytest.mark.parametrize(("only", "start", "numbers"), [("2", None, ["02"]), (None, "02", ["02", "10"]), (None, None, ["01", "02", "10"])])
def test_selection(only, start, numbers):
    paths = [Path(f"{n}_x.ipynb") for n in ("01", "02", "10")]
    assert [path.name[:2] for path in notebooks.select(paths, only, start)] == numbers


def test_selection_of_an_unknown_number_lists_the_numbers():
    with pytest.raises(ValueError, match="no notebook 07; there are: 01"):
        notebooks.select([Path("01_x.ipynb")], "07", None)


# --------------------------------------------------------------------------------------- committed values


@pytest.mark.parametrize(
    ("committed", "found", "said"),
    [
        (["0.5", "0.4", "0.6"], ["0.50001", "", ""], "same"),
        (["0.5", "0.4", "0.6"], ["0.55", "", ""], "within"),
        (["0.5", "0.4", "0.6"], ["0.65", "", ""], "outside"),
        (["0.5", "", ""], ["0.51", "", ""], "outside"),
        (["", "", ""], ["", "", ""], "same"),
        (["0", "", ""], ["0.0", "", ""], "same"),
        (None, ["1", "", ""], "new"),
        (["1", "", ""], None, "missing"),
    ],
)
def test_verdict(committed, found, said):
    assert expected.verdict(committed, found) == said


def test_expect_writes_what_comparison_reads(tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "table01_x.csv").write_text(TABLE.format(0.5))
    (tmp_path / "figures" / "table02_samples.csv").write_text("id,text\n1,words\n")
    expected.expect(tmp_path)
    assert (tmp_path / expected.EXPECTED).read_text().splitlines()[1] == "table01_x,domain=github; method=none,0.5,0.4,0.6"
    assert "1 same, 0 within, 0 outside, 0 missing, 0 new" in expected.comparison(tmp_path, tmp_path / "figures")
