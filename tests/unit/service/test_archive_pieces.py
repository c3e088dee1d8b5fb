"""Archives in pieces over HTTP: 308 until the last byte is there, then one import."""

import base64
import hashlib
import io
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from service.api.app import create_app
from service.datasets.imports import clear_archives, run_import
from service.partial_uploads import PartialUploads
from service.settings import Settings
from service.storage import Storage


@pytest.fixture
def archive(pictures: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for seed in range(3):
            packed.writestr(f"images/{seed}.png", pictures.frame(seed))
    return buffer.getvalue()


@pytest.fixture
def url(client: TestClient) -> str:
    created = client.post("/datasets", json={"name": "rings", "task": "segmentation"})
    return f"/datasets/{created.json()['id']}/archive"


def digest_of(content: bytes, header: str = "Repr-Digest") -> dict[str, str]:
    encoded = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return {header: f"sha-256=:{encoded}:"}


def verified(content: bytes) -> dict[str, str]:
    return digest_of(content, "Content-Digest")


def put(
    client: TestClient, url: str, content_range: str, content: bytes = b"", **headers: str
) -> Any:
    named = {"Idempotency-Key": "rings.zip", "Content-Range": content_range, **headers}
    return client.put(url, content=content, headers=named, follow_redirects=False)


def ask(client: TestClient, url: str, total: int) -> Any:
    return put(client, url, f"bytes */{total}")


def test_an_archive_in_pieces_is_imported_once(
    client: TestClient,
    url: str,
    archive: bytes,
    engine: Engine,
    storage: Storage,
    settings: Settings,
) -> None:
    total, half = len(archive), len(archive) // 2
    unknown = ask(client, url, total)
    assert (unknown.status_code, "Range" in unknown.headers) == (308, False)
    first = put(client, url, f"bytes 0-{half - 1}/{total}", archive[:half])
    assert (first.status_code, first.headers["Range"]) == (308, f"bytes=0-{half - 1}")
    asked = ask(client, url, total)
    assert asked.headers["Range"] == f"bytes=0-{half - 1}"
    assert asked.json() == {"received": half, "total": total, "unverified_bytes": half}
    last = put(
        client, url, f"bytes {half}-{total - 1}/{total}", archive[half:], **digest_of(archive)
    )
    assert last.status_code == 202, last.text
    again = ask(client, url, total)
    assert (again.status_code, again.json()) == (202, last.json())
    assert again.headers["Location"] == last.headers["Location"]
    run_import(engine, storage, settings, last.json()["import"]["id"])
    ended = client.get(last.headers["Location"]).json()
    assert (ended["status"], ended["done"]) == ("succeeded", 3)
    assert list(storage.spool_dir.iterdir()) == []


def test_the_answer_says_how_much_was_verified_end_to_end(
    client: TestClient, url: str, archive: bytes
) -> None:
    total, half = len(archive), len(archive) // 2
    first, second = archive[:half], archive[half:]
    put(client, url, f"bytes 0-{half - 1}/{total}", first, **verified(first))
    assert ask(client, url, total).json()["unverified_bytes"] == 0
    last = put(client, url, f"bytes {half}-{total - 1}/{total}", second)
    transfer = last.json()["import"]["transfer"]
    assert transfer["unverified_bytes"] == len(second)
    assert transfer["sha256"] == hashlib.sha256(archive).hexdigest()
    read = client.get(last.headers["Location"]).json()["transfer"]
    assert read == transfer


@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest", None])
@pytest.mark.parametrize("key", [{"Idempotency-Key": "rings.zip"}, {}])
def test_a_whole_archive_is_verified_by_either_digest(
    client: TestClient, url: str, archive: bytes, name: str | None, key: dict[str, str]
) -> None:
    told = {} if name is None else digest_of(archive, name)
    answer = client.put(url, content=archive, headers=key | told)
    transfer = answer.json()["import"]["transfer"]
    assert transfer["sha256"] == hashlib.sha256(archive).hexdigest()
    assert transfer["unverified_bytes"] == (len(archive) if name is None else 0)


def test_a_restarted_service_verifies_pieces_and_knows_no_digest_of_the_whole(
    settings: Settings, client: TestClient, url: str, archive: bytes
) -> None:
    total, half = len(archive), len(archive) // 2
    first, second = archive[:half], archive[half:]
    put(client, url, f"bytes 0-{half - 1}/{total}", first, **verified(first))
    with TestClient(create_app(settings)) as restarted:
        last = put(restarted, url, f"bytes {half}-{total - 1}/{total}", second, **verified(second))
    transfer = last.json()["import"]["transfer"]
    assert (transfer["sha256"], transfer["unverified_bytes"]) == (None, 0)
    assert len(transfer["pieces_digest"]) == 64


def test_a_restarted_service_still_checks_a_whole_that_its_sender_tells(
    settings: Settings, client: TestClient, url: str, archive: bytes
) -> None:
    total, half = len(archive), len(archive) // 2
    put(client, url, f"bytes 0-{half - 1}/{total}", archive[:half])
    with TestClient(create_app(settings)) as restarted:
        content_range = f"bytes {half}-{total - 1}/{total}"
        wrong = put(restarted, url, content_range, archive[half:], **digest_of(b"another"))
        assert wrong.json()["code"] == "archive_digest_mismatch"


def test_a_damaged_piece_is_refused_and_taken_when_sent_again(
    client: TestClient, url: str, archive: bytes, storage: Storage
) -> None:
    total, half = len(archive), len(archive) // 2
    first, second = archive[:half], archive[half:]
    put(client, url, f"bytes 0-{half - 1}/{total}", first, **verified(first))
    damaged = bytes([second[0] ^ 1]) + second[1:]
    content_range = f"bytes {half}-{total - 1}/{total}"
    refused = put(client, url, content_range, damaged, **verified(second))
    assert (refused.status_code, refused.json()["code"]) == (422, "content_digest_mismatch")
    assert refused.json()["where"] == "header/Content-Digest"
    assert f"from byte {half}" in refused.json()["hint"]
    assert ask(client, url, total).json()["received"] == half
    (kept,) = storage.spool_dir.glob("*.archive")
    assert kept.read_bytes() == first
    assert put(client, url, content_range, second, **verified(second)).status_code == 202


def test_a_piece_whose_acknowledgement_was_lost_may_come_again(
    settings: Settings, client: TestClient, url: str, archive: bytes, storage: Storage
) -> None:
    total, half = len(archive), len(archive) // 2
    first, content_range = archive[:half], f"bytes 0-{half - 1}/{total}"
    acknowledged = put(client, url, content_range, first, **verified(first))
    (kept,) = storage.spool_dir.glob("*.archive")
    written = kept.stat().st_mtime_ns
    with TestClient(create_app(settings)) as restarted:
        again = put(restarted, url, content_range, first, **verified(first))
        assert (again.status_code, again.json()) == (308, acknowledged.json())
        changed = put(restarted, url, content_range, first[::-1], **verified(first))
        assert (changed.status_code, changed.json()["code"]) == (422, "content_digest_mismatch")
        other = put(restarted, url, content_range, first[::-1], **verified(first[::-1]))
        assert (other.status_code, other.json()["code"]) == (409, "upload_offset")
    assert kept.stat().st_mtime_ns == written
    assert kept.read_bytes() == first


def test_a_whole_archive_under_a_key_is_imported_once(
    client: TestClient, url: str, archive: bytes
) -> None:
    headers = {"Idempotency-Key": "rings.zip"}
    first = client.put(url, content=archive, headers=headers)
    assert first.status_code == 202, first.text
    assert client.put(url, content=archive, headers=headers).json() == first.json()
    other = client.put(url, content=archive + b"x", headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_a_whole_archive_replaces_what_was_there_of_it(
    client: TestClient, url: str, archive: bytes
) -> None:
    put(client, url, f"bytes 0-9/{len(archive)}", b"0123456789")
    answer = client.put(
        url, content=archive, headers={"Idempotency-Key": "rings.zip", **digest_of(archive)}
    )
    assert answer.status_code == 202, answer.text


def test_a_server_killed_behind_the_last_byte_queues_the_import_when_asked(
    settings: Settings, client: TestClient, url: str, archive: bytes
) -> None:
    total = len(archive)
    put(client, url, f"bytes 0-{total - 2}/{total}", archive[:-1])
    # What a server does until the instant in which it would have queued the import.
    dataset_id = url.split("/")[2]
    with PartialUploads(Storage(settings.storage_dir)).open("rings.zip") as part:
        part.begin(dataset_id, total, None)
        part.append([archive[-1:]])
    with TestClient(create_app(settings)) as restarted:
        assert ask(restarted, url, total).status_code == 202


def test_a_piece_that_is_not_the_next_one_is_refused_with_the_offset(
    client: TestClient, url: str, archive: bytes
) -> None:
    total = len(archive)
    put(client, url, f"bytes 0-99/{total}", archive[:100])
    for start in (0, 50, 101):
        answer = put(client, url, f"bytes {start}-{start + 9}/{total}", b"x" * 10)
        assert (answer.status_code, answer.json()["code"]) == (409, "upload_offset")
        assert answer.json()["hint"] == "Go on from byte 100."
    assert ask(client, url, total).json()["received"] == 100


def test_an_archive_with_another_digest_leaves_nothing(
    client: TestClient, url: str, archive: bytes, storage: Storage
) -> None:
    total = len(archive)
    for headers in ({"Idempotency-Key": "rings.zip"}, {}):
        answer = client.put(url, content=archive, headers=headers | digest_of(b"another"))
        assert (answer.status_code, answer.json()["code"]) == (422, "archive_digest_mismatch")
        assert list(storage.spool_dir.iterdir()) == []
    assert ask(client, url, total).json()["received"] == 0


def test_a_damaged_archive_in_pieces_leaves_nothing(
    client: TestClient, url: str, storage: Storage
) -> None:
    put(client, url, "bytes 0-4/10", b"01234")
    answer = put(client, url, "bytes 5-9/10", b"56789")
    assert (answer.status_code, answer.json()["code"]) == (422, "archive_damaged")
    assert answer.json()["file"] == "archive"
    assert list(storage.spool_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("content_range", "content", "code"),
    [
        ("bytes 5-4/10", b"", "content_range_invalid"),
        ("bytes 0-10/10", b"0" * 11, "content_range_invalid"),
        ("bytes 0-4/*", b"01234", "content_range_invalid"),
        ("items 0-4/10", b"01234", "content_range_invalid"),
        ("bytes 0-4/10", b"0123456", "content_range_invalid"),
        ("bytes */0", b"", "archive_empty"),
    ],
)
def test_a_range_that_can_not_be_meant_is_refused(
    client: TestClient, url: str, content_range: str, content: bytes, code: str
) -> None:
    answer = put(client, url, content_range, content)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["hint"]


def test_a_body_longer_than_its_range_is_refused(client: TestClient, url: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"01234"
        yield b"56789"

    headers = {"Idempotency-Key": "rings.zip", "Content-Range": "bytes 0-4/20"}
    answer = client.put(url, content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "content_range_invalid")
    assert ask(client, url, 20).json()["received"] <= 5


def test_a_body_shorter_than_its_range_is_refused(client: TestClient, url: str) -> None:
    headers = {"Idempotency-Key": "rings.zip", "Content-Range": "bytes 0-9/20"}
    answer = client.put(url, content=iter([b"01234"]), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "content_range_invalid")
    assert ask(client, url, 20).json()["received"] == 5


def test_pieces_need_a_name_and_a_digest_must_be_one(client: TestClient, url: str) -> None:
    nameless = client.put(url, content=b"0", headers={"Content-Range": "bytes 0-0/9"})
    assert (nameless.status_code, nameless.json()["code"]) == (422, "idempotency_key_missing")
    for header in ("Repr-Digest", "Content-Digest"):
        wrong = put(client, url, "bytes 0-0/9", b"0", **{header: "md5=:AAAA:"})
        code = f"{header.lower().replace('-', '_')}_invalid"
        assert (wrong.status_code, wrong.json()["code"]) == (422, code)


def test_an_archive_that_is_too_large_is_refused_before_it_is_sent(
    client: TestClient, url: str, settings: Settings
) -> None:
    answer = ask(client, url, settings.max_archive_bytes + 1)
    assert (answer.status_code, answer.json()["code"]) == (413, "archive_too_large")


def test_a_second_request_for_an_upload_under_way_is_refused(
    client: TestClient, url: str, archive: bytes, storage: Storage
) -> None:
    total = len(archive)
    with PartialUploads(storage).open("rings.zip"):
        busy = put(client, url, f"bytes 0-{total - 1}/{total}", archive)
    assert (busy.status_code, busy.json()["code"]) == (409, "upload_busy")
    assert put(client, url, f"bytes 0-{total - 1}/{total}", archive).status_code == 202


def test_an_upload_that_is_given_up_leaves_nothing(
    client: TestClient, url: str, archive: bytes, storage: Storage
) -> None:
    put(client, url, f"bytes 0-99/{len(archive)}", archive[:100])
    assert len(list(storage.spool_dir.iterdir())) == 2
    headers = {"Idempotency-Key": "rings.zip"}
    assert client.delete(url, headers=headers).status_code == 204
    assert list(storage.spool_dir.iterdir()) == []
    assert client.delete(url, headers=headers).json()["code"] == "upload_not_found"


def test_giving_up_does_not_touch_an_import_that_is_queued(
    client: TestClient, url: str, archive: bytes, storage: Storage
) -> None:
    headers = {"Idempotency-Key": "rings.zip"}
    queued = client.put(url, content=archive, headers=headers).json()["import"]
    assert client.delete(url, headers=headers).status_code == 404
    assert storage.archive_path(queued["id"]).exists()


def test_an_upload_that_nobody_went_on_with_is_removed(
    client: TestClient, url: str, archive: bytes, storage: Storage, engine: Engine
) -> None:
    put(client, url, f"bytes 0-99/{len(archive)}", archive[:100])
    later, past = time.time() + 60, time.time() - 60
    assert clear_archives(engine, storage, older_than=later, unfinished_older_than=past) == 0
    assert ask(client, url, len(archive)).json()["received"] == 100
    assert clear_archives(engine, storage, older_than=later, unfinished_older_than=later) == 1
    assert list(storage.spool_dir.iterdir()) == []
    assert ask(client, url, len(archive)).json()["received"] == 0


def test_pieces_for_a_data_set_that_is_not_there_are_refused(
    client: TestClient,
) -> None:
    assert ask(client, "/datasets/ds_other/archive", 10).status_code == 404
