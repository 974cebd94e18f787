"""The built wheel: its files, and that it serves without the rest of the project."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

from tests.support.live import CALL_TIMEOUT_S, LIVE_MARKS, serving
from tests.support.tooling import ROOT, run

PACKAGES = ("latentwire", "latentwire_bridge", "latentwire_server")
PRINT_PATHS = (
    f"import {', '.join(PACKAGES)}; print(*({', '.join(p + '.__file__' for p in PACKAGES)},))"
)
pytestmark = LIVE_MARKS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # The build backend is the environment's own: nothing is downloaded.
    flags = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *flags, ROOT, timeout_s=200)
    (built,) = folder.glob("latentwire-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The programs of an environment with the wheel installed.

    It shares the dependencies of the tests' environment, which saves gigabytes of downloads.
    Paths that a .pth file adds are not searched for further .pth files, so the editable install
    of the project stays invisible.
    """
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder)
    programs = folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, timeout_s=200)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return programs


@pytest.fixture
def environment():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_wheel_has_the_three_typed_packages_and_the_embedded_model(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    model = ROOT / "server/latentwire_server/embedded/model"

    roots = {name.split("/")[0] for name in files}
    assert roots == {*PACKAGES, f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(files)
    expected = {
        f"latentwire_server/embedded/model/{path.relative_to(model)}"
        for path in model.rglob("*")
        if path.is_file()
    }
    assert expected
    assert {name for name in files if "/embedded/model/" in name} == expected


def test_without_extras_the_wheel_requires_only_what_the_client_needs(wheel):
    info = f"{wheel.name.split('-py3')[0]}.dist-info"
    requires = metadata.PathDistribution(zipfile.Path(wheel, f"{info}/")).requires

    base = {re.split(r"[^\w-]", line)[0] for line in requires if "extra ==" not in line}
    assert base == {"googleapis-common-protos", "grpcio", "protobuf", "rich"}
    assert any(line.startswith("torch") and "extra == 'server'" in line for line in requires)


def test_an_installed_wheel_serves_and_generates(programs, tmp_path, environment):
    paths = run(programs / "python", "-c", PRINT_PATHS, cwd=tmp_path, env=environment)
    assert {Path(path).is_relative_to(programs.parent) for path in paths.split()} == {True}

    with serving(
        tmp_path, program=programs / "latentwire", flags=["--denoiser-backend", "eager"]
    ) as live:
        run(
            *(programs / "latentwire", "generate", "a red circle on a blue background"),
            *("--seed", "7", "-o", "circle.png", "--server", live.server),
            cwd=tmp_path,
            env=environment,
            timeout_s=CALL_TIMEOUT_S,
        )

    with Image.open(tmp_path / "circle.png") as image:
        assert (image.format, image.size) == ("PNG", (256, 256))
        red, green, blue = image.getpixel((128, 128))
        assert red > 150 > max(green, blue)
        red, green, blue = image.getpixel((8, 8))
        assert blue > 150 > max(red, green)
