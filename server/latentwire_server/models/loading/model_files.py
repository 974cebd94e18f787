"""The files of a model: opened and checked once, then asked for a spec, a size or the model.

Loading threads only. What is on the hub is downloaded first, then everything is checked, and then
read offline: what was checked is what is loaded. Code that comes with a model is never run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.adapters.lora_networks import LoraStore
from latentwire_server.models.adapters.lora_sources import lora_paths
from latentwire_server.models.adapters.textual_inversion import load_words, words_in
from latentwire_server.models.components.placement import check_module, place
from latentwire_server.models.components.watermark import load_watermark, with_watermark
from latentwire_server.models.denoiser.backends import DenoiserBackend, expected_programs_bytes
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import CheckedFiles
from latentwire_server.models.files.hub import Fetch, Hub
from latentwire_server.models.info import ModelSize
from latentwire_server.models.loading.autoencoder_folder import AutoencoderFolder
from latentwire_server.models.loading.checkpoint import Checkpoint
from latentwire_server.models.loading.component_reader import ConfigurationReader, WeightsReader
from latentwire_server.models.loading.diffusers_folder import DiffusersFolder, Lent
from latentwire_server.models.loading.folder_settings import SETTINGS_FILE
from latentwire_server.models.loading.inspection import autoencoder_patterns, downloaded_patterns
from latentwire_server.models.loading.shared_encoders import shared_text_encoders
from latentwire_server.models.model_options import local_path
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.text.prompt_reader import PromptOptions

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.architectures.unet_model import UnetModel
    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.files.hub import Report
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.loading.component_reader import ComponentReader
    from latentwire_server.models.model_options import ModelEntry
    from latentwire_server.models.protocol import ModelSpec

    _Pipeline = DiffusersFolder | Checkpoint

_CONFIGURATION: Final = "[[models]]"
"""Where the operator says what replaces a model's own settings."""


class ModelFiles:
    """The checked files of one model and of what goes with it."""

    def __init__(self, entry: ModelEntry, hub: Hub) -> None:
        self._entry = entry
        self._device = choose_device(entry.device)
        self._dtype = choose_dtype(entry.dtype, self._device)
        self._files = CheckedFiles()
        self._main = self._opened(
            entry.source,
            hub,
            revision=entry.revision,
            config=entry.single_file_config,
            uses_safety_checker=entry.safety_checker,
        )
        self._vae: AutoencoderFolder | None = None
        if entry.vae is not None:
            found = hub.folder(entry.vae, wanted=autoencoder_patterns())
            self._vae = AutoencoderFolder(found, source=entry.vae, files=self._files)
        self._refiner: _Pipeline | None = None
        if entry.refiner is not None:
            config = entry.refiner_single_file_config
            self._refiner = self._opened(entry.refiner, hub, config=config)
        self._loras = lora_paths(entry, hub)

    @classmethod
    def open(
        cls,
        entry: ModelEntry,
        *,
        fetch: Fetch = Fetch.EVERYTHING,
        report: Report | None = None,
    ) -> ModelFiles:
        """Opens a model's files: finds or downloads them, and checks all that would be read.

        Args:
            entry: the model and its options.
            fetch: what may be downloaded.
            report: is called with the bytes of each download, so far and in all.

        Raises:
            LoadError: they cannot be had or are not to be trusted; one line says why.
            PrecisionError: the device or the number format cannot be had here.
        """
        return cls(entry, Hub(fetch=fetch, report=report))

    def spec(self) -> ModelSpec | None:
        """Returns what the configuration says of the model, without its weights.

        None for a checkpoint, or one as refiner, whose configuration is in no folder here.

        Raises:
            LoadError: the model is of a kind that is not served.
        """
        for one in (self._main, self._refiner):
            if isinstance(one, Checkpoint) and not one.has_configuration:
                return None
        return self._model(ConfigurationReader(), backend=DenoiserBackend.EAGER)

    def size(self) -> ModelSize:
        """Returns what the model takes in memory once it is loaded.

        Read off the headers of its files, but for what its denoiser is compiled into: that is
        estimated by the size of its weights, since how many programs pay is only measured later.

        Raises:
            LoadError: a file ends before its tensors do.
        """
        entry, itemsize = self._entry, self._dtype.itemsize
        sizes = self._main.num_elements()
        unets = [sizes["unet"]]
        # The safety checker computes in float32 whatever the model does.
        checker_bytes = torch.float32.itemsize * sizes.pop("safety_checker", 0)
        num_elements = sum(sizes.values())
        num_readers_of_words = 1
        if self._vae is not None:
            num_elements += self._vae.num_elements()
        if self._refiner is not None:
            refiner = self._refiner.num_elements()
            unets.append(refiner["unet"])
            # It works with its base's autoencoder, and with the text encoders that both have.
            lent = ("vae", *self._shared_encoders)
            num_elements += sum(size for name, size in refiner.items() if name not in lent)
            num_readers_of_words += not self._shared_encoders
        # In the tables of text encoders, about as large as their files.
        words_bytes = 0
        if entry.embeddings_folder is not None:
            found = entry.embeddings_folder.expanduser().glob("*.safetensors")
            words_bytes = sum(path.stat().st_size for path in found if path.is_file())
        backend = DenoiserBackend(entry.denoiser_backend)
        return ModelSize(
            weights_bytes=itemsize * num_elements
            + checker_bytes
            + num_readers_of_words * words_bytes,
            programs_bytes=sum(
                expected_programs_bytes(itemsize * size, backend=backend, device=self._device)
                for size in unets
            ),
        )

    def load(
        self,
        *,
        report: Report | None = None,
        compiles: bool = True,
        denoiser_cache: Path | None = None,
    ) -> UnetModel:
        """Loads the model onto its device.

        Args:
            report: is called with the loaded bytes, component by component, and those of all.
            compiles: whether the denoiser may be compiled, if its backend does that.
            denoiser_cache: where converted denoisers are kept for the next start; None: nowhere.

        Raises:
            LoadError: it does not load; one line says why.
            BackendError: the denoiser's backend cannot be had here.
        """
        total_bytes = 0 if report is None else self.size().weights_bytes
        backend = self._entry.denoiser_backend if compiles else DenoiserBackend.EAGER
        reader = WeightsReader(report, total_bytes=total_bytes)
        return self._model(reader, backend=DenoiserBackend(backend), cache=denoiser_cache)

    def _opened(
        self,
        source: str,
        hub: Hub,
        *,
        revision: str | None = None,
        config: str | None = None,
        uses_safety_checker: bool = False,
    ) -> _Pipeline:
        """Opens the model's own files, or its refiner's."""
        path, variant = local_path(source), self._entry.variant
        if path is not None and path.is_file():
            return Checkpoint(path, source=source, files=self._files, config=config)
        wanted, unwanted = downloaded_patterns(
            variant=variant, with_safety_checker=uses_safety_checker
        )
        return DiffusersFolder(
            hub.folder(source, revision=revision, wanted=wanted, unwanted=unwanted),
            source=source,
            files=self._files,
            variant=variant,
            uses_safety_checker=uses_safety_checker,
        )

    @cached_property
    def _shared_encoders(self) -> tuple[str, ...]:
        """The names of the refiner's text encoders, if they are the base's too."""
        base, refiner = self._main, self._refiner
        if isinstance(base, DiffusersFolder) and isinstance(refiner, DiffusersFolder):
            return shared_text_encoders(refiner, base)
        return ()

    def _model(
        self, reader: ComponentReader, *, backend: DenoiserBackend, cache: Path | None = None
    ) -> UnetModel:
        entry, main = self._entry, self._main
        parts = main.read(reader, dtype=self._dtype, lent=Lent())
        revisions = [main.revision]
        if self._vae is not None:
            parts = replace(parts, vae=self._vae.read(reader, dtype=self._dtype))
            revisions.append(self._vae.revision)
        parts = self._prepared(main, self._with_words(parts, reader), reader)
        if isinstance(main, DiffusersFolder) and main.has_safety_checker:
            checker = main.read_safety_checker(
                reader, device=self._device, hides_previews=not entry.unchecked_previews
            )
            parts = replace(parts, safety_checker=checker)
        info = _described(main, parts, id_=entry.id)
        info = entry.apply_to(info, source=entry.source, place=_CONFIGURATION)
        refiner = None
        if self._refiner is not None:
            refiner = self._read_refiner(self._refiner, parts, reader, backend=backend, cache=cache)
            revisions.append(refiner.info.revision)
            info = replace(
                info,
                capabilities=(*info.capabilities, "refiner"),
                defaults=replace(info.defaults, high_noise_frac=entry.high_noise_frac),
            )
        info = replace(info, revision="+".join(revisions), aliases=entry.aliases)
        loras = None
        if self._loras:
            loras = LoraStore(self._loras, parts, loader=main.family.lora_loader)
            info = loras.listed_in(info)
        if entry.watermark:
            info = with_watermark(info, source=entry.source)
            parts = replace(parts, watermark=load_watermark(entry.source))
        return main.family.model(
            info, parts, backend=backend, cache=cache, refiner=refiner, loras=loras
        )

    def _read_refiner(
        self,
        refiner: _Pipeline,
        base: Components,
        reader: ComponentReader,
        *,
        backend: DenoiserBackend,
        cache: Path | None,
    ) -> UnetModel:
        """Returns the refiner of a base with these parts.

        It works on the base's latents, and hence with its autoencoder; its text encoders are most
        often the base's too, learnt words included.
        """
        # Without weights there is nothing to share.
        names = self._shared_encoders if reader.has_weights else ()
        shared = tuple(one for one in base.text_encoders if one.name in names)
        lent = Lent(vae=base.vae, text_encoders=shared)
        parts = refiner.read(reader, dtype=self._dtype, lent=lent)
        if refiner.family.name != self._main.family.name:
            reason = f"its refiner is of the family {refiner.family.name}"
            raise LoadError(self._entry.source, f"{reason}; needed: {self._main.family.name}")
        if base.unet.config.in_channels != base.unet.config.out_channels:
            reason = "a model that is made for inpainting takes no refiner"
            raise LoadError(self._entry.source, reason)
        if shared:
            parts = replace(parts, prompt_options=base.prompt_options, words=base.words)
        else:
            parts = self._with_words(parts, reader)
        parts = self._prepared(refiner, parts, reader)
        info = _described(refiner, parts, id_=f"{self._entry.id}/refiner")
        info = replace(info, revision=refiner.revision)
        return refiner.family.model(info, parts, backend=backend, cache=cache)

    def _with_words(self, parts: Components, reader: ComponentReader) -> Components:
        """Returns the parts with the options of prompts, and the words of the operator's folder."""
        entry = self._entry
        options = PromptOptions(
            is_weighted=entry.prompt_weighting, max_chunks=entry.max_prompt_chunks
        )
        words: tuple[str, ...] = ()
        if entry.embeddings_folder is not None:
            learn = load_words if reader.has_weights else words_in
            words = learn(entry.embeddings_folder.expanduser(), parts.text_encoders)
        encoders = tuple(
            encoder.with_options(options, has_embeddings=bool(words))
            for encoder in parts.text_encoders
        )
        return replace(parts, text_encoders=encoders, prompt_options=options, words=words)

    def _prepared(self, main: _Pipeline, parts: Components, reader: ComponentReader) -> Components:
        """Returns the parts, checked and on the device, if they have weights."""
        if not reader.has_weights:
            return parts
        for name, network in parts.networks.items():
            check_module(network, name=name, source=main.source)
        return place(parts, device=self._device, upcasts=main.family.upcasts_autoencoder)


def _described(files: _Pipeline, parts: Components, *, id_: str) -> ModelInfo:
    """Returns the description of a model, with its folder's settings and not the operator's."""
    info = files.family.describe(parts, id_=id_, source=files.source)
    return files.settings.apply_to(info, source=files.source, place=SETTINGS_FILE)


def read_spec(entry: ModelEntry, *, fetch: Fetch) -> ModelSpec | None:
    """Returns the spec of a model; None where that is not to be had without its weights.

    So it is with a checkpoint whose configuration is in no folder here, and with what is on the
    hub, be it a refiner, an autoencoder or a LoRA, unless ``fetch`` allows to download it.

    Raises:
        LoadError: its files are not to be trusted, or of a kind that is not served.
        PrecisionError: the device or the number format cannot be had here.
    """
    try:
        return ModelFiles.open(entry, fetch=fetch).spec()
    except LoadError:
        if entry.is_local:
            raise
        return None  # Loading will download it, or give the reason.
