import hashlib

from hypothesis import given
from hypothesis import strategies as st

from service.upload_record import RECORD_BYTES, UploadRecord, load_record

DIGEST = "f" * 64
LARGEST = UploadRecord("ds_" + "z" * 27, 10**18, DIGEST, "imp_" + "z" * 27, 10**18)


def test_the_largest_record_fits_into_a_sector_that_no_power_cut_tears() -> None:
    largest = LARGEST.with_piece(10**18 - 1, DIGEST, is_verified=True)
    largest = UploadRecord(**{**vars(largest), "unverified_bytes": 10**18, "last_start": 10**18})
    assert len(largest.dump()) == RECORD_BYTES
    assert load_record(largest.dump()) == largest


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.booleans()), max_size=6))
def test_the_chain_tells_pieces_their_order_and_their_cuts(
    pieces: list[tuple[bytes, bool]],
) -> None:
    record, chain = UploadRecord("ds_1", 1000, None, "imp_1"), bytes(32)
    for content, is_verified in pieces:
        sha256 = hashlib.sha256(content)
        record = record.with_piece(len(content), sha256.hexdigest(), is_verified=is_verified)
        chain = hashlib.sha256(chain + len(content).to_bytes(8, "big") + sha256.digest()).digest()
    assert record.pieces_digest == chain.hex()
    assert record.received == sum(len(content) for content, _ in pieces)
    assert record.unverified_bytes == sum(len(content) for content, kept in pieces if not kept)
    assert load_record(record.dump()) == record


def test_what_is_no_record_of_this_service_is_none() -> None:
    older = b'{"dataset_id": "ds_1", "total": 6, "sha256": null, "import_id": "i", "received": 3}'
    for raw in (b"", b"\0" * RECORD_BYTES, b"[1]", b"7", LARGEST.dump()[:300], older):
        assert load_record(raw) is None
