from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]

class PreviewMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREVIEW_METHOD_UNSPECIFIED: _ClassVar[PreviewMethod]
    PREVIEW_METHOD_LINEAR: _ClassVar[PreviewMethod]
    PREVIEW_METHOD_FULL_VAE: _ClassVar[PreviewMethod]

class DisconnectPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISCONNECT_POLICY_UNSPECIFIED: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_CANCEL: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_CONTINUE: _ClassVar[DisconnectPolicy]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_ENCODING: _ClassVar[Phase]
    PHASE_DENOISING: _ClassVar[Phase]
    PHASE_DECODING: _ClassVar[Phase]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_COMPLETED: _ClassVar[FinishReason]
    FINISH_REASON_FILTERED: _ClassVar[FinishReason]

class GenerationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATION_STATE_UNSPECIFIED: _ClassVar[GenerationState]
    GENERATION_STATE_QUEUED: _ClassVar[GenerationState]
    GENERATION_STATE_RUNNING: _ClassVar[GenerationState]
    GENERATION_STATE_SUCCEEDED: _ClassVar[GenerationState]
    GENERATION_STATE_FAILED: _ClassVar[GenerationState]
    GENERATION_STATE_CANCELLED: _ClassVar[GenerationState]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
PREVIEW_METHOD_UNSPECIFIED: PreviewMethod
PREVIEW_METHOD_LINEAR: PreviewMethod
PREVIEW_METHOD_FULL_VAE: PreviewMethod
DISCONNECT_POLICY_UNSPECIFIED: DisconnectPolicy
DISCONNECT_POLICY_CANCEL: DisconnectPolicy
DISCONNECT_POLICY_CONTINUE: DisconnectPolicy
PHASE_UNSPECIFIED: Phase
PHASE_ENCODING: Phase
PHASE_DENOISING: Phase
PHASE_DECODING: Phase
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_COMPLETED: FinishReason
FINISH_REASON_FILTERED: FinishReason
GENERATION_STATE_UNSPECIFIED: GenerationState
GENERATION_STATE_QUEUED: GenerationState
GENERATION_STATE_RUNNING: GenerationState
GENERATION_STATE_SUCCEEDED: GenerationState
GENERATION_STATE_FAILED: GenerationState
GENERATION_STATE_CANCELLED: GenerationState
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_UNLOADED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState

class GenerateImageRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt", "negative_prompt", "width", "height", "num_images", "seed", "num_inference_steps", "guidance_scale", "scheduler", "clip_skip", "image_to_image", "inpainting", "loras", "output", "events", "disconnect_policy", "priority", "user", "labels", "validate_only", "resume_after_sequence", "high_noise_frac", "high_resolution_fix")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TO_IMAGE_FIELD_NUMBER: _ClassVar[int]
    INPAINTING_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    RESUME_AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HIGH_NOISE_FRAC_FIELD_NUMBER: _ClassVar[int]
    HIGH_RESOLUTION_FIX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_images: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: Scheduler
    clip_skip: int
    image_to_image: ImageToImage
    inpainting: Inpainting
    loras: _containers.RepeatedCompositeFieldContainer[Lora]
    output: Output
    events: Events
    disconnect_policy: DisconnectPolicy
    priority: int
    user: str
    labels: _containers.ScalarMap[str, str]
    validate_only: bool
    resume_after_sequence: int
    high_noise_frac: float
    high_resolution_fix: HighResolutionFix
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., num_images: _Optional[int] = ..., seed: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., scheduler: _Optional[_Union[Scheduler, _Mapping]] = ..., clip_skip: _Optional[int] = ..., image_to_image: _Optional[_Union[ImageToImage, _Mapping]] = ..., inpainting: _Optional[_Union[Inpainting, _Mapping]] = ..., loras: _Optional[_Iterable[_Union[Lora, _Mapping]]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., events: _Optional[_Union[Events, _Mapping]] = ..., disconnect_policy: _Optional[_Union[DisconnectPolicy, str]] = ..., priority: _Optional[int] = ..., user: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., validate_only: bool = ..., resume_after_sequence: _Optional[int] = ..., high_noise_frac: _Optional[float] = ..., high_resolution_fix: _Optional[_Union[HighResolutionFix, _Mapping]] = ...) -> None: ...

class HighResolutionFix(_message.Message):
    __slots__ = ("disabled", "strength", "width", "height")
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    disabled: bool
    strength: float
    width: int
    height: int
    def __init__(self, disabled: bool = ..., strength: _Optional[float] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Scheduler(_message.Message):
    __slots__ = ("id", "sigmas")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIGMAS_FIELD_NUMBER: _ClassVar[int]
    id: str
    sigmas: str
    def __init__(self, id: _Optional[str] = ..., sigmas: _Optional[str] = ...) -> None: ...

class ImageToImage(_message.Message):
    __slots__ = ("image", "strength")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    image: InputImage
    strength: float
    def __init__(self, image: _Optional[_Union[InputImage, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class Inpainting(_message.Message):
    __slots__ = ("image", "mask", "strength", "mask_inverted")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    MASK_INVERTED_FIELD_NUMBER: _ClassVar[int]
    image: InputImage
    mask: InputImage
    strength: float
    mask_inverted: bool
    def __init__(self, image: _Optional[_Union[InputImage, _Mapping]] = ..., mask: _Optional[_Union[InputImage, _Mapping]] = ..., strength: _Optional[float] = ..., mask_inverted: bool = ...) -> None: ...

class InputImage(_message.Message):
    __slots__ = ("data", "sha256")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    sha256: bytes
    def __init__(self, data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("id", "scale")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    id: str
    scale: float
    def __init__(self, id: _Optional[str] = ..., scale: _Optional[float] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("format", "quality", "metadata_omitted", "max_data_bytes")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    METADATA_OMITTED_FIELD_NUMBER: _ClassVar[int]
    MAX_DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    metadata_omitted: bool
    max_data_bytes: int
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., metadata_omitted: bool = ..., max_data_bytes: _Optional[int] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("progress_interval_steps", "preview_interval_steps", "preview_method", "preview_max_side")
    PROGRESS_INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_METHOD_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    progress_interval_steps: int
    preview_interval_steps: int
    preview_method: PreviewMethod
    preview_max_side: int
    def __init__(self, progress_interval_steps: _Optional[int] = ..., preview_interval_steps: _Optional[int] = ..., preview_method: _Optional[_Union[PreviewMethod, str]] = ..., preview_max_side: _Optional[int] = ...) -> None: ...

class GenerateImageResponse(_message.Message):
    __slots__ = ("generation", "sequence", "event_time", "accepted", "queued", "model_loading", "progress", "preview", "image", "image_chunk", "completed")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    MODEL_LOADING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    generation: str
    sequence: int
    event_time: _timestamp_pb2.Timestamp
    accepted: Accepted
    queued: Queued
    model_loading: ModelLoading
    progress: Progress
    preview: Preview
    image: Image
    image_chunk: ImageChunk
    completed: Completed
    def __init__(self, generation: _Optional[str] = ..., sequence: _Optional[int] = ..., event_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ..., model_loading: _Optional[_Union[ModelLoading, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., image_chunk: _Optional[_Union[ImageChunk, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("effective_request", "seeds", "warnings")
    EFFECTIVE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    effective_request: GenerateImageRequest
    seeds: _containers.RepeatedScalarFieldContainer[int]
    warnings: _containers.RepeatedCompositeFieldContainer[Warning]
    def __init__(self, effective_request: _Optional[_Union[GenerateImageRequest, _Mapping]] = ..., seeds: _Optional[_Iterable[int]] = ..., warnings: _Optional[_Iterable[_Union[Warning, _Mapping]]] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("field", "reason", "message", "replacement")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPLACEMENT_FIELD_NUMBER: _ClassVar[int]
    field: str
    reason: str
    message: str
    replacement: str
    def __init__(self, field: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., replacement: _Optional[str] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("ahead_count", "estimated_wait")
    AHEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_FIELD_NUMBER: _ClassVar[int]
    ahead_count: int
    estimated_wait: _duration_pb2.Duration
    def __init__(self, ahead_count: _Optional[int] = ..., estimated_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ModelLoading(_message.Message):
    __slots__ = ("model", "loaded_bytes", "total_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    loaded_bytes: int
    total_bytes: int
    def __init__(self, model: _Optional[str] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "step", "step_count", "fraction", "estimated_remaining")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_REMAINING_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    step: int
    step_count: int
    fraction: float
    estimated_remaining: _duration_pb2.Duration
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., step: _Optional[int] = ..., step_count: _Optional[int] = ..., fraction: _Optional[float] = ..., estimated_remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("image_index", "step", "media_type", "width", "height", "data")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    step: int
    media_type: str
    width: int
    height: int
    data: bytes
    def __init__(self, image_index: _Optional[int] = ..., step: _Optional[int] = ..., media_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("index", "seed", "finish_reason", "media_type", "width", "height", "size_bytes", "sha256", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    seed: int
    finish_reason: FinishReason
    media_type: str
    width: int
    height: int
    size_bytes: int
    sha256: bytes
    data: bytes
    def __init__(self, index: _Optional[int] = ..., seed: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., media_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImageChunk(_message.Message):
    __slots__ = ("image_index", "offset", "data")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    offset: int
    data: bytes
    def __init__(self, image_index: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("image_count", "timings", "peak_memory_bytes", "model_revision")
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    image_count: int
    timings: Timings
    peak_memory_bytes: int
    model_revision: str
    def __init__(self, image_count: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., peak_memory_bytes: _Optional[int] = ..., model_revision: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued", "encoding", "denoising", "decoding", "total")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DENOISING_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queued: _duration_pb2.Duration
    encoding: _duration_pb2.Duration
    denoising: _duration_pb2.Duration
    decoding: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queued: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., encoding: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., denoising: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., decoding: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetGenerationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetGenerationResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ...) -> None: ...

class ListGenerationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListGenerationsResponse(_message.Message):
    __slots__ = ("generations", "next_page_token", "total_count")
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[Generation]
    next_page_token: str
    total_count: int
    def __init__(self, generations: _Optional[_Iterable[_Union[Generation, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_count: _Optional[int] = ...) -> None: ...

class CancelGenerationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelGenerationResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("name", "state", "model", "create_time", "end_time", "ahead_count", "step", "step_count", "fraction", "priority", "user", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    AHEAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: GenerationState
    model: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    ahead_count: int
    step: int
    step_count: int
    fraction: float
    priority: int
    user: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[GenerationState, str]] = ..., model: _Optional[str] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ahead_count: _Optional[int] = ..., step: _Optional[int] = ..., step_count: _Optional[int] = ..., fraction: _Optional[float] = ..., priority: _Optional[int] = ..., user: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "display_name", "aliases", "is_default", "state", "failure_message", "family", "revision", "capabilities", "schedulers", "limits", "defaults", "loras", "memory_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    SCHEDULERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    is_default: bool
    state: ModelState
    failure_message: str
    family: str
    revision: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    schedulers: _containers.RepeatedCompositeFieldContainer[SchedulerInfo]
    limits: ModelLimits
    defaults: ModelDefaults
    loras: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., is_default: bool = ..., state: _Optional[_Union[ModelState, str]] = ..., failure_message: _Optional[str] = ..., family: _Optional[str] = ..., revision: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., schedulers: _Optional[_Iterable[_Union[SchedulerInfo, _Mapping]]] = ..., limits: _Optional[_Union[ModelLimits, _Mapping]] = ..., defaults: _Optional[_Union[ModelDefaults, _Mapping]] = ..., loras: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class SchedulerInfo(_message.Message):
    __slots__ = ("id", "sigmas", "evaluations_per_step")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIGMAS_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    id: str
    sigmas: _containers.RepeatedScalarFieldContainer[str]
    evaluations_per_step: int
    def __init__(self, id: _Optional[str] = ..., sigmas: _Optional[_Iterable[str]] = ..., evaluations_per_step: _Optional[int] = ...) -> None: ...

class ModelLimits(_message.Message):
    __slots__ = ("min_side", "max_side", "side_multiple", "max_pixels", "max_inference_steps", "max_images", "max_prompt_bytes", "max_guidance_scale", "max_clip_skip", "min_drawn_pixels")
    MIN_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    SIDE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    MIN_DRAWN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    min_side: int
    max_side: int
    side_multiple: int
    max_pixels: int
    max_inference_steps: int
    max_images: int
    max_prompt_bytes: int
    max_guidance_scale: float
    max_clip_skip: int
    min_drawn_pixels: int
    def __init__(self, min_side: _Optional[int] = ..., max_side: _Optional[int] = ..., side_multiple: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_inference_steps: _Optional[int] = ..., max_images: _Optional[int] = ..., max_prompt_bytes: _Optional[int] = ..., max_guidance_scale: _Optional[float] = ..., max_clip_skip: _Optional[int] = ..., min_drawn_pixels: _Optional[int] = ...) -> None: ...

class ModelDefaults(_message.Message):
    __slots__ = ("width", "height", "num_inference_steps", "guidance_scale", "scheduler", "high_noise_frac", "high_resolution_fix")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    HIGH_NOISE_FRAC_FIELD_NUMBER: _ClassVar[int]
    HIGH_RESOLUTION_FIX_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: Scheduler
    high_noise_frac: float
    high_resolution_fix: float
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., scheduler: _Optional[_Union[Scheduler, _Mapping]] = ..., high_noise_frac: _Optional[float] = ..., high_resolution_fix: _Optional[float] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "device", "dtype", "batching", "max_rows", "max_request_bytes", "max_queued", "queued_count", "running_count", "draining", "start_time", "library_versions", "denoiser_call_count", "denoiser_row_count", "denoiser_backend", "compiled_shapes", "denoiser_place_count", "estimated_wait")
    class LibraryVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_COUNT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DENOISER_CALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    DENOISER_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    DENOISER_BACKEND_FIELD_NUMBER: _ClassVar[int]
    COMPILED_SHAPES_FIELD_NUMBER: _ClassVar[int]
    DENOISER_PLACE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_FIELD_NUMBER: _ClassVar[int]
    version: str
    device: str
    dtype: str
    batching: str
    max_rows: int
    max_request_bytes: int
    max_queued: int
    queued_count: int
    running_count: int
    draining: bool
    start_time: _timestamp_pb2.Timestamp
    library_versions: _containers.ScalarMap[str, str]
    denoiser_call_count: int
    denoiser_row_count: int
    denoiser_backend: str
    compiled_shapes: _containers.RepeatedScalarFieldContainer[str]
    denoiser_place_count: int
    estimated_wait: _duration_pb2.Duration
    def __init__(self, version: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., batching: _Optional[str] = ..., max_rows: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_queued: _Optional[int] = ..., queued_count: _Optional[int] = ..., running_count: _Optional[int] = ..., draining: bool = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., library_versions: _Optional[_Mapping[str, str]] = ..., denoiser_call_count: _Optional[int] = ..., denoiser_row_count: _Optional[int] = ..., denoiser_backend: _Optional[str] = ..., compiled_shapes: _Optional[_Iterable[str]] = ..., denoiser_place_count: _Optional[int] = ..., estimated_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model_loading", "model")
    MODEL_LOADING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model_loading: ModelLoading
    model: Model
    def __init__(self, model_loading: _Optional[_Union[ModelLoading, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...
