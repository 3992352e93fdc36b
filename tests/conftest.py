"""Settings of the whole test run: silent broadcasting and promotion are errors.

Most of a run is compilation of programs that are used a few times. XLA therefore
compiles quickly, not well, and the workers, the processes that tests start, and later
runs share compiled programs (``pytest --cache-clear`` removes them). What is set in the
environment is kept.
"""

import itertools
import os
import signal
from collections.abc import Iterator

from support.compilation import compile_quickly

compile_quickly()  # before jax is imported

import jax  # noqa: E402
import pytest  # noqa: E402

# Where the tests run in the background, a shell may have it ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config: pytest.Config) -> None:
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    if cache is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = str(cache.mkdir("jax"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        jax.config.update("jax_compilation_cache_dir", folder)
        seconds = "0.1"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = seconds
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


_modules = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Compiled programs are dropped now and then.

    Workers that kept those of all modules have ended in XLA's compiler with a
    segmentation fault. The compilation cache brings back what is needed again.
    """
    yield
    if next(_modules) % 12 == 0:
        jax.clear_caches()
