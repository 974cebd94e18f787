"""Prompts of several chunks: which of them share a call, and their images."""

from __future__ import annotations

from tests.support.engine.driving import assert_expected_images
from tests.support.engine.requests import request
from tests.support.fakes import MAX_WORDS, FakeModel

LONG = " ".join(["word"] * (MAX_WORDS + 1))
LONGER = " ".join(["word"] * (2 * MAX_WORDS + 1))


async def test_long_and_short_prompts_run_together_and_each_gets_its_own_image(start) -> None:
    driver = await start(FakeModel(max_chunks=3), max_rows=8)
    wanted = [
        request("a short one", num_inference_steps=8),
        request(LONG),
        request(LONGER, guidance_scale=3.0),
        request("short", negative_prompt=LONG, guidance_scale=3.0),
        request("another short one", guidance_scale=2.0),
    ]
    results = await driver.run_held(*wanted)
    for result in results:
        # A call with rows of different lengths would have failed.
        assert_expected_images(result)
    shared = [set(call.prompts) for call in driver.model.calls]
    assert {LONG, "short"} <= set.union(*(one for one in shared if LONG in one))
    assert not any(LONG in one and "a short one" in one for one in shared)


async def test_both_prompts_of_a_request_are_encoded_and_cached_at_the_same_length(
    start,
) -> None:
    driver = await start(FakeModel(max_chunks=2))
    for prompt in ("short", LONG, "short", LONG):
        result = await driver.run(request(prompt, negative_prompt="n", guidance_scale=2.0))
        assert_expected_images(result)
    assert sorted(driver.model.encoded_prompts) == sorted(["short", "n", LONG, "n"])


async def test_only_text_beyond_the_last_chunk_is_reported_as_dropped(start) -> None:
    driver = await start(FakeModel(max_chunks=2))
    fits, too_long = await driver.run_all(request(LONG), request(LONGER))
    assert fits.events[0].warnings == ()
    assert [warning.reason for warning in too_long.events[0].warnings] == ["PROMPT_TRUNCATED"]
