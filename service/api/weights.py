"""``/weights``: files that a job may start from."""

from fastapi import APIRouter

from service import weights
from service.api.dependencies import SettingsDependency
from service.resources import WeightsFileResource

router = APIRouter(tags=["models"])


@router.get("/weights")
def list_weights(settings: SettingsDependency) -> list[WeightsFileResource]:
    """List the files of weights that a job may start from, by name."""
    return weights.list_files(settings.resolved_weights_dir)
