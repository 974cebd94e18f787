"""TLS: server certificates, and client certificates where they are required."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.settings.files import SettingsError
from tests.support.server.serving import error_details, request, serving

if TYPE_CHECKING:
    from pathlib import Path

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl")

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: an authority, the server's, Alice's, Bob's, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run([str(OPENSSL), *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("authority", "stranger"):
        openssl("req", "-x509", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-days", "2", "-subj", f"/CN={name}")  # fmt: skip
    for name in ("localhost", "alice", "bob"):
        openssl("req", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey",
                "authority.key", "-CAcreateserial", "-copy_extensions", "copy",
                "-days", "2", "-out", f"{name}.pem")  # fmt: skip
    return folder


def channel(folder: Path, address: str, name: str | None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        (folder / "authority.pem").read_bytes(),
        (folder / f"{name}.key").read_bytes() if name else None,
        (folder / f"{name}.pem").read_bytes() if name else None,
    )
    port = address.rpartition(":")[2]
    return grpc.aio.secure_channel(f"localhost:{port}", credentials)


async def test_the_server_authenticates_itself(folder: Path):
    files = {"tls_cert_file": folder / "localhost.pem", "tls_key_file": folder / "localhost.key"}
    async with serving(**files) as server, channel(folder, server.address, None) as safe:
        assert (await rpc.ImageGenerationStub(safe).ListModels(pb.ListModelsRequest())).models
        with pytest.raises(grpc.RpcError):
            await server.stub.ListModels(pb.ListModelsRequest())


async def test_a_client_certificate_identifies_the_caller(folder: Path):
    files = {
        "tls_cert_file": folder / "localhost.pem",
        "tls_key_file": folder / "localhost.key",
        "tls_client_ca_file": folder / "authority.pem",
    }
    async with serving(**files) as server:
        for refused in (None, "stranger"):
            async with channel(folder, server.address, refused) as nobody:
                with pytest.raises(grpc.RpcError) as caught:
                    await rpc.ImageGenerationStub(nobody).ListModels(pb.ListModelsRequest())
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with (
            channel(folder, server.address, "alice") as alice,
            channel(folder, server.address, "bob") as bob,
        ):
            server.model.hold()
            stream = aiter(rpc.ImageGenerationStub(alice).GenerateImage(request()))
            wanted = pb.GetGenerationRequest(name=(await anext(stream)).generation)
            assert (await rpc.ImageGenerationStub(alice).GetGeneration(wanted)).generation.name
            with pytest.raises(grpc.RpcError) as caught:
                await rpc.ImageGenerationStub(bob).GetGeneration(wanted)
            assert error_details(caught.value).info.reason == "GENERATION_NOT_FOUND"
            server.model.let_go()
            async for _ in stream:
                pass


async def test_an_invalid_certificate_prevents_the_start(folder: Path):
    files = {"tls_cert_file": folder / "localhost.key", "tls_key_file": folder / "localhost.pem"}
    with pytest.raises(SettingsError, match="certificate"):
        async with serving(**files):
            pass
