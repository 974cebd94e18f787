"""OpenAI's clients, old and new, and LangChain's: each runs the same scenarios unchanged.

Each runs once, in its own environment, against a real bridge and a real server around a
FakeModel. The tests examine what the user of the client got.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.support.bridge.client_programs import (
    LANGCHAIN,
    LEGACY,
    NEWEST,
    NODE,
    OLDER,
    ROOT,
    ClientCall,
    Program,
)
from tests.support.bridge.client_scenarios import (
    LEAVES_AT_STEP,
    PROMPT,
    SEED,
    outcomes_of,
    staged,
)
from tests.support.bridge.images import RED
from tests.support.fakes import expected_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.support.bridge.client_scenarios import Outcome

pytestmark = [pytest.mark.clients, pytest.mark.timeout(180)]

NUM_STEPS = 4
"""The default of the FakeModel."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    program: Program
    by_name: Mapping[str, Outcome]

    def __getitem__(self, name: str) -> Outcome:
        return self.by_name[name]


def modes_of(*programs: Program) -> list:
    return [
        pytest.param((program, is_async), id=f"{program.name}, {'async' if is_async else 'sync'}")
        for program in programs
        for is_async in program.modes
    ]


@pytest.fixture(scope="module")
def run() -> Callable[[Program], Mapping[bool, Mapping[str, Outcome]]]:
    """Runs a client through its scenarios when they are first needed."""
    done: dict[str, Mapping[bool, Mapping[str, Outcome]]] = {}

    def outcomes(program: Program) -> Mapping[bool, Mapping[str, Outcome]]:
        if program.name not in done:
            done[program.name] = asyncio.run(outcomes_of(program))
        return done[program.name]

    return outcomes


@pytest.fixture(scope="module", params=modes_of(LEGACY, OLDER, NEWEST, NODE))
def outcomes(request, run) -> Outcomes:
    program, is_async = request.param
    program.check()
    return Outcomes(program=program, by_name=run(program)[is_async])


since_1_0 = pytest.mark.parametrize("outcomes", modes_of(OLDER, NEWEST, NODE), indirect=True)


def pixels_in(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decoded(b64_json: str) -> np.ndarray:
    return pixels_in(base64.b64decode(b64_json, validate=True))


def assert_expected(pixels: np.ndarray, *, index: int = 0, **fields: object) -> None:
    """Compares with the image that the FakeModel must have made."""
    fields = {"guidance_scale": 2.0, **fields}
    expected = expected_pixels(PROMPT, seed=SEED + index, **fields)
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=1)


def assert_edited(pixels: np.ndarray) -> None:
    """The left half is unchanged to the pixel, the right half is new."""
    assert (pixels[:, :32] == RED).all()
    assert (pixels[:, 40:] != RED).any(axis=-1).mean() > 0.9


def test_the_clients_have_the_pinned_versions(outcomes):
    package = json.loads((ROOT / "package.json").read_text())
    pinned = {
        LEGACY: "0.28.1",
        OLDER: "1.97.0",
        NEWEST: re.search(r"\nopenai==(.+)\n", (ROOT / "constraints.txt").read_text())[1],
        NODE: package["devDependencies"]["openai"],
    }

    assert outcomes["models"].seen["version"] == pinned[outcomes.program]


def test_a_request_with_every_field_returns_both_data_and_a_url(outcomes):
    answer = outcomes["every field"].answer

    (datum,), (file,) = answer["data"], outcomes["every field"].files
    assert_expected(decoded(datum["b64_json"]))
    assert base64.b64decode(datum["b64_json"]) == file
    assert (datum["seed"], answer["size"], answer["output_format"]) == (SEED, "64x64", "png")
    assert answer["usage"]["output_tokens"] == NUM_STEPS


def test_several_images_of_a_given_size_are_returned_as_data(outcomes):
    answer = outcomes["b64"].answer

    assert answer["size"] == "96x64"
    assert len(answer["data"]) == 2
    for index, datum in enumerate(answer["data"]):
        assert "url" not in datum
        assert_expected(decoded(datum["b64_json"]), index=index, width=96)


def test_several_images_are_returned_as_urls(outcomes):
    files = outcomes["url"].files

    assert len(files) == 2
    assert not any("b64_json" in datum for datum in outcomes["url"].answer["data"])
    for index, data in enumerate(files):
        assert_expected(pixels_in(data), index=index)


def test_extensions_are_honoured_and_null_counts_as_absent(outcomes):
    (datum,) = outcomes["extensions"].answer["data"]

    assert outcomes["extensions"].num_calls == 2
    assert_expected(decoded(datum["b64_json"]), guidance_scale=1.5, negative_prompt="blue")


def test_an_edit_changes_the_masked_area_only(outcomes):
    data = outcomes["edit"].answer["data"]

    assert len(data) == 2
    assert data[0]["b64_json"] != data[1]["b64_json"]
    for datum in data:
        assert_edited(decoded(datum["b64_json"]))


def test_a_variation_takes_fewer_steps(outcomes):
    (datum,) = outcomes["variation"].answer["data"]

    assert decoded(datum["b64_json"]).shape == (64, 64, 3)
    assert 0 < outcomes["variation"].num_calls < NUM_STEPS


def test_models_are_listed_and_retrieved(outcomes):
    names = [model["id"] for model in outcomes["models"].answer["data"]]

    assert names[:2] == ["fake", "fake-alias"]
    assert {"dall-e-2", "dall-e-3", "gpt-image-1"} <= set(names)
    assert outcomes["model"].answer["id"] == "fake"


@dataclass(frozen=True, kw_only=True)
class ExpectedError:
    """An error as the user of a client must see it."""

    status: int
    modern: str
    legacy: str
    code: str
    param: str | None = None
    message: str


NO_IMAGE = ExpectedError(
    status=400, modern="BadRequestError", legacy="InvalidRequestError", code="invalid_value",
    param="image", message="'image': image is no image that can be read; allowed: PNG, JPEG, WebP",
)  # fmt: skip
NO_MODEL = ExpectedError(
    status=404, modern="NotFoundError", legacy="InvalidRequestError", code="model_not_found",
    param="model", message="unknown; there is: fake, fake-alias",
)  # fmt: skip
ERRORS = {
    "bad size": ExpectedError(
        status=400, modern="BadRequestError", legacy="InvalidRequestError", code="invalid_value",
        param="size",
        message="'size': width 100 is no multiple of 8; the nearest that work: 96 and 104",
    ),
    "too many": ExpectedError(
        status=400, modern="BadRequestError", legacy="InvalidRequestError", code="invalid_value",
        param="n", message="n is 99; allowed: 1 to 10",
    ),
    "edit of no image": NO_IMAGE,
    "variation of no image": NO_IMAGE,
    "no such model": NO_MODEL,
    "generation by no such model": NO_MODEL,
    "wrong key": ExpectedError(
        status=401, modern="AuthenticationError", legacy="AuthenticationError",
        code="invalid_api_key",
        message="the API key is missing or wrong: send it as 'Authorization: Bearer <key>'",
    ),
    "full": ExpectedError(
        status=429, modern="RateLimitError", legacy="RateLimitError", code="rate_limit_exceeded",
        message="the queue is full, with 1 waiting",
    ),
    "failure": ExpectedError(
        status=500, modern="InternalServerError", legacy="APIError", code="non_finite_output",
        message="the model produced NaN or infinity at step 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_the_class_that_users_catch_and_a_helpful_message(outcomes, name):
    error, expected = outcomes[name].error, ERRORS[name]
    is_legacy = outcomes.program.is_legacy

    assert error["class"] == (expected.legacy if is_legacy else expected.modern)
    assert expected.message in error["shown"]
    assert error["status"] == expected.status
    assert error["param"] == expected.param
    assert error["request_id"].startswith("req_")
    # 0.28 keeps the code only in this class.
    if not is_legacy or expected.legacy == "InvalidRequestError":
        assert error["code"] == expected.code


@pytest.mark.parametrize("name", [name for name in ERRORS if name not in {"full", "failure"}])
def test_a_refused_request_takes_no_step_and_is_not_retried(outcomes, name):
    assert outcomes[name].num_calls == 0
    assert outcomes[name].statuses == [ERRORS[name].status]


def test_a_failed_generation_is_not_retried(outcomes):
    assert outcomes["failure"].statuses == [500]
    assert outcomes["failure"].num_calls == 2


@since_1_0
def test_a_client_retries_while_the_queue_is_full_and_generates_once(outcomes):
    outcome = outcomes["full for a while"]

    assert_expected(decoded(outcome.answer["data"][0]["b64_json"]))
    assert 429 in outcome.statuses
    # Its own steps, and those of the two requests that filled the queue.
    assert outcome.num_calls == 3 * NUM_STEPS


@since_1_0
def test_a_stream_has_partial_and_completed_images(outcomes):
    events = outcomes["stream"].events

    partials = [event for event in events if event["type"] == "image_generation.partial_image"]
    completed = [event for event in events if event["type"] == "image_generation.completed"]
    assert len(events) == len(partials) + len(completed)
    assert sorted((one["image_index"], one["partial_image_index"]) for one in partials) == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert all(decoded(event["b64_json"]).shape == (64, 64, 3) for event in partials)
    assert sorted(event["image_index"] for event in completed) == [0, 1]
    for event in completed:
        assert_expected(decoded(event["b64_json"]), index=event["image_index"])
        assert event["usage"]["output_tokens"] == 6
    if outcomes.program is not NODE:
        assert {event["class"] for event in partials} == {"ImageGenPartialImageEvent"}
        assert {event["class"] for event in completed} == {"ImageGenCompletedEvent"}


@since_1_0
def test_an_edit_can_be_streamed(outcomes):
    partial, completed = outcomes["streamed edit"].events

    assert (partial["type"], partial["partial_image_index"]) == ("image_edit.partial_image", 0)
    assert completed["type"] == "image_edit.completed"
    assert_edited(decoded(completed["b64_json"]))
    if outcomes.program is not NODE:
        assert partial["class"] == "ImageEditPartialImageEvent"
        assert completed["class"] == "ImageEditCompletedEvent"


@since_1_0
def test_an_invalid_request_is_refused_before_its_stream_opens(outcomes):
    error = outcomes["stream of a bad size"].error

    assert (error["class"], error["param"]) == ("BadRequestError", "size")


@since_1_0
def test_a_failure_mid_stream_is_raised_from_the_stream_and_not_retried(outcomes):
    outcome = outcomes["failure mid stream"]

    assert outcome.error["class"] == "APIError"
    assert outcome.error["code"] == "non_finite_output"
    assert "the model produced NaN or infinity at step 1" in outcome.error["shown"]
    assert (outcome.num_calls, outcome.statuses) == (2, [200])


@since_1_0
def test_closing_a_stream_early_stops_the_generation(outcomes):
    (event,) = outcomes["left early"].events

    assert event["type"] == "image_generation.partial_image"
    assert outcomes["left early"].num_calls <= LEAVES_AT_STEP + 1


@since_1_0
def test_a_client_that_times_out_stops_the_generation(outcomes):
    outcome = outcomes["impatient"]

    # Clients that send their time-out mostly get a 504 before it ends.
    timeouts = {"APITimeoutError", "APIConnectionTimeoutError"}
    assert outcome.error["class"] in timeouts or outcome.error["status"] == 504
    assert outcome.num_calls == 1


def test_langchains_wrapper_returns_the_urls_of_its_images():
    LANGCHAIN.check()
    call = ClientCall(fields={"prompt": PROMPT, "n": 2, "size": "64x64"})

    async def downloads() -> list[tuple[int, bytes]]:
        async with staged() as stage, LANGCHAIN.running() as client:
            seen = await client.outcome_of(call.line(stage.bridge.url, is_async=False))
            paths = [url.removeprefix(stage.bridge.url) for url in seen["urls"]]
            answers = [await stage.bridge.get(path) for path in paths]
        return [(answer.status, answer.data) for answer in answers]

    first, second = asyncio.run(downloads())

    assert first[0] == second[0] == 200
    assert pixels_in(first[1]).shape == pixels_in(second[1]).shape == (64, 64, 3)
    assert first[1] != second[1]
