"""An archive's upload survives kills of both ends: complete, nothing sent twice, memory flat."""

from pathlib import Path

import pytest

from benchmarks.data.interrupted_upload import Rehearsal

pytestmark = pytest.mark.slow


def test_an_archive_killed_five_times_arrives_whole_and_is_imported_once(tmp_path: Path) -> None:
    outcome = Rehearsal(tmp_path, total_bytes=64 * 1024**2).run()
    assert outcome.kills == ["client", "server", "client", "server", "client"]
    assert outcome.violations() == []
