"""Writes the dashboards' JSON files: `python -m crm_analytics.dashboards.generate`. A test holds both sides equal."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.dashboards.boards import BOARDS

FOLDER = PROJECT_DIR / "grafana" / "dashboards"


def generated() -> dict[Path, str]:
    """Every dashboard's file and its text: Classic (v1) dashboard JSON, as Grafana's file provisioning reads it."""
    files: dict[Path, str] = {}
    for make in BOARDS:
        built = make().build()
        path = FOLDER / f"{str(built.uid).removeprefix('crm-analytics-')}.json"
        files[path] = json.dumps(built, cls=JSONEncoder, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    return files


def main() -> None:
    """Write every file, and remove those of dashboards that are no more."""
    files = generated()
    for stray in set(FOLDER.glob("*.json")) - set(files):
        stray.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(PROJECT_DIR)}")


if __name__ == "__main__":
    main()
