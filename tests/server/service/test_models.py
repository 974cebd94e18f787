"""Several models behind one server."""

from __future__ import annotations

import asyncio

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import events_of, request, serving


async def test_every_model_is_listed_the_first_one_as_the_default():
    async with serving(FakeModel(id="a"), others=[FakeModel(id="b")]) as server:
        listed = (await server.stub.ListModels(pb.ListModelsRequest())).models
        first_events = await events_of(server.stub.GenerateImage(request()))
        others = await events_of(server.stub.GenerateImage(request(model="b-alias")))
    assert [(one.name, one.is_default) for one in listed] == [
        ("models/a", True),
        ("models/b", False),
    ]
    assert {one.state for one in listed} == {pb.MODEL_STATE_READY}
    assert first_events[0].accepted.effective_request.model == "a"
    assert others[0].accepted.effective_request.model == "b"


async def test_requests_for_different_models_take_turns_by_step_not_by_request():
    first, second = FakeModel(id="a"), FakeModel(id="b")
    order: list[str] = []
    for model in (first, second):
        model.faults.append((lambda _call: True, _logging(order, model.id)))
    first.hold()
    async with serving(first, others=[second]) as server:
        long = request(model="a", num_inference_steps=20)
        running = asyncio.create_task(events_of(server.stub.GenerateImage(long)))
        await eventually(lambda: first.calls)
        short = request(model="b", num_inference_steps=5)
        arriving = aiter(server.stub.GenerateImage(short))
        assert (await anext(arriving)).HasField("accepted")
        first.let_go()
        async for _ in arriving:
            pass
        await running
    assert (order.count("a"), order.count("b")) == (20, 5)
    last_of_short = max(place for place, id_ in enumerate(order) if id_ == "b")
    assert last_of_short < 15, f"it waited for the long one: {order}"


def _logging(order: list[str], model_id: str):
    def log(result, _call):
        order.append(model_id)
        return result

    return log
