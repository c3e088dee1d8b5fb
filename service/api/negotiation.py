"""JSON for programs or HTML for people: which one a request asks for."""

from typing import Annotated, Literal

from fastapi import Query

Form = Annotated[
    Literal["json", "html"] | None,
    Query(alias="format", description="Without it the Accept header decides."),
]


def wants_html(form: Literal["json", "html"] | None, accept: str) -> bool:
    """Tell whether a page is asked for, by name or by a browser's Accept header."""
    return form == "html" or (form is None and _prefers_html(accept))


def _prefers_html(accept: str) -> bool:
    """Tell whether a browser asks: it names HTML, a program names JSON or takes anything."""
    media_types = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    if "text/html" not in media_types:
        return False
    if "application/json" not in media_types:
        return True
    return media_types.index("text/html") < media_types.index("application/json")
