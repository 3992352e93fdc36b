"""``kill -9`` at random moments; the full run is ``python -m benchmarks.kills``."""

import pytest

from benchmarks.kills import generating, kill_again_and_again, training


def survived(found, kills):
    assert len(found["progress_at_kills"]) == kills
    assert found["damaged_but_counted_as_whole"] == []
    assert found["runs_that_differ"] == 0


@pytest.mark.ci
def test_a_few_kills_of_generate(tmp_path):
    job = generating(num=800)
    survived(kill_again_and_again(job, tmp_path, 2, 1, lambda done: None), 2)


@pytest.mark.slow
def test_a_kill_of_training(tmp_path):
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    job = training((16, 400, 100))
    survived(kill_again_and_again(job, tmp_path, 1, 1, lambda done: None), 1)


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    for job, kills in ((generating(num=2000), 35), (training(), 15)):
        folder = tmp_path / job.name
        folder.mkdir()
        survived(kill_again_and_again(job, folder, kills, 7, lambda done: None), kills)
