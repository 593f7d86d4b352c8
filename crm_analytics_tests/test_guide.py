"""The newcomer's guide: every command in docs/guide.md is run, in order, and prints what the guide shows.

A section is commands in blocks marked `sh`, each followed by what it prints in a block marked `text`, if that matters.
In such a block, a line `…` stands for any lines, and a last line `exit code N` for a command that fails on purpose. The
whole guide is one session in one home folder, so a section may build on those before it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics_tests.conftest import PATIENCE

GUIDE = PROJECT_DIR / "docs" / "guide.md"
ANY = "…"
_END = "end of block"


@dataclass(frozen=True)
class Block:
    """Commands of the guide, and what they print; None if the guide doesn't show it."""

    section: str
    commands: str
    shown: tuple[str, ...] | None


def blocks(page: str) -> list[Block]:
    """Returns the blocks of commands, in order."""
    found: list[Block] = []
    section = ""
    for heading, kind, body in re.findall(
        r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    ):
        if heading:
            section = heading
        elif kind == "sh":
            found.append(Block(section, body, None))
        else:
            assert kind == "text" and found and found[-1].shown is None, (
                f"{section}: {kind} block without commands"
            )
            found[-1] = Block(section, found[-1].commands, tuple(body.splitlines()))
    return found


def matches(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Says whether what is printed is what is shown, where `…` may be any number of lines."""
    if not shown:
        return not printed
    if shown[0] == ANY:
        return any(matches(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and shown[0] == printed[0] and matches(shown[1:], printed[1:])


@pytest.fixture
def session(new_database: Callable[..., str], tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    """Runs commands in a shell, after those before; returns the lines that they print, and the code of one that fails."""
    environment = {
        name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields
    }
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    environment |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CRM_ANALYTICS_ENV_FILE": os.devnull,
        # instead of a server of its own
        "ANALYTICS_DATABASE_URL": new_database("analytics"),
        "CRM_DATABASE_URL": new_database("crm"),
        "DAGSTER_POSTGRES_URL": new_database("dagster"),
    }
    shell = subprocess.Popen(
        ["bash"], env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert shell.stdin and shell.stdout

    def run(commands: str) -> list[str]:
        assert shell.stdin and shell.stdout
        shell.stdin.write(f"failed=0\n{{\n{commands}}} </dev/null\n")
        shell.stdin.write(f"[ $failed = 0 ] || echo exit code $failed\necho '{_END}'\n")
        shell.stdin.flush()
        lines = []
        for line in iter(shell.stdout.readline, f"{_END}\n"):
            assert line, "the shell ended"
            lines.append(line.rstrip())
        return lines

    run("trap 'failed=$?' ERR\n")
    yield run
    shell.stdin.close()
    shell.wait(PATIENCE)
    assert list(folder.iterdir()) == [], "left in the folder from which the commands were run"
    assert {path.name for path in home.iterdir()} <= {"guide"}


def test_every_command_prints_what_the_guide_shows(session: Callable[[str], list[str]]) -> None:
    """A newcomer who types the guide's commands sees what it shows: none fails, and no output has changed since."""
    page = GUIDE.read_text(encoding="utf-8")
    found = blocks(page)
    assert len(found) == page.count("```sh\n") > 5
    for block in found:
        printed = session(block.commands)
        failed = any(line.startswith("exit code ") for line in printed[-1:])
        text = "\n".join(printed)
        where = f"{block.section}:\n{block.commands}prints:\n{text}"
        assert "Traceback" not in text, where
        if block.shown is None:
            assert not failed, where
        else:
            assert failed == block.shown[-1].startswith("exit code "), where
            assert matches(block.shown, printed), where


def test_commands_that_fail_are_seen(session: Callable[[str], list[str]]) -> None:
    """Any command of a block that fails is seen, also before others, and later blocks have what earlier ones set."""
    assert session("export WORD=kept\n") == []
    assert session("sh -c 'exit 3'\necho $WORD\n") == ["kept", "exit code 3"]
    assert session("cat <<END\nin\n\nlines\nEND\n") == ["in", "", "lines"]


@pytest.mark.parametrize(
    ("shown", "agrees"),
    [
        ("a b c", True), ("… c", True), ("a … c", True), ("a …", True), ("…", True), ("… a b c …", True),
        ("a b", False), ("a c", False), ("… b", False), ("a … d", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_shown_is_compared_line_by_line(shown: str, agrees: bool) -> None:
    """Only `…` stands for lines that aren't shown."""
    assert matches(shown.split(), ["a", "b", "c"]) is agrees
