"""The run launcher for Kubernetes: each run is a Job with a pod of its own, and its lease tells whether it lives.

deploy/kubernetes/dagster.yaml names it. Only the extra `k8s` brings what it needs.
"""

from __future__ import annotations

try:
    from dagster_k8s import K8sRunLauncher
except ModuleNotFoundError as error:
    # not the same exception: Dagster would replace it by one that doesn't name the remedy
    raise ImportError(
        f"runs on Kubernetes need the extra k8s ({error}): pip install 'crm-analytics[k8s]'"
    ) from None

from crm_analytics.orchestration.launcher import WatchingLauncher


class WatchedKubernetesLauncher(WatchingLauncher, K8sRunLauncher):
    """`K8sRunLauncher`, which asks the run's lease instead of its Job.

    A command in a terminal has no Job, and a node that vanishes leaves one that looks alive for minutes. What became of
    the pod is in the message with which the monitoring fails the run.
    """
