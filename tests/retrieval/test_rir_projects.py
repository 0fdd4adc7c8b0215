"""The files of projects/rir are whole, and off."""

from __future__ import annotations

from pathlib import Path

import pytest

from ra_blip.config import load_settings
from ra_blip.errors import ConfigError
from ra_blip.generation.endpoint import EndpointConfig, open_endpoint
from ra_blip.retrieval.reverse_image import open_provider
from ra_blip.retrieval.reverse_image_config import ProviderConfig, Selectors
from ra_blip.safe_http import listed, parse_url
from tests.fakes import FakeModel

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "rir"


def test_every_file_is_read_and_none_sends_anything_as_it_stands() -> None:
    for name in ("http", "browser"):
        config = load_settings(FOLDER / f"{name}.yaml", ProviderConfig)
        assert config.provider == name and config.record == "record"
        with pytest.raises(ConfigError, match="'enabled: true' agrees"):
            open_provider(FOLDER / f"{name}.yaml")
    with pytest.raises(ConfigError, match="must name its folder"):
        open_provider(FOLDER / "replay.yaml")
    with pytest.raises(ConfigError, match="'enabled: true' agrees"):
        open_endpoint(FOLDER / "endpoint.yaml", FakeModel())
    assert open_endpoint(FOLDER / "local.yaml", FakeModel()).max_items == 12


def test_hosts_that_files_name_are_on_their_lists() -> None:
    api, page = (load_settings(FOLDER / f"{name}.yaml", ProviderConfig) for name in ("http", "browser"))
    selectors = load_settings(FOLDER / page.page.selectors, Selectors)
    assert listed(parse_url(api.api.url), api.http.hosts) and listed(parse_url(selectors.start), page.http.hosts)
    assert [step.do for step in selectors.steps] == ["click", "click", "upload", "wait"] and selectors.results
    for name in ("endpoint", "local"):
        config = load_settings(FOLDER / f"{name}.yaml", EndpointConfig)
        assert listed(parse_url(config.url), [*config.http.hosts, *config.http.private_hosts])
