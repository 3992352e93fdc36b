"""Signals are noted first, and act where work can be continued."""

import os
import signal
import threading

import pytest

from gmm_guidance._runtime.interruption import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted_and_leaving_raises(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, Interruption() as interruption:
        assert not interruption.requested
        interruption.leave()  # nothing to leave for
        os.kill(os.getpid(), number)
        assert interruption.requested
        interruption.leave()
    assert caught.value.signal == number
    assert signal.getsignal(number) is before


def test_second_signal_acts_at_once():
    done = False
    with pytest.raises(Interrupted), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert not done


def test_inner_context_shares_the_outer_request():
    with pytest.raises(Interrupted), Interruption() as outer:
        with Interruption() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.requested and outer.requested
        outer.leave()
    assert Interruption._outer is None


def test_threads_within_an_outer_context_share_its_request():
    found = []

    def work():
        with Interruption() as inner:
            found.append(inner.requested)

    with pytest.raises(Interrupted), Interruption():
        os.kill(os.getpid(), signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [True]


def test_ignored_signals_stay_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGINT, former)


def test_other_threads_change_no_handler():
    found = []

    def work():
        before = signal.getsignal(signal.SIGINT)
        with Interruption() as interruption:
            found.append(signal.getsignal(signal.SIGINT) is before)
            found.append(not interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, True]


def test_a_signal_that_nobody_looked_at_is_not_lost():
    with pytest.raises(Interrupted), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
