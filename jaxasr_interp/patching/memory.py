"""The most memory that a sweep takes in addition to the model, from the shapes of its arrays.

Two moments count. While the runs that the sweep starts from are made, both of them exist. While a
chunk runs, one does, and of the other what the patches write, beside the chunk's own arrays. What
programs take in addition to their arguments is as the compilers for CPUs, GPUs and TPUs say, who
are asked in `tests/accelerators/test_memory.py`.
"""

import math
from collections.abc import Sequence

from jaxasr_interp.kernels.attention import holds_scores
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.patching.array_sizes import itemsize, site_shape
from jaxasr_interp.patching.cells import PatchGrid
from jaxasr_interp.patching.chunks import Chunk, chunks_read_together
from jaxasr_interp.patching.runs import kept_sites

_LANES = 128
_COPIES_OF_LOGITS = {"cpu": 2, "gpu": 1, "tpu": 1}
_CODE_ON_TPU = 10 << 20
_MARGIN = 1.04
"""Compilers need a few percent more for some programs than what is counted here."""


def sweep_bytes(grid: PatchGrid, chunks: Sequence[Chunk], utterances: int = 1) -> int:
    """Estimate the most bytes that a sweep takes on a device.

    Args:
        grid: the grid of patches.
        chunks: its chunks of the minimal method.
        utterances: number of pairs of runs that the device has.
    """
    sizes = _Sizes(grid)
    most = 0
    for site in grid.sites:
        of_site = [chunk for chunk in chunks if chunk.site == site]
        if of_site:
            chunk = sizes.chunk(of_site[0], utterances)
            most = max(most, chunk, sizes.logits(of_site, utterances))
    code = _CODE_ON_TPU if grid.platform == "tpu" else 0
    peak = code + max(sizes.both_runs(utterances), utterances * sizes.kept + most)
    return math.ceil(_MARGIN * peak)


class _Sizes:
    """Bytes of what exists in a sweep."""

    def __init__(self, grid: PatchGrid):
        self.grid, self.config, self.platform = grid, grid.config, grid.platform
        self.item = itemsize(grid.dtype)
        self.wide = max(4, self.item)
        c = grid.config
        kept = kept_sites(grid.stack, frozenset(grid.sites))
        self.of_encoder = sum(self._site("encoder", site) for site in kept.encoder)
        self.of_decoder = sum(self._site("decoder", site) for site in kept.decoder)
        self.cross = 2 * c.decoder_layers * self._array(c.max_frames, c.d_model)
        self.inputs = 4 * c.n_mels * c.mel_frames + self._array(c.max_frames, c.d_model)
        self.logits_read = grid.reads * c.d_vocab * self.wide

    def both_runs(self, utterances: int) -> int:
        """The two runs of each pair, while the decoder's are made."""
        decoder = self.cross + self.of_decoder + self.logits_read
        total = 2 * (self.inputs + self.of_encoder + decoder)
        if self.platform == "gpu":
            # They are made as one batch, and cut apart.
            total += 2 * decoder
        elif self.platform == "cpu":
            total += 2 * self.cross // 5
        elif utterances > 1:
            total += self.of_decoder
        if self.rounds:
            total += self.cross // 2
        return utterances * total + self.rounded_weights

    @property
    def rounds(self) -> bool:
        """Whether products round float32 to 16 bits, which a TPU does for all layers at once."""
        return self.platform == "tpu" and self.item == 4

    @property
    def rounded_weights(self) -> int:
        """The weights of cross-attention, in 16 bits beside the model's own."""
        c = self.config
        return 8 * c.decoder_layers * c.d_model**2 if self.rounds else 0

    @property
    def kept(self) -> int:
        """What each pair keeps while chunks run."""
        sources = {"encoder": (2, 1), "decoder": (1, 2)}[self.grid.stack]
        mel = 4 * self.config.n_mels * self.config.mel_frames
        acts = sources[0] * self.of_encoder + sources[1] * self.of_decoder
        return 2 * self.inputs + mel + self.cross + acts + 2 * self.logits_read

    def chunk(self, chunk: Chunk, utterances: int) -> int:
        """What the patched rows or frames of a chunk take."""
        c, grid = self.config, self.grid
        if grid.stack == "encoder" and chunk.site != "ln_final":
            frames = 6 * self.item * c.max_frames * c.d_model
            if self._holds_scores("encoder"):
                # A processor computes one head after the other.
                heads = 2 if self.platform == "cpu" else c.encoder_heads
                frames += 2 * self.wide * heads * c.max_frames**2
            # The encoder's weights are rounded, too.
            return utterances * chunk.size * frames + 2 * self.rounded_weights
        together = chunk.schedule.together if grid.stack == "decoder" else 1
        rows = utterances * chunk.rows
        row = self.item * (9 * c.d_model // 2)
        # For a window's log-sum-exp, only the TPU's kernel needs no scores.
        if self._holds_scores("decoder") or (grid.stack == "encoder" and self.platform != "tpu"):
            row += (self.wide + self.item) * c.decoder_heads * c.max_frames
        if self.platform != "tpu":
            row += 2 * self.item * c.decoder_d_mlp
        total = together * rows * row
        if self.platform == "gpu":
            # cuDNN takes keys and values in a layout of its own.
            return total + (0 if self._holds_scores("decoder") else utterances * self.cross)
        return total + len(chunk.layers) * rows * self.item * c.d_model

    def logits(self, chunks: Sequence[Chunk], utterances: int) -> int:
        """The logits that are held while a site's chunks are read."""
        rows = chunks[0].size * self.grid.reads * utterances
        rows *= chunks_read_together(len(chunks), rows)
        if self.platform == "tpu":
            rows //= utterances
        return _COPIES_OF_LOGITS[self.platform] * rows * self.config.d_vocab * self.wide

    def _site(self, stack: Stack, site: str) -> int:
        """What a run has at a site."""
        return self._array(*site_shape(self.grid, stack, site))

    def _array(self, *shape: int) -> int:
        size = self.item * math.prod(shape)
        if self.platform != "tpu":
            return size
        # One axis fills whole registers: the compiler chooses the one that needs the least for it.
        return min(size // n * -(-n // _LANES) * _LANES for n in shape)

    def _holds_scores(self, stack: Stack) -> bool:
        heads = self.config.heads(stack)
        d_head = self.config.d_model // heads
        return holds_scores(self.grid.dtype, self.platform, heads, d_head)
