"""Makes `python -m crm_analytics` the command line."""

from crm_analytics.cli.main import main

main()
