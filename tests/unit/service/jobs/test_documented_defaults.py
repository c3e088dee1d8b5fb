import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.jobs.spec import JobSpec

PAGE = Path(__file__).parents[4] / "docs" / "defaults.md"
ROW = re.compile(r"^\| (?P<names>`[^|]+`) \| `(?P<default>[^|]*)` \| (?P<reason>.+) \|$")
DEFAULTS: dict[str, Any] = JobSpec(version="ver_1").model_dump(mode="json", exclude={"version"})


def documented() -> dict[str, tuple[str, str]]:
    rows = (ROW.match(line) for line in PAGE.read_text().splitlines())
    return {
        name: (row["default"], row["reason"])
        for row in rows
        if row
        for name in re.findall(r"`([^`]+)`", row["names"])
    }


def value_at(path: str) -> Any:
    value: Any = DEFAULTS
    for key in path.split("."):
        value = value[key]
    return value


def leaves(value: Any, path: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [path]
    return [
        leaf
        for key, below in value.items()
        for leaf in leaves(below, f"{path}.{key}" if path else key)
    ]


@pytest.mark.parametrize("name", documented())
def test_the_page_states_the_default_that_is_in_force(name: str) -> None:
    assert json.loads(documented()[name][0]) == value_at(name)


def test_every_default_of_a_job_has_a_reason_on_the_page() -> None:
    named = documented()
    without = [
        leaf
        for leaf in leaves(DEFAULTS)
        if not any(leaf == name or leaf.startswith(f"{name}.") for name in named)
    ]
    assert without == []


def test_every_reason_on_the_page_says_something() -> None:
    assert [name for name, (_, reason) in documented().items() if len(reason) < 8] == []


def test_every_page_that_the_reasons_link_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)", PAGE.read_text())
    assert targets
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []
