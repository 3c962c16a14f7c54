"""The garbage collector does not run in the body, and afterwards as before."""

import gc

import pytest

from svertka.garbage_collection import without_garbage_collection


def test_it_runs_again_afterwards_also_after_an_error():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), without_garbage_collection():
        assert 1 / gc.isenabled()
    assert gc.isenabled()


def test_it_stays_off_if_it_was_off():
    gc.disable()
    try:
        with without_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
