"""Serves and calls the contract in one process, and prints with which versions that worked.

Run by interpreters with other versions of grpcio and protobuf, hence a program of its own.
"""

from __future__ import annotations

import hashlib
import json
from concurrent import futures
from importlib import metadata

import grpc

import latentwire
from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc

FILE = bytes(range(256)) * 40
HALF = len(FILE) // 2


class Servicer(rpc.ImageGenerationServicer):
    def GenerateImage(self, request, context):
        accepted = pb.Accepted(effective_request=request, seeds=[request.seed])
        image = pb.Image(
            seed=request.seed,
            finish_reason=pb.FINISH_REASON_COMPLETED,
            media_type="image/png",
            width=8,
            height=8,
            size_bytes=len(FILE),
            sha256=hashlib.sha256(FILE).digest(),
            data=FILE[:HALF],
        )
        events = [
            {"accepted": accepted},
            {"progress": pb.Progress(phase=pb.PHASE_DENOISING, step=1, step_count=1, fraction=0.9)},
            {"image": image},
            {"image_chunk": pb.ImageChunk(offset=HALF, data=FILE[HALF:])},
            {"completed": pb.Completed(image_count=1)},
        ]
        for sequence, event in enumerate(events, start=1):
            yield pb.GenerateImageResponse(
                generation="generations/only", sequence=sequence, **event
            )


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    rpc.add_ImageGenerationServicer_to_server(Servicer(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    with grpc.insecure_channel(address) as channel:
        request = pb.GenerateImageRequest(prompt="a red circle", seed=0)
        responses = list(rpc.ImageGenerationStub(channel).GenerateImage(request, timeout=20))
    with latentwire.Client(address) as client:
        images = client.generate("a red circle", seed=0)

    server.stop(grace=None).wait()
    report = {
        "grpcio": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
        "events": [response.WhichOneof("event") for response in responses],
        "seed_is_present": responses[0].accepted.effective_request.HasField("seed"),
        "client_got_the_file": [image.data == FILE for image in images],
    }
    print(json.dumps(report))  # noqa: T201 - its output is the result


if __name__ == "__main__":
    main()
