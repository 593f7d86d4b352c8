"""The Dagster layer: the only package besides `cli` and `definitions.py` that imports Dagster."""

import warnings

import dagster as dg

# backfill policies and code references are called beta; the release is pinned, and the tests would notice a change
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
