"""Random and structured invalid requests to every RPC: documented answers from a live server."""

from __future__ import annotations

import asyncio
import random

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.server.serving import Serving, error_details, events_of, kind, request, serving

DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
SERVICE = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
UNARY = [
    f"/{SERVICE.full_name}/{method.name}"
    for method in SERVICE.methods
    if method.name != "GenerateImage"
] + ["/grpc.health.v1.Health/Check", "/latentwire.v1.ModelAdmin/UnloadModel"]
GENERATE = f"/{SERVICE.full_name}/GenerateImage"
NUM_PAYLOADS = 3_000
AT_ONCE = 50


def payloads(seed: int, count: int) -> list[bytes]:
    """Returns random bytes and damaged valid messages."""
    dice = random.Random(seed)
    valid = request("a", seed=1, labels={"k": "v"}, validate_only=True).SerializeToString()
    generated = []
    for _ in range(count):
        if dice.random() < 0.6:
            generated.append(dice.randbytes(dice.randrange(64)))
        else:
            damaged = bytearray(valid)
            for _ in range(dice.randrange(1, 4)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            generated.append(bytes(damaged))
    return generated


async def answer(server: Serving, method: str, payload: bytes) -> grpc.StatusCode | None:
    """Returns the status of a call; None if the payload is valid by chance and generates."""
    if method != GENERATE:
        return await server.channel.unary_unary(method)(payload).code()
    call = server.channel.unary_stream(method)(payload)
    try:
        await call.read()
    except grpc.RpcError as error:
        return error.code()
    call.cancel()
    return None


async def test_random_bytes_get_a_documented_answer_from_every_method():
    seed = random.randrange(2**32)
    methods = [*UNARY, GENERATE]
    seen: dict[grpc.StatusCode | None, int] = {}
    async with serving() as server:
        sent = [
            (methods[number % len(methods)], payload)
            for number, payload in enumerate(payloads(seed, NUM_PAYLOADS))
        ]
        for start in range(0, len(sent), AT_ONCE):
            batch = sent[start : start + AT_ONCE]
            codes = await asyncio.gather(*(answer(server, *one) for one in batch))
            for one, code in zip(batch, codes, strict=True):
                assert code in {*DOCUMENTED, None}, (seed, one)
                seen[code] = seen.get(code, 0) + 1
        assert seen[grpc.StatusCode.INVALID_ARGUMENT] > NUM_PAYLOADS / 10
        assert kind((await events_of(server.stub.GenerateImage(request())))[-1]) == "completed"


numbers = st.one_of(
    st.sampled_from([0, 1, 2, 64, 128, 65_536, 4_000_000]),
    st.sampled_from([-(2**31), -1, 7, 77, 3_000, 2**31 - 1]),
)
texts = st.text(max_size=12) | st.sampled_from(["x" * 64, "é" * 33, "\n", "\0"])
floats = st.sampled_from([0.0, 1.0, 7.3]) | st.floats(width=32)
enums = st.integers(-1, 5)
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "prompt": texts,
    "model": st.sampled_from(["fake", "models/fake", "fake-alias", "models/", "x"]),
    "negative_prompt": texts,
    "width": numbers,
    "height": numbers,
    "num_images": numbers,
    "seed": st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]),
    "num_inference_steps": numbers,
    "guidance_scale": floats,
    "scheduler": st.builds(
        pb.Scheduler,
        id=st.sampled_from(["", "euler", "heun", "EULER", "\0"]),
        sigmas=st.sampled_from(["", "default", "karras", "beta"]),
    ),
    "clip_skip": numbers,
    "image_to_image": st.builds(pb.ImageToImage, strength=floats),
    "output": st.builds(
        pb.Output, format=enums, quality=st.none() | numbers, max_data_bytes=numbers
    ),
    "events": st.builds(
        pb.Events,
        progress_interval_steps=numbers,
        preview_interval_steps=numbers,
        preview_method=enums,
        preview_max_side=numbers,
    ),
    "disconnect_policy": enums,
    "priority": numbers,
    "user": texts,
    "labels": st.dictionaries(texts, texts, max_size=3),
}


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateImageRequest:
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True))
    given_fields = {name: draw(FIELDS[name]) for name in names}
    return request(**{"prompt": "a red circle", "validate_only": True, **given_fields})


def example_requests(count: int) -> list[pb.GenerateImageRequest]:
    examples: list[pb.GenerateImageRequest] = []

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(requests())
    def collect(sent: pb.GenerateImageRequest) -> None:
        examples.append(sent)

    collect()
    return examples


async def test_any_request_is_accepted_as_valid_or_refused_with_the_field():
    num_accepted = 0
    refusals = []
    examples = await asyncio.to_thread(example_requests, 150)
    async with serving() as server:
        for sent in examples:
            try:
                (accepted,) = await events_of(server.stub.GenerateImage(sent))
            except grpc.RpcError as error:
                refusals.append(error_details(error))
                continue
            num_accepted += 1
            effective = accepted.accepted.effective_request
            effective.validate_only = True
            (again,) = await events_of(server.stub.GenerateImage(effective))
            effective.validate_only = False
            assert again.accepted.effective_request == effective
        assert server.model.calls == []
    for refused in refusals:
        assert refused.code in DOCUMENTED
        assert refused.violations or refused.code is grpc.StatusCode.NOT_FOUND
    assert min(num_accepted, len(refusals)) > 10


def test_a_fair_share_of_the_payloads_cannot_be_decoded():
    generated = payloads(1, 500)
    undecodable = 0
    for payload in generated:
        try:
            pb.GenerateImageRequest.FromString(payload)
        except Exception:
            undecodable += 1
    assert 100 < undecodable < 500
