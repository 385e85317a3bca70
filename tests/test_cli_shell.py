# SPDX-License-Identifier: Apache-2.0
"""The command in the shell: targets, exit codes, pipes, signals, completion, start-up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import ShellComplete

import milepost as mp
from cli_runs import (
    COMMAND,
    as_json,
    child,
    flip_a_byte,
    leave_unfinished,
    make_run,
    milepost,
    obedient_child,
    on_terminal,
)
from milepost.cli import main
from milepost.cli.target import Target

VERBS = [
    "ls",
    "tree",
    "diff",
    "verify",
    "prune",
    "pin",
    "unpin",
    "watch",
    "import",
    "export",
    "doctor",
    "bench",
    "demo",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "gpt")
    return tmp_path / "gpt"


# --- targets


@pytest.mark.parametrize(
    ("text", "store", "step", "glob"),
    [
        ("runs/gpt", "runs/gpt", None, None),
        ("runs/gpt@latest", "runs/gpt", "latest", None),
        ("runs/gpt@-2", "runs/gpt", "-2", None),
        ("runs/gpt@12000:params/**", "runs/gpt", "12000", "params/**"),
        ("runs/gpt:params/*/w", "runs/gpt", None, "params/*/w"),
        ("s3://b/gpt@12000:params/**/attn/*", "s3://b/gpt", "12000", "params/**/attn/*"),
        ("s3://b/gpt:params", "s3://b/gpt", None, "params"),
        ("memory://one", "memory://one", None, None),
        ("C:\\runs\\gpt@best", "C:\\runs\\gpt", "best", None),
        ("me@host/runs/gpt", "me@host/runs/gpt", None, None),
        ("me@host/runs/gpt@7", "me@host/runs/gpt", "7", None),
        ("@12000", "", "12000", None),
        ("runs/gpt@7:", "runs/gpt", "7", ""),
    ],
)
def test_a_target_is_a_store_a_step_and_a_glob(text: str, store: str, step: str | None, glob: str | None) -> None:
    assert Target.parse(text) == Target(store, step, glob)
    assert str(Target(store, step, glob)) == text


@pytest.mark.parametrize("name", ["half@5", "a:b", "x@latest"])
def test_a_folder_that_exists_as_it_is_written_is_a_store(tmp_path: Path, name: str) -> None:
    mp.save(tmp_path / name, {"w": np.ones(2)}, step=3)

    assert as_json("tree", tmp_path / name)["step"] == 3
    assert as_json("tree", f"{tmp_path / name}@3:w")["glob"] == "w"


@pytest.mark.parametrize(
    ("step", "found"), [("latest", 300), ("-1", 300), ("-3", 100), ("best", 100), ("200", 200), ("00200", 200)]
)
def test_a_step_is_a_number_a_place_from_the_end_or_the_best(root: Path, step: str, found: int) -> None:
    assert as_json("tree", f"{root}@{step}")["step"] == found


def test_the_place_from_the_end_leaves_out_what_was_superseded(root: Path) -> None:
    with mp.Checkpointer(root, resume_from=mp.open(root)[200]) as saver:
        saver.save(250, {"w": np.ones(2)})

    assert [as_json("tree", f"{root}@-{n}")["step"] for n in (1, 2, 3)] == [250, 200, 100]
    assert milepost("tree", f"{root}@-4").exit_code == 12


def test_the_best_is_that_of_the_recorded_policy_or_of_the_metric_that_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run", keep="last 9")

    unnamed = milepost("tree", f"{tmp_path / 'run'}@best")
    named = as_json("tree", f"{tmp_path / 'run'}@best", "--metric", "acc.top1")
    unknown = milepost("tree", f"{tmp_path / 'run'}@best", "--metric", "f1")

    assert unnamed.exit_code == 2
    assert "Pass --metric NAME; there are: loss, acc.top1." in unnamed.stderr
    assert named["step"] == 300
    assert (unknown.exit_code, "f1" in unknown.stderr) == (12, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["tree", "{root}@newest"], "@newest names no step: write @latest"),
        (["tree", "{root}@-0"], "@-0 names no step"),
        (["tree", "{root}:[b-a]"], "malformed glob"),
        (["tree", "@300"], "names no store"),
        (["ls", "{root}:params"], "takes no :GLOB"),
        (["prune", "{root}@300"], "takes a whole store"),
        (["tree", "{root}", "--depth", "0"], "--depth"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_why(root: Path, words: list[str], reason: str) -> None:
    result = milepost(*(word.format(root=root) for word in words))

    assert result.exit_code == 2
    assert reason in result.stderr


# --- exit codes


def test_no_store_is_10_and_no_step_or_leaf_is_12(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").touch()
    (tmp_path / "file").touch()

    for where in ("nothing", "other", "file", "file/below"):
        result = milepost("ls", tmp_path / where)
        assert (result.exit_code, result.stdout) == (10, ""), where
        assert result.stderr.startswith(f"milepost: {tmp_path / where} ")
    missing = milepost("tree", f"{root}@250")
    assert missing.exit_code == 12
    assert "Its steps: 100, 200, 300; the nearest is 200." in missing.stderr
    for glob in ("parms", "par?"):
        leaf = milepost("tree", f"{root}:{glob}")
        assert leaf.exit_code == 12
        assert "At the top: params, frozen, rng, loader." in leaf.stderr
    assert milepost("diff", f"{root}@100:parms", "@200").exit_code == 12


def test_a_newer_format_is_14(root: Path) -> None:
    (root / "milepost.json").chmod(0o644)
    (root / "milepost.json").write_text('{"format":"7"}\n')

    result = milepost("ls", root)

    assert result.exit_code == 14
    assert "expected 1-dev, found 7" in result.stderr


def test_a_damaged_record_is_4(root: Path) -> None:
    flip_a_byte(root / "milepost.json", 20)

    assert milepost("ls", root).exit_code == 4


def test_a_store_that_another_process_writes_to_is_11_until_it_is_killed(root: Path) -> None:
    program = (
        "import sys, milepost as mp\n"
        "saver = mp.Checkpointer(sys.argv[1], keep='all')\n"
        "saver.save(400, {'w': 1.0}).result()\n"
        "print('saved', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()

        prune = milepost("prune", root, "--keep", "last 1", "--yes")
        alive = milepost("ls", root)
        assert prune.exit_code == 11
        assert f"process {writer.pid}" in prune.stderr
        assert "· writer alive on " in alive.stdout
        assert as_json("ls", root)["writer"]["pid"] == writer.pid
        assert f"process {writer.pid}" in milepost("doctor", root).stdout

        writer.kill()
        writer.wait()
    assert milepost("ls", root).stdout.splitlines()[0].endswith("· no writer")
    assert milepost("prune", root, "--keep", "last 1", "--yes").exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="modes that bind root")
def test_a_folder_that_may_not_be_written_is_13_and_can_be_read(root: Path) -> None:
    for folder in (root / "300", root):
        folder.chmod(0o555)

    listed = obedient_child("ls", root)
    pinned = obedient_child("pin", f"{root}@300", "name")
    pruned = obedient_child("prune", root, "--keep", "last 1", "--yes")
    examined = obedient_child("doctor", root)
    root.chmod(0o000)
    hidden = obedient_child("ls", root)
    root.chmod(0o755)

    assert listed.returncode == 0, listed.stderr
    assert listed.stderr == ""
    for denied in (pinned, pruned, hidden):
        assert denied.returncode == 13, denied.stderr
        assert denied.stderr.startswith("milepost: cannot ")
        assert "No permission there" in denied.stderr
    assert "can be read here, but not saved" in examined.stdout


def test_an_error_is_a_message_and_a_remedy_and_with_debug_a_traceback(tmp_path: Path) -> None:
    plain = child("ls", tmp_path / "nothing")
    for words in (["--debug", "ls"], ["ls", "--debug"]):
        debug = child(*words, tmp_path / "nothing")
        assert "Traceback" in debug.stderr
        assert "NotFoundError" in debug.stderr

    assert plain.returncode == 10
    assert plain.stderr == (
        f"milepost: {tmp_path / 'nothing'} does not exist\n"
        "  Check the path; a root holds `milepost.json`. `Checkpointer` and `Session` create one.\n"
    )


# --- pipes, terminals, signals


def test_colours_are_for_terminals_that_want_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in child("ls", root).stdout
    assert "\x1b[1m" in on_terminal("ls", root)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in on_terminal("ls", root)[1]


def test_a_reader_that_goes_away_ends_the_command_quietly(root: Path) -> None:
    command = [*COMMAND, "tree", str(root), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()

    assert (process.returncode, complaint) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_output_that_cannot_be_written_is_a_failure(root: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "ls", str(root)], stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("milepost: No space left on device")


def test_ctrl_c_is_130_without_a_traceback(root: Path) -> None:
    command = [*COMMAND, "watch", str(root), "--after", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        complaint = process.stderr.read()

    assert (process.returncode, complaint.strip()) == (130, "")


def test_an_output_without_typographic_characters_is_no_error(root: Path) -> None:
    leave_unfinished(root, 350)

    done = child("ls", root, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, encoding="latin-1")

    assert done.returncode == 0
    assert "incomplete ? ignored by resume" in done.stdout


def test_json_is_one_line_in_a_pipe_and_indented_on_a_terminal(root: Path) -> None:
    piped = child("tree", f"{root}:frozen", "--json").stdout
    _, shown = on_terminal("tree", f"{root}:frozen", "--json")

    assert len(piped.splitlines()) == 1
    assert json.loads(shown) == json.loads(piped)
    assert len(shown.splitlines()) > 5


# --- completion, help, start-up


def completions(*words: str) -> list[str]:
    *args, incomplete = words
    complete = ShellComplete(main, {}, "milepost", "_MILEPOST_COMPLETE")
    return [item.value for item in complete.get_completions(list(args), incomplete)]


def test_the_shell_completes_steps_and_paths_that_are_there(root: Path) -> None:
    assert completions("tree", f"{root}@") == [f"{root}@{step}" for step in ("latest", "300", "200", "100")]
    assert completions("tree", f"{root}@3") == [f"{root}@300"]
    assert completions("tree", str(root))[0] == f"{root}@latest"
    assert completions("diff", f"{root}@100", f"{root}@300:") == [
        f"{root}@300:{name}" for name in ("params", "frozen", "rng", "loader")
    ]
    assert completions("tree", f"{root}@300:params/") == [f"{root}@300:params/layers", f"{root}@300:params/head"]
    assert completions("prune", str(root)) == [str(root)]  # a folder, for the shell to go on with
    assert completions("tree", f"{root}/nothing@") == []
    assert "tree" in completions("t")


def test_help_names_every_verb_and_every_verb_explains_itself() -> None:
    result = milepost("--help")

    assert re.findall(r"^  (\w+)  +[A-Z]", result.stdout.partition("Commands:")[2], re.MULTILINE) == VERBS
    for verb in VERBS:
        help_text = milepost(verb, "--help")
        assert help_text.exit_code == 0
        assert verb == "demo" or "--json" in help_text.stdout


def test_the_version_is_that_of_the_package_and_of_the_format() -> None:
    assert milepost("--version").stdout == f"milepost {mp.__version__}, format 1-dev\n"


def test_starting_up_loads_no_framework_and_nothing_for_terminals() -> None:
    program = "import milepost.cli, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not {"rich", "jax", "torch", "flax", "optax"} & set(done.stdout.split())


def test_a_shell_completes_nothing_for_a_store_that_cannot_be_read(root: Path) -> None:
    flip_a_byte(root / "milepost.json", 20)

    assert completions("tree", f"{root}@") == []
