"""The sizes of a Whisper model, and the generation settings of its checkpoint."""

import dataclasses
from typing import Any

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.speech.audio import HOP, SAMPLE_RATE

_HF_FIELDS = {
    "n_mels": "num_mel_bins",
    "d_vocab": "vocab_size",
    "d_model": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "encoder_d_mlp": "encoder_ffn_dim",
    "decoder_d_mlp": "decoder_ffn_dim",
    "max_frames": "max_source_positions",
    "max_tokens": "max_target_positions",
}

_MOST_POSITION_VALUES = 10**8


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes of one Whisper model.

    `max_frames` is the number of encoder positions (1500, 20 ms each; the spectrogram has twice as
    many columns) and `max_tokens` the longest decoder sequence (448).
    """

    n_mels: int
    d_vocab: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_d_mlp: int
    decoder_d_mlp: int
    max_frames: int = 1500
    max_tokens: int = 448

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{field.name} is {value!r}: expected a positive integer.")
        for name in ("encoder_heads", "decoder_heads"):
            if self.d_model % getattr(self, name):
                raise InputError(
                    f"d_model {self.d_model} is not a multiple of {name} {getattr(self, name)}."
                )
        if self.max_frames * self.d_model > _MOST_POSITION_VALUES:
            raise InputError(
                f"max_frames is {self.max_frames} and d_model is {self.d_model}: their product is "
                f"expected to be at most {_MOST_POSITION_VALUES:,}."
            )
        if self.d_model % 2:
            raise InputError(f"d_model is {self.d_model}: expected an even number.")

    @property
    def mel_frames(self) -> int:
        """Number of columns of the spectrogram that the encoder takes (3000)."""
        return 2 * self.max_frames

    @property
    def max_samples(self) -> int:
        """Number of 16 kHz samples that the encoder takes (480,000)."""
        return self.mel_frames * HOP

    @property
    def max_seconds(self) -> float:
        """Seconds of audio that the encoder takes (30)."""
        return self.max_samples / SAMPLE_RATE

    def layers(self, stack: Stack) -> int:
        """Return the number of layers of a stack."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    def heads(self, stack: Stack) -> int:
        """Return the number of attention heads in each layer of a stack."""
        return self.encoder_heads if stack == "encoder" else self.decoder_heads

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "WhisperConfig":
        """Read a Hugging Face `config.json`.

        Args:
            config: the parsed file.

        Raises:
            InputError: a field is missing, or the file asks for something Whisper never does.
        """
        missing = [hf for hf in _HF_FIELDS.values() if hf not in config]
        if missing:
            raise InputError(f"config.json lacks {', '.join(missing)}: expected a Whisper config.")
        expected = {
            "activation_function": "gelu",
            "scale_embedding": False,
            "tie_word_embeddings": True,
        }
        for key, value in expected.items():
            if config.get(key, value) != value:
                raise InputError(
                    f"config.json has {key}={config[key]!r}: only {value!r} is a Whisper model."
                )
        return cls(**{name: config[hf] for name, hf in _HF_FIELDS.items()})

    def to_hf(self) -> dict[str, Any]:
        """Return the same sizes under Hugging Face's names."""
        return {hf: getattr(self, name) for name, hf in _HF_FIELDS.items()}


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """The settings for decoding that come with a checkpoint.

    Attributes:
        suppress: token ids that are never generated.
        suppress_first: token ids that are not generated as the first token.
        alignment_heads: (layer, head) pairs of cross-attention that follow the audio.
        language: code or English name of the language of prompts that name none, if there is one.
        task: task of prompts that name none, if there is one.
    """

    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    alignment_heads: tuple[tuple[int, int], ...] = ()
    language: str | None = None
    task: str | None = None

    @classmethod
    def from_hf(cls, settings: dict[str, Any], origin: str) -> "GenerationSettings":
        """Read a Hugging Face `generation_config.json` (or the older fields in `config.json`).

        Args:
            settings: the parsed file.
            origin: its name in errors.

        Raises:
            InputError: a list has the wrong form.
        """
        return cls(
            suppress=_ids(settings, "suppress_tokens", origin),
            suppress_first=_ids(settings, "begin_suppress_tokens", origin),
            alignment_heads=_pairs(settings, "alignment_heads", origin),
        )

    @classmethod
    def from_ctranslate2(cls, settings: dict[str, Any], origin: str) -> "GenerationSettings":
        """Read the `config.json` beside a CTranslate2 `model.bin`; see `from_hf`."""
        return cls(
            suppress=_ids(settings, "suppress_ids", origin),
            suppress_first=_ids(settings, "suppress_ids_begin", origin),
            alignment_heads=_pairs(settings, "alignment_heads", origin),
        )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(settings: dict[str, Any], key: str, origin: str) -> tuple[int, ...]:
    ids = settings.get(key) or []
    if not isinstance(ids, list) or not all(map(_is_id, ids)):
        raise InputError(f"{origin} has {key} of another form: expected a list of token ids.")
    return tuple(ids)


def _pairs(settings: dict[str, Any], key: str, origin: str) -> tuple[tuple[int, int], ...]:
    pairs = settings.get(key) or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_id, pair)) for pair in pairs
    ):
        raise InputError(f"{origin} has {key} of another form: expected [layer, head] pairs.")
    return tuple((layer, head) for layer, head in pairs)
