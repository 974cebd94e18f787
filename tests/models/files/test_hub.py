"""Models and adapters from the hub: a small one, with the real client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.hub import Fetch
from tests.support.models.fake_hub import COMMIT, fake_hub
from tests.support.models.folders import UNET, load_model, model_size, read_spec, source_of
from tests.support.models.lora_files import write_diffusers
from tests.support.models.tiny_models import build_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL, STYLE, MANY = "painter/tiny", "painter/style", "painter/many"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = build_folder(tmp_path_factory.mktemp("tiny"))
    # A file that repositories often contain and that is not needed.
    (model / "whole.safetensors").write_bytes(bytes(1000))
    parts = load_model(source_of(model))._parts
    style, many = tmp_path_factory.mktemp("style"), tmp_path_factory.mktemp("many")
    write_diffusers(style / "pytorch_lora_weights.safetensors", parts, seed=1)
    write_diffusers(many / "ink.safetensors", parts, seed=2)
    write_diffusers(many / "oil.safetensors", parts, seed=3)
    return {MODEL: model, STYLE: style, MANY: many}


@pytest.fixture
def fetched(
    repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    with fake_hub(repositories, cache=tmp_path, monkeypatch=monkeypatch) as fetched:
        yield fetched


def test_a_model_is_downloaded_once_and_reports_its_progress(
    fetched: list[str], repositories: dict[str, Path]
) -> None:
    source = source_of(MODEL)
    assert read_spec(source) is None
    assert fetched == [], "nothing is downloaded for a spec"
    reports: list[tuple[int, int]] = []
    size = model_size(source, report=lambda *progress: reports.append(progress))
    assert size == model_size(source_of(repositories[MODEL]))
    assert "whole.safetensors" not in fetched
    total = sum((repositories[MODEL] / name).stat().st_size for name in fetched)
    assert {of_all for _, of_all in reports} == {total}
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1] == (total, total)
    assert len(reports) >= len(fetched), "every file is reported"

    num_fetched = len(fetched)
    model = load_model(source)
    assert model.info.revision == COMMIT
    expected = load_file(repositories[MODEL] / UNET)["conv_in.weight"]
    assert model._parts.unet.conv_in.weight.equal(expected)
    assert len(fetched) == num_fetched, "cached files are not fetched again"
    assert read_spec(source) is not None


def test_only_the_configuration_is_downloaded_for_a_spec(fetched: list[str]) -> None:
    source = source_of(MODEL)
    spec = read_spec(source, fetch=Fetch.CONFIGURATION)
    assert spec is not None
    assert "unet/config.json" in fetched
    assert not any(".safetensors" in name for name in fetched)
    assert read_spec(source).info == spec.info, "it is cached now"
    assert load_model(source).info == spec.info


def test_a_model_missing_from_the_hub_has_no_spec(fetched: list[str]) -> None:
    assert read_spec(source_of("painter/nothing"), fetch=Fetch.CONFIGURATION) is None
    assert fetched == []


def test_adapters_are_downloaded_by_repository_or_by_file(fetched: list[str]) -> None:
    model = load_model(source_of(MODEL, loras=(STYLE, f"{MANY}/oil.safetensors")))
    assert [one.id for one in model.info.loras] == ["style", "oil"]
    assert "ink.safetensors" not in fetched
    assert model.with_loras(["style", "oil"]).scaled({"style": 1.0, "oil": 0.5}) is not None


@pytest.mark.parametrize(
    ("options", "because"),
    [
        ({"loras": (MANY,)}, "one .safetensors file, or its name after the id; found: ink"),
        ({"loras": (f"{MANY}/no.safetensors",)}, "found: none"),
        ({"vae": "painter/nothing"}, "status 404; private models need HF_TOKEN"),
    ],
)
def test_files_missing_from_the_hub_are_reported(
    fetched: list[str], options: dict[str, object], because: str
) -> None:
    with pytest.raises(LoadError, match=because):
        load_model(source_of(MODEL, **options))
    assert fetched
