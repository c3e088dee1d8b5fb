"""``/metrics``: what Prometheus scrapes."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from service.api.dependencies import MetricsDependency

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_metrics(metrics: MetricsDependency) -> Response:
    """Answer counts and times of predictions, and the process's memory, for Prometheus."""
    return Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
