"""Whether a page or JSON is asked for."""

from typing import Annotated, Literal

from fastapi import Query

Form = Annotated[
    Literal["json", "html"] | None,
    Query(alias="format", description="Without it the Accept header decides."),
]
# One address has two answers, and both change with time.
FORM_HEADERS = {"Vary": "Accept", "Cache-Control": "no-store"}


def wants_html(form: Literal["json", "html"] | None, accept: str) -> bool:
    """Tell whether to answer with a page: it is named, or a browser asks.

    A browser names HTML first; a program names JSON or takes anything.
    """
    if form is not None:
        return form == "html"
    media_types = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    if "text/html" not in media_types:
        return False
    if "application/json" not in media_types:
        return True
    return media_types.index("text/html") < media_types.index("application/json")
