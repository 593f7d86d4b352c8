"""Software-defined assets: thin, each calls the package that does the work."""

import warnings

import dagster as dg

# backfill policies and code references are called beta; the release is pinned, and the tests would notice a change
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
