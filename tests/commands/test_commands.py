"""The front door: `jaxsim-soc` alone, its words for what is wrong, the old names of its commands, completion."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxsim_soc import cli
from jaxsim_soc.commands import COMMANDS, Command, meant

ROOT = Path(__file__).resolve().parents[2]


def ended(*words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a Python process."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command_and_the_version_is_that_of_the_package() -> None:
    code, shown, _ = ended("-m", "jaxsim_soc", "--help")
    assert code == 0 and all(f"  {name} " in shown and command.help in shown for name, command in COMMANDS.items())
    for words in (["--version"], ["scenarios", "--version"]):
        assert ended("-m", "jaxsim_soc", *words) == (0, f"jaxsim-soc {cli.version()}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "jaxsim-soc: error: the following arguments are required: COMMAND"),
        (["adit"], "jaxsim-soc: error: COMMAND: 'adit' is unknown; did you mean audit?"),
        (["--verson"], "jaxsim-soc: error: "),
        (["scenarios", "lst"], "jaxsim-soc scenarios: error: "),
        (["evaluate", "--episodes", "0"], "jaxsim-soc evaluate: error: --episodes: '0' is not possible"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str) -> None:
    code, shown, error = ended("-m", "jaxsim_soc", *words)
    assert (code, shown, error.count("\n")) == (2, "", 1) and error.startswith(said)


def test_an_option_of_the_tool_beside_finds_it() -> None:
    code, _, error = ended("-m", "jaxsim_soc", "audit", "--gymnasium", "X-v0", "--seed", "-1")
    assert code == 2 and error.startswith("jaxsim-soc audit-gymnasium: error: --seed: '-1'"), error
    assert meant(["audit", "--seed", "1", "--gymnasium=X-v0"]) == ["audit-gymnasium", "--seed", "1", "X-v0"]
    assert meant(["evaluate", "--model", "openai:x"]) == ["evaluate-model", "--model", "openai:x"]
    for own in (["audit", "--out", "gymnasium"], ["evaluate", "--policy", "model"], ["audit"], [""]):
        assert meant(own) == own


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([str(ROOT / "benchmarks" / "evaluate.py"), "--episodes", "0"], "evaluate.py"),
        (["-m", "scenarios", "lst"], "python -m scenarios"),
    ],
)
def test_an_old_name_speaks_of_itself(words: list[str], name: str) -> None:
    code, _, error = ended(*words)
    assert code == 2 and error.startswith(f"{name}: error: ")


def test_a_missing_package_is_one_line_before_anything_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        Command("no.such.module", "", ("json", "no_such_package"), "bench,train").load()
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1
    assert "needs the package no_such_package" in error and "pip install 'jaxsim-soc[bench,train]'" in error


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    pytest.importorskip("torch")
    COMMANDS["completion"].load().main([shell])
    script = capsys.readouterr().out
    assert (
        "--certify" in script and "evaluate-model" in script and "--max-new-tokens" in script and "validate" in script
    )
