"""Where settings come from, and the errors for invalid ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from latentwire_server.app import read_refused_words
from latentwire_server.engine.settings import Batching
from latentwire_server.models.model_options import ModelEntry, ModelOptions
from latentwire_server.registry.chosen_models import chosen_models
from latentwire_server.settings.files import SettingsError, read_keys
from latentwire_server.settings.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _api_keys(settings: Settings) -> tuple[str, ...]:
    return read_keys(settings.api_keys, "api_keys_file", settings.api_keys_file)


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "latentwire.toml").write_text(
        '[server]\nport = 1\nmax_rows = 2\ndtype = "float32"\n[bridge]\nport = 9\n'
    )
    monkeypatch.setenv("LATENTWIRE_PORT", "3")
    monkeypatch.setenv("LATENTWIRE_MAX_ROWS", "4")
    settings = Settings.parse(["--port", "5"])
    assert settings.port == 5
    assert settings.max_rows == 4
    assert settings.dtype == "float32"
    assert settings.max_queued == 64


def test_settings_are_split_into_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTWIRE_API_KEYS", "a, b")
    settings = Settings.parse(
        ["--batching", "reproducible", "--max-side", "512", "--model-aliases", "x,y", "--insecure"]
    )
    assert settings.engine.batching is Batching.REPRODUCIBLE
    assert settings.limit_overrides == {"max_side": 512}
    assert settings.model_aliases == ("x", "y")
    assert _api_keys(settings) == ("a", "b")
    assert settings.insecure


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "99999"}, ["port='99999'", "65535"]),
        ({"port": "abc"}, ["port='abc'", "integer"]),
        ({"max_rows": "0"}, ["max_rows='0'", "greater than or equal to 1"]),
        ({"batching": "fast"}, ["batching='fast'", "'dynamic' or 'reproducible'"]),
        ({"dtype": "int8"}, ["dtype='int8'", "'bfloat16'"]),
        ({"device": "tpu"}, ["device='tpu'"]),
        ({"grace_s": "nan"}, ["grace_s='nan'"]),
        ({"model": ""}, ["model=''"]),
        ({"nonsense": "1"}, ["nonsense: no such setting"]),
        ({"tls_key_file": "x"}, ["tls_cert_file and tls_key_file belong together"]),
        ({"api_keys_file": "nowhere"}, ["api_keys_file='nowhere'", "No such file"]),
    ],
)
def test_a_bad_value_is_reported_with_its_name_and_the_allowed_values(
    flags: dict[str, object], message: list[str]
):
    with pytest.raises(SettingsError) as caught:
        _api_keys(Settings.load(flags))
    text = str(caught.value)
    assert "\n" not in text
    for part in message:
        assert part in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "holds no word"),
        (b"# nothing\n  \n", "holds no word"),
        (b"fine\n*** # stars\n", "'***' has neither letter nor digit"),
        ("na\u00efve".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_an_unusable_word_list_prevents_the_start(
    folder: Path, content: bytes | None, message: str
):
    path = folder / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="refused_words_file=") as caught:
        read_refused_words(Settings.load({"refused_words_file": str(path)}))
    assert message in str(caught.value)


def test_all_bad_values_are_reported_at_once():
    with pytest.raises(SettingsError, match=r"port='-1'.*; .*max_rows='x'"):
        Settings.load({"port": "-1", "max_rows": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprt = 1\n", "prt: no such setting"),
        ('[server]\n_env_file = "x"\n', "_env_file: no such setting"),
        ("[server\n", "latentwire.toml"),
        ('[server]\nport = "x"\n', "port='x'"),
    ],
)
def test_a_bad_configuration_file_is_reported(folder: Path, text: str, message: str):
    (folder / "latentwire.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        Settings.load({})
    assert message in str(caught.value)


MODELS = """
[server]
max_images = 3
max_side = 512
dtype = "float32"

[[models]]
source = "embedded"

[[models]]
id = "photos"
source = "org/photos"
revision = "v2"
variant = "fp16"
dtype = "bfloat16"
aliases = ["photography", "org/photos"]
denoiser_backend = "eager"
defaults = {num_inference_steps = 20, guidance_scale = 6, scheduler = {id = "dpmpp-2m"}}
limits = {max_side = 1024}
"""


def test_models_are_listed_in_the_file(folder: Path):
    (folder / "latentwire.toml").write_text(MODELS)
    settings = Settings.load({})
    first, second = chosen_models(settings)
    assert (first.id, first.aliases) == ("embedded", ())
    assert first.limits == {"max_side": 512, "max_images": 3}
    assert (second.id, second.aliases) == ("photos", ("photography", "org/photos"))
    assert second.limits == {"max_images": 3}, "its own limit replaces the server's"
    embedded, photos = settings.entries
    assert (embedded.dtype, embedded.denoiser_backend) == ("float32", "auto")
    assert (photos.source, photos.revision, photos.variant) == ("org/photos", "v2", "fp16")
    assert (photos.dtype, photos.denoiser_backend) == ("bfloat16", "eager")
    assert photos.defaults.guidance_scale == 6.0


def test_models_are_listed_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTWIRE_MODELS", '[{"source": "embedded", "aliases": ["small"]}]')
    (listed,) = Settings.load({}).models
    assert (listed.id, listed.aliases) == ("embedded", ("small",))


def test_only_the_first_listed_model_is_preloaded_by_default(folder: Path):
    entries = ["", "", "preload = true", "preload = false"]
    tables = [f'[[models]]\nsource = "a/{number}"\n{text}\n' for number, text in enumerate(entries)]
    (folder / "latentwire.toml").write_text("".join(tables))
    preloaded = [model.preload for model in chosen_models(Settings.load({}))]
    assert preloaded == [True, False, True, False]


def test_admin_keys_are_read_like_keys(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "keys").write_text("# ours\nc\n")
    monkeypatch.setenv("LATENTWIRE_ADMIN_KEYS", "a, b")
    settings = Settings.parse(["--admin-keys-file", "keys"])
    assert read_keys(settings.admin_keys, "admin_keys_file", settings.admin_keys_file) == (
        "a",
        "b",
        "c",
    )
    assert _api_keys(settings) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[models]]\nid = "a"', "models[0].source"),
        ('[[models]]\nsource = ""', "models[0].source=''"),
        ('[[models]]\nsource = "a/b"\nid = "a b"', "models[0].id='a b'"),
        ('[[models]]\nsource = "a/b"\n[[models]]\nsource = "c/b"', "models[1].id='b': already"),
        ('[[models]]\nsource = "a/b"\naliases = ["b"]', "models[0].aliases='b': already"),
        ('[[models]]\nsource = "a/b"\ndtype = "int8"', "models[0].dtype='int8': Input should be"),
        ('[[models]]\nsource = "a/b"\nlimits = {max_side = "x"}', "models[0].limits.max_side='x'"),
        ('[[models]]\nsource = "a/b"\nsteps = 3', "models[0].steps: no such setting"),
        (
            '[[models]]\nsource = "a/b"\nrefiner = "./none"',
            "models[0].refiner='./none', of the model 'b': there is no",
        ),
        ('[[models]]\nsource = "a/b"\nvae = ""', "models[0].vae=''"),
        ('[[models]]\nsource = "a/b"\nhigh_noise_frac = 2', "models[0].high_noise_frac=2"),
        (
            '[[models]]\nsource = "a/b"\nhigh_noise_frac = 0.8',
            "high_noise_frac: says where the refiner",
        ),
        (
            '[[models]]\nsource = "a/b"\nrefiner_single_file_config = "c/d"',
            "refiner_single_file_config: is for a refiner's checkpoint",
        ),
        ('[[models]]\nsource = "a/b"\ndevice = "cpu"', "models[0].device: one device serves all"),
        ('[server]\nvae = "c/d"\n[[models]]\nsource = "a/b"', "vae='c/d': models are listed"),
        ('[server]\nvae = "c/d"', "vae: the embedded model has none"),
        ('[[models]]\nsource = "a/b"\nloras = ["c"]', "models[0].loras[0]='c'"),
        ('[[models]]\nsource = "a/b"\nloras = ["/etc/x"]', "models[0].loras[0]='/etc/x'"),
        ('[[models]]\nsource = "embedded"\nvariant = "fp16"', "the embedded model has none"),
        ('[server]\nmodel = "x/y"\n[[models]]\nsource = "a/b"', "model='x/y': models are listed"),
        ('[[model]]\nsource = "a/b"', "no such table: model; there are: server, bridge, models"),
        ('models = "embedded"', "models='embedded': needed: a JSON list"),
        (
            '[[models]]\nsource = "a/b"\n[[models]]\nid = "mine"\nsource = "./none"',
            "models[1].source='./none', of the model 'mine': there is no such folder",
        ),
    ],
)
def test_a_bad_model_entry_is_reported_with_its_position(folder: Path, text: str, message: str):
    (folder / "latentwire.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        chosen_models(Settings.load({}))
    assert message in str(caught.value)


def test_every_option_of_a_model_is_a_flag_a_variable_and_a_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    given = {
        "dtype": "float32",
        "denoiser_backend": "eager",
        "refiner": "c/refiner",
        "high_noise_frac": 0.7,
        "vae": "c/vae",
        "max_prompt_chunks": 2,
        "watermark": True,
        "unchecked_previews": True,
    }
    entry = {"source": "a/b", **given}
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in given.items()
    ]
    by_flag = Settings.parse(["--model", "a/b", *flags])
    keys = "".join(f"{name} = {json.dumps(value)}\n" for name, value in entry.items())
    (folder / "latentwire.toml").write_text(f"[[models]]\n{keys}")
    by_key = Settings.load({})
    (folder / "latentwire.toml").unlink()
    monkeypatch.setenv("LATENTWIRE_MODEL", "a/b")
    for name, value in given.items():
        monkeypatch.setenv(f"LATENTWIRE_{name.upper()}", str(value))
    by_variable = Settings.load({})

    assert by_flag.entries == by_key.entries == by_variable.entries
    (found,) = by_flag.entries
    assert {name: getattr(found, name) for name in entry} == entry
    assert set(ModelOptions.model_fields) <= set(Settings.model_fields) & set(
        ModelEntry.model_fields
    )


def test_an_entrys_options_override_the_servers_unless_they_are_null():
    entry = {"source": "a/b", "dtype": "bfloat16", "vae": None, "safety_checker": None}
    given = {"dtype": "float32", "safety_checker": "false", "loras": "a/one,b/two"}
    settings = Settings.load({**given, "models": [{**entry, "loras": ["b/two", "c/three"]}]})
    (found,) = settings.entries
    assert (found.dtype, found.safety_checker, found.vae) == ("bfloat16", False, None)
    assert found.loras == ("a/one", "b/two", "c/three"), "they add up"


def test_a_models_prompt_options_default_to_the_servers(folder: Path):
    (folder / "latentwire.toml").write_text(
        "[server]\nprompt_weighting = true\nsafety_checker = false\nmax_prompt_chunks = 2\n"
        f'embeddings_folder = "{folder}"\n'
        '[[models]]\nsource = "embedded"\n'
        '[[models]]\nid = "own"\nsource = "embedded"\nprompt_weighting = false\n'
        'safety_checker = true\nmax_prompt_chunks = 3\nembeddings_folder = "words"\n'
    )
    settings = Settings.load({})
    servers, own = settings.entries
    assert (servers.prompt_weighting, servers.max_prompt_chunks) == (True, 2)
    assert (servers.safety_checker, servers.embeddings_folder) == (False, folder)
    assert (own.prompt_weighting, own.max_prompt_chunks, own.safety_checker) == (False, 3, True)
    with pytest.raises(
        SettingsError, match=r"\[1\].embeddings_folder='words', of .*'own': .*no such"
    ):
        chosen_models(settings)
    with pytest.raises(SettingsError, match="embeddings_folder='nowhere'"):
        chosen_models(Settings.load({"embeddings_folder": "nowhere"}))


def test_a_named_file_must_exist(folder: Path):
    with pytest.raises(SettingsError, match="config="):
        Settings.load({}, config_file=folder / "none.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_listening_beyond_this_machine_needs_authentication(host: str):
    with pytest.raises(SettingsError, match="--insecure"):
        Settings.load({"host": host})
    assert Settings.load({"host": host, "insecure": True}).host == host
    assert Settings.load({"host": host, "api_keys": "k"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_authentication(host: str):
    assert Settings.load({"host": host}).host == host


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTWIRE_API_KEYS", "very-secret")
    assert "very-secret" not in repr(Settings.load({}))
    monkeypatch.setenv("LATENTWIRE_PORT", "x")
    with pytest.raises(SettingsError) as caught:
        Settings.load({})
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "auto"),
        (["--batching", "reproducible"], "eager"),
        (["--batching", "reproducible", "--denoiser-backend", "openvino"], "openvino"),
        (["--batching", "reproducible", "--model", "./folder"], "eager"),
    ],
)
def test_reproducible_batching_does_not_choose_the_backend_by_speed(
    flags: list[str], expected: str
):
    (entry,) = Settings.parse(flags).entries
    assert entry.denoiser_backend == expected
