"""The Python client of Latentwire: image generation with every denoising step on the wire.

Example::

    import latentwire

    with latentwire.Client() as client:
        client.generate("a red circle on a blue background", seed=42)[0].save("circle.png")
"""

from latentwire._async_client import AsyncClient, AsyncGenerationStream
from latentwire._client import Client, GenerationStream
from latentwire._events import (
    Accepted,
    Completed,
    Event,
    Image,
    ModelLoading,
    Preview,
    Progress,
    Queued,
    RequestWarning,
    Timings,
)
from latentwire._metadata import read_description
from latentwire._requests import GenerateOptions
from latentwire._resources import (
    Generation,
    Model,
    ModelDefaults,
    ModelLimits,
    SchedulerInfo,
    ServerInfo,
)
from latentwire.errors import (
    AuthenticationError,
    CorruptStreamError,
    DeadlineError,
    GenerationCancelled,
    ImageFilteredError,
    InternalServerError,
    InvalidRequestError,
    LatentwireError,
    NotFoundError,
    OutOfMemoryError,
    QueueFullError,
    UnavailableError,
    Violation,
)

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncGenerationStream",
    "AuthenticationError",
    "Client",
    "Completed",
    "CorruptStreamError",
    "DeadlineError",
    "Event",
    "GenerateOptions",
    "Generation",
    "GenerationCancelled",
    "GenerationStream",
    "Image",
    "ImageFilteredError",
    "InternalServerError",
    "InvalidRequestError",
    "LatentwireError",
    "Model",
    "ModelDefaults",
    "ModelLimits",
    "ModelLoading",
    "NotFoundError",
    "OutOfMemoryError",
    "Preview",
    "Progress",
    "QueueFullError",
    "Queued",
    "RequestWarning",
    "SchedulerInfo",
    "ServerInfo",
    "Timings",
    "UnavailableError",
    "Violation",
    "read_description",
]
