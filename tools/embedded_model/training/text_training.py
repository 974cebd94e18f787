"""Trains the text encoder to describe a prompt's scene, before the UNet is trained.

The UNet's gradient carries little about words while its images are still noise, and sixty of 77
tokens are padding: after 800 steps of training through the UNet alone no colour followed the
prompt. Three minutes of classifying the scene from the mean of all tokens, which is all that an
untrained cross-attention sees, teach it which colour belongs to which shape.
"""

import logging
import random
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from tools.embedded_model.scenes.prompts import random_prompt
from tools.embedded_model.scenes.scene import Scene, random_scene
from tools.embedded_model.scenes.vocabulary import COLOURS, POSITIONS, SHAPES, SIZE_WORDS
from tools.embedded_model.training import checkpoint
from tools.embedded_model.training.text_encoder import WIDTH, build_text_encoder, tokenize

logger = logging.getLogger(__name__)

NUM_STEPS = 1500
LEARNING_RATE = 1.5e-3
BATCH = 48
_WARMUP_STEPS = 50
_LOG_EVERY = 100
_NONE: Final = "none"
_ARRANGEMENTS: Final = (*POSITIONS, "horizontal", "vertical")

# The questions about a scene, with the possible answers.
_QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "background": tuple(COLOURS),
    "arrangement": _ARRANGEMENTS,
    "first shape": SHAPES,
    "first colour": tuple(COLOURS),
    "first size": tuple(SIZE_WORDS),
    "second shape": (*SHAPES, _NONE),
    "second colour": (*COLOURS, _NONE),
    "second size": (*SIZE_WORDS, _NONE),
}


def train(path: Path, tokenizer: CLIPTokenizer, *, seed: int = 0) -> CLIPTextModel:
    """Returns the trained encoder, loaded from `path` if it was saved there before."""
    torch.manual_seed(seed)
    text_encoder = build_text_encoder(tokenizer)
    state = checkpoint.load(path)
    if state is not None:
        text_encoder.load_state_dict(state)
        return text_encoder
    heads = nn.ModuleList(nn.Linear(WIDTH, len(answers)) for answers in _QUESTIONS.values())
    parameters = [*text_encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=LEARNING_RATE,
        total_steps=NUM_STEPS,
        pct_start=_WARMUP_STEPS / NUM_STEPS,
    )
    started = time.monotonic()
    for step in range(1, NUM_STEPS + 1):
        rng = random.Random(f"text {seed} {step}")
        scenes = [random_scene(rng) for _ in range(BATCH)]
        token_ids = tokenize(tokenizer, [random_prompt(scene, rng) for scene in scenes])
        pooled = text_encoder(token_ids).last_hidden_state.mean(dim=1)
        answers = _answers(scenes)
        losses = [
            functional.cross_entropy(head(pooled), answers[:, column])
            for column, head in enumerate(heads)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(losses).sum())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % _LOG_EVERY == 0:
            values = " ".join(f"{loss.item():.2f}" for loss in losses)
            elapsed_s = time.monotonic() - started
            logger.info("text step=%d losses=%s elapsed_s=%.0f", step, values, elapsed_s)
    checkpoint.save(path, text_encoder.state_dict())
    return text_encoder


def _answers(scenes: list[Scene]) -> Tensor:
    """Returns (rows, questions) int64."""
    return torch.tensor(
        [
            [
                options.index(answer)
                for options, answer in zip(_QUESTIONS.values(), _description(scene), strict=True)
            ]
            for scene in scenes
        ]
    )


def _description(scene: Scene) -> list[str]:
    first = scene.objects[0]
    words = [scene.background, str(scene.position or scene.axis)]
    words += [first.shape, first.colour, first.size]
    if len(scene.objects) == 1:
        return [*words, _NONE, _NONE, _NONE]
    second = scene.objects[1]
    return [*words, second.shape, second.colour, second.size]
