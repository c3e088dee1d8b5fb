"""The configuration of one installation, read once at the edge and passed on."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# Under the storage directory.
WEIGHTS_DIR = "weights"


class Settings(BaseSettings):
    """Settings from ``HAIRLINE_*`` environment variables or the command line.

    Images, models and the embedded database live under ``storage_dir`` and nowhere else.  Files of
    weights to start from may lie elsewhere, since several installations may share them.
    """

    model_config = SettingsConfigDict(env_prefix="HAIRLINE_", extra="forbid", frozen=True)

    storage_dir: Path = Path("hairline-storage")
    database_url: str | None = None
    # None is ``weights`` under ``storage_dir``.
    weights_dir: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    device: str = "auto"
    # One frame of 5 megapixels with three 16-bit channels is 30 MB before any compression.
    max_file_bytes: Annotated[int, Field(gt=0)] = 256 * 1024 * 1024
    max_files_per_request: Annotated[int, Field(gt=0)] = 1000
    max_archive_bytes: Annotated[int, Field(gt=0)] = 64 * 1024**3
    # About 100,000 thumbnails; 0 draws every preview anew.
    preview_cache_bytes: Annotated[int, Field(ge=0)] = 2 * 1024**3
    # An inspection takes about a kilobyte: some four million of them.
    ledger_max_bytes: Annotated[int, Field(gt=0)] = 4 * 1024**3
    # None keeps inspections however old.
    ledger_max_age_days: Annotated[float, Field(gt=0)] | None = None
    # How far a shadow model's process gives way to the line where both want a core.
    shadow_niceness: Annotated[int, Field(ge=0, le=19)] = 19
    # Whether a deployment asks for its model's engines; without it POST /models/{id}/engines does.
    prepare_engines: bool = True
    worker_poll_s: Annotated[float, Field(gt=0)] = 0.5
    # A worker that has not renewed its lease for this long is taken for dead.
    lease_s: Annotated[float, Field(gt=0)] = 15.0
    # Training on this machine pauses so long at a time while frames are inspected; 0 never does.
    training_longest_pause_s: Annotated[float, Field(ge=0)] = 20.0
    # A run that dies this often without reaching a new checkpoint is failed instead of resumed.
    max_fruitless_attempts: Annotated[int, Field(gt=0)] = 3

    @property
    def ledger_dir(self) -> Path:
        """Where inspections are recorded."""
        return self.storage_dir / "ledger"

    @property
    def resolved_database_url(self) -> str:
        """The SQLAlchemy URL in force: the configured one, or SQLite under ``storage_dir``."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite:///{self.storage_dir.resolve() / 'hairline.sqlite3'}"

    @property
    def resolved_weights_dir(self) -> Path:
        """Where files of weights lie; it need not exist."""
        return (self.weights_dir or self.storage_dir / WEIGHTS_DIR).resolve()
