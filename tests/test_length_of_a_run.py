"""`--epochs` in parts, and `--steps`: how long a user's run is, and what its files say of it."""

import pytest
from user_models import arguments, record, unlearn

from unlearn_utils.app import commands, unlearn_arguments
from unlearn_utils.app.settings import RunSettings
from unlearn_utils.core import methods
from unlearn_utils.engine import training
from unlearn_utils.profiles import Unlearning

METHOD = "ascent_descent_general"  # reads retain text, whose order depends on the length most
MORE = ("--float32", "--learning-rate", 1e-3)
COUNTED = "steps x batch / chunks of the forget set"


@pytest.fixture(scope="module")
def run_of(llama, documents, tmp_path_factory):
    """Run `unlearn` for so long, and return its folder."""
    folders = {}

    def run(*length):
        if length not in folders:
            folders[length] = tmp_path_factory.mktemp("run") / "out"
            unlearn(llama, documents, folders[length], METHOD, *MORE, *length)
        return folders[length]

    return run


def losses(folder):
    return [step["loss"] for step in record(folder)["history"]]


def row(folder, name):
    """Return the row of a setting in the model's card."""
    lines = (folder / "README.md").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"| {name} |")]
    return found


def test_the_first_steps_of_a_longer_run_are_the_same(run_of):
    """Whatever they are given in. The last batch of epochs may be smaller: 26 = 6 x 4 + 2."""
    long = losses(run_of("--epochs", 2))
    assert len(long) == 7
    assert losses(run_of("--steps", 5)) == long[:5]
    assert losses(run_of("--steps", 1)) == long[:1]
    half = losses(run_of("--epochs", 0.5))
    assert len(half) == 2  # 6 chunks
    assert half[0] == long[0] and half[1] != long[1]


def test_a_whole_epoch_in_two_ways_is_the_same_run(run_of):
    whole, other = run_of("--epochs", 2), run_of("--epochs", "2.0")
    assert record(whole)["epochs"] == record(other)["epochs"] == 2
    assert losses(whole) == losses(other)


@pytest.mark.parametrize(
    ("length", "epochs", "steps", "of_epochs", "of_steps"),
    [
        (("--epochs", 0.5), 0.5, 2, "| epochs | 0.5 | given |", "| steps | 2 | epochs x chunks"),
        (("--steps", 5), 20 / 13, 5, f"| epochs | 1.53846 | {COUNTED} |", "| steps | 5 | given |"),
    ],
)
def test_card_and_record_say_how_long_it_was(length, epochs, steps, of_epochs, of_steps, run_of):
    folder = run_of(*length)
    assert record(folder)["epochs"] == pytest.approx(epochs, rel=1e-12)
    assert record(folder)["steps"] == len(losses(folder)) == steps
    assert row(folder, "epochs") == of_epochs
    assert row(folder, "steps").startswith(of_steps)
    assert f"\n{steps} steps of AdamW" in (folder / "README.md").read_text()


def settings(**recipe):
    method = methods.get_method(METHOD)
    return RunSettings(method, Unlearning(**recipe), 1, 0, None, merge=False, bf16=False)


@pytest.mark.parametrize("chunks", [1, 7, 13, 1000, 999_983])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_steps_are_as_many_as_were_given(chunks, batch):
    """Also through the division that makes epochs of them, up to a thousand epochs."""
    most = 1000 * chunks // batch
    for steps in {1, 2, most // 3 or 1, most}:
        run = unlearn_arguments.with_epochs(settings(batch=batch), steps, chunks)
        assert training.steps_of(chunks, batch, run.recipe.epochs) == steps
        assert training.documents_of(chunks, run.recipe.epochs) == steps * batch
    with pytest.raises(ValueError, match=f"--steps {most + 1}: .* choose {most} at most"):
        unlearn_arguments.with_epochs(settings(batch=batch), most + 1, chunks)


def test_a_part_of_an_epoch_has_a_step_at_least():
    """A whole epoch of fewer chunks than a batch is a step, as it was."""
    for epochs, chunks in ((0.5, 8), (1, 2), (1.5, 2)):
        run = settings(batch=4, epochs=epochs)
        assert unlearn_arguments.with_epochs(run, None, chunks) is run
    with pytest.raises(ValueError, match=r"--epochs 0.5: 3.5 of 7 forget chunks.* --steps 1"):
        unlearn_arguments.with_epochs(settings(batch=4, epochs=0.5), None, 7)


def test_too_many_steps_of_a_path_are_one_line(llama, documents, tmp_path, capsys):
    """It is said before the weights are read, when the documents are known."""
    given = arguments(llama, documents, tmp_path / "out", METHOD, "--until", "unseen")
    assert commands.main([*given, "--steps", "3251"]) == 2
    assert "choose 3250 at most" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
