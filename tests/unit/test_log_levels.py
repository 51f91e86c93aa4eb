"""--log-level: quiet by default, the package's own messages from the level on, and how Ray is started for it."""

from __future__ import annotations

import logging

import pytest

from introspect_ray.cli import parse
from introspect_ray.log_levels import chosen_level, set_level
from introspect_ray.runs.cluster import logging_options


@pytest.fixture
def logger(monkeypatch):
    """The package's logger, put back as it was."""
    monkeypatch.setenv("INTROSPECT_RAY_LOG_LEVEL", "warning")  # monkeypatch removes what set_level writes
    logger = logging.getLogger("introspect_ray")
    kept = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers, logger.propagate = kept[0], kept[2]
    logger.setLevel(kept[1])


def test_the_default_changes_nothing(logger):
    before = (logger.handlers[:], logger.level, logger.propagate)
    set_level(parse("", []).log_level)
    assert (logger.handlers, logger.level, logger.propagate) == before and chosen_level() == "warning"
    assert logging_options("warning")["log_to_driver"] is False and "logging_config" not in logging_options("warning")


def test_info_is_printed_once_and_shows_the_workers_too(logger, capsys):
    set_level(parse("", ["steps=1", "--log-level", "info"]).log_level)
    set_level("info")  # another command of the process
    for level in (logging.DEBUG, logging.INFO):
        logging.getLogger("introspect_ray.actors.pool").log(level, "level %d", level)
    err = capsys.readouterr().err
    assert err.count("INFO introspect_ray.actors.pool: level 20") == 1 and "level 10" not in err
    options = logging_options(chosen_level())
    assert options["log_to_driver"] is True and options["logging_config"].log_level == "INFO"


def test_error_hides_warnings_and_the_workers(logger, capsys):
    set_level("error")
    logging.getLogger("introspect_ray.tasks").warning("not for me")
    assert "not for me" not in capsys.readouterr().err
    assert logging_options(chosen_level())["log_to_driver"] is False
