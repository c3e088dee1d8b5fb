import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RAISERS = {
    "DataError",
    "ImageError",
    "LabelError",
    "LayoutError",
    "ArchiveError",
    "ManifestError",
    "error",
    "_bad",
}


def codes_in_source(callers: set[str]) -> set[str]:
    codes = set()
    for path in (ROOT / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                name = node.func.attr if isinstance(node.func, ast.Attribute) else name
                code = node.args[0]
                if name in callers and isinstance(code, ast.Constant):
                    codes.add(str(code.value))
    return codes


def test_every_error_code_is_documented_with_its_remedy_and_no_other_is() -> None:
    errors = (ROOT / "docs" / "data-errors.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", errors, flags=re.MULTILINE))
    assert documented == codes_in_source(RAISERS)


def test_every_finding_about_a_versions_health_is_documented() -> None:
    text = (ROOT / "docs" / "data-versions.md").read_text()
    named = codes_in_source({"finding", "_Trait"})
    assert len(named) > 5
    assert {code for code in named if f"`{code}`" not in text} == set()
