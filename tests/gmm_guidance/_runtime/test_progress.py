"""What a run prints."""

import io

import pytest
from rich.console import Console

from gmm_guidance._runtime import progress
from gmm_guidance._runtime.progress import Reporter, duration

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


def test_time_left_after_the_first_units(monkeypatch):
    """30 s of compilation with the first batch; then 2,000 s for each of 10 units."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Reporter(Console(file=stream, width=200)) as reporter:
        task = reporter.task("drawing", 10)
        assert task.seconds_left() is None
        clock[0] += 2030
        task.move_to(1)
        assert task.seconds_left() is None  # of which nobody knows what compiled
        clock[0] += 2000
        task.move_to(2)
        assert task.seconds_left() == pytest.approx(8 * 2000)
        clock[0] += 2000
        task.move_to(3)
        # Where compilation is apart, the first batch is enough; done ones do not count.
        other = reporter.task("other", 10)
        other.begin(4)
        clock[0] += 60
        other.move_to(6)
        assert other.seconds_left() == pytest.approx(120)
    lines = stream.getvalue().splitlines()
    assert "drawing: 2/10 after 4030 s, 4.4 h left" in lines
    assert sum("warning: drawing takes about 4.4 h more" in x for x in lines) == 1
    assert "other: 6/10 after 60 s, 2 min left" in lines
    shown = [duration(s) for s in (0.4, 99, 100, 3600, 6000)]
    assert shown == ["0 s", "99 s", "2 min", "60 min", "1.7 h"]
