"""The settings reach the children unchanged, and a command line that can't work says why."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client import HairlineClient, HairlineError
from service.serve import settings_environment
from service.settings import Settings


def test_children_read_the_settings_of_their_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        storage_dir=tmp_path / "a storage",
        database_url="sqlite:////tmp/x.sqlite3",
        host="::1",
        port=0,
        device="cuda:1",
        lease_s=2.5,
        max_fruitless_attempts=7,
    )
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_an_address_that_is_taken_is_an_error_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(
        app, ["serve", "--storage", str(tmp_path / "storage"), "--host", "203.0.113.1"]
    )
    assert result.exit_code == 1
    assert "can't start" in result.stderr


def test_a_service_that_is_not_there_is_named_by_the_client() -> None:
    with HairlineClient("http://127.0.0.1:9") as client, pytest.raises(HairlineError) as refused:
        client.job("job_a")
    assert refused.value.code == "unreachable"
    assert "is it running" in str(refused.value)


def test_predict_without_a_service_fails_and_names_the_frame(tmp_path: Path) -> None:
    frame = tmp_path / "a.png"
    frame.write_bytes(b"x")
    result = CliRunner().invoke(app, ["predict", str(frame), "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "a.png" in result.stderr


def test_an_empty_folder_is_not_uploaded(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["upload", str(tmp_path), "--dataset", "rings"])
    assert result.exit_code == 1
    assert "holds no files" in result.stderr
