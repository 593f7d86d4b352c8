"""Asset checks: unpartitioned, scoped to the run's months where that makes sense."""
