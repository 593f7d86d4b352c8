"""Runs pgspot over the CRM's SQL: looks for names that another schema's object could take, wherever a search_path is open.

Helpers have no search_path of their own, so pgspot would stop at each of them. A line `-- No search_path: REASON` in a
file says why the plain functions after it need none; pgspot then reads them as if they had their callers' path. For a
function without such a line, a SECURITY DEFINER function and every other finding the command fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crm_analytics.core.migrations import SEARCH_PATH, migration_files

REASON = re.compile(r"^-- No search_path: \S", re.MULTILINE)
_HEAD = re.compile(r"^CREATE FUNCTION .*?(?=AS \$|^RETURN\b|^BEGIN ATOMIC)", re.MULTILINE | re.DOTALL)
#: A variable with a table's row type. The parser knows no tables, and takes an assignment to a field only of a record.
_ROW = re.compile(r"^( +v_\w+) (?:public|crm_private)\.\w+(?=;| :=)", re.MULTILINE)
#: A body in standard SQL is parsed when the function is made, so no search_path changes its meaning; pgspot knows none.
_ATOMIC = re.compile(r"^CREATE FUNCTION (?:(?!^CREATE ).)*?^BEGIN ATOMIC$.*?^END;$", re.MULTILINE | re.DOTALL)
_FIXED = f"SET search_path = {SEARCH_PATH}"


def as_called(text: str) -> str:
    """Returns a file's SQL with the callers' search_path in the functions whose lack of one has a reason."""
    reason = REASON.search(text)

    def with_path(head: re.Match[str]) -> str:
        plain = "SECURITY DEFINER" not in head[0] and "SET search_path" not in head[0]
        excused = reason is not None and reason.start() < head.start()
        return f"{head[0]}{_FIXED}\n" if plain and excused else head[0]

    text = _ROW.sub(r"\1 record", _HEAD.sub(with_path, _ATOMIC.sub(_none_of_its_own, text)))
    # the parser's printer forgets the quotes of this name
    return text.replace('"position"', "place")


def _none_of_its_own(atomic: re.Match[str]) -> str:
    """Returns a function in standard SQL only if it runs as its owner, which such a body does not make safe."""
    return atomic[0] if "SECURITY DEFINER" in atomic[0] else ""


def findings(texts: dict[str, str]) -> Iterator[str]:
    """Yields what pgspot finds in files, given by name, each preceded by the migrations' search_path."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            path = Path(folder, name)
            path.write_text(f"{_FIXED};\n{as_called(text)}", encoding="utf-8")
            command = [str(Path(sys.executable).with_name("pgspot")), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = (done.stdout + done.stderr).strip().splitlines()
                yield from (f"{name}: {line.strip()}" for line in lines if line.strip())


def main() -> None:
    """Prints the findings in all migration files; exits with 1 if there is one."""
    found = list(findings({file.path.name: file.text() for file in migration_files("crm")}))
    print("\n".join(found) or "pgspot: no finding in sql/crm")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
