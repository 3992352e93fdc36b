"""What a run prints."""

import io

import pytest
from rich.console import Console

from gmm_guidance._runtime.progress import Reporter

TEXT = "results [v2]/a, 'gmm-guidance[digits]', [bold]no markup[/bold] [/]"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_brackets_are_printed_as_they_are(is_terminal):
    """Paths and extras have them; as markup they would vanish, or be errors."""
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=is_terminal, width=200, color_system=None
    )
    with Reporter(console) as reporter:
        reporter.say(TEXT)
        with reporter.task("task [x]", 2) as task:
            task.move_to(2, TEXT)
            reporter._progress.refresh()
    printed = stream.getvalue()
    assert TEXT in printed
    assert not is_terminal or "task [x]" in printed and printed.count(TEXT) > 1
