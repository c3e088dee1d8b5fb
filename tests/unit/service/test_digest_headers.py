"""What RFC 9530 lets a sender write, against the structured fields that RFC 9651 defines."""

import base64
import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.digest_headers import read_digest
from service.errors import InvalidRequest

DIGEST = hashlib.sha256(b"a piece").digest()
TOLD = f"sha-256=:{base64.b64encode(DIGEST).decode()}:"
# RFC 9651, section 3.1.2: keys begin with a letter or a star.
KEYS = st.builds(
    "{}{}".format,
    st.sampled_from([*string.ascii_lowercase, "*"]),
    st.text(string.ascii_lowercase + string.digits + "_-.*", max_size=8),
)
VALUES = st.one_of(
    st.binary(max_size=64).map(lambda raw: f"=:{base64.b64encode(raw).decode()}:"),
    st.integers(-999, 999).map("={}".format),
    st.just(""),
    st.just('="a, b"'),
    st.just("=(1 2)"),
)
OTHERS = st.lists(
    st.tuples(KEYS.filter(lambda key: key != "sha-256"), VALUES).map("".join), max_size=4
)
PARAMETERS = st.lists(st.tuples(st.just(";"), KEYS, st.sampled_from(["", "=1"])).map("".join))


@given(st.data(), OTHERS, PARAMETERS)
def test_sha_256_is_found_among_whatever_else_is_told(
    data: st.DataObject, others: list[str], parameters: list[str]
) -> None:
    place = data.draw(st.integers(0, len(others)))
    members = [*others[:place], TOLD + "".join(parameters), *others[place:]]
    blank = data.draw(st.sampled_from(["", " ", "\t "]))
    cut = data.draw(st.integers(0, len(members)))
    lines = [f"{blank},{blank}".join(part) for part in (members[:cut], members[cut:]) if part]
    assert read_digest(lines, "Content-Digest") == DIGEST


@given(st.text(max_size=60))
def test_any_other_text_is_refused_in_plain_words(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_digest([text], "Content-Digest")
    assert caught.value.code == "content_digest_invalid"
    assert caught.value.where == "header/Content-Digest"
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha-256",
        "sha-256=7",
        "sha-256=(:AAAA:)",
        "sha-256=:AAAA:",
        TOLD[:-1],
        TOLD.upper(),
        TOLD.replace("sha-256", "sha-512"),
        TOLD + ",",
        f"{TOLD}, md5=:AA",
        f"{TOLD}, sha-256=:AAAA:",
    ],
)
def test_a_field_without_a_whole_sha_256_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_digest([value], "Repr-Digest")
    assert caught.value.code == "repr_digest_invalid"


def test_of_two_digests_of_one_algorithm_the_last_counts() -> None:
    other = f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"
    assert read_digest([other, TOLD], "Content-Digest") == DIGEST


def test_no_field_tells_nothing() -> None:
    assert read_digest(None, "Content-Digest") is None
