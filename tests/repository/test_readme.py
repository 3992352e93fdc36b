"""The code blocks of the README and the guides run, and print what they say."""

import re
from pathlib import Path

import jax
import pytest

import gmm_guidance as gg

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAYS = re.compile(r"#\s*->\s*(.*)$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.ci
@pytest.mark.parametrize(
    "path",
    GUIDES,
    ids=relative,
)
def test_code_blocks_run_and_print_what_they_say(path, capsys, tmp_path, monkeypatch):
    """Blocks run in order in one namespace; ``# -> text`` is a line of output."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "guide"}
    text = path.read_text()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in BLOCK.finditer(text):
            line = text[: block.start()].count("\n") + 1
            code = "\n" * line + block[1]  # line numbers as in the file
            try:
                exec(compile(code, str(path), "exec"), namespace)
            except ModuleNotFoundError as error:
                if error.name not in ("haiku", "torch"):  # of examples of others
                    raise
                continue
            printed = capsys.readouterr().out.splitlines()
            promised = SAYS.findall(block[1])
            if promised:
                assert len(printed) == len(promised), (line, printed)
                for says, shown in zip(promised, printed, strict=True):
                    same_line(says.strip(), shown.strip())


def same_line(says: str, shown: str) -> None:
    """Equal words, and numbers equal to a few units of their last digit."""
    assert NUMBER.sub("#", says) == NUMBER.sub("#", shown)
    for a, b in zip(NUMBER.findall(says), NUMBER.findall(shown), strict=True):
        digits = len(a.partition(".")[2])
        tolerance = 3 * 10.0**-digits if digits else 0.0
        assert float(b) == pytest.approx(float(a), abs=tolerance), (says, shown)


def test_readme_has_both_commands():
    text = (ROOT / "README.md").read_text()
    assert "python -m pip install . && toy-experiments run paper" in text
    assert 'python -m pip install -e ".[test]" && python -m pytest' in text


def test_relative_links_lead_to_files():
    for path in [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        text = BLOCK.sub("", path.read_text())
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), (relative(path), target)


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(p.read_text() for p in (ROOT / "docs/api").glob("*.md"))
    paths = re.findall(r"^::: gmm_guidance\.([\w.]+)", reference, re.MULTILINE)
    documented = {part for path in paths for part in path.split(".")}
    missing = set(gg.__all__) - documented
    assert not missing, f"docs/api lacks {sorted(missing)}"


def test_documents_are_free_of_machine_paths():
    for path in [*GUIDES, *(ROOT / "docs/api").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        text = path.read_text()
        assert not re.search(r"/(work|opt|root|home|tmp)/", text), relative(path)
