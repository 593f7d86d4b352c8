"""The command `python -m crm_analytics.dashboards.generate`, which writes the dashboards' JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.dashboards.boards import BOARDS

FOLDER = PROJECT_DIR / "grafana" / "dashboards"


def generated() -> dict[Path, str]:
    """Returns every dashboard's file and text: Classic (v1) JSON, which Grafana's file provisioning reads."""
    files: dict[Path, str] = {}
    for make in BOARDS:
        built = make().build()
        path = FOLDER / f"{str(built.uid).removeprefix('crm-analytics-')}.json"
        files[path] = json.dumps(built, cls=JSONEncoder, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    return files


def main() -> None:
    """Writes every file, and removes the files of dashboards that no longer exist."""
    files = generated()
    for stray in set(FOLDER.glob("*.json")) - set(files):
        stray.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(PROJECT_DIR)}")


if __name__ == "__main__":
    main()
