"""``/healthz`` and ``/readyz``: whether the process lives, and whether it can do its work."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.dependencies import (
    EngineDependency,
    SettingsDependency,
    StorageDependency,
    WarmStartDependency,
)
from service.database.migrate import is_current
from service.errors import NotReady
from service.worker.presence import seen_within

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
def get_health() -> Health:
    """Answer that the process is alive."""
    return Health()


@router.get("/readyz")
def get_readiness(
    engine: EngineDependency,
    storage: StorageDependency,
    settings: SettingsDependency,
    warm_start: WarmStartDependency,
) -> Health:
    """Answer whether database, storage, deployed models and a worker are ready."""
    if not is_current(engine):
        raise NotReady("database_not_migrated", "the database has another schema than this version")
    storage.check_writable()
    if not warm_start.is_done:
        raise NotReady(
            "models_loading",
            "the deployed models are being loaded",
            hint="frames are answered already, but not within the deadlines of a loaded model",
            retry_after_s=1,
        )
    # Two renewals may be late before the lease itself runs out.
    if not seen_within(storage.root, settings.lease_s):
        raise NotReady(
            "no_worker",
            f"no worker was seen within the last {settings.lease_s:g} s",
            hint="`hairline serve` starts one beside the API; its log says why it is not there",
        )
    return Health()
