"""`make generate`: it writes every generated file again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from crm_analytics.core.settings import PROJECT_DIR

#: Takes too long for `make generate`; its own test writes it.
KILL_TABLE = "docs/crm-guard-mutation.md"
#: A list that people keep.
ALLOWED = "crm_analytics/crm/schema/allowed_objects.json"


def generated_files(project: Path) -> list[Path]:
    """Files that say in their first lines that they are generated, and those that have no room for such a line."""
    texts = [*project.glob("docs/*.md"), *project.glob("crm_analytics/**/*.py")]
    marked = [
        path
        for path in texts
        if re.search(r"\b[Gg]enerated (from the catalog )?by `", path.read_text()[:200])
    ]
    silent = [
        *project.glob("grafana/dashboards/*.json"),
        *project.glob("crm_analytics/crm/schema/*.json"),
        *project.glob("sql/*/objects.txt"),
    ]
    return [path for path in (*marked, *silent) if path not in (project / KILL_TABLE, project / ALLOWED)]


def test_make_generate_writes_every_generated_file(tmp_path):
    """A file that `make generate` forgets would go stale unseen, or be edited by hand."""
    for name in ("crm_analytics", "docs", "grafana", "sql"):
        shutil.copytree(
            PROJECT_DIR / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "img")
        )
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(PROJECT_DIR / name, tmp_path / name)
    files = generated_files(tmp_path)
    committed = {path: path.read_text() for path in files}
    assert {path.name for path in files} >= {
        "data-model.md", "crm-rpc.md", "rpc_methods.py", "manifest.json", "baseline.json", "executive.json",
        "objects.txt",
    }  # fmt: skip
    for path in files:
        path.write_text(committed[path] + ("# stale\n" if path.suffix == ".py" else "\n\n"))
    done = subprocess.run(
        ["make", "generate", f"VENV={sys.prefix}", f"--assume-old={sys.prefix}/.installed"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in files if path.read_text() != committed[path]] == []
