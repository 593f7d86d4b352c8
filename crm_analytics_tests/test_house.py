"""The shape of the house: who may import what, how modules open, and that every path that a text names exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest

from crm_analytics.core.settings import PROJECT_DIR

PACKAGE = "crm_analytics"
#: Modules and packages that import nothing after them in their line, except what is inside them.
ORDERS = {
    "crm_analytics.analytics": ["connectors", "ingest"],
    "crm_analytics.analytics.connectors": [
        "registry",
        "pull",
        "spool",
        "publishing",
        "connector",
        "client",
        "errors",
    ],
    "crm_analytics.analytics.ingest": [
        "dry_run",
        "loading",
        "reading",
        "storage",
        "sources",
        "values",
        "errors",
    ],
    "crm_analytics.crm": ["proof", "migrating", "schema"],
}
TOP = ["__main__", "cli", "definitions", "orchestration"]  #: nothing below imports these
WRITTEN = re.compile(r"(?<![\w./])(?:\.\./)*((?:docs|sql|crm_analytics)/[\w./-]*\w)(?![\w*{<…-])")
HISTORY = "CHANGELOG.md"  #: names what once was
EXAMPLE = re.compile("NNNN|NAME")  #: where the reader puts a name


@cache
def imports() -> dict[str, set[str]]:
    """Returns each module's imports, lazy ones too: modules of ours by their name, others by their first name."""
    modules = {_name(path): path for path in (PROJECT_DIR / PACKAGE).rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {name if name in modules else node.module for name in inner}
    return found


def _name(path: Path) -> str:
    parts = path.relative_to(PROJECT_DIR).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def inside(module: str, *packages: str) -> bool:
    """Says whether the module is one of these or in one of these, named from `crm_analytics` on."""
    return any(f"{module}.".startswith(f"{PACKAGE}.{package}.") for package in packages)


def arrows() -> Iterator[tuple[str, str]]:
    """Yields every import as (importing module, imported module)."""
    return ((module, target) for module, targets in sorted(imports().items()) for target in sorted(targets))


def refuse(found: Collection[object]) -> None:
    """Fails with one line for each violation, all of them."""
    assert not found, "\n" + "\n".join(map(str, found))


def test_only_the_edge_imports_dagster() -> None:
    """Parsing, loading, SQL and migrations are used and tested without Dagster (docs/decisions/dagster-at-the-edge.md)."""
    refuse([a for a in arrows() if a[1].split(".")[0].startswith("dagster") and not inside(a[0], *TOP)])
    refuse([a for a in arrows() if inside(a[1], *TOP) and not inside(a[0], *TOP)])


def test_nothing_below_the_edge_loads_dagster() -> None:
    """Importing every module below the edge leaves Dagster unloaded, also where another package would bring it in."""
    below = [name for name in sorted(imports()) if not inside(name, *TOP) and not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'dagster' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code, *below], capture_output=True, text=True, check=False)
    assert len(below) > 50
    assert done.returncode == 0, done.stderr


def test_only_the_command_line_and_the_demo_print() -> None:
    """A module that prints cannot be called by another program."""
    printing = ("rich", "click")
    refuse([a for a in arrows() if a[1].split(".")[0] in printing and not inside(a[0], "cli", "demo")])


def test_domains_do_not_know_each_other() -> None:
    """In production they are two databases on two servers."""
    refuse([a for a in arrows() if inside(a[0], "analytics") and inside(a[1], "crm")])
    refuse([a for a in arrows() if inside(a[0], "crm") and inside(a[1], "analytics")])


def test_core_stands_on_nothing_of_ours() -> None:
    """Everything else stands on it, so an import of anything else would be a circle."""
    refuse(
        [
            a
            for a in arrows()
            if inside(a[0], "core") and a[1].startswith(PACKAGE) and not inside(a[1], "core")
        ]
    )


@pytest.mark.parametrize("package", ORDERS)
def test_imports_inside_a_package_follow_its_order(package: str) -> None:
    """The order is how a newcomer reads the package: what comes first uses what comes later, never the reverse."""
    order = ORDERS[package]

    def place(module: str) -> int:
        part = module.removeprefix(f"{package}.").split(".")[0]
        return order.index(part) if module.startswith(f"{package}.") and part in order else -1

    refuse([a for a in arrows() if 0 <= place(a[1]) < place(a[0])])


def test_packages_form_no_circle() -> None:
    """Two packages that import each other are one package, and can only be understood together."""
    packages = {_name(path.parent / "__init__.py") for path in (PROJECT_DIR / PACKAGE).rglob("*.py")}

    def home(module: str) -> str:
        return module if module in packages else module.rpartition(".")[0]

    edges: dict[str, set[str]] = {}
    for module, target in arrows():
        a, b = home(module), home(target)
        # a package and what is inside it belong together
        if b in packages and not f"{a}.".startswith(f"{b}.") and not f"{b}.".startswith(f"{a}."):
            edges.setdefault(a, set()).add(b)
    while True:
        imported = set().union(*edges.values())
        in_between = {package for package in edges if package in imported and edges[package] & edges.keys()}
        if in_between == edges.keys():
            break
        edges = {package: edges[package] & in_between for package in in_between}
    refuse(sorted(edges.items()))


def test_modules_open_with_one_sentence() -> None:
    """It says what belongs in the module, so that people put things where others look for them."""
    first = {
        path: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        for folder in (PACKAGE, "crm_analytics_tests", "bench")
        for path in sorted((PROJECT_DIR / folder).rglob("*.py"))
    }
    refuse(
        [
            f"{path.relative_to(PROJECT_DIR)}: {line}"
            for path, line in first.items()
            if not line.endswith(".") or re.search(r"[.!?] [A-Z]", line)
        ]
    )


def test_no_module_talks_through_the_environment() -> None:
    """A variable that one module sets for another to read is an argument that nobody sees: pass settings in."""
    writes = re.compile(
        r"os\.environ(\[[^\]]+\] *=[^=]|\.(update|setdefault|pop)\b|.*\|=)|os\.(put|unset)env|del os\.environ"
    )
    refuse(
        [
            f"{path.relative_to(PROJECT_DIR)}: {line.strip()}"
            for path in (PROJECT_DIR / PACKAGE).rglob("*.py")
            for line in path.read_text().splitlines()
            if writes.search(line)
        ]
    )


def texts() -> list[Path]:
    """Returns the code and the documents that are in git."""
    kinds = (".py", ".sql", ".md", ".toml", ".yml", ".yaml", ".sh", "Makefile", "Dockerfile")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    )
    paths = [PROJECT_DIR / name for name in listed.stdout.split("\0") if name.endswith(kinds)]
    return [path for path in paths if path.exists()]


def test_every_path_that_is_mentioned_exists() -> None:
    """A reference that leads nowhere costs its reader a search, and shows that the text is not kept up to date."""
    refuse(
        [
            f"{path.relative_to(PROJECT_DIR)}:{number}: {mentioned}"
            for path in texts()
            if path.name != HISTORY
            for number, line in enumerate(path.read_text().splitlines(), 1)
            for mentioned in WRITTEN.findall(line)
            if not EXAMPLE.search(mentioned) and not (PROJECT_DIR / mentioned).exists()
        ]
    )


def test_every_link_between_documents_leads_to_a_file() -> None:
    """Links are relative to their document, so moving one of the two breaks them without a trace."""
    refuse(
        [
            f"{path.relative_to(PROJECT_DIR)}: {link}"
            for path in texts()
            if path.suffix == ".md"
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
            if not (path.parent / link).exists()
        ]
    )
