"""What the client in Node needs is installed once, and is told if it cannot be had."""

from pathlib import Path

import pytest

from tests.clients.node_program import BUILD, HERE, NoPackages, install_packages, node_environment


def test_a_registry_that_is_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is skipped: without the packages there is one error that says what could not be had."""
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")  # where nobody listens
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    folder = tmp_path / "node"
    folder.mkdir()
    with pytest.raises(NoPackages, match=r"does it reach its registry\?\n(?s:.*)ECONNREFUSED"):
        install_packages(folder)
    assert not folder.joinpath("installed.json").exists()


def test_the_packages_are_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is the lock file's, and is not asked for again."""
    node_environment()
    lock = HERE.joinpath("package-lock.json").read_bytes()
    assert BUILD.joinpath("installed.json").read_bytes() == lock
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    install_packages(BUILD)


def test_the_lock_file_names_no_registry() -> None:
    """Packages come from whatever registry npm is set up for, checked by their digests."""
    lock = HERE.joinpath("package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert lock.count('"integrity"') == lock.count('"node_modules/') > 20
