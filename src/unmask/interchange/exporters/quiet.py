"""Keeps transformers from talking while its loaders check an export."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences notes and progress bars: that a backbone alone leaves a classifier's weights unused is expected here."""
    from transformers.utils import logging  # noqa: PLC0415 (an extra)

    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
